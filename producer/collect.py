"""Results as jobs end, or in the order of the input. Memory does not grow with the answers.

As completed, each result is handed on at once. In input order, `IN_ORDER` results at most are held: the jobs behind
them run meanwhile, and their results wait in Redis until it is their turn to be read.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Final

from promptq.producer.batch import Tally, Tickets, in_chunks
from promptq.producer.console import note
from promptq.producer.entries import CHUNK_JOBS
from promptq.producer.errors import JobNotFound, QueueUnavailable
from promptq.producer.groups import Group
from promptq.producer.models import GroupCounts
from promptq.producer.outputs import Take
from promptq.producer.progress import Progress
from promptq.producer.queue import PromptQueue
from promptq.producer.results import JobResult

WATCHED: Final = 4000
"""Jobs that are waited for at one time. They are taken in their order, which is about the order in which they end."""
IN_ORDER: Final = 250
"""Results that are held at most, until those before them are there."""
REMARK_AFTER: Final = 5.0
_REDIS_PAUSE = 1.0

_Arrived = Callable[[int, JobResult | None], None]
"""Gets the number of an input line and its result; None: it is no longer kept."""


async def collect(
    queue: PromptQueue, tickets: Tickets, take: Take, tally: Tally, progress: Progress, *, in_order: bool = False
) -> None:
    """Hand the result of each ticket to `take`. An outage of Redis is waited for."""
    progress.begin("waiting", len(tickets))

    def arrived(number: int, result: JobResult | None) -> None:
        if result is None:
            tally.gone += 1
            progress.advance()
            return
        used = tally.end(result)
        take(number, result)
        progress.advance(tokens=used.total_tokens)

    async with _remarking(queue, tally):
        await (_in_order if in_order else _as_completed)(queue, tickets, arrived)


async def collect_group(queue: PromptQueue, group: Group, take: Take, tally: Tally, progress: Progress) -> GroupCounts:
    """Hand the result of each job in the group to `take`, as they end; returns how all ended.

    An outage of Redis is waited for. Raises GroupNotFound, or QueueUnavailable if Redis is away at first.
    """
    before = await group.counts()
    tally.jobs, tally.ended_before = before.total, before.ended
    progress.begin("waiting", before.total)
    async with _remarking(queue, tally), aclosing(group.results()) as results:
        async for result in results:
            used = tally.end(result)
            take(None, result)
            progress.advance(tokens=used.total_tokens)
    counts = await group.counts()
    tally.gone = max(0, counts.ended - tally.ended.total())
    return counts


async def _as_completed(queue: PromptQueue, tickets: Tickets, arrived: _Arrived) -> None:
    room = asyncio.Semaphore(WATCHED)

    def make_room(number: int, result: JobResult | None) -> None:
        room.release()
        arrived(number, result)

    try:
        async with asyncio.TaskGroup() as group:
            for some in in_chunks(tickets, CHUNK_JOBS):
                for _ in some:
                    await room.acquire()
                group.create_task(_watch(queue, dict(some), make_room))
    except ExceptionGroup as group_error:
        raise group_error.exceptions[0] from None


async def _in_order(queue: PromptQueue, tickets: Tickets, arrived: _Arrived) -> None:
    for some in in_chunks(tickets, IN_ORDER):
        await _watch(queue, dict(some), _Sorter([number for _, number in some], arrived).add)


class _Sorter:
    """Passes results on in the order of `numbers`, each as soon as those before it have been."""

    def __init__(self, numbers: list[int], arrived: _Arrived) -> None:
        self._due = iter(numbers)
        self._next = next(self._due)
        self._held: dict[int, JobResult | None] = {}
        self._arrived = arrived

    def add(self, number: int, result: JobResult | None) -> None:
        """One more, in any order."""
        self._held[number] = result
        while self._next in self._held:
            self._arrived(self._next, self._held.pop(self._next))
            self._next = next(self._due, 0)


async def _watch(queue: PromptQueue, waiting: dict[str, int], arrived: _Arrived) -> None:
    """Results of a few jobs; None for one whose result's time was over before it was read."""
    while waiting:
        try:
            async for result in queue.as_completed(list(waiting)):
                arrived(waiting.pop(result.id), result)
        except JobNotFound as error:
            arrived(waiting.pop(error.id), None)
        except QueueUnavailable:
            await asyncio.sleep(_REDIS_PAUSE)


@contextlib.asynccontextmanager
async def _remarking(queue: PromptQueue, tally: Tally) -> AsyncIterator[None]:
    hint = asyncio.create_task(_remark(queue, tally))
    try:
        yield
    finally:
        hint.cancel()


async def _remark(queue: PromptQueue, tally: Tally) -> None:
    """Nothing has ended after a while and nothing runs: most likely nobody has started a worker."""
    await asyncio.sleep(REMARK_AFTER)
    try:
        stats = await queue.stats()
    except QueueUnavailable:
        return
    if tally.ended or stats.paused_accounts or any(lane.running or lane.paused_until for lane in stats.lanes):
        return
    if held := next((lane.lane for lane in stats.lanes if lane.paused_by_operator), None):
        note(f"{held} is paused by an operator: `promptq resume {held}` ends that", style="yellow")
    else:
        note("no job is running: start a worker with `promptq worker`", style="yellow")
