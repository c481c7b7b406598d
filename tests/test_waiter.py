import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from typing import cast

from redis.asyncio import Redis

from promptq.producer import keys
from promptq.worker.waiter import Waiter
from waiting import wait_until

LANE = keys.wake("m")
FULL = "redis.call('ZREM', KEYS[1], '') redis.call('ZADD', KEYS[1], 0, '1') redis.call('PEXPIRE', KEYS[1], 60000)"
"""As our scripts write a marker: Redis lets a script write on, however full it is."""


class Heard(Counter[str]):
    """What a waiter has said: work, word, error."""

    def work(self) -> None:
        """There may be something to claim."""
        self["work"] += 1

    def word(self) -> None:
        """Renew."""
        self["word"] += 1

    def error(self, error: BaseException) -> None:
        """Redis failed."""
        self["error"] += 1


@contextlib.asynccontextmanager
async def waiting(redis: Redis, heard: Heard, *lanes: str, name: str = "w") -> AsyncIterator[Waiter]:
    """A waiter that blocks for these lanes."""
    waiter = Waiter(redis, name, on_work=heard.work, on_word=heard.word, on_error=heard.error)
    waiter.wait_for(lanes, new_ones=False)
    task = asyncio.create_task(waiter.run())
    try:
        await until_blocked(redis)
        yield waiter
    finally:
        await waiter.end()
        await task


async def until_blocked(redis: Redis, clients: int = 1) -> None:
    """Wait until so many waiters block."""

    async def blocked() -> bool:
        return int((await redis.info("clients"))["blocked_clients"]) == clients

    await wait_until(blocked)


async def until_popped(redis: Redis) -> None:
    """Wait until the lane's marker is gone."""

    async def gone() -> bool:
        return not await redis.exists(LANE)

    await wait_until(gone)


async def mark(redis: Redis, key: str) -> None:
    """Put a marker, as the scripts do."""
    await cast(Awaitable[None], redis.eval(FULL, 1, key))


async def test_a_marker_is_heard_once(redis_client: Redis) -> None:
    """It is popped and said; then the waiter blocks again."""
    heard = Heard()
    async with waiting(redis_client, heard, "m"):
        await mark(redis_client, LANE)
        await wait_until(lambda: heard == {"work": 1})
        await until_blocked(redis_client)
        await mark(redis_client, LANE)
        await wait_until(lambda: heard == {"work": 2})
    assert not await redis_client.exists(LANE)


async def test_new_lanes_are_heard_of_only_if_wanted(redis_client: Redis) -> None:
    """`promptq:wake` is for workers that serve every model."""
    heard = Heard()
    async with waiting(redis_client, heard, "m") as waiter:
        assert waiter.wait_for(["m"], new_ones=True)
        await waiter.look_anew()
        await mark(redis_client, keys.WAKE)
        await wait_until(lambda: heard == {"work": 1})


async def test_word_of_a_new_lane_is_passed_on(redis_client: Redis) -> None:
    """The claim that met the lane set the marker for others, and this worker popped it: they find it again.

    The lane's own marker needs no passing on: the next claim sets it if it leaves something behind.
    """
    heard = Heard()
    async with waiting(redis_client, heard, "m") as waiter:
        assert waiter.wait_for(["m"], new_ones=True)
        await waiter.look_anew()
        await mark(redis_client, keys.WAKE)
        await mark(redis_client, LANE)
        await wait_until(lambda: heard == {"work": 2})
        waiter.wait_for((), new_ones=False)
        await waiter.pass_on_new()
        assert 0 < await redis_client.pttl(keys.WAKE) <= 60_000
        assert not await redis_client.exists(LANE)


async def test_a_word_to_this_worker_is_no_work(redis_client: Redis) -> None:
    """A cancel marks the holder itself: it is to renew, whatever its slots."""
    heard = Heard()
    async with waiting(redis_client, heard):
        await mark(redis_client, keys.wake("w"))
        await wait_until(lambda: heard == {"word": 1})


async def test_a_marker_that_comes_when_the_slots_are_full_is_left_for_another(redis_client: Redis) -> None:
    """The waiter still blocks for the lane when the slots fill up: what it pops then, it puts back and does not eat.

    Whoever waits for the lane next gets it.
    """
    mine, others = Heard(), Heard()
    async with waiting(redis_client, mine, "m") as waiter:
        assert not waiter.wait_for((), new_ones=False), "it need not be woken to want less"
        await mark(redis_client, LANE)

        async def is_back() -> bool:
            return bool(await redis_client.exists(LANE))

        await until_blocked(redis_client)
        await wait_until(is_back)
        assert 0 < await redis_client.pttl(LANE) <= 60_000
        other = Waiter(redis_client, "x", on_work=others.work, on_word=others.word, on_error=others.error)
        other.wait_for(["m"], new_ones=False)
        task = asyncio.create_task(other.run())
        await wait_until(lambda: others == {"work": 1})
        await other.end()
        await task
    assert not mine


async def test_look_anew_makes_it_wait_for_more(redis_client: Redis) -> None:
    """It blocks for nothing but its own marker; slots have become free, and a marker stands there already."""
    heard = Heard()
    async with waiting(redis_client, heard) as waiter:
        await mark(redis_client, LANE)
        assert waiter.wait_for(["m"], new_ones=False), "it must be woken to want more"
        assert not heard
        await waiter.look_anew()
        await wait_until(lambda: heard == {"work": 1})
        assert not await redis_client.exists(LANE)


async def test_an_outage_is_said_and_waited_out(redis_client: Redis) -> None:
    """The connection is cut: the waiter says so, and waits again on a new one."""
    heard = Heard()
    async with waiting(redis_client, heard, "m"):
        await redis_client.client_kill_filter(_type="normal")
        await wait_until(lambda: heard == {"error": 1})
        await until_blocked(redis_client)
        await mark(redis_client, LANE)
        await wait_until(lambda: heard["work"] == 1)


async def test_a_full_redis_does_not_end_it(redis_client: Redis) -> None:
    """Redis is out of memory when a marker is to be put back: the waiter lives, and hears the next one."""
    heard = Heard()
    async with waiting(redis_client, heard, "m") as waiter:
        waiter.wait_for((), new_ones=False)
        await redis_client.config_set("maxmemory", 1)
        try:
            await mark(redis_client, LANE)
            await until_popped(redis_client)
            await until_blocked(redis_client)
        finally:
            await redis_client.config_set("maxmemory", 0)
        assert waiter.wait_for(["m"], new_ones=False)
        await waiter.look_anew()
        await mark(redis_client, LANE)
        await wait_until(lambda: heard["work"] == 1)


async def test_it_ends_without_being_cancelled(redis_client: Redis) -> None:
    """`end` wakes the task, which returns by itself and leaves no marker of its own behind."""
    waiter = Waiter(redis_client, "w", on_work=print, on_word=print, on_error=print)
    task = asyncio.create_task(waiter.run())
    await until_blocked(redis_client)
    await waiter.end()
    await asyncio.wait_for(task, 5)
    assert not await redis_client.keys("*")
