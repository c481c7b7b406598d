"""Jobs of plain arq clients, through arq's own classes."""

import asyncio
import contextlib
import time

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job, JobStatus

from contract import FAILURE_TTL, LANE, LEASE, Contract, Run, entry
from promptq.producer import codec, keys
from promptq.producer.errors import JobFailed
from promptq.producer.models import JobStatus as Status
from promptq.producer.results import JobResult
from waiting import wait_until

pytest_plugins = ["contract_fixture"]

INTAKE = keys.lane(keys.INTAKE)
ANSWER = {"status": "succeeded", "content": "hello"}


def plain_client(contract: Contract) -> ArqRedis:
    """What another team's arq application enqueues with; its clock is the real one, and so is then the test's."""
    contract.now = round(time.time() * 1000) + 1000
    return ArqRedis(
        pool_or_conn=contract.redis.connection_pool,
        job_serializer=codec.dumps,
        job_deserializer=codec.loads,
        default_queue_name=INTAKE,
    )


def record(run: Run, result: dict[str, str]) -> bytes:
    """A result as a worker writes it."""
    ok = result["status"] == "succeeded"
    head = {"t": 1, "f": codec.FUNCTION, "a": (), "k": {}, "et": 1, "st": 1, "ft": 1, "q": INTAKE, "id": run.id}
    return codec.dumps(head | {"s": ok, "r": result})


async def adopted(contract: Contract, client: ArqRedis) -> Job:
    """A job that arq enqueued and a worker adopted."""
    job = await client.enqueue_job(codec.FUNCTION, "hi", _job_id="a")
    assert job is not None
    [foreign] = (await contract.claim()).foreign
    job_id = foreign.id.decode()
    assert await contract.adopt(entry(job_id)) == "adopted"
    return job


async def test_an_adopted_job_stays_in_the_intake_lane(contract: Contract) -> None:
    """There arq's own `Job` sees it, from "queued" to its result; its lease counts for its model."""
    job = await adopted(contract, plain_client(contract))
    assert await job.status() is JobStatus.queued
    assert await contract.redis.zscore(INTAKE, "a") == 2**38 + 1
    [run] = await contract.take("w1", slots=9)
    assert (run.job.lane, run.job.model) == (keys.INTAKE, LANE)
    assert await job.status() is JobStatus.in_progress
    assert await contract.redis.zrange(keys.running(LANE), 0, -1) == [b"a"]
    await contract.settle(run, result=record(run, ANSWER))
    assert await job.status() is JobStatus.complete
    answer = await job.result(timeout=1)
    assert isinstance(answer, JobResult)
    assert answer.content == "hello"
    assert await contract.redis.exists(keys.LANES, INTAKE, keys.running(LANE)) == 0


async def test_a_refused_job_ends_with_a_result(contract: Contract) -> None:
    """Whoever enqueued it hears why; it is in no lane any more."""
    await contract.plain_enqueue("a")
    await contract.claim()
    assert await contract.adopt(entry("a"), refusal=b"why") == "refused"
    assert await contract.redis.get(keys.result("a")) == b"why"
    assert await contract.state("a") is Status.FAILED
    assert 0 < await contract.redis.pttl(keys.payload("a")) <= FAILURE_TTL
    assert await contract.redis.exists(INTAKE, keys.LANES) == 0


async def test_a_known_job_is_left_alone(contract: Contract) -> None:
    """Two workers may hold it in their hands: the second changes nothing, nor does one that comes when it has ended."""
    await contract.plain_enqueue("a")
    await contract.claim("w1")
    contract.later(LEASE)
    await contract.claim("w2")
    assert await contract.adopt(entry("a", tenant="first")) == "adopted"
    assert await contract.adopt(entry("a", tenant="second"), refusal=b"no") == "known"
    assert await contract.field("a", "tenant") == "first"
    await contract.settle(await contract.take_one())
    assert await contract.adopt(entry("a")) == "known"


async def test_what_the_ledger_of_an_adopted_job_says(contract: Contract) -> None:
    """The same as if it had been enqueued by us: delay, deadline, metadata, time to live."""
    await contract.plain_enqueue("a")
    await contract.claim()
    await contract.adopt(entry("a", delay=5000, deadline="+9000", metadata=b'{"k":"v"}', ttl=7000), model="grok-3")
    ledger = await contract.ledger("a")
    told = {name: ledger[name] for name in ("state", "lane", "model", "metadata", "ttl", "epoch")}
    assert told == {
        "state": "delayed", "lane": keys.INTAKE, "model": "grok-3", "epoch": "1",
        "metadata": '{"k":"v"}', "ttl": "7000",
    }  # fmt: skip
    assert await contract.redis.zscore(keys.DEADLINES, "a") == contract.now + 9000
    assert (await contract.claim()).due_in == 5000
    contract.later(5000)
    assert (await contract.take_one()).job.deadline == contract.now + 4000


async def test_adopting_wakes_a_worker(contract: Contract) -> None:
    """Who adopts may have no free slot; and the model's own lane is looked at from then on, for its leases."""
    await contract.plain_enqueue("a")
    await contract.claim()
    await contract.pop_markers()
    await contract.adopt(entry("a"))
    assert await contract.pop_markers() == {keys.INTAKE, ""}
    assert LANE in (await contract.claim(slots=0)).lanes


async def test_the_lease_of_an_adopted_job_runs_out_like_any_other(contract: Contract) -> None:
    """Its worker died: another takes it over, in its old place."""
    await contract.plain_enqueue("a")
    await contract.claim()
    await contract.adopt(entry("a"))
    await contract.take_one("dies")
    contract.later(LEASE)
    again = await contract.take_one("w2")
    assert (again.id, again.job.stalls) == ("a", 1)
    assert await contract.redis.zcard(keys.running(LANE)) == 1


async def test_a_job_in_the_wrong_lane_moves_to_the_intake(contract: Contract) -> None:
    """A plain client that enqueues straight into a model's lane is served all the same."""
    await contract.accept(entry("ours"))
    await contract.plain_enqueue("a", lane=LANE)
    claimed = await contract.claim()
    assert [foreign.id for foreign in claimed.foreign] == [b"a"]
    await contract.adopt(entry("a"))
    assert await contract.taken(9) == ["a"]
    contract.later(LEASE)
    assert sorted(await contract.taken(9, "w2")) == ["a", "ours"]
    assert await contract.score("a") is None


async def test_arqs_own_abort_stops_a_running_job(contract: Contract) -> None:
    """It rewrites the score and adds to `arq:abort`: the worker hears of it, and `abort` returns True."""
    client = plain_client(contract)
    await adopted(contract, client)
    [run] = await contract.take("w1")
    abort = asyncio.create_task(Job("a", client, INTAKE, codec.loads).abort(timeout=9, poll_delay=0.01))
    await wait_until(lambda: client.exists(keys.ABORT), message="the abort is written")
    assert await contract.taken(9, "w2") == []
    assert await contract.renew(run) == ["cancel"]
    await contract.settle(run, "cancelled", result=record(run, {"status": "cancelled"}))
    assert await abort


async def test_arqs_own_abort_ends_a_waiting_job(contract: Contract) -> None:
    """Before it is adopted, too; the result that the script writes is one that arq reads."""
    client = plain_client(contract)
    job = await client.enqueue_job(codec.FUNCTION, "hi", _job_id="a", _defer_by=60)
    assert job is not None
    abort = asyncio.create_task(job.abort(timeout=9, poll_delay=0.01))
    await wait_until(lambda: client.exists(keys.ABORT), message="the abort is written")
    claimed = await contract.claim()
    assert (claimed.jobs, claimed.foreign) == ((), ())
    assert await abort


async def test_a_failed_verdict_is_read_by_arq(contract: Contract) -> None:
    """The third stall writes its result in Lua: arq's `Job.result` raises it."""
    job = await adopted(contract, plain_client(contract))
    await contract.stall("a", times=3)
    with pytest.raises(JobFailed, match="stalled"):
        await job.result(timeout=1)
    with contextlib.suppress(JobFailed):
        await job.info()
