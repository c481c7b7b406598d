"""What a worker sends and hears at each step."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from promptq.producer import PromptQueue
from promptq.producer.records import Payer, Settlement
from promptq.worker.exchange import CLAIMED_AT_ONCE, MOST_BYTES, SETTLED_AT_ONCE, Exchange
from promptq.worker.leases import Leases
from promptq.worker.settings import Settings
from promptq.worker.telling import Teller
from waiting import wait_until
from workers import ScriptedProvider, running_worker


def an_exchange(redis: Redis, settings: Settings) -> Exchange:
    """Of a worker without streamed jobs."""
    teller = Teller(redis, 1000, lambda _: None)
    return Exchange(redis, settings, "w", (), payers=lambda: (Payer("*", "echo"),), teller=teller)


def settlement(size: int) -> Settlement:
    """An outcome with a result of so many bytes."""
    return Settlement("id", "w:1", "1", "succeeded", 1000, result=bytes(size))


@pytest.fixture
def exchange(redis_client: Redis) -> Exchange:
    """Of a worker with many slots."""
    return an_exchange(redis_client, Settings(max_jobs=10_000))


@pytest.mark.parametrize(
    ("sizes", "head"),
    [
        ([10] * 500, SETTLED_AT_ONCE),
        ([MOST_BYTES // 4] * 10, 4),
        ([MOST_BYTES + 1, 10, 10], 1),
        ([10, MOST_BYTES, 10], 1),
        ([], 0),
    ],
)
async def test_a_call_carries_few_enough_bytes(exchange: Exchange, sizes: list[int], head: int) -> None:
    """Large answers go in several calls, a huge one alone: none is too long for its timeout."""
    exchange.unsettled = [settlement(size) for size in sizes]
    assert len(exchange._head()) == head


async def test_a_claim_asks_for_few_enough_jobs(exchange: Exchange, redis_client: Redis) -> None:
    """However many slots are free: no script runs long."""
    leases = Leases(redis_client, Settings(max_jobs=10_000))
    assert exchange._request(10_000, leases).slots == CLAIMED_AT_ONCE


@pytest.mark.parametrize(("max_jobs", "slots"), [(1, 1), (2, 1), (3, 1), (10, 5), (150, 75)])
async def test_a_claim_asks_for_half_of_the_slots(redis_client: Redis, max_jobs: int, slots: int) -> None:
    """One half of the jobs runs while Redis hands over the other; a worker with one slot gets its one job."""
    settings = Settings(max_jobs=max_jobs)
    exchange = an_exchange(redis_client, settings)
    assert exchange._request(max_jobs, Leases(redis_client, settings)).slots == slots


async def test_work_heard_of_during_a_claim_is_not_forgotten(
    redis_url: str, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job enqueued after the claim ran and before its reply came is taken at once, not at the next slow poll."""
    provider = ScriptedProvider()
    async with (
        running_worker(redis_url, provider, lease=10.0, redis_timeout=5.0) as worker,
        PromptQueue.connect(redis_url) as queue,
    ):
        kept = await queue.enqueue("so that the lane is known", model="m", delay=60)
        await wait_until(lambda: "m" in worker._exchange.known and worker._waiter._blocked_on)
        claim, second = worker._exchange.settle_and_claim, asyncio.Event()

        async def slow_reply(*arguments: Any) -> Any:
            reply = await claim(*arguments)
            if not second.is_set():
                second.set()
                await queue.enqueue("second", model="m")
                await asyncio.sleep(0.2)  # its marker is popped meanwhile
            return reply

        monkeypatch.setattr(worker._exchange, "settle_and_claim", slow_reply)
        await queue.enqueue("first", model="m")
        await wait_until(lambda: set(provider.started) == {"first", "second"}, timeout=0.9)
        monkeypatch.undo()
        await queue.cancel(kept.id)


async def test_a_worker_without_renewals_ends(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that ends the keeping of leases ends the worker: running on, it would have every call made twice."""

    async def broken() -> None:
        raise ZeroDivisionError

    provider = ScriptedProvider()

    async def scene() -> None:
        async with running_worker(redis_url, provider) as worker:
            await queue.enqueue("hang", id="a")
            await wait_until(lambda: provider.started)
            monkeypatch.setattr(worker.leases, "renew", broken)
            worker._ask_to_renew()
            await wait_until(lambda: any(helper.done() for helper in worker._helpers))

    async with PromptQueue.connect(redis_url) as queue:
        with pytest.raises(ZeroDivisionError):
            await scene()
        assert provider.cancelled, "its calls go on elsewhere"
        await queue.cancel("a")
