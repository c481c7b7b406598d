"""What all commands share, the worker's too: exit codes, errors in one line, and where text goes.

Answers go to stdout; everything about them (progress, counts, errors) to stderr.
"""

import functools
import io
import re
import sys
from enum import IntEnum
from typing import Annotated, Any, Final

import typer
from pydantic import ValidationError
from rich.console import Console
from typer.core import TyperGroup

from promptq.producer.errors import (
    GroupNotFound,
    InvalidPayload,
    JobFailed,
    JobNotFound,
    PromptqError,
    QueueFull,
    QueueUnavailable,
    WaitTimeout,
)


class ExitCode(IntEnum):
    """How a command ends."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    NOT_FOUND = 4
    TIMEOUT = 5
    INTERRUPTED = 130


EXIT_CODES: Final = (
    "Exit codes: 0 done, 1 a job failed or `doctor` found a problem, 2 wrong usage or bad input, 3 Redis away or full, "
    "4 no such job or group, 5 no result in time, 130 interrupted."
)

RedisUrl = Annotated[
    str | None,
    typer.Option("--redis-url", metavar="URL", help="Instead of PROMPTQ_REDIS_URL or REDIS_URL.", show_default=False),
]


_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but for tab and new line: what could steer a terminal."""


class CommandError(Exception):
    """A command refuses or gives up. The message says in one line what is wrong and what to do."""

    def __init__(self, message: str, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.code = code


_CODES: Final[tuple[tuple[type[PromptqError], ExitCode], ...]] = (
    (JobNotFound, ExitCode.NOT_FOUND),
    (GroupNotFound, ExitCode.NOT_FOUND),
    (WaitTimeout, ExitCode.TIMEOUT),
    (QueueUnavailable, ExitCode.UNAVAILABLE),
    (QueueFull, ExitCode.UNAVAILABLE),
    (JobFailed, ExitCode.FAILED),
    (InvalidPayload, ExitCode.FAILED),
    (PromptqError, ExitCode.USAGE),
)
_EXTRAS: Final = dict.fromkeys(("arq", "grpc", "xai_sdk", "google"), "worker") | {"openai": "worker,openai"}
"""Which one brings a library of the worker."""
_NEXT_STEPS: Final[dict[type[PromptqError], str]] = {
    JobNotFound: "`promptq status` shows what waits and runs",
    QueueUnavailable: "--redis-url or PROMPTQ_REDIS_URL says where it is",
}


def explain(error: BaseException) -> tuple[ExitCode, str] | None:  # noqa: PLR0911 - one line a kind of error
    """The exit code and the line for an error that a user can do something about; None for a bug."""
    notes = getattr(error, "__notes__", ())
    match error:
        case CommandError():
            return error.code, str(error)
        case PromptqError():
            kind, code = next((kind, code) for kind, code in _CODES if isinstance(error, kind))
            steps = [_NEXT_STEPS[kind]] if kind in _NEXT_STEPS else []
            return code, "; ".join((str(error), *notes, *steps))
        case ValidationError():
            return ExitCode.USAGE, _setting(error)
        case OSError():
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            return ExitCode.USAGE, "; ".join((what, *notes))
        case ModuleNotFoundError() if extra := _EXTRAS.get((error.name or "").partition(".")[0]):
            return ExitCode.USAGE, f"{error.name} is not installed; the worker needs pip install 'promptq[{extra}]'"
        case UnicodeError():
            return ExitCode.USAGE, "an argument is not UTF-8"
        case KeyboardInterrupt():
            return ExitCode.INTERRUPTED, "interrupted"
    return None


def _setting(error: ValidationError) -> str:
    """The first wrong setting by its variable's name, without its value."""
    variable, reason = wrong_settings(error)[0]
    return f"{variable}: {reason}; correct it in the environment" if variable else reason


def wrong_settings(error: ValidationError) -> list[tuple[str, str]]:
    """Each wrong setting's variable ("" if only several together are wrong) and why, without its value."""
    wrong = error.errors(include_url=False, include_input=False, include_context=False)
    return [(_variable(each["loc"]), _reason(each["loc"], each["msg"])) for each in wrong]


def _variable(location: tuple[int | str, ...]) -> str:
    if not location:
        return ""
    name = str(location[0]).upper()
    return name if name == "REDIS_URL" or name.startswith(("PROMPTQ_", "XAI_API_KEY")) else f"PROMPTQ_{name}"


def _reason(location: tuple[int | str, ...], message: str) -> str:
    """Where in a variable of several values, and what is wrong."""
    inside = ".".join(str(part) for part in location[1:] if part != "[key]")
    reason = message.removeprefix("Value error, ")
    return f"{inside}: {reason}" if inside else reason


class OneLineErrors(TyperGroup):
    """A typer app with `cls=OneLineErrors` ends every command's errors as one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        _write_any_text()
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader of a pipe has left: typer ends without a word
        except (Exception, KeyboardInterrupt) as error:
            explained = explain(error)
            if explained is None:
                raise
            code, line = explained
            note(f"promptq: {one_line(line)}", style="red")
            raise typer.Exit(code) from None


def _write_any_text() -> None:
    """Answers are UTF-8 in a file or a pipe, whatever the locale; a terminal gets what it can show."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding=None if sys.stdout.isatty() else "utf-8", errors="replace")


@functools.cache
def stderr() -> Console:
    """The console for everything that is not an answer: one, so that lines and a bar know of each other."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)


def note(text: str, style: str | None = None) -> None:
    """One line on stderr."""
    stderr().print(text, style=style)


def say(text: str) -> None:
    """Text on stdout exactly as it is, to the end of a line; on a terminal without what would steer it."""
    write(text if text.endswith("\n") else f"{text}\n")


def write(text: str) -> None:
    """As `say`, a part of a line."""
    sys.stdout.write(_CONTROL.sub("", text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def one_line(text: str) -> str:
    """A text of others, fit to stand in one line of ours."""
    return _CONTROL.sub("?", " ".join(text.split()))
