"""What the commands share: options of the same meaning, and a connection for one question."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic_core
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from promptq.producer.console import CommandError, say
from promptq.producer.errors import PromptqError
from promptq.producer.outputs import OutputFormat, partial
from promptq.producer.queue import PromptQueue
from promptq.producer.settings import ProducerSettings

T = TypeVar("T")

_PIPE_WIDTH = 200
_COMPLETION_TIMEOUT = 0.3
"""Seconds that a user waits for models after Tab when Redis is away."""

JobId = Annotated[str, typer.Argument(metavar="ID")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, an object a line.")]
Output = Annotated[
    Path | None,
    typer.Option(metavar="OUT.jsonl", help="Wait, and write results here. - is stdout.", show_default=False),
]
ResultsAs = Annotated[
    OutputFormat | None,
    typer.Option("--output-format", help="jsonl: all that is known. openai: Batch output lines.", show_default=False),
]


class Priority(StrEnum):
    """The bands, by their names."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


def ask(
    question: Callable[[PromptQueue], Awaitable[T]], redis_url: str | None, settings: ProducerSettings | None = None
) -> T:
    """Connect, ask, disconnect."""

    async def run() -> T:
        async with _connect(redis_url, settings or ProducerSettings()) as queue:
            return await question(queue)

    return asyncio.run(run())


@asynccontextmanager
async def _connect(redis_url: str | None, settings: ProducerSettings) -> AsyncIterator[PromptQueue]:
    try:
        queue = await PromptQueue.connect(redis_url, settings=settings)
    except ValueError:  # its text may hold a part of the password
        raise CommandError("the Redis URL is none; one looks like redis://user:password@host:6379/0") from None
    async with queue:
        yield queue


def say_json(value: Any) -> None:
    """One line of JSON on stdout."""
    say(pydantic_core.to_json(value).decode())


def show_table(table: Table) -> None:
    """A table on stdout."""
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


def interrupted(output: Path | None, results: int) -> str:
    """What to say to whoever stops waiting."""
    going_on = "interrupted; the jobs go on, and the same command goes on waiting"
    if output is not None and partial(output).exists():
        return f"{going_on} ({results:,} results so far: {partial(output)})"
    return going_on


def known_models(incomplete: str) -> list[str]:
    """For shell completion: the default model, and those that have limits or jobs, or were used in the last day."""
    try:
        settings = ProducerSettings().model_copy(update={"redis_timeout": _COMPLETION_TIMEOUT})
        names = {settings.default_model, *_models(settings)}
    except ValidationError:  # a wrong setting, which the command itself tells
        return []
    return sorted(name for name in names if name.startswith(incomplete))


def _models(settings: ProducerSettings) -> set[str]:
    try:
        return {each.model for each in ask(PromptQueue.limits, None, settings)}
    except (PromptqError, CommandError):
        return set()


Model = Annotated[str, typer.Argument(metavar="MODEL", autocompletion=known_models)]
