import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import COMMAND, Run

pytest_plugins = ["command_fixture"]
pytestmark = pytest.mark.producer


def completed(typed: str, shell: str = "bash") -> list[str]:
    """What Tab offers behind the words, asked as the shell's function asks."""
    words = typed.split(" ")
    asking = {
        "_PROMPTQ_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": typed,
    }
    return subprocess.check_output(COMMAND, env=os.environ | asking, text=True).split()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("promptq gr", ["group"]),
        ("promptq enqueue p.txt --priority ", ["high", "normal", "low"]),
        ("promptq enqueue p.txt --format o", ["openai"]),
        ("promptq enqueue p.txt --order i", ["input"]),
        ("promptq group run-42 --out", ["--output", "--output-format"]),
        ("promptq limits s", ["set"]),
        ("promptq requeue --code model", ["model_not_found"]),
    ],
)
def test_bash_completes_commands_options_and_values(typed: str, offered: list[str]) -> None:
    """By their beginnings."""
    assert completed(typed) == offered


def test_zsh_completes_too() -> None:
    """In the words of its own."""
    offered = completed("promptq enqueue p.txt --priority ", "zsh")
    assert "".join(offered) == """_arguments'*::(("high""normal""low"))'"""


async def test_models_are_those_in_use_and_the_default(promptq: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked from Redis; where it is away the default is left, and nothing is written over the user's line."""
    await promptq("enqueue", "-", "--model", "grok-3", stdin="one\n")
    await promptq("limits", "set", "grok-2", "--rpm", "1")
    for typed in ("enqueue p.txt --model", "pause", "resume", "limits set", "limits unset", "failed --model"):
        assert completed(f"promptq {typed} gr") == ["grok-2", "grok-3", "grok-4"]
    monkeypatch.setenv("PROMPTQ_REDIS_URL", "redis://127.0.0.1:1")
    assert completed("promptq enqueue p.txt --model gr") == ["grok-4"]
    monkeypatch.setenv("PROMPTQ_DEFAULT_MODEL", " ")
    assert completed("promptq enqueue p.txt --model gr") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell(shell: str) -> None:
    """It asks the command by its own name."""
    script = subprocess.check_output(COMMAND, env=os.environ | {"_PROMPTQ_COMPLETE": f"source_{shell}"}, text=True)
    assert "_PROMPTQ_COMPLETE=complete_" in script


def test_the_installed_command_shows_it() -> None:
    """`promptq --show-completion` in bash."""
    command = Path(sys.executable).parent / "promptq"
    shell = ["bash", "-c", '"$0" --show-completion; true', str(command)]
    assert "complete -o default -F _promptq_completion promptq" in subprocess.check_output(shell, text=True)
