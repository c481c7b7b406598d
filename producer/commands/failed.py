"""`promptq failed`: the failed jobs that are still kept; `promptq requeue`: run them again."""

import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from promptq.producer.commands import holding
from promptq.producer.commands.asking import AsJson, ask, known_models, say_json
from promptq.producer.console import CommandError, RedisUrl, note, say
from promptq.producer.errors import ErrorCode, JobNotFound
from promptq.producer.models import JobStatus
from promptq.producer.outputs import cut, failure
from promptq.producer.queue import PromptQueue
from promptq.producer.results import JobResult

_AT_ONCE = 100

Code = Annotated[ErrorCode | None, typer.Option(help="Those that failed so alone.", show_default=False)]
OfModel = Annotated[
    str | None, typer.Option(help="Those of this model alone.", autocompletion=known_models, show_default=False)
]


def failed(*, code: Code = None, model: OfModel = None, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """List the failed jobs that are still kept, oldest first: id, when, model, attempts, and why."""

    async def show(queue: PromptQueue) -> int:
        count = 0
        async for result in queue.failed(code=code, model=model):
            say(result.model_dump_json() if as_json else _line(result))
            count += 1
        return count

    count = ask(show, redis_url)
    if not as_json:
        note(f"{count:,} failed; `promptq requeue` runs them again" if count else "no failed job is kept", style="dim")


def _line(result: JobResult) -> str:
    """One line, cut to the width of a terminal."""
    now = datetime.now(UTC)
    when = holding.clock(result.finished_at, now) if result.finished_at else ""
    attempts = f"{len(result.attempts)} attempt{'' if len(result.attempts) == 1 else 's'}"
    line = "  ".join((result.id, when, result.model, attempts, failure(result)))
    return cut(Text(line)) if sys.stdout.isatty() else line


def requeue(
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...")] = None,
    *,
    code: Code = None,
    model: OfModel = None,
    every: Annotated[bool, typer.Option("--all", help="All that have failed and are still kept.")] = False,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Run failed jobs again: those with these ids, or those with this error, of this model, or all.

    They get all their attempts anew; what was made before stays on their results.
    """
    is_search = every or code is not None or model is not None
    if bool(job_ids) == is_search:
        raise CommandError("give ids, or --code, --model or --all")
    if job_ids:
        unknown = ask(lambda queue: _requeue_these(queue, job_ids, as_json=as_json), redis_url)
        if unknown:
            raise JobNotFound(", ".join(unknown))
        return
    count = ask(lambda queue: _requeue_found(queue, code, model, as_json=as_json), redis_url)
    note(f"{count:,} requeued" if count else "no such failed job is kept", style="bold")


async def _requeue_these(queue: PromptQueue, job_ids: list[str], *, as_json: bool) -> list[str]:
    """Requeue what there is to requeue and tell; the ids of no job are returned."""
    try:
        requeued = set(await queue.requeue(*job_ids))
    except JobNotFound as error:
        requeued = set(error.accepted)
    unknown: list[str] = []
    for job_id in dict.fromkeys(job_ids):
        state: JobStatus | None = None
        try:
            state = await queue.status(job_id)
        except JobNotFound:
            unknown.append(job_id)
        if as_json or state:
            _tell(job_id, state, was_requeued=job_id in requeued, as_json=as_json)
    return unknown


async def _requeue_found(queue: PromptQueue, code: ErrorCode | None, model: str | None, *, as_json: bool) -> int:
    count = 0
    async for some in _found(queue, code, model):
        for job_id in await queue.requeue(*some):
            count += 1
            _tell(job_id, JobStatus.QUEUED, was_requeued=True, as_json=as_json)
    return count


async def _found(queue: PromptQueue, code: ErrorCode | None, model: str | None) -> AsyncIterator[list[str]]:
    """Their ids, so many at once."""
    some: list[str] = []
    async for result in queue.failed(code=code, model=model):
        some.append(result.id)
        if len(some) == _AT_ONCE:
            yield some
            some = []
    if some:
        yield some


def _tell(job_id: str, state: JobStatus | None, *, was_requeued: bool, as_json: bool) -> None:
    if as_json:
        say_json({"id": job_id, "status": state, "requeued": was_requeued})
    elif was_requeued:
        say(f"{job_id} requeued")
    elif state is JobStatus.FAILED:
        say(f"{job_id} cannot run again: its prompt is gone")
    else:
        say(f"{job_id} {'has' if state and state.is_final else 'is'} {state}: only a failed job is requeued")
