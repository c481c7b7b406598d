from typing import Literal

import pytest

from contract import LANE, LEASE, NOW, Contract, Run, entries, entry
from promptq.producer import keys
from promptq.producer.models import JobStatus

pytest_plugins = ["contract_fixture"]


async def test_a_renewal_moves_the_end_of_a_lease(contract: Contract) -> None:
    """Everywhere: ledger, lane, running, arq's key."""
    await contract.accept(entry("a"))
    run = await contract.take_one()
    contract.later(4000)
    assert await contract.renew(run) == ["ours"]
    end = NOW + 4000 + LEASE
    assert int(await contract.field("a", "due")) == end
    assert await contract.score("a") == await contract.redis.zscore(keys.running(LANE), "a") == end
    assert await contract.redis.get(keys.in_progress("a")) == run.token.encode()
    contract.later(LEASE - 1)
    assert await contract.taken(1, "w2") == []


async def test_another_holder_keeps_its_lease(contract: Contract) -> None:
    """The late run may go on, for a success counts; the holder's lease is not touched."""
    await contract.accept(entry("a"))
    late = await contract.take_one("w1")
    await contract.run_out(late)
    await contract.take_one("w2")
    before = await contract.ledger("a")
    contract.later(1000)
    assert await contract.renew(late) == ["taken"]
    assert await contract.ledger("a") == before


async def test_a_job_that_has_ended_is_over(contract: Contract) -> None:
    """Its call is stopped; and so is that of a job that nobody knows any more."""
    await contract.accept(*entries("a", "b"))
    ended, forgotten = await contract.take("w1", slots=2)
    await contract.settle(ended)
    await contract.redis.delete(keys.ledger("b"), keys.payload("b"))
    await contract.redis.zrem(keys.lane(LANE), "b")
    await contract.redis.zrem(keys.running(LANE), "b")
    assert await contract.renew(ended, forgotten) == ["over", "over"]
    await contract.redis.delete(keys.LANES, keys.fair(LANE, 1))


async def test_an_earlier_life_of_a_job_is_over(contract: Contract) -> None:
    """After a requeue its old runs are of no use."""
    await contract.accept(entry("a"))
    run = await contract.take_one()
    await contract.redis.hset(keys.ledger("a"), "epoch", "2")
    assert await contract.renew(run) == ["over"]


async def test_a_cancel_is_passed_on(contract: Contract) -> None:
    """With the lease renewed: the worker has time to write how it ended."""
    await contract.accept(*entries("a", "b"))
    cancelled, other = await contract.take("w1", slots=2)
    await contract.cancel("a")
    contract.later(4000)
    assert await contract.renew(cancelled, other) == ["cancel", "ours"]
    assert int(await contract.field("a", "due")) == contract.now + LEASE
    assert await contract.settle(cancelled, "cancelled") == "done"


@pytest.mark.parametrize("how", ["run out", "queued again", "delayed by another", "never claimed"])
async def test_what_nobody_holds_is_taken_back(
    contract: Contract, how: Literal["run out", "queued again", "delayed by another", "never claimed"]
) -> None:
    """A run that still goes on keeps its job: its call is not started a second time."""
    await contract.accept(entry("a"))
    run = await contract.take_one("w1")
    await contract.run_out(run)
    if how == "queued again":
        await contract.claim("w2", slots=0)
    elif how == "delayed by another":
        await contract.settle(await contract.take_one("w2"), "retry", delay=60_000)
    elif how == "never claimed":  # a failover forgot the claim
        await forget_the_claim(contract, run)
    assert await contract.renew(run) == ["ours"]
    assert await contract.state("a") is JobStatus.RUNNING
    assert await contract.taken(1, "w2") == []
    assert await contract.redis.zcard(keys.running(LANE)) == 1
    contract.later(1000)
    assert await contract.settle(run) == "done"


async def forget_the_claim(contract: Contract, run: Run) -> None:
    """Redis as it was before the claim."""
    await contract.redis.hset(keys.ledger(run.id), "state", "queued")
    await contract.redis.hdel(keys.ledger(run.id), "token", "due", "claimed")
    await contract.redis.zadd(keys.lane(LANE), {run.id: 2**38 + 1})
    await contract.redis.zrem(keys.running(LANE), run.id)
    await contract.redis.delete(keys.in_progress(run.id))


async def test_what_was_given_back_is_not_taken_back(contract: Contract) -> None:
    """A renewal that was on its way when the outcome was written does not revive the run."""
    await contract.accept(entry("a"))
    run = await contract.take_one()
    await contract.settle(run, "retry", delay=5000)
    assert await contract.renew(run) == ["over"]
    assert await contract.state("a") is JobStatus.DELAYED


async def test_a_job_that_was_taken_back_can_be_throttled(contract: Contract) -> None:
    """A claim that a failover forgot counts as claimed from its renewal on."""
    await contract.accept(entry("a"))
    run = await contract.take_one()
    await forget_the_claim(contract, run)
    assert await contract.renew(run) == ["ours"]
    assert await contract.settle(run, "throttled") == "pausing"


async def test_renewing_ends_passed_deadlines(contract: Contract) -> None:
    """Also while no worker has a free slot to claim with."""
    await contract.accept(entry("a", deadline="+5000"))
    contract.later(5000)
    assert await contract.renew() == []
    assert await contract.state("a") is JobStatus.EXPIRED


async def test_a_deadline_does_not_take_a_running_job(contract: Contract) -> None:
    """Its worker ends it; should that die, the deadline is met when its lease is over."""
    await contract.accept(entry("a", deadline="+5000"))
    run = await contract.take_one()
    contract.later(6000)
    assert await contract.renew(run) == ["ours"]
    contract.later(LEASE)
    await contract.renew()
    assert await contract.state("a") is JobStatus.EXPIRED


async def test_aborts_of_plain_arq_clients_are_cancels(contract: Contract) -> None:
    """`arq:abort` is emptied: queued jobs end, running ones are flagged and their worker is woken."""
    await contract.accept(*entries("a", "b"))
    run = await contract.take_one("w1")
    await contract.pop_markers()
    await contract.redis.zadd(keys.ABORT, {"a": contract.now, "b": contract.now})
    assert await contract.renew(run) == ["cancel"]
    assert await contract.state("b") is JobStatus.CANCELLED
    assert await contract.pop_markers() == {"w1"}
    assert await contract.redis.exists(keys.ABORT) == 0


@pytest.mark.leaves_keys("another application's job")
async def test_an_abort_of_another_application_is_left_alone(contract: Contract) -> None:
    """Its payload stands under arq's key, but not in our intake: it is none of ours. The list is kept for a minute."""
    await contract.plain_enqueue("theirs", b"their pickle", lane="theirs")
    await contract.redis.zadd(keys.ABORT, {"theirs": contract.now})
    contract.later(60_000)
    await contract.renew()
    assert await contract.redis.zcard(keys.ABORT) == 1
    contract.later(1)
    await contract.renew()
    assert await contract.redis.exists(keys.ABORT, keys.result("theirs"), keys.ledger("theirs")) == 0
    assert await contract.redis.get(keys.payload("theirs")) == b"their pickle"
