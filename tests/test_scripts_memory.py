"""A Redis that has no memory left, and must not evict any."""

from collections.abc import AsyncIterator

import pytest
import redis.asyncio
from redis.exceptions import ResponseError

from contract import LANE, LEASE, Contract, Run, entries, entry
from promptq.producer import keys, scripts
from promptq.producer.models import JobStatus, Limits
from promptq.worker.embedded import PrivateRedis

ANSWER = b"x" * 100_000
OOM = "OOM|maxmemory"  # as older and newer redis clients put it


Full = tuple[Contract, Run]


@pytest.fixture
async def full() -> AsyncIterator[Full]:
    """A Redis that has come to its limit while a runs, and b and c are queued."""
    async with PrivateRedis(args=["--maxmemory-policy", "noeviction"]) as server:
        client = redis.asyncio.Redis.from_url(server.url)
        contract = Contract(client)
        await contract.accept(*entries("a", "b", "c"))
        run = await contract.take_one()
        await contract.redis.config_set("maxmemory", 1)
        yield contract, run
        await client.aclose()


async def test_a_refused_enqueue_leaves_nothing(full: Full) -> None:
    """No half of a job, no marker, no new lane; with room again the same call is accepted."""
    contract, _ = full
    before = sorted(await contract.redis.keys("*"))
    call = [entry("x"), entry("y", lane="new", deadline="+60000"), entry("z", delay=1000)]
    with pytest.raises(ResponseError, match=OOM):
        await contract.enqueue(*call, nonce="n")
    assert sorted(await contract.redis.keys("*")) == before
    await contract.redis.config_set("maxmemory", 0)
    assert [disposition for disposition, _ in await contract.dispositions(*call, nonce="n")] == ["created"] * 3


async def test_a_full_redis_takes_answers(full: Full) -> None:
    """What was paid for is written, however large; and the next jobs are claimed in the same round trip."""
    contract, run = full
    outcome = run.outcome(result=ANSWER, usage=(1, 1, 1, 1, 4, 9))
    request = contract.request(slots=2)
    said, claimed = await scripts.settle_and_claim(contract.redis, [outcome], request, now=contract.now)
    assert (said, [job.id for job in claimed.jobs]) == (["done"], ["b", "c"])
    assert await contract.redis.get(keys.result("a")) == ANSWER


async def test_a_full_redis_renews_leases(full: Full) -> None:
    """Else every running call would be started a second time."""
    contract, run = full
    contract.later(LEASE // 2)
    assert await contract.renew(run) == ["ours"]
    assert await contract.redis.zscore(keys.running(LANE), "a") == contract.now + LEASE


async def test_a_full_redis_can_be_relieved_by_cancelling(full: Full) -> None:
    """A cancel deletes a prompt: it gives more memory than it needs."""
    contract, _ = full
    assert await contract.cancel("a", "b") == ["cancelling", "cancelled"]
    assert await contract.state("b") is JobStatus.CANCELLED


async def test_a_full_redis_takes_an_account_back(full: Full) -> None:
    """Else no job would run, and so nothing would ever leave it."""
    contract, run = full
    contract.later(10)
    assert await contract.settle(run, "throttled", reason="no_credit", account="xai:1") == "pausing"
    contract.later(2000)
    assert (await contract.claim(account="xai:1")).to_probe == "xai:1"
    assert await scripts.probed(contract.redis, "xai:1", "works", now=contract.now) == "open"
    assert len(await contract.taken(9, account="xai:1")) == 1


async def test_a_full_redis_takes_limits(full: Full) -> None:
    """A worker sets those of its settings before it claims anything; and an operator may have to hold a model."""
    contract, _ = full
    assert await scripts.set_limits(contract.redis, LANE, Limits(rpm=600), only_if_none=True, now=contract.now)
    await scripts.pause(contract.redis, LANE, now=contract.now)
    assert await contract.taken(9) == []
