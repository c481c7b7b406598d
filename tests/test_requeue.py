import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from hand import Hand, failure
from promptq.producer import (
    ErrorCode,
    GroupCounts,
    JobStatus,
    ProducerSettings,
    PromptQueue,
    QueueUnavailable,
    keys,
    scripts,
)
from promptq.producer.link import READ_AT_ONCE
from workers import ScriptedProvider, running_worker

SOON = 5.0


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[PromptQueue]:
    """What a backend has."""
    settings = ProducerSettings(redis_url=redis_url, redis_timeout=1)  # type: ignore[arg-type] # a str is coerced
    async with PromptQueue.connect(settings=settings) as queue:
        yield queue


async def fail(queue: PromptQueue, hand: Hand, *ids: str, **options: str) -> None:
    """Jobs that have failed."""
    await queue.enqueue_many([{"prompt": "Hello", "id": job_id} for job_id in ids], **options)
    while jobs := await hand.claim(100):
        await hand.settle(jobs, failure(ErrorCode.MODERATED))


async def test_a_requeue_whose_reply_is_lost_requeues_once(
    queue: PromptQueue, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent again, finds the job queued by itself, and says so."""
    hand = Hand(redis_client)
    await fail(queue, hand, "job")
    nonces, requeue = list[str](), scripts.requeue

    async def reply_is_lost(redis: Redis, ids: list[str], *, nonce: str) -> list[str]:
        nonces.append(nonce)
        said = await requeue(redis, ids, nonce=nonce)
        if len(nonces) == 1:
            raise ConnectionError("reset")
        return said

    monkeypatch.setattr(scripts, "requeue", reply_is_lost)
    assert await queue.requeue("job") == ("job",)
    assert len(nonces) == 2
    assert len(set(nonces)) == 1
    assert await hand.answer_all() == ["job"]
    assert (await queue.wait("job", SOON)).status is JobStatus.SUCCEEDED


async def test_an_outage_in_the_middle_tells_what_runs_again(
    queue: PromptQueue, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many ids, those of the calls before it: in `accepted`."""
    hand, ids = Hand(redis_client), [f"job {number:03}" for number in range(150)]
    await fail(queue, hand, *ids)
    requeue = scripts.requeue

    async def away_at_last(redis: Redis, some: list[str], *, nonce: str) -> list[str]:
        if ids[0] not in some:
            raise ConnectionError("refused")
        return await requeue(redis, some, nonce=nonce)

    monkeypatch.setattr(scripts, "requeue", away_at_last)
    with pytest.raises(QueueUnavailable) as caught:
        await queue.requeue(*ids)
    assert caught.value.accepted == tuple(ids[:100])
    await hand.answer_all()


async def test_an_id_twice_is_requeued_once(queue: PromptQueue, redis_client: Redis) -> None:
    """In one call."""
    hand = Hand(redis_client)
    await fail(queue, hand, "job")
    assert await queue.requeue("job", "job") == ("job",)
    assert await hand.answer_all() == ["job"]


async def test_attempts_are_counted_anew_and_kept(queue: PromptQueue, redis_client: Redis) -> None:
    """After a requeue a job has all of `max_attempts` again; its result tells of every call that was ever made."""
    hand = Hand(redis_client)
    await fail(queue, hand, "job")
    await fail_again(queue, hand)
    await queue.requeue("job")
    [job] = await hand.claim()
    assert (job.spent, job.epoch) == (0, "3")
    await hand.settle([job])
    attempts = (await queue.wait("job", SOON)).attempts
    assert [attempt.code for attempt in attempts] == [ErrorCode.MODERATED, ErrorCode.MODERATED, None]


async def fail_again(queue: PromptQueue, hand: Hand) -> None:
    """Requeue the failed job, and let it fail."""
    await queue.requeue("job")
    await hand.settle(await hand.claim(), failure(ErrorCode.MODERATED))


async def test_a_reader_of_the_group_hears_of_both_ends(queue: PromptQueue, redis_client: Redis) -> None:
    """Who read the group's results before reads the new one behind them; the counts are of jobs, not of ends."""
    hand, group = Hand(redis_client), queue.group("run")
    await fail(queue, hand, "a", "b", group="run")
    await queue.enqueue("Hello", id="c", group="run")
    results = group.results(timeout=SOON)
    assert [(await anext(results)).id for _ in range(2)] == ["a", "b"]
    await queue.requeue("a")
    assert await group.counts() == GroupCounts(name="run", failed=1, queued=2)
    await hand.answer_all()
    assert await group.counts() == GroupCounts(name="run", failed=1, succeeded=2)
    assert {result.id: result.status async for result in results} == dict.fromkeys("ac", JobStatus.SUCCEEDED)


async def test_failed_jobs_are_kept_with_their_prompts(queue: PromptQueue, redis_client: Redis) -> None:
    """As long as their results, not longer; while a job that was requeued waits, nothing of it goes."""
    hand = Hand(redis_client)
    await fail(queue, hand, "job")
    kept = (keys.payload("job"), keys.ledger("job"), keys.result("job"))
    assert {round(await redis_client.pttl(key), -3) for key in kept} == {60_000}
    await queue.requeue("job")
    assert [await redis_client.pttl(key) for key in kept] == [-1, -1, -2]
    await hand.answer_all()


async def test_a_job_whose_prompt_is_gone_stays_failed(queue: PromptQueue, redis_client: Redis) -> None:
    """It could not run; its result stays readable."""
    await fail(queue, Hand(redis_client), "job")
    await redis_client.delete(keys.payload("job"))
    assert await queue.requeue("job") == ()
    assert await queue.status("job") is JobStatus.FAILED


async def test_more_fail_in_one_moment_than_a_page_holds(queue: PromptQueue, redis_client: Redis) -> None:
    """The place in the list is a time: of those with the same one none is left out, and none comes twice."""
    ids = [f"job {number:03}" for number in range(2 * READ_AT_ONCE + 50)]
    await fail(queue, Hand(redis_client), *ids)
    until = time.time() * 1000 + 60_000
    await redis_client.zadd(keys.FAILED, dict.fromkeys(ids[10:], until))
    results = queue.failed()
    found = [(await anext(results)).id for _ in range(READ_AT_ONCE)]
    await redis_client.zadd(keys.FAILED, dict.fromkeys((f"before {number}" for number in range(210)), until))
    found += [result.id async for result in results]
    assert len(found) == len(ids)
    assert set(found) == set(ids)


async def test_what_fails_later_is_not_listed(queue: PromptQueue, redis_client: Any) -> None:
    """Else a loop that requeues what it finds might never end."""
    hand = Hand(redis_client)
    await fail(queue, hand, "1", "2")
    results = queue.failed()
    assert (await anext(results)).id == "1"
    await fail(queue, hand, "3")
    later = datetime.now(UTC) + timedelta(seconds=1)
    await redis_client.hset(keys.ledger("3"), "finished", str(later.timestamp() * 1000))
    assert [result.id async for result in results] == ["2"]


async def test_a_result_that_cannot_be_read_hides_no_other(queue: PromptQueue, redis_client: Redis) -> None:
    """It is left out of the list, and can still be requeued."""
    hand = Hand(redis_client)
    await fail(queue, hand, "1", "2", "3")
    await redis_client.set(keys.result("2"), b"nonsense", keepttl=True)
    assert [result.id async for result in queue.failed()] == ["1", "3"]
    assert await queue.requeue("2") == ("2",)
    await hand.answer_all()


async def test_the_setting_says_how_long_failed_jobs_are_kept(queue: PromptQueue, redis_url: str) -> None:
    """With a real worker: PROMPTQ_FAILURE_TTL is the time of the prompt, too."""
    async with running_worker(redis_url, ScriptedProvider(), failure_ttl=1000), Redis.from_url(redis_url) as client:
        job = await queue.enqueue("fail moderated")
        await job.wait(timeout=SOON)
        for key in (keys.payload(job.id), keys.ledger(job.id), keys.result(job.id)):
            assert 990_000 < await client.pttl(key) <= 1_000_000
