"""A worker and the limits of the fleet: it sets those it was given, waits without slots, and goes on when it may."""

import asyncio
import contextlib

import pytest
from redis.asyncio import Redis

from promptq.producer import ErrorCode, PromptJob, PromptQueue, keys, scripts
from promptq.producer.models import Limits
from promptq.worker import reach
from promptq.worker.providers.base import Answer, ProviderError
from promptq.worker.providers.echo import EchoProvider
from waiting import wait_until
from workers import ScriptedProvider, running_worker


class Refusing(EchoProvider):
    """Raises the errors it is given, one a call; then it answers."""

    def __init__(self, *errors: ProviderError) -> None:
        super().__init__()
        self.errors = list(errors)
        self.calls = 0

    async def sample(self, job: PromptJob, timeout: float, hear: object = None) -> Answer:
        """As told."""
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return await super().sample(job, timeout)


async def test_a_worker_sets_the_limits_it_was_given(redis_url: str, redis_client: Redis) -> None:
    """Of models that have none; a worker that starts later with other limits changes nothing."""

    async def limits() -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = await redis_client.hgetall(keys.LIMITS)  # type: ignore[misc] # redis-py: an awaitable, or not
        return found

    first = {"grok-4": {"rpm": 480, "in_flight": 9}}
    async with running_worker(redis_url, limits=first):
        await wait_until(limits)
        assert await limits() == {b"grok-4:rpm": b"480", b"grok-4:in_flight": b"9"}
    async with running_worker(redis_url, limits={"grok-4": {"tpm": 7}, "grok-3": {"tpm": 8}}):
        await wait_until(lambda: redis_client.hexists(keys.LIMITS, "grok-3:tpm"))
    assert await limits() == {b"grok-4:rpm": b"480", b"grok-4:in_flight": b"9", b"grok-3:tpm": b"8"}


async def test_a_worker_at_its_limit_hears_of_a_higher_one(redis_url: str, redis_client: Redis) -> None:
    """One job a minute may start; then any number: it does not wait for the minute to end, nor for the next poll."""
    await scripts.set_limits(redis_client, "grok-4", Limits(rpm=1))
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider), PromptQueue.connect(redis_url) as queue:
        handles = await queue.enqueue_many([f"prompt {number}" for number in range(20)])
        await wait_until(lambda: provider.started)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await wait_until(lambda: len(provider.started) > 1)
        assert len(provider.started) == 1
        await scripts.set_limits(redis_client, "grok-4", Limits())
        began = asyncio.get_running_loop().time()
        for handle in handles:
            await handle.wait(timeout=10)
        assert asyncio.get_running_loop().time() - began < 0.9  # the slow poll comes after a second


async def test_a_refusal_of_a_replaced_key_pauses_nothing(redis_url: str) -> None:
    """The call is made again with the new one, unspent."""
    provider = Refusing(ProviderError(ErrorCode.BAD_KEY, "an old key", is_stale=True))
    async with running_worker(redis_url, provider), PromptQueue.connect(redis_url) as queue:
        job = await queue.enqueue("Hello", max_attempts=1)
        result = await job.wait(timeout=10)
        assert (result.content, [attempt.code for attempt in result.attempts]) == ("Hello", ["bad_key", None])
        assert (await queue.stats()).paused_accounts == ()


async def test_a_worker_that_does_not_reach_the_provider_takes_one_job_at_a_time(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may reach it: it must not take all of their jobs only to give them back."""
    monkeypatch.setattr(reach, "REST", 0.2)
    unreached = [ProviderError(ErrorCode.UNAVAILABLE, "no route", was_sent=False) for _ in range(12)]
    provider = Refusing(*unreached)
    async with running_worker(redis_url, provider, max_jobs=8), PromptQueue.connect(redis_url) as queue:
        handles = await queue.enqueue_many([f"prompt {number}" for number in range(100)], max_attempts=1)
        await wait_until(lambda: provider.calls >= 9, 10)  # the first claims, and one when it has rested
        assert provider.calls < 12
        provider.errors.clear()
        results = [await handle.wait(timeout=20) for handle in handles]
        assert {result.status for result in results} == {"succeeded"}
        assert {len(result.attempts) for result in results} == {1}


async def test_a_model_that_waits_leaves_its_slots_to_others(redis_url: str, redis_client: Redis) -> None:
    """With two slots and a saturated model, two jobs of another run at once."""
    await scripts.set_limits(redis_client, "grok-4", Limits(rpm=1))
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider, max_jobs=2), PromptQueue.connect(redis_url) as queue:
        waiting = await queue.enqueue_many([f"waits {number}" for number in range(10)])
        await wait_until(lambda: provider.started)
        free = await queue.enqueue_many(["hang 1", "hang 2"], model="grok-3")
        await wait_until(lambda: {"hang 1", "hang 2"} <= set(provider.started))
        provider.release.set()
        for handle in free:
            await handle.wait(timeout=10)
        for handle in waiting:
            await queue.cancel(handle.id)
    await redis_client.delete(keys.LIMITS)
