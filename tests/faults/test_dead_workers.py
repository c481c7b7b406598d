"""Workers that are killed, or freeze for longer than their lease."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import redis
from redis.asyncio import Redis

from faults.bookkeeping import Scene, audit, ledgers_of, results_of, until_running
from faults.fleet import LEASE, Fleet, WorkerProcess
from leftovers import assert_no_leftovers
from promptq.producer import ErrorCode, JobStatus, PromptQueue
from promptq.worker.embedded import PrivateRedis
from waiting import wait_until


@dataclass(frozen=True)
class Killing:
    """A worker with the default settings, killed before the tests of this module began."""

    url: str
    victim: str
    at: float
    orphans: Sequence[str]
    all: Sequence[str]


@pytest.fixture(scope="module", autouse=True)
def killing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killing]:
    """It takes the default lease of ten seconds to come to anything: the other tests run meanwhile."""
    settings: dict[str, object] = {"promptq_lease": None, "promptq_redis_timeout": None, "promptq_echo_latency": 1.5}
    with PrivateRedis() as server:
        with Fleet(tmp_path_factory.mktemp("default"), promptq_redis_url=server.url, **settings) as fleet:
            killing = asyncio.run(kill_one_of_two(server.url, fleet))
            yield killing
            asyncio.run(until_over(killing))
        with contextlib.closing(redis.Redis.from_url(server.url)) as client:
            assert_no_leftovers(client)


async def kill_one_of_two(url: str, fleet: Fleet) -> Killing:
    """Both have eight slots, and six jobs run or more in each; more jobs of the same tenant wait behind them."""
    async with PromptQueue.connect(url) as queue:
        client = Redis.from_url(url)
        await fleet.start_many(2, promptq_max_jobs=8)
        handles = await queue.enqueue_many([f"q{number}" for number in range(40)], model="m", timeout=3600)
        running = await until_running(client, [handle.id for handle in handles[:14]])
        victim = fleet.holder(running[0].token)
        victim.kill()
        ids = [handle.id for handle in handles]
        held = [victim.name in ledger.token for ledger in await ledgers_of(client, ids)]
        await client.aclose()
    orphans = [job_id for job_id, is_orphan in zip(ids, held, strict=True) if is_orphan]
    return Killing(url, victim.name, time.time(), orphans, ids)


async def until_over(killing: Killing) -> None:
    """Wait for the last of its jobs, in case no test has."""
    async with PromptQueue.connect(killing.url) as queue:
        await results_of(queue, killing.all, 30)


async def test_jobs_of_a_killed_worker_run_elsewhere(xai_fleet: Fleet, scene: Scene) -> None:
    """SIGKILL: its jobs run elsewhere within lease + 2 s, however long their timeout and the backlog of their tenant.

    One result each; each stall is recorded; no generation is unaccounted for.
    """
    await scene.simulator.set(latency=LEASE + 1)
    await xai_fleet.start_many(2, promptq_max_jobs=16)  # so that the survivor has a slot for each
    ids = await scene.enqueue(*(f"question {number}" for number in range(12)), timeout=3600)
    ledgers = await scene.until_running(ids)
    await scene.simulator.until(lambda totals: totals.generations == 12)
    victim = xai_fleet.holder(ledgers[0].token)
    behind = await scene.enqueue(*(f"more {number}" for number in range(20)))
    await scene.simulator.set(latency=0.1)
    victim.kill()
    ledgers = await scene.ledgers([*ids, *behind])
    held = [ledger.state == "running" and victim.name in ledger.token for ledger in ledgers]
    orphans = [job_id for job_id, is_orphan in zip([*ids, *behind], held, strict=True) if is_orphan]

    async def run_elsewhere() -> bool:
        ledgers = await scene.ledgers(orphans)
        return all(ledger.state != "queued" and victim.name not in ledger.token for ledger in ledgers)

    await wait_until(run_elsewhere, LEASE + 2)
    assert all(ledger.stalls == 1 for ledger in await scene.ledgers(orphans))
    await scene.assert_each_has_one_answer([*ids, *behind])


async def take_over(
    fleet: Fleet, scene: Scene, *, latencies: tuple[float, float]
) -> tuple[Sequence[str], WorkerProcess, WorkerProcess]:
    """Ids of two jobs, the worker that froze with their calls running, and the one that has called again since.

    `latencies` of the first calls and of the second.
    """
    await scene.simulator.set(latency=latencies[0])
    frozen = await fleet.start()
    ids = await scene.enqueue("a", "b")
    await scene.until_running(ids)
    await scene.simulator.until(lambda totals: totals.generations == 2)
    frozen.freeze()
    await scene.simulator.set(latency=latencies[1])
    other = await fleet.start()
    await scene.simulator.until(lambda totals: totals.generations == 4)
    return ids, frozen, other


async def assert_booked_twice(scene: Scene, ids: Sequence[str]) -> None:
    """Wait until both calls of each job are on the books, and check them; each job has ended once."""

    async def booked() -> bool:
        return all(len(ledger.attempts) == 2 for ledger in await scene.ledgers(ids))

    await wait_until(booked, message="both calls of each job are on the books")
    assert [ledger.stalls for ledger in await scene.ledgers(ids)] == [1, 1]
    await scene.assert_each_has_one_answer(ids)


async def test_a_late_success_is_the_result_and_the_other_call_stops(xai_fleet: Fleet, scene: Scene) -> None:
    """A worker freezes for longer than its lease; its answers come late, but first: they are paid for, so they count.

    The calls made instead are cancelled and stay on the books.
    """
    ids, frozen, other = await take_over(xai_fleet, scene, latencies=(0.5, 30))
    await scene.simulator.until(lambda totals: totals.ended == {"OK": 2})
    frozen.thaw()
    results = await scene.results(ids)
    assert {(result.status, result.worker) for result in results.values()} == {(JobStatus.SUCCEEDED, frozen.name)}
    await scene.simulator.until(lambda totals: totals.ended == {"OK": 2, "CANCELLED": 2}, timeout=LEASE)
    await assert_booked_twice(scene, ids)
    assert len(other.said("lease.over")) == 2


async def test_the_first_result_wins_and_the_frozen_call_stops(xai_fleet: Fleet, scene: Scene) -> None:
    """The second worker answers while the first is frozen: when that one comes back its calls are cancelled."""
    ids, frozen, other = await take_over(xai_fleet, scene, latencies=(30, 0.1))
    results = await scene.results(ids)
    assert {(result.status, result.worker) for result in results.values()} == {(JobStatus.SUCCEEDED, other.name)}
    frozen.thaw()
    await scene.simulator.until(lambda totals: totals.ended == {"OK": 2, "CANCELLED": 2}, timeout=LEASE)
    await assert_booked_twice(scene, ids)
    assert frozen.is_alive


async def test_a_job_that_kills_its_workers_ends_and_takes_no_neighbour_along(fleet: Fleet, scene: Scene) -> None:
    """Whoever runs the poison job is SIGKILLed, three times: it fails as `stalled` without a fourth run.

    Everything that ran beside it succeeds.
    """
    lease = {"promptq_lease": 1.2, "promptq_redis_timeout": 0.6, "promptq_echo_latency": 1.0}
    await fleet.start_many(4, promptq_max_jobs=2, **lease)
    neighbours = await scene.enqueue(*(f"q{number}" for number in range(6)))
    [poison] = await scene.enqueue("poison", priority="high")
    killed: list[str] = []

    async def runs_anew() -> bool:
        [ledger] = await scene.ledgers([poison])
        return ledger.state == "running" and ledger.token.rpartition(":")[0] not in killed

    for _ in range(3):
        await wait_until(runs_anew)
        victim = fleet.holder((await scene.ledgers([poison]))[0].token)
        victim.kill()
        killed.append(victim.name)

    results = await scene.results([poison, *neighbours])
    ended = results.pop(poison)
    assert (ended.status, ended.error and ended.error.code) == (JobStatus.FAILED, ErrorCode.STALLED)
    assert {result.status for result in results.values()} == {JobStatus.SUCCEEDED}
    assert [ledger.stalls for ledger in await scene.ledgers([poison])] == [3]
    assert max(ledger.stalls for ledger in await scene.ledgers(neighbours)) <= 2
    await scene.endings.assert_one_each([poison, *neighbours])
    await audit(scene.redis, [poison, *neighbours], model="m")


async def test_with_the_default_lease_it_takes_twelve_seconds_at_most(killing: Killing) -> None:
    """As the first test, with the settings that nobody has touched: 10 s and 2 s."""
    async with PromptQueue.connect(killing.url) as queue:
        client = Redis.from_url(killing.url)
        results = await results_of(queue, killing.all, 30)
        assert {result.status for result in results.values()} == {JobStatus.SUCCEEDED}
        ledgers = await ledgers_of(client, killing.orphans)
        assert ledgers
        assert all(ledger.stalls == 1 for ledger in ledgers)
        assert max(ledger.number("claimed") for ledger in ledgers) / 1000 - killing.at <= 12
        assert all(results[job_id].worker != killing.victim for job_id in killing.orphans)
        assert await audit(client, killing.all, model="m") == len(ledgers)
        await client.aclose()
