"""`Group`: the jobs that were enqueued under one name, counted and read together. Made by `PromptQueue.group`.

Every script that moves a job moves its group's counters too, so nothing here looks at each job.
"""

from collections.abc import AsyncGenerator
from functools import partial

from promptq.producer import keys, reading, scripts
from promptq.producer.errors import WaitTimeout
from promptq.producer.link import READ_AT_ONCE, Link
from promptq.producer.models import GroupCounts
from promptq.producer.results import JobResult

_SCANNED_AT_ONCE = 100
_CANCELLED_AT_ONCE = 100


class Group:
    """A name under which jobs were enqueued. Kept as long as the last of its results."""

    def __init__(self, name: str, link: Link) -> None:
        self.name = name
        self._link = link

    async def counts(self) -> GroupCounts:
        """How many of its jobs are where. Raises GroupNotFound."""
        return await self._link.call(partial(reading.read_group, self._link.redis, self.name))

    def results(self, timeout: float | None = None) -> AsyncGenerator[JobResult, None]:
        """Results in the order in which its jobs ended, until all have; those of jobs that ended before come first.

        Results whose time is over are left out. `timeout` in seconds for all of them.
        Raises GroupNotFound, WaitTimeout (the jobs go on), or QueueUnavailable if Redis is away when it begins.
        """
        return self._link.follow(_Members(self.name, self._link), timeout)

    async def cancel(self) -> int:
        """Cancel all that has not ended; returns how many jobs that were. Raises GroupNotFound."""
        await self.counts()
        told: set[str] = set()
        cursor = None
        while cursor != 0:
            cursor, ids = await self._link.call(
                partial(reading.read_open, self._link.redis, self.name, cursor or 0, _SCANNED_AT_ONCE)
            )
            for start in range(0, len(ids), _CANCELLED_AT_ONCE):
                told.update(await self._cancel(ids[start : start + _CANCELLED_AT_ONCE]))
        return len(told)

    async def _cancel(self, ids: list[str]) -> list[str]:
        """Those that had not ended."""
        ttl = self._link.settings.result_ttl_ms
        said = await self._link.call(partial(scripts.cancel, self._link.redis, ids, ttl=ttl))
        return [job_id for job_id, word in zip(ids, said, strict=True) if word in {"cancelled", "cancelling"}]

    def __repr__(self) -> str:
        return f"Group({self.name!r})"


class _Members:
    """A group whose results are waited for: each look reads on from where the last one stopped."""

    def __init__(self, name: str, link: Link) -> None:
        self._name, self._link = name, link
        self._place = 0
        self.channels = (keys.group_done(name),)
        self.is_over = self.has_more = False

    async def look(self, _: frozenset[str], within: float) -> list[JobResult]:
        """As Awaited.look."""
        read = partial(reading.read_ended, self._link.redis, self._name, self._place, READ_AT_ONCE)
        counts, ids, place = await self._link.call(read, within)
        found = await self._link.results(ids, within)
        self._place = place  # not before: if Redis goes away between the two, the next look reads these again
        self.has_more = len(ids) == READ_AT_ONCE
        self.is_over = not (counts.open or self.has_more)
        return [result for job_id in ids if (result := found.get(job_id))]

    def too_late(self, timeout: float) -> WaitTimeout:
        """As Awaited.too_late."""
        return WaitTimeout(f"group {self._name!r} has not ended after {timeout} s; wait again or cancel")
