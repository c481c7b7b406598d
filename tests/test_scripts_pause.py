"""The provider said 429, or worse: its model pauses for the whole fleet."""

import pytest

from contract import LANE, Contract, Run, entries, entry
from promptq.producer import keys
from promptq.producer.models import JobStatus

pytest_plugins = ["contract_fixture"]

PROBE = 30_000


async def paused(contract: Contract, jobs: int = 3) -> Run:
    """Jobs of a model that has just paused for a second; the run that was throttled."""
    await contract.accept(*(entry(f"job {number}") for number in range(jobs)))
    run = await contract.take_one()
    contract.later(10)
    await contract.settle(run, "throttled", reason="rate_limited")
    return run


async def test_a_paused_model_is_not_claimed(contract: Contract) -> None:
    """Its jobs stay queued, unspent, until the pause ends; who claims knows when. Other models go on."""
    throttled = await paused(contract)
    await contract.accept(entry("other", lane="grok-3"))
    claimed = await contract.claim(slots=9)
    assert ([job.id for job in claimed.jobs], claimed.due_in) == (["other"], 1000)
    assert await contract.state(throttled.id) is JobStatus.QUEUED
    assert await contract.redis.hget(keys.meter(LANE), "reason") == b"rate_limited"
    contract.later(999)
    assert await contract.taken(9) == []


async def test_the_pause_ends_with_one_probe(contract: Contract) -> None:
    """One job finds out whether the model is back; while it runs, no other starts for half a minute."""
    throttled = await paused(contract)
    contract.later(1000)
    assert await contract.taken(9, "w1") == [throttled.id]
    claimed = await contract.claim("w2", slots=9)
    assert (claimed.jobs, claimed.due_in) == ((), 10_000)  # the lease ends before the probe does
    contract.later(PROBE - 1)
    assert await contract.taken(9, "w2") == []
    contract.later(1)
    assert await contract.taken(9, "w2") == [throttled.id]


async def test_a_success_claimed_after_the_pause_ends_it(contract: Contract) -> None:
    """The probe was answered: all may go on, and workers are woken."""
    await paused(contract)
    contract.later(1000)
    probe = await contract.take_one()
    await contract.pop_markers()
    assert await contract.settle(probe) == "done"
    assert LANE in await contract.pop_markers()
    assert len(await contract.taken(9)) == 2


async def test_a_success_claimed_before_the_pause_proves_nothing(contract: Contract) -> None:
    """Its call was let through before the provider refused the other."""
    await contract.accept(*entries("a", "b", "c"))
    early, throttled = await contract.take("w1", slots=2)
    contract.later(10)
    await contract.settle(throttled, "throttled")
    contract.later(10)
    await contract.settle(early)
    assert await contract.taken(9) == []


async def test_pauses_grow_while_probes_are_refused(contract: Contract) -> None:
    """1, 2, 4, ... seconds, at most a minute."""
    await paused(contract, jobs=1)
    pauses = []
    for _ in range(8):
        began = contract.now
        while not (runs := await contract.take("w1", slots=1)):
            contract.later(1000)
        pauses.append(contract.now - began)
        contract.later(10)
        await contract.settle(runs[0], "throttled")
    assert pauses == [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]


async def test_a_pause_grows_once_a_moment(contract: Contract) -> None:
    """Many calls that were under way when the provider refused the first say nothing new."""
    await contract.accept(*(entry(f"job {number}") for number in range(50)))
    runs = await contract.take("w1", slots=50)
    contract.later(10)
    for run in runs:
        await contract.settle(run, "throttled")
    assert (await contract.claim()).due_in == 1000
    contract.later(1000)
    assert len(await contract.taken(9)) == 1


async def test_the_providers_own_delay_is_kept(contract: Contract) -> None:
    """`Retry-After` is the least pause, also when it comes with a call that says nothing new."""
    await contract.accept(*entries("a", "b"))
    first, second = await contract.take("w1", slots=2)
    contract.later(10)
    await contract.settle(first, "throttled")
    await contract.settle(second, "throttled", delay=90_000)
    assert (await contract.claim()).due_in == 90_000
    contract.later(89_999)
    assert await contract.taken(9) == []


async def test_a_short_delay_does_not_shorten_the_pause(contract: Contract) -> None:
    """It is a floor, not the pause itself."""
    await contract.accept(entry("a"))
    run = await contract.take_one()
    await contract.settle(run, "throttled", delay=90_000)
    contract.later(90_000)
    run = await contract.take_one()
    await contract.settle(run, "throttled", delay=1)
    assert (await contract.claim()).due_in == 2000


async def test_a_failure_that_the_provider_gave_ends_the_pause(contract: Contract) -> None:
    """It answers again, if only to refuse this job."""
    await paused(contract)
    contract.later(1000)
    await contract.settle(await contract.take_one(), "failed", reason="invalid_request")
    assert len(await contract.taken(9)) == 2


@pytest.mark.parametrize("reason", ["unavailable", "timeout"])
async def test_a_failure_without_an_answer_ends_no_pause(contract: Contract, reason: str) -> None:
    """A probe that got no answer, on its last attempt, proves nothing."""
    await paused(contract)
    contract.later(1000)
    await contract.settle(await contract.take_one(), "failed", reason=reason)
    assert await contract.taken(9) == []


async def test_an_adopted_job_waits_for_its_model(contract: Contract) -> None:
    """It stands in the intake lane, but its model is what pauses; as a probe it counts, too."""
    await paused(contract)
    for job_id in ("x", "y"):
        await contract.plain_enqueue(job_id)
    await contract.claim()
    for job_id in ("x", "y"):
        await contract.adopt(entry(job_id))
    assert await contract.taken(9) == []
    contract.later(1000)
    assert len(await contract.taken(9)) == 1
    assert await contract.taken(9) == []


async def test_only_a_leased_job_is_a_probe(contract: Contract) -> None:
    """An adopted job that may not be taken does not use up the probe of its model."""
    await contract.plain_enqueue("x")
    await contract.claim()
    await contract.adopt(entry("x"))
    await contract.stall("x", times=2)
    await paused(contract, jobs=1)
    contract.later(1000)
    assert await contract.taken(9, serves=(keys.INTAKE,), may_take_poison=False) == []
    assert await contract.taken(9, serves=(LANE,)) == ["job 0"]
