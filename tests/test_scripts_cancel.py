import pytest

from contract import DAY, LANE, LEASE, RESULT_TTL, Contract, entries, entry
from promptq.producer import keys
from promptq.producer.models import JobStatus

pytestmark = pytest.mark.producer
pytest_plugins = ["contract_fixture"]


@pytest.mark.parametrize("delay", [0, DAY])
async def test_a_job_that_waits_ends_at_once(contract: Contract, delay: int) -> None:
    """With a result, a message to its readers, and nothing left in the lane."""
    await contract.accept(entry("a", delay=delay, deadline="+5000"))
    async with contract.redis.pubsub() as listener:
        await listener.subscribe(keys.done("a"))
        await listener.get_message(timeout=1)
        assert await contract.cancel("a") == ["cancelled"]
        heard = await listener.get_message(ignore_subscribe_messages=True, timeout=1)
    assert heard["data"] == b"cancelled"
    assert await contract.state("a") is JobStatus.CANCELLED
    result = await contract.result("a")
    assert (result["status"], result["error"]["code"]) == ("cancelled", "cancelled")
    assert 0 < await contract.redis.pttl(keys.result("a")) <= RESULT_TTL
    assert await contract.redis.exists(keys.payload("a"), keys.lane(LANE), keys.LANES, keys.DEADLINES) == 0


async def test_a_running_job_is_flagged_and_its_worker_woken(contract: Contract) -> None:
    """The marker of that worker alone; the run ends when the worker hears of it."""
    await contract.accept(entry("a"))
    run = await contract.take_one("host:1-w")
    await contract.pop_markers()
    assert await contract.cancel("a") == ["cancelling"]
    assert await contract.pop_markers() == {"host:1-w"}
    assert await contract.state("a") is JobStatus.RUNNING
    assert await contract.renew(run) == ["cancel"]
    assert await contract.cancel("a") == ["cancelling"]


async def test_a_job_whose_lease_ran_out_ends_at_once(contract: Contract) -> None:
    """Nobody runs it; a late answer finds it over."""
    await contract.accept(entry("a"))
    run = await contract.take_one()
    contract.later(LEASE)
    assert await contract.cancel("a") == ["cancelled"]
    assert await contract.settle(run) == "over"
    assert await contract.redis.exists(keys.running(LANE), keys.in_progress("a")) == 0


async def test_what_has_ended_or_is_unknown(contract: Contract) -> None:
    """Nothing changes; each id of a call has its own word."""
    await contract.accept(*entries("a", "b", "c"))
    await contract.settle(await contract.take_one())
    assert await contract.cancel("b") == ["cancelled"]
    assert await contract.cancel("a", "b", "c", "nobody") == ["over", "over", "cancelled", "unknown"]
    assert await contract.state("a") is JobStatus.SUCCEEDED
    assert await contract.redis.exists(keys.ledger("nobody"), keys.result("nobody")) == 0


async def test_a_foreign_job_that_is_not_adopted_yet_ends_at_once(contract: Contract) -> None:
    """Also when a worker holds it in its hands to adopt: then that comes too late."""
    await contract.plain_enqueue("a")
    await contract.claim("w1")
    assert await contract.cancel("a") == ["cancelled"]
    assert await contract.adopt(entry("a")) == "known"
    assert await contract.state("a") is JobStatus.CANCELLED
    assert await contract.redis.exists(keys.payload("a"), keys.lane(keys.INTAKE)) == 0
    assert await contract.cancel("a") == ["over"]
    assert await contract.dispositions(entry("a")) == [("conflict", "cancelled")]


@pytest.mark.leaves_keys("another application's job")
async def test_another_applications_job_is_unknown(contract: Contract) -> None:
    """A payload under arq's key that does not stand in our intake is none of ours."""
    await contract.plain_enqueue("a", lane="theirs")
    assert await contract.cancel("a") == ["unknown"]
    assert await contract.redis.exists(keys.payload("a"), keys.lane("theirs")) == 2


async def test_a_cancelled_job_gives_its_place_to_the_next(contract: Contract) -> None:
    """Those behind it move up; its id is taken as long as its result is kept."""
    await contract.accept(*entries("a", "b"))
    await contract.cancel("a")
    assert await contract.taken(1) == ["b"]
    assert await contract.dispositions(entry("a")) == [("duplicate", "cancelled")]
