"""The producer's commands: enqueue, result, status, cancel. `promptq.worker.cli` mounts them beside its own."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic_core
import typer

from promptq.producer import batch
from promptq.producer.console import EXIT_CODES, CommandError, ExitCode, OneLineErrors, RedisUrl, note, say, stderr
from promptq.producer.entries import job_of
from promptq.producer.errors import InvalidJob, JobNotFound, WaitTimeout
from promptq.producer.inputs import open_prompts
from promptq.producer.models import JobResult, JobStatus
from promptq.producer.outputs import described, failure, open_output, partial, refuse_overwriting, show_lanes
from promptq.producer.progress import showing
from promptq.producer.queue import PromptQueue
from promptq.producer.settings import ProducerSettings

T = TypeVar("T")

app = typer.Typer(
    cls=OneLineErrors,
    help="A durable prompt queue for the xAI API.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_IDS_ON_A_SCREEN = 20

_File = Annotated[Path, typer.Argument(metavar="FILE", help="Prompts, one a line: text, or JSON. - is stdin.")]
_Output = Annotated[
    Path | None, typer.Option(metavar="OUT.jsonl", help="Wait, and write results here as JSON lines. - is stdout.")
]
_JobId = Annotated[str, typer.Argument(metavar="ID")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class Priority(StrEnum):
    """The bands, by their names."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@app.command()
def enqueue(
    file: _File,
    *,
    field: Annotated[str | None, typer.Option(help="Take the prompt from this field of a JSON line.")] = None,
    model: Annotated[str | None, typer.Option(help="For all lines. Otherwise PROMPTQ_DEFAULT_MODEL.")] = None,
    priority: Annotated[Priority | None, typer.Option(help="For all lines. Otherwise normal.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose jobs these are; tenants take turns.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The most that an answer may have.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answers and print them.")] = False,
    output: _Output = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad lines out.")] = False,
    redis_url: RedisUrl = None,
) -> None:
    """Enqueue the prompts of a file and print their ids, or with --wait their answers.

    A JSON line has prompt or messages, and any option of a job: id, model, max_tokens, metadata, ...
    A bad line refuses the whole file, unless --skip-bad is given.
    The same file again runs nothing again: it finds its jobs, and their answers.
    """
    settings = ProducerSettings()
    options = {"model": model, "priority": priority and priority.value, "tenant": tenant, "max_tokens": max_tokens}
    _check_options(options)
    if output is not None:
        refuse_overwriting(file, output)
    tally = batch.Tally()
    with open_prompts(file, settings, field=field, options=options) as prompts:
        with showing(stderr()) as progress:
            bad = batch.check(prompts, tally, progress)
        batch.report(bad, tally, skip_bad=skip_bad)

        async def enqueue_only(queue: PromptQueue) -> None:
            with showing(stderr()) as progress:
                tickets = await batch.enqueue(queue, prompts, tally, progress)
            _print_ids(tickets)

        async def enqueue_and_wait(queue: PromptQueue) -> None:
            with open_output(output) as take, showing(stderr()) as progress:
                tickets = await batch.enqueue(queue, prompts, tally, progress)
                await batch.collect(queue, tickets, take, tally, progress)

        try:
            _ask(enqueue_and_wait if wait or output else enqueue_only, redis_url, settings)
        except KeyboardInterrupt:
            raise CommandError(_interrupted(tally, output), ExitCode.INTERRUPTED) from None
    note(f"{tally.summary()}; results in {output}" if output else tally.summary(), style="bold")
    if tally.unsuccessful:
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def result(
    job_id: _JobId,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the job to end.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0, help="Wait so many seconds at most.")] = None,
    as_json: _AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Print the answer of a job; with --json everything that is known about it."""

    async def read(queue: PromptQueue) -> JobResult:
        if wait or timeout is not None:
            return await queue.wait(job_id, timeout)
        found = await queue.result(job_id)
        if found is None:
            state = await queue.status(job_id)
            raise CommandError(f"job {job_id} is {state}; --wait waits for it", ExitCode.TIMEOUT)
        return found

    try:
        found = _ask(read, redis_url)
    except WaitTimeout:
        line = f"no result within {timeout:g} s; the job goes on, ask again later"
        raise CommandError(line, ExitCode.TIMEOUT) from None
    except KeyboardInterrupt:
        raise CommandError("interrupted; the job goes on, ask again later", ExitCode.INTERRUPTED) from None
    succeeded = found.status is JobStatus.SUCCEEDED
    if as_json:
        say(found.model_dump_json())
    elif succeeded:
        say(found.content)
        note(described(found), style="dim")
    if not succeeded:
        raise CommandError(f"job {job_id} {found.status}: {failure(found)}", ExitCode.FAILED)


@app.command()
def status(
    job_id: Annotated[str | None, typer.Argument(metavar="ID")] = None,
    *,
    as_json: _AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Say where a job is; without an ID what waits and runs, model by model."""
    if job_id is not None:
        state = _ask(lambda queue: queue.status(job_id), redis_url)
        say(pydantic_core.to_json({"id": job_id, "status": state}).decode() if as_json else state)
        return
    stats = _ask(PromptQueue.stats, redis_url)
    if as_json:
        say(stats.model_dump_json())
    else:
        show_lanes(stats, datetime.now(UTC))


@app.command()
def cancel(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID")],
    *,
    redis_url: RedisUrl = None,
) -> None:
    """Cancel jobs: queued ones at once, running ones within seconds."""
    unknown = _ask(lambda queue: _cancel_all(queue, job_ids), redis_url)
    if unknown:
        raise JobNotFound(", ".join(unknown))


async def _cancel_all(queue: PromptQueue, job_ids: list[str]) -> list[str]:
    """Cancel what there is to cancel and tell; the ids of no job are returned."""
    unknown: list[str] = []
    for job_id in job_ids:
        try:
            has_effect, state = await queue.cancel(job_id), await queue.status(job_id)
        except JobNotFound:
            unknown.append(job_id)
            continue
        happened = "cancelling" if state is JobStatus.RUNNING else state if has_effect else f"had {state} before"
        say(f"{job_id} {happened}")
    return unknown


def _ask(
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


def _check_options(options: Mapping[str, Any]) -> None:
    """Tell about a wrong option once, not at every line."""
    try:
        job_of("a prompt", options)
    except InvalidJob as error:
        raise CommandError(f"--{error.field.replace('_', '-')}: {error.reason}") from None


def _print_ids(tickets: batch.Tickets) -> None:
    if sys.stdout.isatty() and len(tickets) > _IDS_ON_A_SCREEN:
        note(f"{len(tickets):,} ids: redirect stdout to have them, or --wait for the answers", style="dim")
        return
    for job_id, _ in tickets:
        say(job_id)


def _interrupted(tally: batch.Tally, output: Path | None) -> str:
    if tally.accepted < tally.jobs:
        return f"interrupted; {tally.accepted:,} of {tally.jobs:,} jobs are in; the same command enqueues the rest"
    going_on = "interrupted; the jobs go on, and the same command goes on waiting"
    if output is not None and partial(output).exists():
        return f"{going_on} ({tally.ended.total():,} results so far: {partial(output)})"
    return going_on


if __name__ == "__main__":
    app(prog_name="promptq")
