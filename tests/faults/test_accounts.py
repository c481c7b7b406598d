"""The account is refused, or the provider is away: nothing is lost, and the fleet goes on by itself."""

from pathlib import Path

from faults.bookkeeping import Scene
from faults.fleet import Fleet, WorkerProcess
from promptq.producer import PromptQueue, keys
from waiting import wait_until

OLD_KEY, NEW_KEY = "xai-TheOldKey0123456789", "xai-TheNewKey0123456789"
JOBS = 1_000
UNTIL_PAUSED = 10
"""Calls in a row that the provider does not take."""


def said(workers: list[WorkerProcess], event: str) -> list[str]:
    """The levels of what all of them have logged under this name."""
    return [entry["level"] for worker in workers for entry in worker.said(event)]


async def paused(queue: PromptQueue) -> bool:
    """Whether nobody claims for some account."""
    return bool((await queue.stats()).paused_accounts)


async def test_jobs_survive_an_expired_key(scene: Scene, xai_fleet: Fleet, tmp_path: Path) -> None:
    """They stay queued, unspent, with one loud line for all workers; they run when the file holds a good key."""
    key_file = tmp_path / "key"
    key_file.write_text(OLD_KEY)
    await scene.simulator.set(keys={OLD_KEY: "expired"})
    ids = await scene.enqueue(*(f"question {number}" for number in range(JOBS)))
    workers = [*await xai_fleet.start_many(2, xai_api_key=None, xai_api_key_file=key_file)]
    await wait_until(lambda: paused(scene.queue), message="the account is paused")
    await wait_until(lambda: said(workers, "provider.refuses"), message="a worker has asked")
    assert await scene.generations() == 0
    assert said(workers, "provider.paused") == ["error"]
    key_file.write_text(NEW_KEY)
    await scene.assert_each_has_one_answer(ids)
    ledgers = await scene.ledgers(ids)
    assert {ledger.spent for ledger in ledgers} == {0}
    refused = [attempt for ledger in ledgers for attempt in ledger.attempts if attempt.code]
    assert {attempt.code for attempt in refused} == {"bad_key"}
    await wait_until(lambda: len(said(workers, "key.replaced")) == len(workers), message="both read the new key")
    for worker in workers:
        assert OLD_KEY not in worker.log
        assert NEW_KEY not in worker.log


async def test_jobs_wait_for_credit(scene: Scene, xai_fleet: Fleet) -> None:
    """It ends while they run; the rest wait, and run when there is some again."""
    await scene.simulator.set(credit_in_usd_ticks=20 * 10_000_000)
    workers = [*await xai_fleet.start_many(2)]
    ids = await scene.enqueue(*(f"question {number}" for number in range(200)))
    await wait_until(lambda: paused(scene.queue), message="the account is paused")
    totals = await scene.simulator.totals()
    assert 0 < totals.generations < len(ids)
    await scene.simulator.set(credit_in_usd_ticks=None)
    await scene.assert_each_has_one_answer(ids)
    assert set(said(workers, "provider.paused")) == {"error"}
    assert {ledger.spent for ledger in await scene.ledgers(ids)} == {0}


async def test_an_outage_fails_nothing(scene: Scene, xai_fleet: Fleet) -> None:
    """Every call ends UNAVAILABLE: the model pauses, one job tries at a time, and no attempt is spent any more."""
    await scene.simulator.set(faults=[{"kind": "status", "code": "UNAVAILABLE"}])
    await xai_fleet.start_many(2, promptq_max_attempts=2)
    ids = await scene.enqueue(*(f"question {number}" for number in range(200)))

    async def has_tried_again() -> bool:
        return int(await scene.redis.execute_command("HGET", keys.meter(scene.model), "strikes") or 0) >= 2  # type: ignore[no-untyped-call]

    await wait_until(has_tried_again, 20, message="the model has paused, and a job has tried")
    assert (await scene.simulator.totals()).calls < len(ids) + 2 * UNTIL_PAUSED
    assert (await scene.queue.stats()).lanes[0].pause_reason == "unavailable"
    await scene.simulator.set(faults=[])
    await scene.assert_each_has_one_answer(ids)
    assert sum(ledger.spent for ledger in await scene.ledgers(ids)) < UNTIL_PAUSED
