import asyncio
import signal

import pytest
from redis.asyncio import Redis

from faults.bookkeeping import Scene, ledgers_of, results_of, until_running
from faults.fleet import LEASE, Fleet, is_worker, kill_child, pid_of
from faults.proxy import running_proxy
from promptq.producer import JobStatus, PromptQueue
from waiting import wait_until


async def test_calls_finish_and_nothing_new_is_claimed(xai_fleet: Fleet, scene: Scene) -> None:
    """SIGTERM and SIGINT drain: what runs is answered, what waits goes on waiting, no attempt is spent, exit code 0."""
    await scene.simulator.set(latency=0.8)
    workers = await xai_fleet.start_many(2, promptq_max_jobs=2)
    ids = await scene.enqueue(*(f"q{number}" for number in range(6)))
    await scene.until_running(ids[:4])
    for worker, number in zip(workers, (signal.SIGTERM, signal.SIGINT), strict=True):
        worker.signal(number)
    assert [await worker.wait() for worker in workers] == [0, 0]
    assert [ledger.state for ledger in await scene.ledgers(ids)] == ["succeeded"] * 4 + ["queued"] * 2
    await scene.simulator.set(latency=0)
    await xai_fleet.start("--burst")
    await scene.assert_each_has_one_answer(ids)
    assert await scene.generations() == 6
    assert all(ledger.spent == ledger.releases == ledger.stalls == 0 for ledger in await scene.ledgers(ids))


@pytest.mark.parametrize("way", ["time is up", "second signal"])
async def test_what_is_given_back_runs_next_and_unspent(way: str, xai_fleet: Fleet, scene: Scene) -> None:
    """When the drain's time is up, or at a second signal at once, running jobs go back to their own turns.

    Another worker runs them before what was queued behind them. Their calls are cancelled, nothing is spent, exit
    code 0.
    """
    await scene.simulator.set(latency=30)
    timeout = 0.3 if way == "time is up" else 25
    worker = await xai_fleet.start(promptq_max_jobs=2, promptq_drain_timeout=timeout)
    ids = await scene.enqueue("q0", "q1", "q2", "q3")
    await scene.until_running(ids[:2])
    await scene.simulator.until(lambda totals: totals.generations == 2)
    worker.terminate()
    if way == "second signal":
        await wait_until(lambda: worker.said("worker.draining"))
        worker.terminate()
    assert await worker.wait(5) == 0
    assert (await scene.simulator.totals()).ended == {"CANCELLED": 2}
    ledgers = await scene.ledgers(ids)
    assert [ledger.state for ledger in ledgers] == ["queued"] * 4
    assert [(ledger.releases, ledger.spent, ledger.stalls) for ledger in ledgers[:2]] == [(1, 0, 0)] * 2

    await scene.simulator.set(latency=0)
    await xai_fleet.start("--burst", promptq_max_jobs=1)
    await scene.assert_each_has_one_answer(ids)
    assert [entry.prompt for entry in await scene.simulator.journal(since=2)] == ["q0", "q1", "q2", "q3"]


async def test_a_signal_before_there_is_a_redis_ends_it(fleet: Fleet) -> None:
    """SIGTERM while a worker still waits for its Redis: it ends at once, with exit code 0."""
    worker = fleet.launch(promptq_redis_url="redis://127.0.0.1:1", promptq_redis_timeout=0.2)
    await wait_until(lambda: worker.said("redis.awaited"))
    worker.terminate()
    assert await worker.wait(5) == 0
    assert "Traceback" not in worker.log


async def test_a_signal_at_any_moment_of_the_start_leaves_nothing_behind(
    fleet: Fleet, queue: PromptQueue, redis_client: Redis
) -> None:
    """SIGTERM while a worker starts: whether or not it could claim already, nothing is held when it has ended."""
    handle = await queue.enqueue("q", model="m")
    workers = [fleet.launch(promptq_echo_latency=30, promptq_drain_timeout=0) for _ in range(4)]
    for number, worker in enumerate(workers):
        await asyncio.sleep(0.2 * number)  # a moment each
        worker.terminate()
    for worker in workers:
        assert await worker.wait() in (0, -signal.SIGTERM)
        assert "Traceback" not in worker.log
    [ledger] = await ledgers_of(redis_client, [handle.id])
    assert (ledger.state, ledger.stalls, ledger.spent) == ("queued", 0, 0)
    assert await queue.cancel(handle.id)


async def test_a_drain_without_redis_ends_and_says_so(
    fleet: Fleet, redis_url: str, queue: PromptQueue, redis_client: Redis
) -> None:
    """Redis is away and stays away: a drained worker gives up on it, and its exit code tells that something was lost.
    The job runs again elsewhere.
    """
    async with running_proxy(redis_url) as proxy:
        worker = await fleet.start(promptq_redis_url=proxy.url, promptq_echo_latency=0.3, promptq_drain_timeout=0.1)
        handle = await queue.enqueue("q", model="m")
        await until_running(redis_client, [handle.id])
        proxy.blackhole()
        worker.terminate()
        other = fleet.launch()
        assert await worker.wait(6) == 1
        assert worker.said("settle.lost")
        result = await handle.wait(2 * LEASE + 2)
        assert (result.status, result.worker) == (JobStatus.SUCCEEDED, other.name)


async def test_several_processes_are_kept_alive_and_drained_together(
    fleet: Fleet, queue: PromptQueue, redis_client: Redis
) -> None:
    """`--processes 2`: a child that is killed is started again and its jobs run on; SIGTERM drains all, exit code 0."""
    supervisor = await fleet.launch("--processes", "2", promptq_echo_latency=1, promptq_max_jobs=2).ready(2)
    ids = [handle.id for handle in await queue.enqueue_many([f"q{number}" for number in range(6)], model="m")]
    await until_running(redis_client, ids[:4])
    kill_child(supervisor.names[0])
    await supervisor.ready(3)
    assert supervisor.said("worker.died")[0]["exit_code"] == -signal.SIGKILL
    await results_of(queue, ids)
    [last] = [handle.id for handle in await queue.enqueue_many(["last"], model="m")]
    await until_running(redis_client, [last])
    supervisor.terminate()
    assert await supervisor.wait() == 0
    assert await queue.status(last) is JobStatus.SUCCEEDED
    assert len(supervisor.said("worker.stopped")) == 2
    assert not any(is_worker(pid_of(name)) for name in supervisor.names)
