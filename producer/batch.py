"""A whole file into the queue: check every line, then enqueue. Memory does not grow with the prompts."""

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, TypeVar

from promptq.producer.console import CommandError, note, one_line
from promptq.producer.entries import CHUNK_JOBS
from promptq.producer.errors import IdConflict, PromptqError
from promptq.producer.inputs import BadLine, PromptLine
from promptq.producer.models import JobStatus
from promptq.producer.outputs import dollars, spent
from promptq.producer.progress import Progress, speed
from promptq.producer.queue import JobHandle, PromptQueue
from promptq.producer.results import JobResult, Usage

T = TypeVar("T")

BAD_LINES_SHOWN: Final = 20
_READ_AT_ONCE: Final = 10
"""Lines that are read in one step of the loop."""

Accept = Callable[[int, JobHandle], None]
"""Gets each accepted job with the number of its input line."""


class Tickets:
    """The accepted jobs in their order: id and number of the input line, at a hundred bytes each."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._numbers = array("Q")

    def add(self, number: int, handle: JobHandle) -> None:
        """One more."""
        self._ids.append(handle.id)
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
    started: float = field(default_factory=time.monotonic)

    @property
    def accepted(self) -> int:
        """Jobs that Redis has."""
        return self.created + self.known

    @property
    def unsuccessful(self) -> int:
        """Jobs that ended without an answer."""
        return self.ended.total() - self.ended[JobStatus.SUCCEEDED] + self.gone

    def end(self, result: JobResult) -> Usage:
        """Count one result; returns what it used, failed attempts included."""
        used = spent(result)
        self.ended[result.status] += 1
        self.usage += used
        return used

    def summary(self) -> str:
        """One line: what was accepted, how it ended, what it cost."""
        return ", ".join([f"{self.created:,} accepted", *self._facts()])

    def ended_summary(self) -> str:
        """One line: how it ended, what it cost."""
        return ", ".join(self._facts())

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints of a run whose results are in a file."""
        return {
            "jobs": self.jobs,
            "created": self.created,
            "known": self.known,
            "skipped": self.skipped,
            **{status.value: self.ended[status] for status in JobStatus if status.is_final},
            "gone": self.gone,
            "usage": self.usage,
            "seconds": round(time.monotonic() - self.started, 3),
        }

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
    queue: PromptQueue, lines: Iterable[PromptLine | BadLine], accept: Accept, tally: Tally, progress: Progress
) -> None:
    """Accept every job that is not there yet, in the order of the lines. Raises PromptqError with how far it came."""
    tally.started = time.monotonic()
    progress.begin("enqueueing", tally.jobs)
    good = (line for line in lines if isinstance(line, PromptLine))
    chunk = await _read(good)
    while chunk:
        handles, following = await asyncio.gather(_send(queue, chunk, tally), _read(good))
        for line, handle in zip(chunk, handles, strict=True):
            accept(line.number, handle)
            tally.created += handle.created
            tally.known += not handle.created
            tally.ended_before += handle.status.is_final
        progress.advance(len(chunk))
        chunk = following
    if tally.accepted != tally.jobs:
        note("the file changed while it was read; run the same command again", style="yellow")


async def _read(lines: Iterator[PromptLine]) -> list[PromptLine]:
    """The next lines for one call; meanwhile Redis works on the last one."""
    chunk: list[PromptLine] = []
    for line in islice(lines, CHUNK_JOBS):
        chunk.append(line)
        if not len(chunk) % _READ_AT_ONCE:
            await asyncio.sleep(0)
    return chunk


async def _send(queue: PromptQueue, chunk: list[PromptLine], tally: Tally) -> list[JobHandle]:
    try:
        return await queue.enqueue_many([line.job for line in chunk])
    except PromptqError as error:
        tally.created += len(error.accepted)
        _locate(error, chunk, tally)
        raise


def _locate(error: PromptqError, chunk: list[PromptLine], tally: Tally) -> None:
    """Say where in the file it happened, and what stands in Redis already."""
    if isinstance(error, IdConflict):
        number = next((line.number for line in chunk if line.job.id == error.id), None)
        error.add_note(f"it stands on line {number}")
    error.add_note(f"{tally.accepted:,} of {tally.jobs:,} jobs are in, the same command goes on from there")


def in_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some
