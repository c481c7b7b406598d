"""The Redis of one `MemoryQueue`: a fake server of its own that runs the real scripts, at a time that a test can move.

The only module that imports fakeredis.
"""

import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from typing import Any

from redis.asyncio import Redis

from promptq.producer import keys
from promptq.producer.wire import Wire, use_wire

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
    """A client of a fake server that nobody else has. `after_script` follows every script of a producer."""

    after_script: Callable[[], Awaitable[None]]

    def __init__(self, clock: Clock) -> None:
        super().__init__(server=fakeredis.FakeServer())
        self._clock = clock
        use_wire(self, _ClockedWire(self, clock))

    async def time(self, **_: Any) -> tuple[int, int]:
        """That of the scripts: seconds since 1970, and microseconds."""
        now = self._clock.now()
        return now // 1000, now % 1000 * 1000


class _ClockedWire(Wire):
    """A producer's script is known by its having no time of its own (ARGV[1] is empty): it gets the clock's."""

    def __init__(self, redis: MemoryRedis, clock: Clock) -> None:
        super().__init__(redis)
        self._redis = weakref.ref(redis)
        self._clock = clock

    async def call(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """As Wire.call."""
        timeless = [command[0] == "EVALSHA" and command[3] == "" for command in commands]
        replies = await super().call(
            [
                (*command[:3], self._clock.now(), *command[4:]) if is_timeless else command
                for command, is_timeless in zip(commands, timeless, strict=True)
            ]
        )
        redis = self._redis()
        if any(timeless) and redis is not None:
            await redis.after_script()
        return replies


async def move_time(redis: Redis, clock: Clock, milliseconds: int) -> None:
    """Let time pass: for the scripts, and for whatever is kept for a while."""
    clock.move(milliseconds)
    async for key in redis.scan_iter():
        left = await redis.pttl(key)
        if left > 0:
            await redis.pexpire(key, left - milliseconds)
    await redis.zremrangebyscore(keys.FAILED, "-inf", clock.now())
