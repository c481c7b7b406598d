import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import redis
from redis.asyncio import Redis

from faults.bookkeeping import Endings, Scene, audit, ledgers_of, results_of
from faults.fleet import LEASE, Fleet, xai_settings
from faults.proxy import running_proxy
from leftovers import assert_no_leftovers
from promptq.producer import JobStatus, ProducerSettings, PromptQueue, QueueFull, QueueUnavailable
from promptq.worker.embedded import PrivateRedis
from promptq.worker.simulator.control import SimulatorControl
from promptq.worker.simulator.process import SimulatorProcess
from waiting import wait_until

LONGER_THAN_A_LEASE = LEASE + 0.5


@contextlib.asynccontextmanager
async def private_redis(*args: str, appendonly: bool = False) -> AsyncIterator[PrivateRedis]:
    """A Redis to ill-treat; in the end no key in it lacks a TTL."""
    async with PrivateRedis(appendonly=appendonly, appendfsync="always", args=args) as server:
        yield server
        with contextlib.closing(redis.Redis.from_url(server.url)) as client:
            assert_no_leftovers(client)


@contextlib.asynccontextmanager
async def scene_at(server: PrivateRedis, simulator: SimulatorControl) -> AsyncIterator[Scene]:
    """A backend with a short patience, at a Redis that goes away: nobody can hear all endings."""
    settings = ProducerSettings(redis_url=server.url, redis_timeout=0.5)  # type: ignore[arg-type]
    async with PromptQueue.connect(settings=settings) as queue:
        client = Redis.from_url(server.url)
        yield Scene(queue, client, simulator, Endings())
        await client.aclose()


async def enqueue_all(queue: PromptQueue, ids: Sequence[str], *, every: float) -> int:
    """Enqueue one job after the other, each under its own id until it is accepted; returns how often that failed."""
    refusals = 0
    for job_id in ids:
        while True:
            try:
                await queue.enqueue(f"question of {job_id}", id=job_id, model="m")
                break
            except QueueUnavailable:
                refusals += 1
        await asyncio.sleep(every)
    return refusals


async def test_nothing_is_lost_or_paid_twice_when_redis_dies_and_comes_back(
    tmp_path: Path, simulator_server: SimulatorProcess, simulator: SimulatorControl
) -> None:
    """Redis killed under load and restarted with its append-only file, later than a lease: no process restarts.

    Each accepted job has one result, no call is made twice; enqueues are repeated, waits ride through.
    """
    ids = [f"job-{number}" for number in range(24)]
    await simulator.set(latency="uniform:0.5,3", seed=1)
    async with private_redis(appendonly=True) as server, scene_at(server, simulator) as scene:
        with Fleet(tmp_path, **xai_settings(simulator_server.host, server.url)) as fleet:
            workers = await fleet.start_many(2, promptq_max_jobs=8)
            await enqueue_all(scene.queue, ids[:6], every=0)
            waiting = asyncio.create_task(scene.results(ids[:6]))
            enqueuing = asyncio.create_task(enqueue_all(scene.queue, ids[6:], every=0.06))
            before = await simulator.until(lambda totals: totals.generations >= 12)
            assert not waiting.done()
            server.kill()
            await asyncio.sleep(LONGER_THAN_A_LEASE)
            meanwhile = await simulator.totals()
            await asyncio.to_thread(server.restart)

            assert await enqueuing, "no enqueue met the outage"
            results = await scene.assert_each_has_one_answer(ids)
            assert meanwhile.ended["OK"] > before.ended.get("OK", 0), "no call ended while Redis was away"
            assert meanwhile.in_flight, "no call outlived the outage"
            assert (await waiting).items() <= results.items()
            assert await scene.generations() == len(ids)
            assert all(ledger.stalls == ledger.spent == 0 for ledger in await scene.ledgers(ids))
            assert all(worker.is_alive and len(worker.names) == 1 for worker in workers)


async def test_a_claim_that_arrives_late_takes_nothing_over(redis_url: str, xai_fleet: Fleet, scene: Scene) -> None:
    """Nobody's calls reach Redis for longer than a lease (a frozen server, a stalling network), then all at once.

    A claim that was sent meanwhile must not take over leases whose holders could not renew them either.
    """
    await scene.simulator.set(latency=LEASE * 3)
    async with running_proxy(redis_url) as busy_side, running_proxy(redis_url) as idle_side:
        await xai_fleet.start(promptq_redis_url=busy_side.url)
        ids = await scene.enqueue("a", "b", "c")
        await scene.until_running(ids)
        idle = await xai_fleet.start(promptq_redis_url=idle_side.url)
        await asyncio.sleep(LEASE)  # from then on it may take over
        busy_side.blackhole()
        idle_side.blackhole()
        await asyncio.sleep(LONGER_THAN_A_LEASE)
        idle_side.mend()
        await wait_until(lambda: idle.said("redis.back"), message="the idle worker is back")
        busy_side.mend()
        await scene.assert_each_has_one_answer(ids)
        assert await scene.generations() == len(ids)
        assert all(ledger.stalls == 0 for ledger in await scene.ledgers(ids))


async def until_renewed(scene: Scene, ids: list[str]) -> None:
    """Wait until the leases of all of them have been renewed once more."""
    before = [ledger.number("due") for ledger in await scene.until_running(ids)]

    async def renewed() -> bool:
        now = [ledger.number("due") for ledger in await scene.ledgers(ids)]
        return all(due > first for due, first in zip(now, before, strict=True))

    await wait_until(renewed)


async def test_answers_are_kept_while_redis_refuses_to_write(
    tmp_path: Path, simulator_server: SimulatorProcess, simulator: SimulatorControl
) -> None:
    """Redis answers every write with an error for longer than a lease (too few replicas, a full disk): it is away.

    What ends meanwhile is settled later, what runs is not run twice, and no prompt or answer goes into the logs.
    """
    async with private_redis() as server, scene_at(server, simulator) as scene:
        with Fleet(tmp_path, **xai_settings(simulator_server.host, server.url)) as fleet:
            workers = [fleet.launch(promptq_max_jobs=8, promptq_log_format=form) for form in ("json", "console")]
            for worker in workers:
                await worker.ready()
            await simulator.set(latency=LONGER_THAN_A_LEASE + 2.5)
            long = await scene.enqueue(*(f"SECRET {number}" for number in range(6)))
            await simulator.until(lambda totals: totals.generations == 6)
            await simulator.set(latency=1.4)
            short = await scene.enqueue(*(f"SECRET {number}" for number in range(6)))
            await until_renewed(scene, short)
            await scene.redis.config_set("min-replicas-to-write", 1)
            await asyncio.sleep(LONGER_THAN_A_LEASE)
            assert (await simulator.totals()).ended == {"OK": 6}
            assert not any([await scene.queue.result(job_id) for job_id in short])
            await scene.redis.config_set("min-replicas-to-write", 0)
            await scene.assert_each_has_one_answer([*long, *short])
            assert await scene.generations() == 12

            await simulator.set(latency=0)
            for number in range(3):
                handle = await scene.queue.enqueue(f"SECRET afterwards {number}", model="m")
                assert (await handle.wait(0.8)).status is JobStatus.SUCCEEDED, "nobody was woken"
            for worker in workers:
                assert "SECRET" not in worker.log
                assert "[simulated]" not in worker.log
                assert "Traceback" not in worker.log


async def test_scripts_and_connections_may_vanish_at_any_time(
    fleet: Fleet, queue: PromptQueue, redis_client: Redis
) -> None:
    """SCRIPT FLUSH and CLIENT KILL of all connections, again and again while jobs run: each has one attempt."""
    await fleet.start_many(2, promptq_max_jobs=4, promptq_echo_latency=0.2)
    ids = [handle.id for handle in await queue.enqueue_many([f"q{number}" for number in range(40)], model="m")]

    async def pester() -> None:
        while True:
            await redis_client.script_flush()
            await asyncio.sleep(0.05)

    pestering = asyncio.create_task(pester())
    for _ in range(2):
        await until_some_run(redis_client, ids)
        await redis_client.client_kill_filter(_type="normal")
    results = await results_of(queue, ids)
    pestering.cancel()
    assert {result.status for result in results.values()} == {JobStatus.SUCCEEDED}
    assert await audit(redis_client, ids, model="m") == 0
    assert all(len(result.attempts) == 1 for result in results.values())


async def until_some_run(client: Redis, ids: list[str]) -> None:
    """Wait for a running job."""

    async def some_run() -> bool:
        return any(ledger.state == "running" for ledger in await ledgers_of(client, ids))

    await wait_until(some_run)


async def test_a_full_redis_takes_the_answers(
    tmp_path: Path, simulator_server: SimulatorProcess, simulator: SimulatorControl
) -> None:
    """Redis at maxmemory (noeviction): no job gets in, answers to those inside are taken; then all is as before."""
    await simulator.set(latency=0.6)
    async with (
        private_redis("--maxmemory-policy", "noeviction") as server,
        scene_at(server, simulator) as scene,
    ):
        with Fleet(tmp_path, **xai_settings(simulator_server.host, server.url)) as fleet:
            worker = await fleet.start(promptq_max_jobs=4)
            ids = await scene.enqueue(*(f"q{number}" for number in range(8)))
            await scene.until_running(ids[:4])
            await scene.redis.config_set("maxmemory", 1)
            with pytest.raises(QueueFull):
                await scene.queue.enqueue("one more", model="m")
            await scene.assert_each_has_one_answer(ids)
            assert await scene.generations() == len(ids)
            assert "Traceback" not in worker.log
            assert not worker.said("redis.away")

            await scene.redis.config_set("maxmemory", 0)
            await simulator.set(latency=0)
            handle = await scene.queue.enqueue("after that", model="m")
            assert (await handle.wait(0.8)).status == JobStatus.SUCCEEDED, "a wake-up was missed"
