from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from faults.bookkeeping import Ledger, Scene, until_running
from faults.fleet import LEASE, Fleet
from faults.proxy import RedisProxy, running_proxy
from promptq.producer import JobStatus, ProducerSettings, PromptQueue, scripts
from promptq.producer.scripts import Script
from waiting import wait_until


@pytest.fixture
async def proxy(redis_url: str, redis_client: Redis) -> AsyncIterator[RedisProxy]:
    """What stands between the process under test and Redis, which knows the scripts: no reply says that it does not."""
    for script in (scripts.ENQUEUE, scripts.CLAIM, scripts.SETTLE, scripts.RENEW):
        await redis_client.script_load(script.text)
    async with running_proxy(redis_url) as proxy:
        yield proxy


async def test_an_enqueue_whose_reply_is_lost_is_made_once_and_is_the_callers_own(
    proxy: RedisProxy, xai_fleet: Fleet, scene: Scene
) -> None:
    """The call is repeated by itself; the producer sees `created`, never a duplicate of its own job; one run each."""
    await xai_fleet.start()
    settings = ProducerSettings(redis_url=proxy.url)  # type: ignore[arg-type]
    async with PromptQueue.connect(settings=settings) as producer:
        proxy.lose_reply(scripts.ENQUEUE, times=2)
        one = await producer.enqueue("alone", model="m")
        proxy.lose_reply(scripts.ENQUEUE)
        many = await producer.enqueue_many([f"q{number}" for number in range(5)], model="m")
    assert proxy.lost == 3
    assert all(handle.created for handle in (one, *many))
    ids = [one.id, *(handle.id for handle in many)]
    await scene.assert_each_has_one_answer(ids)
    assert await scene.generations() == len(ids)


@pytest.mark.parametrize("script", [scripts.CLAIM, scripts.SETTLE, scripts.RENEW], ids=["claim", "settle", "renew"])
async def test_a_lost_reply_to_a_worker_changes_nothing(
    script: Script, proxy: RedisProxy, xai_fleet: Fleet, scene: Scene
) -> None:
    """Redis has run the script and the worker does not know: asked again it runs no job twice, and books each once."""
    await scene.simulator.set(latency=0.6)
    worker = await xai_fleet.start(promptq_redis_url=proxy.url, promptq_max_jobs=4)
    proxy.lose_reply(script)
    ids = await scene.enqueue(*(f"q{number}" for number in range(6)))
    await scene.assert_each_has_one_answer(ids)
    assert proxy.lost == 1
    assert await scene.generations() == len(ids)
    ledgers = await scene.ledgers(ids)
    assert all(len(ledger.attempts) == 1 and ledger.stalls == ledger.spent == 0 for ledger in ledgers)
    assert worker.is_alive


async def test_a_worker_cut_off_for_longer_than_its_lease(proxy: RedisProxy, xai_fleet: Fleet, scene: Scene) -> None:
    """Nothing of it reaches Redis while its calls end, and others run its jobs: one result each.

    Its own answers come too late, and stand on the books.
    """
    await scene.simulator.set(latency=LEASE + 1)
    lonely = await xai_fleet.start(promptq_redis_url=proxy.url)
    ids = await scene.enqueue("a", "b")
    await scene.until_running(ids)
    other = await xai_fleet.start()
    proxy.blackhole()
    await scene.simulator.set(latency=0.1)
    results = await scene.assert_each_has_one_answer(ids)
    assert {result.worker for result in results.values()} == {other.name}
    await wait_until(lambda: len(lonely.said("job.succeeded")) == 2)
    proxy.mend()

    async def booked() -> bool:
        return all(len(ledger.attempts) == 2 for ledger in await scene.ledgers(ids))

    await wait_until(booked, message="both attempts at each job are on the books")
    await scene.assert_each_has_one_answer(ids)
    assert await scene.generations() == 4
    await wait_until(lambda: lonely.said("redis.back"))


async def test_a_slow_redis_only_makes_it_slower(proxy: RedisProxy, xai_fleet: Fleet, scene: Scene) -> None:
    """Every reply takes 100 ms more: no lease is lost, no job runs twice."""
    proxy.delay = 0.1
    await scene.simulator.set(latency="uniform:0,0.3")
    await xai_fleet.start(promptq_redis_url=proxy.url, promptq_max_jobs=5)
    ids = await scene.enqueue(*(f"q{number}" for number in range(10)))
    await scene.assert_each_has_one_answer(ids)
    assert await scene.generations() == len(ids)


async def test_a_claim_under_way_when_all_is_given_back_is_given_back_too(
    proxy: RedisProxy, fleet: Fleet, queue: PromptQueue, redis_client: Redis
) -> None:
    """The second SIGTERM meets a claim whose reply is still on its way: its jobs go back at once like the others."""
    patient = {"promptq_redis_timeout": 3, "promptq_lease": 10, "promptq_echo_latency": 30}
    worker = await fleet.start(promptq_redis_url=proxy.url, **patient)
    proxy.delay = 0.3
    handle = await queue.enqueue("q", model="m")
    await until_running(redis_client, [handle.id])
    worker.terminate()
    await wait_until(lambda: worker.said("worker.draining"))
    worker.terminate()
    assert await worker.wait(4) == 0
    ledger = await Ledger.of(redis_client, handle.id)
    assert (ledger.state, ledger.releases, ledger.spent) == ("queued", 1, 0)
    assert await queue.cancel(handle.id)
    assert (await handle.wait(1)).status is JobStatus.CANCELLED
