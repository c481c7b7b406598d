"""Groups: counted by the scripts, read in the order of their ends, cancelled together."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from hand import Hand, failure
from promptq.producer import (
    ErrorCode,
    Group,
    GroupCounts,
    GroupNotFound,
    JobResult,
    ProducerSettings,
    PromptQueue,
    WaitTimeout,
    groups,
    keys,
    reading,
    scripts,
)
from promptq.producer.records import ClaimedJob
from promptq.worker.outcome import Cancelled
from waiting import wait_until

pytestmark = pytest.mark.producer


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[PromptQueue]:
    """What a backend has."""
    settings = ProducerSettings(redis_url=redis_url, redis_timeout=2)  # type: ignore[arg-type] # a str is coerced
    async with PromptQueue.connect(settings=settings) as queue:
        yield queue


@pytest.fixture
def hand(redis_client: Redis) -> Hand:
    """A worker played by the test."""
    return Hand(redis_client)


async def counted(queue: PromptQueue, name: str = "run") -> dict[str, int]:
    """What is not zero."""
    counts = await queue.group(name).counts()
    return {state: count for state, count in counts.model_dump(exclude={"name"}).items() if count}


async def read(results: AsyncIterator[JobResult]) -> list[str]:
    """The ids of all results."""
    return [result.id async for result in results]


async def test_counts_follow_every_job(queue: PromptQueue, hand: Hand) -> None:
    """Each state that a job of the group comes to is counted, and jobs of no group are not."""
    await queue.enqueue_many([{"prompt": "a", "id": "a"}, {"prompt": "b", "id": "b", "delay": 0.2}], group="run")
    await queue.enqueue("c", id="c")
    assert await counted(queue) == {"queued": 1, "delayed": 1}
    jobs = await hand.claim()
    assert await counted(queue) == {"running": 1, "delayed": 1}
    await hand.settle(jobs)
    assert await counted(queue) == {"succeeded": 1, "delayed": 1}
    counts = await queue.group("run").counts()
    assert (counts.total, counts.open, counts.ended, counts.progress) == (2, 1, 1, 0.5)
    late: list[ClaimedJob] = []
    await wait_until(lambda: claim_into(hand, late), message="the delay is over")
    await hand.settle(late, failure(ErrorCode.MODERATED))
    assert await counted(queue) == {"succeeded": 1, "failed": 1}
    assert (await queue.wait("a")).group == "run"
    assert (await queue.wait("c")).group is None


async def claim_into(hand: Hand, jobs: list[ClaimedJob]) -> bool:
    """Whether there was something to claim."""
    jobs += await hand.claim()
    return bool(jobs)


async def test_a_job_stays_in_its_first_group(queue: PromptQueue, hand: Hand) -> None:
    """The same job enqueued again counts once, and not in another group."""
    for name in ("run", "run", "other"):
        await queue.enqueue("a", id="a", group=name)
    assert await counted(queue) == {"queued": 1}
    with pytest.raises(GroupNotFound):
        await queue.group("other").counts()
    await hand.answer_all()


async def test_results_come_in_the_order_of_their_ends(queue: PromptQueue, hand: Hand) -> None:
    """Those that ended before come first; then each as it ends; failures too; it returns when all have ended."""
    await queue.enqueue_many([{"prompt": name, "id": name} for name in "abcd"], group="run")
    jobs = {job.id: job for job in await hand.claim()}
    await hand.settle([jobs["c"]])
    await hand.settle([jobs["a"]], failure(ErrorCode.MODERATED))
    results = queue.group("run").results(timeout=10)
    assert [(await anext(results)).id for _ in range(2)] == ["c", "a"]
    waiting = asyncio.create_task(read(results))
    await hand.settle([jobs["d"]])
    await hand.settle([jobs["b"]])
    assert await waiting == ["d", "b"]
    assert await read(queue.group("run").results()) == ["c", "a", "d", "b"]


async def test_results_are_read_a_few_at_a_time(
    queue: PromptQueue, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More results than one look reads all come, without waiting for another signal."""
    monkeypatch.setattr(groups, "READ_AT_ONCE", 3)
    await queue.enqueue_many([str(number) for number in range(10)], group="run")
    ended = await hand.answer_all()
    assert await read(queue.group("run").results(timeout=5)) == ended


async def test_an_outage_between_ids_and_results_loses_none(
    queue: PromptQueue, redis_url: str, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that learned which jobs had ended, and not what they said, is made again."""
    read_results, is_away = reading.read_results, False

    async def read_if_there(redis: Redis, ids: Sequence[str]) -> dict[str, JobResult | None]:
        if is_away:
            raise RedisConnectionError("away")
        return await read_results(redis, ids)

    monkeypatch.setattr(reading, "read_results", read_if_there)
    await queue.enqueue_many([{"prompt": name, "id": name} for name in "abc"], group="run")
    jobs = {job.id: job for job in await hand.claim()}
    await hand.settle([jobs["a"]])
    async with PromptQueue.connect(redis_url, settings=ProducerSettings(redis_timeout=0.2)) as impatient:
        results = impatient.group("run").results(timeout=20)
        assert (await anext(results)).id == "a"
        waiting = asyncio.create_task(read(results))
        is_away = True
        await hand.settle([jobs["b"]])
        await asyncio.sleep(0.5)  # longer than a call tries
        is_away = False
        await hand.settle([jobs["c"]])
        assert await waiting == ["b", "c"]


async def test_a_late_joiner_is_waited_for(queue: PromptQueue, hand: Hand) -> None:
    """A job that joins while results are read is read, too."""
    await queue.enqueue("a", id="a", group="run")
    waiting = asyncio.create_task(read(queue.group("run").results(timeout=10)))
    await wait_until(lambda: has_listener(queue), message="it listens")
    await queue.enqueue("b", id="b", group="run")
    await hand.answer_all()
    assert sorted(await waiting) == ["a", "b"]


async def has_listener(queue: PromptQueue) -> bool:
    """Whether somebody listens to the group."""
    [(_, count)] = await queue._link.redis.pubsub_numsub(keys.group_done("run"))
    return bool(count)


async def test_waiting_ends_in_time(queue: PromptQueue, hand: Hand) -> None:
    """WaitTimeout names the group, and what had ended was handed out."""
    await queue.enqueue_many([{"prompt": name, "id": name} for name in "ab"], group="run")
    [first, _] = await hand.claim()
    await hand.settle([first])
    results = queue.group("run").results(timeout=0.3)
    assert (await anext(results)).id == first.id
    with pytest.raises(WaitTimeout, match="'run'"):
        await anext(results)
    assert await queue.group("run").cancel() == 1
    await queue._link.redis.flushdb()


async def test_cancel_ends_what_is_open(queue: PromptQueue, hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queued and delayed jobs end at once, running ones when their worker hears of it, ended ones stay as they are."""
    monkeypatch.setattr(groups, "_CANCELLED_AT_ONCE", 2)
    await queue.enqueue_many([{"prompt": name, "id": name} for name in "abc"], group="run")
    running, done, also_running = await hand.claim()
    await hand.settle([done])
    await queue.enqueue_many(["d", "e", "f"], group="run")
    await queue.enqueue("g", group="run", delay=60)
    assert await queue.group("run").cancel() == 6
    assert await counted(queue) == {"succeeded": 1, "running": 2, "cancelled": 4}
    await hand.settle([running, also_running])
    assert await counted(queue) == {"succeeded": 3, "cancelled": 4}
    assert await queue.group("run").cancel() == 0


@pytest.mark.parametrize("size", [100, 1000])
async def test_cancel_passes_nobody_over(
    queue: PromptQueue, hand: Hand, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Also when running jobs end between its calls, in a group that Redis keeps as a list and in one that it hashes."""
    await queue.enqueue_many([str(number) for number in range(size)], group="run")
    running = {job.id: job for job in await hand.claim(size // 2)}
    cancel = scripts.cancel

    async def cancel_and_end(redis: Redis, ids: list[str], *, ttl: int) -> list[str]:
        said = await cancel(redis, ids, ttl=ttl)
        await hand.settle([running[job_id] for job_id in ids if job_id in running], Cancelled())
        return said

    monkeypatch.setattr(scripts, "cancel", cancel_and_end)
    assert await queue.group("run").cancel() == size
    assert await counted(queue) == {"cancelled": size}


async def first_result(group: Group) -> JobResult:
    """The result that came first."""
    return await anext(group.results())


@pytest.mark.parametrize("ask", [Group.counts, first_result, Group.cancel])
async def test_an_unknown_group(queue: PromptQueue, ask: Callable[[Group], Awaitable[object]]) -> None:
    """Every question about a group that nobody enqueued into raises GroupNotFound."""
    with pytest.raises(GroupNotFound, match="'nope'"):
        await ask(queue.group("nope"))


async def test_a_group_is_kept_as_long_as_its_results(queue: PromptQueue, hand: Hand) -> None:
    """No TTL while a job is open; the longest of its results' when all have ended; none again when one joins."""
    redis = queue._link.redis
    names = (keys.group("run"), keys.members("run"))
    await queue.enqueue("a", group="run", result_ttl=500)
    await queue.enqueue("b", group="run", result_ttl=100)
    assert [await redis.ttl(name) for name in names] == [-1, -1]
    await hand.answer_all()
    assert all(490 < ttl <= 500 for ttl in [await redis.ttl(name) for name in names])
    await queue.enqueue("c", group="run")
    assert [await redis.ttl(name) for name in names] == [-1, -1]
    await hand.answer_all()


async def test_results_whose_time_is_over_are_left_out(queue: PromptQueue, hand: Hand) -> None:
    """They stay counted, and nobody waits for them."""
    await queue.enqueue("a", id="a", group="run", result_ttl=0.05)
    await queue.enqueue("b", id="b", group="run")
    await hand.answer_all()
    await wait_until(lambda: gone(queue, "a"), message="the result is gone")
    assert await read(queue.group("run").results(timeout=5)) == ["b"]
    assert await counted(queue) == {"succeeded": 2}


async def gone(queue: PromptQueue, job_id: str) -> bool:
    """Whether its result's time is over."""
    return not await queue.results([job_id])


def test_counts_of_nothing() -> None:
    """An empty group has come to its end."""
    assert GroupCounts(name="run").progress == 1.0


async def test_many_readers_share_one_subscription(queue: PromptQueue, hand: Hand) -> None:
    """A group of any size costs its reader one channel."""
    await queue.enqueue_many([str(number) for number in range(50)], group="run")
    waiting = [asyncio.create_task(read(queue.group("run").results(timeout=10))) for _ in range(5)]
    await wait_until(lambda: has_listener(queue), message="they listen")
    assert len(await queue._link.redis.pubsub_channels()) == 1
    await hand.answer_all()
    for ids in await asyncio.gather(*waiting):
        assert len(set(ids)) == 50
