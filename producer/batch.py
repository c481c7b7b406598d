"""A whole file through the queue: check every line, enqueue, wait. Memory does not grow with prompts or answers."""

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, TypeVar

from promptq.producer.console import CommandError, note, one_line
from promptq.producer.errors import IdConflict, JobNotFound, PromptqError, QueueUnavailable
from promptq.producer.inputs import BadLine, PromptLine
from promptq.producer.models import JobResult, JobStatus, Usage
from promptq.producer.outputs import Take, dollars, spent
from promptq.producer.progress import Progress, speed
from promptq.producer.queue import CHUNK_JOBS, PromptQueue

T = TypeVar("T")

BAD_LINES_SHOWN: Final = 20
WATCHED: Final = 4000
"""Jobs that are waited for at one time. They are taken in their order, which is about the order in which they end."""
REMARK_AFTER: Final = 5.0
_REDIS_PAUSE = 1.0


class Tickets:
    """The accepted jobs in their order: id and number of the input line, at a hundred bytes each."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._numbers = array("Q")

    def add(self, number: int, job_id: str) -> None:
        """One more."""
        self._ids.append(job_id)
        self._numbers.append(number)

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return zip(self._ids, self._numbers, strict=True)


@dataclass
class Tally:
    """What a run has done so far."""

    jobs: int = 0
    skipped: int = 0
    created: int = 0
    known: int = 0
    gone: int = 0
    ended: Counter[JobStatus] = field(default_factory=Counter)
    ended_before: int = 0
    """Of the jobs that were already there, those that had ended."""
    usage: Usage = field(default_factory=Usage)
    started: float = 0.0

    @property
    def accepted(self) -> int:
        """Jobs that Redis has."""
        return self.created + self.known

    @property
    def unsuccessful(self) -> int:
        """Jobs that ended without an answer."""
        return self.ended.total() - self.ended[JobStatus.SUCCEEDED] + self.gone

    def summary(self) -> str:
        """One line: what was accepted, how it ended, what it cost."""
        return ", ".join([f"{self.created:,} accepted", *self._facts()])

    def _facts(self) -> Iterator[str]:
        if self.known:
            yield f"{self.known:,} already there"
        if self.skipped:
            yield f"{self.skipped:,} bad lines left out"
        for status, count in self.ended.items():
            yield f"{count:,} {status}"
        if self.gone:
            yield f"{self.gone:,} no longer kept"
        if self.ended:
            yield f"{self.usage.total_tokens:,} tokens"
        if self.usage.cost_usd is not None:
            yield dollars(self.usage.cost_usd)
        seconds = time.monotonic() - self.started
        yield f"{seconds:.1f} s"
        if moved := self.ended.total() - self.ended_before if self.ended else self.created:
            yield speed(moved, seconds)


def check(lines: Iterable[PromptLine | BadLine], tally: Tally, progress: Progress) -> list[BadLine]:
    """Read and count every line; returns the first of the bad ones."""
    progress.begin("checking")
    bad: list[BadLine] = []
    for line in lines:
        progress.advance()
        if isinstance(line, PromptLine):
            tally.jobs += 1
            continue
        tally.skipped += 1
        if len(bad) < BAD_LINES_SHOWN:
            bad.append(line)
    return bad


def report(bad: Sequence[BadLine], tally: Tally, *, skip_bad: bool) -> None:
    """Tell about bad lines, each by its number. Raises CommandError if they refuse the file, or nothing is left."""
    for line in bad:
        note(f"line {line.number}: {one_line(line.reason)}")
    if tally.skipped > len(bad):
        note(f"... and {tally.skipped - len(bad):,} more")
    if tally.skipped and not skip_bad:
        lines = tally.jobs + tally.skipped
        raise CommandError(
            f"{tally.skipped:,} of {lines:,} lines are bad and nothing was enqueued; correct them, or add --skip-bad"
        )
    if not tally.jobs:
        raise CommandError("no prompts there; a file has one a line")


async def enqueue(
    queue: PromptQueue, lines: Iterable[PromptLine | BadLine], tally: Tally, progress: Progress
) -> Tickets:
    """Accept every job that is not there yet, in the order of the lines. Raises PromptqError with how far it came."""
    tickets = Tickets()
    tally.started = time.monotonic()
    progress.begin("enqueueing", tally.jobs)
    for chunk in _batched((line for line in lines if isinstance(line, PromptLine)), CHUNK_JOBS):
        try:
            handles = await queue.enqueue_many([line.job for line in chunk])
        except PromptqError as error:
            tally.created += len(error.accepted)
            _locate(error, chunk, tally)
            raise
        for line, handle in zip(chunk, handles, strict=True):
            tickets.add(line.number, handle.id)
            tally.created += handle.created
            tally.known += not handle.created
            tally.ended_before += handle.status.is_final
        progress.advance(len(chunk))
    if len(tickets) != tally.jobs:
        note("the file changed while it was read; run the same command again", style="yellow")
    return tickets


def _locate(error: PromptqError, chunk: list[PromptLine], tally: Tally) -> None:
    """Say where in the file it happened, and what stands in Redis already."""
    if isinstance(error, IdConflict):
        number = next((line.number for line in chunk if line.job.id == error.id), None)
        error.add_note(f"it stands on line {number}")
    error.add_note(f"{tally.accepted:,} of {tally.jobs:,} jobs are in, the same command goes on from there")


async def collect(queue: PromptQueue, tickets: Tickets, take: Take, tally: Tally, progress: Progress) -> None:
    """Hand each result to `take` as soon as the job ends. An outage of Redis is waited for."""
    progress.begin("waiting", len(tickets))
    room = asyncio.Semaphore(WATCHED)

    def arrived(number: int, result: JobResult | None) -> None:
        room.release()
        if result is None:
            tally.gone += 1
            progress.advance()
            return
        used = spent(result)
        tally.ended[result.status] += 1
        tally.usage += used
        take(number, result)
        progress.advance(tokens=used.total_tokens)

    hint = asyncio.create_task(_remark(queue, tally))
    try:
        async with asyncio.TaskGroup() as group:
            for some in _batched(tickets, CHUNK_JOBS):
                for _ in some:
                    await room.acquire()
                group.create_task(_watch(queue, dict(some), arrived))
    except ExceptionGroup as group_error:
        raise group_error.exceptions[0] from None
    finally:
        hint.cancel()


async def _remark(queue: PromptQueue, tally: Tally) -> None:
    """Nothing has ended after a while and nothing runs: most likely nobody has started a worker."""
    await asyncio.sleep(REMARK_AFTER)
    try:
        stats = await queue.stats()
    except QueueUnavailable:
        return
    if not tally.ended and not any(lane.running or lane.paused_until for lane in stats.lanes):
        note("no job is running: start a worker with `promptq worker`", style="yellow")


async def _watch(queue: PromptQueue, waiting: dict[str, int], arrived: Callable[[int, JobResult | None], None]) -> None:
    """Results of a few jobs; None for one whose result's time was over before it was read."""
    while waiting:
        try:
            async for result in queue.as_completed(list(waiting)):
                arrived(waiting.pop(result.id), result)
        except JobNotFound as error:
            arrived(waiting.pop(error.id), None)
        except QueueUnavailable:
            await asyncio.sleep(_REDIS_PAUSE)


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some
