"""Ledgers that no script has left so: one bad record stops nobody."""

from collections.abc import AsyncIterator

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from contract import FAILURE_TTL, HIGH, LANE, LEASE, Contract, entries, entry, usage_key
from promptq.producer import keys
from promptq.producer.models import JobStatus
from promptq.producer.reading import read_group
from promptq.worker.embedded import PrivateRedis

pytest_plugins = ["contract_fixture"]

CORRUPTIONS = {
    "wrong type": None,
    "no epoch": {"epoch": None},
    "no lane": {"lane": None},
    "no model": {"model": None},
    "no enqueued": {"enqueued": None},
    "word for turn": {"turn": "soon"},
    "word for band": {"band": "first"},
    "word for due": {"due": "later"},
    "no due": {"due": None},
    "nan due": {"due": "nan"},
    "broken spent": {"spent": "0.5"},
    "huge enqueued": {"enqueued": "1e300"},
    "infinite stalls": {"stalls": "inf"},
    "unknown state": {"state": "elsewhere"},
    "no state": {"state": None},
    "bytes for band": {"band": b"\xff\xfe"},
}


async def corrupt(contract: Contract, job_id: str, how: str) -> None:
    """Spoil the ledger of a job."""
    changes = CORRUPTIONS[how]
    if changes is None:
        await contract.redis.set(keys.ledger(job_id), b"not a hash")
        return
    for field, value in changes.items():
        if value is None:
            await contract.redis.hdel(keys.ledger(job_id), field)
        else:
            await contract.redis.hset(keys.ledger(job_id), field, value)


@pytest.mark.leaves_keys("a corrupted ledger")
@pytest.mark.parametrize("how", CORRUPTIONS)
@pytest.mark.parametrize("place", ["queued", "delayed", "running", "deadline", "abort"])
async def test_a_corrupted_ledger_stops_nobody(contract: Contract, place: str, how: str) -> None:
    """Neither claims nor renewals of other jobs, wherever the scripts meet the bad record, and however often."""
    await contract.accept(
        entry("bad", delay=1000 if place == "delayed" else 0, deadline="+1000" if place == "deadline" else "")
    )
    if place == "running":
        await contract.take_one("dies")
    await corrupt(contract, "bad", how)
    if place == "abort":
        await contract.redis.zadd(keys.ABORT, {"bad": contract.now})
    contract.later(LEASE + 1)
    await contract.accept(entry("good"), entry("better", lane="other"))
    runs = []
    for _ in range(4):
        runs += [run for run in await contract.take("w1", slots=4) if run.id != "bad"]
        assert await contract.renew(*runs) == ["ours"] * len(runs)
        contract.later(1000)
    assert sorted(run.id for run in runs) == ["better", "good"]
    assert [await contract.settle(run) for run in runs] == ["done", "done"]


@pytest.mark.parametrize("how", CORRUPTIONS)
async def test_a_corrupted_job_ends_as_failed(contract: Contract, how: str) -> None:
    """Whoever waits for it gets a result; nothing of it stays for ever."""
    await contract.accept(entry("bad", delay=1000 if "due" in how else 0))
    await corrupt(contract, "bad", how)
    contract.later(1000)
    assert await contract.taken(9) == []
    assert await contract.redis.zscore(keys.FAILED, "bad")
    assert (await contract.result("bad"))["status"] == "failed"
    assert await contract.state("bad") is JobStatus.FAILED
    assert 0 < await contract.redis.pttl(keys.payload("bad")) <= FAILURE_TTL
    assert await contract.cancel("bad") == ["over"]
    assert await contract.dispositions(entry("bad")) == [("conflict", "failed")]


@pytest.fixture
async def impatient() -> AsyncIterator[Contract]:
    """On a server of its own, since the test may hang it for good."""
    async with PrivateRedis() as server:
        client = redis.asyncio.Redis.from_url(server.url, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        yield Contract(client)
        await client.aclose()


async def test_a_time_in_the_past_does_not_hang_redis(impatient: Contract) -> None:
    """A due time that reads as a turn is no turn: the claim ends, and the next job is taken."""
    await impatient.accept(*entries("bad", "good"))
    await impatient.redis.hset(keys.ledger("bad"), mapping={"state": "delayed", "due": "5"})
    assert "good" in await impatient.taken(1, "w1") + await impatient.taken(1, "w2")


async def test_a_large_foreign_job_at_the_head_does_not_hang_redis(impatient: Contract) -> None:
    """It does not fit into the reply: this claim goes past it, and the next one hands it over."""
    await impatient.accept(*[entry(job_id, lane=job_id, band=HIGH, payload=b"x" * 400) for job_id in "ab"])
    await impatient.plain_enqueue("large", b"x" * 900)
    await impatient.redis.zadd(keys.lane(keys.INTAKE), {"large": 1})
    first = await impatient.claim(slots=3, max_bytes=1000)
    second = await impatient.claim(slots=3, max_bytes=1000)
    assert (len(first.jobs), [theirs.id for theirs in first.foreign + second.foreign]) == (2, [b"large"])


async def test_what_only_seems_to_run_is_forgotten(contract: Contract) -> None:
    """An entry among the running without a run behind it does not count as a call in flight for ever."""
    await contract.accept(entry("a"))
    await contract.redis.zadd(keys.running(LANE), {"a": contract.now, "nobody": contract.now})
    await contract.claim(slots=0)
    assert await contract.redis.exists(keys.running(LANE), keys.ledger("nobody")) == 0
    assert await contract.state("a") is JobStatus.QUEUED


async def test_a_deadline_of_nobody_is_forgotten(contract: Contract) -> None:
    """Its job has ended, or was lost: the claim does not meet it again."""
    await contract.accept(entry("a"))
    await contract.settle(await contract.take_one())
    await contract.redis.zadd(keys.DEADLINES, {"a": contract.now, "nobody": contract.now})
    await contract.claim()
    assert await contract.redis.exists(keys.DEADLINES) == 0


async def test_a_claim_sent_again_survives_a_ledger_that_was_corrupted_meanwhile(contract: Contract) -> None:
    """Else its worker would repeat that claim for ever."""
    await contract.accept(*entries("bad", "good"))
    request = contract.request("w1", slots=2)
    await contract.send(request)
    await corrupt(contract, "bad", "wrong type")
    assert [job.id for job in (await contract.send(request)).jobs] == ["good"]


async def test_a_payload_that_is_no_string_ends_its_job(contract: Contract) -> None:
    """The claim goes on, and the job fails."""
    await contract.accept(*entries("bad", "good"))
    await contract.redis.delete(keys.payload("bad"))
    await contract.redis.rpush(keys.payload("bad"), "a list")
    assert await contract.taken(9) == ["good"]
    assert await contract.state("bad") is JobStatus.FAILED


@pytest.mark.leaves_keys("a corrupted list of books")
async def test_books_of_a_day_that_cannot_be_written_cost_no_answer(contract: Contract) -> None:
    """The result is written, and the attempt stands in its ledger."""
    await contract.accept(entry("a"))
    await contract.redis.set(usage_key(contract.now), b"not a hash")
    run = await contract.take_one()
    assert await contract.settle(run, usage=(1, 2, 3, 4, 5, 6)) == "done"
    assert (await contract.ledger("a"))[f"attempt:{run.token}"]


@pytest.mark.parametrize("how", [how for how, changes in CORRUPTIONS.items() if changes])
@pytest.mark.parametrize("place", ["queued", "delayed", "running"])
async def test_a_corrupted_job_of_a_group_is_counted_once(contract: Contract, place: str, how: str) -> None:
    """Its group ends with it: who reads the group would wait for ever for a job that stays open."""
    await contract.accept(entry("bad", group="run", delay=1000 if place == "delayed" else 0))
    if place == "running":
        await contract.take_one("dies")
    await corrupt(contract, "bad", how)
    contract.later(LEASE + 1)
    for run in await contract.take("w1"):  # what is spoilt is not needed there
        await contract.settle(run, "failed")
    counts = await read_group(contract.redis, "run")
    assert (counts.open, counts.failed, counts.total) == (0, 1, 1)


async def test_an_outcome_for_a_ledger_of_bytes_is_refused(contract: Contract) -> None:
    """The refusal quotes what it found, which need not be a text: that must not end the worker that reads it."""
    await contract.accept(entry("bad"))
    run = await contract.take_one("w1")
    await corrupt(contract, "bad", "bytes for band")
    assert (await contract.settle(run)).startswith("error")
    contract.later(LEASE + 1)
    await contract.take("w1")
