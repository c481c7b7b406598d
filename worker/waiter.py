"""Waiting for work without polling: one task that blocks on the wake-up markers, on a connection of its own.

The task is never cancelled while it waits, since a cancelled `BZPOPMIN` may have eaten a marker already; to change what
it waits for, or to end it, it is woken by a marker of its own.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError

from promptq.producer import keys

BLOCK_SECONDS = 5
_PAUSE_AFTER_ERROR = 0.5
_LOOK_ANEW = "look"
_MARKER_TTL = 60


class Waiter:
    """Blocks for the lanes that it is told; says `on_work` or `on_word` (this worker is to renew) when woken."""

    def __init__(
        self,
        redis: Redis,
        name: str,
        *,
        on_work: Callable[[], None],
        on_word: Callable[[], None],
        on_error: Callable[[BaseException], None],
        calls: Redis | None = None,
    ) -> None:
        self._redis = redis
        self._calls = calls or redis
        """For what does not block: with the short timeout that the engine's step bears."""
        self._own = keys.wake(name)
        self._on_work, self._on_word, self._on_error = on_work, on_word, on_error
        self._wanted: tuple[str, ...] = ()
        self._blocked_on: tuple[str, ...] | None = None
        self._heeded: set[tuple[str, str]] = set()
        self._ended = False

    def wait_for(self, lanes: Sequence[str], *, new_ones: bool) -> bool:
        """Which lanes to wait for from now on; none while there is no free slot.

        Returns whether the task must be woken to take notice: then `await look_anew()`.
        """
        wanted = tuple(keys.wake(lane) for lane in lanes)
        self._wanted = (*wanted, keys.WAKE) if new_ones else wanted
        return self._blocked_on is not None and not set(self._wanted) <= set(self._blocked_on)

    async def look_anew(self) -> None:
        """Have the task take notice of what was said."""
        await self._mark(self._own, _LOOK_ANEW)

    def hand_over(self) -> None:
        """The claim that is about to be sent is for all markers that were popped so far."""
        self._heeded.clear()

    async def put_back(self) -> None:
        """The slots are full, perhaps by a claim under way: the markers popped since then are for another worker."""
        while self._heeded:
            await self._mark(*self._heeded.pop())

    async def pass_on_new(self) -> None:
        """The claim under way met a new lane and tells the others: what was popped meanwhile may be that word."""
        for key, member in [popped for popped in self._heeded if popped[0] == keys.WAKE]:
            self._heeded.remove((key, member))
            await self._mark(key, member)

    async def run(self) -> None:
        """Wait, say, and wait again, until `end`."""
        while not self._ended:
            self._blocked_on = (self._own, *self._wanted)
            try:
                popped = await self._redis.bzpopmin(list(self._blocked_on), BLOCK_SECONDS)
                self._blocked_on = None
                if popped:
                    await self._heed(popped)
            except (RedisError, OSError) as error:
                self._on_error(error)
                await asyncio.sleep(_PAUSE_AFTER_ERROR)

    async def _heed(self, popped: Any) -> None:
        key, member = popped[0].decode(), popped[1].decode()
        if key == self._own:
            if member != _LOOK_ANEW:
                self._on_word()
        elif key in self._wanted:
            self._heeded.add((key, member))
            self._on_work()
        else:
            await self._mark(key, member)  # meanwhile the slots are full: it is for another worker

    async def _mark(self, key: str, member: str) -> None:
        """A full Redis takes no marker: then the slow poll is what is left."""
        async with self._calls.pipeline(transaction=False) as pipe:
            pipe.zadd(key, {member: 0})
            pipe.expire(key, _MARKER_TTL)
            with contextlib.suppress(OutOfMemoryError):
                await pipe.execute()

    async def end(self) -> None:
        """Let the task return. Raises redis errors; then it returns when its wait is over."""
        self._ended = True
        await self.look_anew()
