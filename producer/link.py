"""What a PromptQueue and its groups share: the connection, its settings, how long a call may try, and how one waits."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

from redis.asyncio import Redis

from promptq.producer import reading
from promptq.producer.connection import close_redis, public_url, try_until
from promptq.producer.errors import QueueUnavailable, WaitTimeout
from promptq.producer.results import JobResult
from promptq.producer.settings import ProducerSettings
from promptq.producer.streams import Streams
from promptq.producer.watch import Watcher

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

READ_AT_ONCE = 200
_SHORTEST_LOOK = 0.1


class Awaited(Protocol[T_co]):
    """Something that ends: some jobs, a group, or the events of a job."""

    @property
    def channels(self) -> Iterable[str]:
        """Where it is told that there is something to look for."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether all has ended and was handed out."""
        ...

    @property
    def has_more(self) -> bool:
        """Whether the next look need not wait for a signal."""
        ...

    async def look(self, heard: frozenset[str], within: float) -> Sequence[T_co]:
        """What has come since the last look, in `within` seconds. Raises JobNotFound, GroupNotFound."""
        ...

    def too_late(self, timeout: float) -> WaitTimeout:
        """What to raise when it is not over in time."""
        ...


class Link:
    """One connection to the queue. Its calls may be sent twice."""

    def __init__(self, redis: Redis, settings: ProducerSettings) -> None:
        self.redis, self.settings = redis, settings
        self.watcher = Watcher(redis)
        self.streams = Streams(redis, self.call)
        self._where = public_url(settings.redis_url.get_secret_value())
        self._is_closed = False

    async def call(self, call: Callable[[], Awaitable[T]], within: float | None = None) -> T:
        """Call Redis, through an outage too, for `within` seconds at most; None: the settings' timeout.

        Raises QueueUnavailable, QueueFull.
        """

        async def unless_closed() -> T:
            if self._is_closed:
                raise QueueUnavailable("this PromptQueue was closed; connect again")
            return await call()

        try:
            return await try_until(
                self.settings.redis_timeout if within is None else within, unless_closed, self._where
            )
        finally:
            if self._is_closed:
                await close_redis(self.redis)  # it may have been connecting while all connections were closed

    async def results(self, ids: Iterable[str], within: float | None = None) -> dict[str, JobResult | None]:
        """Results by id; None for jobs that have not ended. `within`: seconds for each `READ_AT_ONCE` of them."""
        found: dict[str, JobResult | None] = {}
        remaining = iter(ids)
        while some := list(islice(remaining, READ_AT_ONCE)):
            found |= await self.call(partial(reading.read_results, self.redis, some), within)
        return found

    async def follow(self, awaited: Awaited[T], timeout: float | None) -> AsyncGenerator[T, None]:
        """What it sees, as it comes, until all is over; it looks again only when all of that was taken.

        A Redis that goes away meanwhile is waited for. Raises what `look` does, WaitTimeout after `timeout` seconds, or
        QueueUnavailable if Redis is away at first.
        """
        has_looked, is_last, is_away = False, False, False
        clock, patience = asyncio.get_running_loop().time, self.settings.redis_timeout
        began = clock()
        async with self.watcher.watching(awaited.channels) as signals:
            while not awaited.is_over:
                if is_last and timeout is not None:
                    raise awaited.too_late(timeout)
                try:
                    heard = signals.channels
                    if is_away or not awaited.has_more:
                        async with asyncio.timeout_at(None if timeout is None else began + timeout):
                            heard = await signals.next(None if has_looked else patience / 2)
                except TimeoutError:
                    heard, is_last = signals.channels, True  # what ended in time is not withheld
                try:
                    left = patience if has_looked else began + patience - clock()
                    found = await awaited.look(heard, max(left, _SHORTEST_LOOK))
                except QueueUnavailable:
                    if not has_looked:
                        raise
                    is_away = True
                    continue
                has_looked, is_away = True, False
                for each in found:
                    yield each

    async def aclose(self) -> None:
        """Close all connections."""
        self._is_closed = True
        await self.watcher.aclose()
        await self.streams.aclose()
        await close_redis(self.redis)
