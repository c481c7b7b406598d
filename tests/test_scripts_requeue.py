"""A failed job gets a new life: what is kept of the old one, and what is not."""

import pytest

from contract import FAILURE_TTL, LANE, Contract, Run, entries, entry
from promptq.producer import keys, scripts
from promptq.producer.models import JobStatus
from promptq.producer.records import Kind

pytest_plugins = ["contract_fixture"]


async def failed(contract: Contract, job_id: str = "a", **fields: object) -> Run:
    """A job that has failed, in its third attempt; the run that did."""
    await contract.accept(entry(job_id, **fields))
    for _ in range(2):
        await contract.settle(await contract.take_one(), "retry", reason="provider_error", delay=1)
        contract.later(1)
    run = await contract.take_one()
    assert await contract.settle(run, "failed", reason="provider_error") == "done"
    return run


async def requeue(contract: Contract, *ids: str, nonce: str = "n") -> list[str]:
    """A call; what it says of each."""
    return await scripts.requeue(contract.redis, ids, nonce=nonce, now=contract.now)


async def test_a_failed_job_runs_again(contract: Contract) -> None:
    """From its payload, with no attempt spent; it ends once more, with all attempts of both lives."""
    await failed(contract)
    await contract.pop_markers()
    assert await requeue(contract, "a") == ["requeued"]
    assert LANE in await contract.pop_markers()
    assert await contract.state("a") is JobStatus.QUEUED
    assert await contract.redis.exists(keys.result("a"), keys.FAILED) == 0
    run = await contract.take_one()
    assert (run.job.epoch, run.job.spent, run.job.stalls) == ("2", 0, 0)
    assert run.job.payload
    assert await contract.settle(run) == "done"
    assert sum(name.startswith("attempt:") for name in await contract.ledger("a")) == 4


async def test_while_it_waits_nothing_expires(contract: Contract) -> None:
    """Payload and ledger have no TTL any more."""
    await failed(contract)
    assert 0 < await contract.redis.pttl(keys.payload("a")) <= FAILURE_TTL
    await requeue(contract, "a")
    assert [await contract.redis.pttl(key) for key in (keys.payload("a"), keys.ledger("a"))] == [-1, -1]


async def test_it_goes_behind_its_tenants_other_jobs(contract: Contract) -> None:
    """A new life has a new turn: thousands of failed jobs push nobody aside."""
    await failed(contract)
    await contract.accept(*entries("b", "c"))
    await requeue(contract, "a")
    assert await contract.taken(9) == ["b", "c", "a"]


@pytest.mark.parametrize("kind", ["succeeded", "failed"])
async def test_a_run_of_the_old_life_changes_nothing(contract: Contract, kind: Kind) -> None:
    """Its worker was away, and does not know of the new one; what it used is on the books all the same."""
    await contract.accept(entry("a"))
    zombie = await contract.take_one()
    await contract.run_out(zombie)
    run = await contract.take_one("w2")
    await contract.settle(run, "failed", reason="provider_error")
    await requeue(contract, "a")
    assert await contract.renew(zombie) == ["over"]
    assert await contract.settle(zombie, kind) == "stale"
    assert await contract.state("a") is JobStatus.QUEUED


async def test_sent_again_it_says_the_same(contract: Contract) -> None:
    """Also if the job has failed once more in between: one call is one more life."""
    await failed(contract)
    await requeue(contract, "a", nonce="one")
    assert await requeue(contract, "a", nonce="one") == ["requeued"]
    assert await requeue(contract, "a", nonce="two") == ["open"]
    await contract.settle(await contract.take_one(), "failed", reason="provider_error")
    assert await requeue(contract, "a", nonce="one") == ["requeued"]
    assert await contract.state("a") is JobStatus.FAILED


async def test_only_failed_jobs_are_requeued(contract: Contract) -> None:
    """Of others it is said why not."""
    await contract.accept(*entries("done", "cancelled", "open"))
    await contract.settle(await contract.take_one())
    await contract.cancel("cancelled")
    await failed(contract, "gone", band=0)
    await contract.redis.delete(keys.payload("gone"))
    said = await requeue(contract, "done", "cancelled", "open", "gone", "nobody")
    assert said == ["over", "over", "open", "gone", "unknown"]


async def test_a_passed_deadline_is_dropped(contract: Contract) -> None:
    """Who requeues the job wants it to run; one that is still to come holds."""
    await failed(contract, "past", deadline="+1000")
    await failed(contract, "coming", deadline="+100000")
    contract.later(2000)
    await requeue(contract, "past", "coming")
    assert sorted(await contract.taken(9)) == ["coming", "past"]
    assert await contract.redis.zrange(keys.DEADLINES, 0, -1) == [b"coming"]


async def test_its_group_waits_for_it_again(contract: Contract) -> None:
    """Counters, and its place among those that have ended: who reads on finds its new end."""
    await failed(contract, "a", group="g")
    await failed(contract, "b", group="g")
    assert await contract.redis.pttl(keys.group("g")) > 0
    await requeue(contract, "a")
    counters = await contract.redis.hgetall(keys.group("g"))
    assert (counters[b"failed"], counters[b"queued"]) == (b"1", b"1")
    assert await contract.redis.pttl(keys.group("g")) == -1
    await contract.settle(await contract.take_one())
    assert await contract.redis.zrange(keys.members("g"), 0, -1, withscores=True) == [(b"b", 2), (b"a", 3)]
    assert await contract.redis.pttl(keys.group("g")) > 0


async def test_its_group_is_kept_until_all_have_ended_again(contract: Contract) -> None:
    """However often jobs of it have ended before."""
    for job_id in "ab":
        await failed(contract, job_id, group="g")
    await requeue(contract, "a", "b")
    runs = await contract.take("w1", slots=2)
    await contract.settle(runs[0])
    assert [await contract.redis.pttl(key) for key in (keys.group("g"), keys.members("g"))] == [-1, -1]
    await contract.settle(runs[1])
    assert await contract.redis.pttl(keys.group("g")) > 0
