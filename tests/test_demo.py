"""The first minute, as a newcomer runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path


def demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`promptq demo` to its end, without a terminal."""
    command = [sys.executable, "-c", "from promptq.worker.cli import main; main()", "demo", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False
    )


def test_a_file_goes_through_everything(tmp_path: Path) -> None:
    """Each prompt of the file gets an answer that says it is simulated; usage is summed; both workers took part.

    A Redis in the environment is not touched: nothing listens at that address.
    """
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is {n} and {n}?"}) + "\n" for n in range(20)))
    done = demo(str(prompts), PROMPTQ_REDIS_URL="redis://127.0.0.1:1", PROMPTQ_PROVIDER="echo")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("✓") == done.stdout.count("[simulated]") == 20
    assert "20 succeeded" in done.stdout
    assert "tokens, $" in done.stdout


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    """A bad line by its number; a live run without a key."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Hello"}\n{"prompt": 5}\n')
    for done, said in (
        (demo(str(prompts)), "line 2"),
        (demo("--live", XAI_API_KEY="", XAI_API_KEY_FILE=""), "set XAI_API_KEY"),
    ):
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
