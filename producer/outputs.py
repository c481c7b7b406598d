"""Where results go, and as what: JSON lines or OpenAI's Batch lines for a file or a pipe, short lines for a person."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import IO, Final

from rich.console import Console
from rich.text import Text

from promptq.producer import openai_batch
from promptq.producer.console import CommandError, one_line, say
from promptq.producer.models import JobStatus
from promptq.producer.results import JobResult, Usage

STDOUT: Final = Path("-")

Take = Callable[[int | None, JobResult], None]
"""Gets each result with the number of its input line, if it has one, as soon as there is one."""


class OutputFormat(StrEnum):
    """As what results are written."""

    JSONL = "jsonl"
    OPENAI = "openai"


def json_line(number: int | None, result: JobResult) -> str:
    """The whole result as one line of JSON, with the number of its input line."""
    text = result.model_dump_json()
    return f"{text}\n" if number is None else f'{{"line":{number},{text[1:]}\n'


@contextlib.contextmanager
def open_output(
    path: Path | None, output_format: OutputFormat = OutputFormat.JSONL, *, for_people: bool = True
) -> Iterator[Take]:
    """Where results go: lines of that format to a file or a pipe; for people, short lines to a terminal.

    Raises OSError, or CommandError if another run writes the file.
    """
    line = json_line if output_format is OutputFormat.JSONL else _openai_line
    if path is not None and path != STDOUT:
        with _whole_file(path) as file:
            yield lambda number, result: _write(file, line(number, result))
    elif path is None and for_people and sys.stdout.isatty():
        yield show
    else:
        yield lambda number, result: say(line(number, result))


def _openai_line(_: int | None, result: JobResult) -> str:
    return openai_batch.output_line(result)


def partial(path: Path) -> Path:
    """Where results gather until the file is whole: beside it, also when `path` is a link to it."""
    path = path.resolve() if path.is_symlink() else path
    return path.with_name(f"{path.name}.part")


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[IO[str]]:
    """A file that takes its name when all of it is there.

    A run that is interrupted, or killed, leaves the results it had beside it, and an older file as it was: Redis keeps
    the results, so running the command again makes the file whole.
    """
    if path.exists() and not path.is_file():  # a device or a pipe cannot be replaced
        with _opened(path) as file:
            yield file
        return
    part = partial(path)
    with _opened(part) as file:
        _take_alone(file, part)
        try:
            yield file
            os.fsync(file.fileno())
        except BaseException:
            if not file.tell():
                part.unlink()
            raise
    part.replace(part.with_suffix(""))


def _opened(path: Path) -> IO[str]:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        error.add_note("--output takes a file in a folder that can be written to, or - for stdout")
        raise


def _take_alone(file: IO[str], part: Path) -> None:
    """Empty the file, unless another run writes it, or has just given it its name. Raises CommandError."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat())
    except BlockingIOError:
        is_ours = False
    if not is_ours:
        raise CommandError(f"another run is writing {part}; wait for it, or name another file")
    file.truncate(0)


def _write(file: IO[str], line: str) -> None:
    file.write(line)
    file.flush()


def show(number: int | None, result: JobResult) -> None:
    """One line for a person, cut to the width of the terminal."""
    line = Text("" if number is None else f"{number:>4}  ", style="dim").append(f"{result.id}  ")
    if result.status is JobStatus.SUCCEEDED:
        line.append(one_line(result.content), style="not dim")
    else:
        line.append(failure(result), style="not dim red")
    sys.stdout.write(cut(line))  # which a bar redirects, so that it stays below


def cut(line: Text) -> str:
    """What fits on one line of the terminal."""
    screen = Console(highlight=False)
    with screen.capture() as captured:
        screen.print(line, no_wrap=True, overflow="ellipsis", crop=True)
    return captured.get()


def failure(result: JobResult) -> str:
    """Why there is no answer, in one line."""
    error = result.error
    return f"{error.code}: {one_line(error.message)}" if error else str(result.status)


def described(result: JobResult) -> str:
    """What a person wants to know beside the answer: model, tokens, cost, time, and whether something is missing."""
    usage = result.usage
    facts = [result.model, f"{usage.prompt_tokens:,} + {usage.completion_tokens:,} tokens"]
    if usage.reasoning_tokens:
        facts.append(f"{usage.reasoning_tokens:,} of reasoning")
    if usage.cost_usd is not None:
        facts.append(dollars(usage.cost_usd))
    if result.started_at and result.finished_at:
        facts.append(f"{(result.finished_at - result.started_at).total_seconds():,.2f} s")
    if result.finish_reason not in (None, "stop"):
        facts.append(f"ended by {result.finish_reason}")
    if result.tool_calls:
        facts.append(f"{len(result.tool_calls)} tool calls (--json shows them)")
    return ", ".join(filter(None, facts))


def spent(result: JobResult) -> Usage:
    """The usage of all attempts: failed ones cost, too."""
    used = [attempt.usage for attempt in result.attempts if attempt.usage]
    return sum(used, Usage()) if used else result.usage


def dollars(cost: Decimal) -> str:
    """Four digits after the point, more for less than a cent."""
    return f"${cost:,.4f}" if cost >= Decimal("0.01") or not cost else f"${cost.normalize():f}"


def refuse_overwriting(source: Path, output: Path) -> None:
    """Raises CommandError if the results would replace the prompts."""
    for written in (output, partial(output)):
        if source.exists() and written.exists() and source.samefile(written):
            raise CommandError(f"{written} holds the prompts; name another file for the results")
