"""The Redis of one `MemoryQueue`: a fake server of its own that runs the real scripts, at a time that a test can move.

The only module that imports fakeredis.
"""

import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

from redis.asyncio import Redis

from promptq.producer import keys

try:
    import fakeredis

    import_module("lupa")  # without it fakeredis runs no scripts
except ImportError:
    raise ImportError("promptq.producer.testing needs fakeredis: pip install 'promptq[testing]'") from None


class Clock:
    """Goes as the machine's does, ahead of it by what `move` said; no two readings are the same."""

    def __init__(self) -> None:
        self._ahead = 0
        self._last = 0

    def now(self) -> int:
        """Ms since 1970. Later than ever before, so that jobs end in an order."""
        self._last = max(self._last + 1, time.time_ns() // 1_000_000 + self._ahead)
        return self._last

    def move(self, milliseconds: int) -> None:
        """Set it ahead."""
        self._ahead += milliseconds


class MemoryRedis(fakeredis.FakeAsyncRedis):
    """A client of a fake server that nobody else has.

    A producer's script is known by its having no time of its own: it gets the clock's, and `after_script` follows it.
    """

    after_script: Callable[[], Awaitable[None]]

    def __init__(self, clock: Clock) -> None:
        super().__init__(server=fakeredis.FakeServer())
        self._clock = clock

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As redis-py's; ARGV[1] of every script is the time, "" for the server's own."""
        if args[0] != "EVALSHA" or args[3] != "":
            return await self._send(*args, **options)
        reply = await self._send(*args[:3], self._clock.now(), *args[4:], **options)
        await self.after_script()
        return reply

    async def _send(self, *args: Any, **options: Any) -> Any:
        return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call] # redis-py's own


async def move_time(redis: Redis, clock: Clock, milliseconds: int) -> None:
    """Let time pass: for the scripts, and for whatever is kept for a while."""
    clock.move(milliseconds)
    async for key in redis.scan_iter():
        left = await redis.pttl(key)
        if left > 0:
            await redis.pexpire(key, left - milliseconds)
    await redis.zremrangebyscore(keys.FAILED, "-inf", clock.now())
