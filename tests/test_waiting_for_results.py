import asyncio
import contextlib
import gc
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from hand import Hand, answer, failure
from promptq.producer import (
    ErrorCode,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotFound,
    JobResult,
    JobStatus,
    ProducerSettings,
    PromptQueue,
    QueueUnavailable,
    WaitTimeout,
    keys,
    reading,
    watch,
)
from promptq.worker.embedded import PrivateRedis
from promptq.worker.outcome import Cancelled, Expired, Outcome
from proxy import proxied
from waiting import wait_until

pytestmark = pytest.mark.producer

# Long before the look that makes up for a lost message, and long after anything that is told.
SOON = 3.0


def settings_for(url: str) -> ProducerSettings:
    """With a short timeout."""
    return ProducerSettings(redis_url=url, redis_timeout=1.0)  # type: ignore[arg-type] # a str is coerced


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[PromptQueue]:
    """Connected to a clean Redis."""
    async with PromptQueue.connect(settings=settings_for(redis_url)) as queue:
        yield queue


@pytest.fixture
def hand(redis_client: Redis) -> Hand:
    """Whoever runs the jobs."""
    return Hand(redis_client)


async def soon(waiting: Coroutine[Any, Any, Any] | asyncio.Task[Any]) -> Any:
    """Await what must not take long, without telling it so: at its own timeout a wait looks once more."""
    async with asyncio.timeout(SOON):
        return await waiting


async def listeners(redis: Redis, *ids: str) -> int:
    """How many connections hear of these jobs, added up."""
    counts = await redis.pubsub_numsub(*map(keys.done, ids))
    return sum(int(count) for _, count in counts)


async def begin(redis: Redis, waiting: Coroutine[Any, Any, Any], *ids: str) -> "asyncio.Task[Any]":
    """Start to wait, and return when it has subscribed."""
    task = asyncio.create_task(waiting)
    await wait_until(lambda: _all_heard(redis, ids), message="subscribed")
    return task


async def _all_heard(redis: Redis, ids: tuple[str, ...]) -> bool:
    return await listeners(redis, *ids) == len(ids)


def look_once(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Is set when a waiter has looked."""
    read, looked = reading.read_results, asyncio.Event()

    async def read_and_tell(redis: Redis, ids: list[str]) -> dict[str, JobResult | None]:
        found = await read(redis, ids)
        looked.set()
        return found

    monkeypatch.setattr(reading, "read_results", read_and_tell)
    return looked


def is_as_long(things: list[str], length: int) -> bool:
    """For `partial`, in a loop."""
    return len(things) == length


async def first_of(queue: PromptQueue, *ids: str) -> JobResult:
    """The first to end; the rest is left."""
    async for result in queue.as_completed(ids):
        return result
    raise AssertionError("nothing ended")


async def test_a_waiter_hears_at_once(queue: PromptQueue, hand: Hand, redis_client: Redis) -> None:
    """A result is with its waiter within a fraction of a second of being written."""
    job = await queue.enqueue("Hello")
    waiting = await begin(redis_client, job.wait(), job.id)
    await hand.answer_all()
    started = time.monotonic()
    result = await soon(waiting)
    assert time.monotonic() - started < 0.5
    assert (result.id, result.status, result.content) == (job.id, JobStatus.SUCCEEDED, "done")


async def test_a_result_that_is_there_is_returned(queue: PromptQueue, hand: Hand) -> None:
    """Waiting for what has ended returns at once, by id alone."""
    job = await queue.enqueue("Hello")
    await hand.answer_all()
    assert (await queue.wait(job.id)).content == "done"


@pytest.mark.parametrize("timeout", [0, 0.0001])
async def test_a_result_that_is_there_beats_the_clock(queue: PromptQueue, hand: Hand, timeout: float) -> None:
    """However short the timeout, a finished job's result is returned, and a running one's is a WaitTimeout."""
    ended = await queue.enqueue("Hello")
    await hand.answer_all()
    going_on = await queue.enqueue("Hello again")
    assert (await queue.wait(ended.id, timeout)).content == "done"
    with pytest.raises(WaitTimeout):
        await queue.wait(going_on.id, timeout)
    await hand.answer_all()


@pytest.mark.parametrize(
    ("outcome", "status", "code", "kind"),
    [
        (failure(ErrorCode.MODERATED), JobStatus.FAILED, ErrorCode.MODERATED, JobFailed),
        (Cancelled(), JobStatus.CANCELLED, ErrorCode.CANCELLED, JobCancelled),
        (Expired(), JobStatus.EXPIRED, ErrorCode.EXPIRED, JobExpired),
    ],
)
async def test_failures_are_results(
    queue: PromptQueue, hand: Hand, *, outcome: Outcome, status: JobStatus, code: ErrorCode, kind: type[JobFailed]
) -> None:
    """`wait` returns how a job ended; only `raise_for_status` raises it, as its kind and with the result."""
    job = await queue.enqueue("Hello")
    await hand.settle(await hand.claim(), outcome)
    result = await job.wait(timeout=SOON)
    assert (result.status, result.error and result.error.code) == (status, code)
    with pytest.raises(kind, match=f"{job.id}.*{code}") as caught:
        result.raise_for_status()
    assert type(caught.value) is kind
    assert caught.value.result == result


async def test_a_success_raises_nothing(queue: PromptQueue, hand: Hand) -> None:
    """`raise_for_status` gives the success itself."""
    job = await queue.enqueue("Hello")
    await hand.answer_all()
    result = await job.wait()
    assert result.raise_for_status() is result


async def test_an_unknown_id_is_not_waited_for(queue: PromptQueue) -> None:
    """JobNotFound at once, also in the middle of others."""
    job = await queue.enqueue("Hello")
    with pytest.raises(JobNotFound, match="nobody"):
        await queue.wait("nobody")
    with pytest.raises(JobNotFound, match="nobody"):
        await first_of(queue, "nobody", job.id)
    await queue.cancel(job.id)


async def test_a_result_whose_time_is_over_is_unknown(queue: PromptQueue, hand: Hand) -> None:
    """When `result_ttl` has passed the id is as good as never used."""
    job = await queue.enqueue("Hello", result_ttl=0.05)
    await hand.answer_all()

    async def is_gone() -> bool:
        return job.id not in await queue.results([job.id])

    await wait_until(is_gone)
    for read in (queue.wait, queue.status, queue.result):
        with pytest.raises(JobNotFound, match=job.id):
            await read(job.id)


async def test_giving_up_leaves_the_job(queue: PromptQueue, hand: Hand) -> None:
    """After WaitTimeout, which is a TimeoutError, the job goes on and can be waited for again."""
    job = await queue.enqueue("Hello")
    started = time.monotonic()
    with pytest.raises(WaitTimeout, match=r"0\.1 s"):
        await queue.wait(job.id, timeout=0.1)
    assert time.monotonic() - started < 1
    assert issubclass(WaitTimeout, TimeoutError)
    assert await queue.status(job.id) is JobStatus.QUEUED
    await hand.answer_all()
    assert (await queue.wait(job.id, timeout=SOON)).status is JobStatus.SUCCEEDED


async def test_waiting_does_not_poll(
    queue: PromptQueue, hand: Hand, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While ten wait for two seconds Redis gets nothing but pings."""
    monkeypatch.setattr(watch, "PING_EVERY", 0.5)
    jobs = await queue.enqueue_many(f"prompt {n}" for n in range(10))
    ids = [job.id for job in jobs]
    waiting = [await begin(redis_client, queue.wait(job_id), job_id) for job_id in ids[:5]]
    waiting.append(await begin(redis_client, first_of(queue, *ids[5:]), *ids))

    async def calls() -> dict[str, int]:
        stats = await redis_client.info("commandstats")
        return {name: said["calls"] for name, said in stats.items()}

    async def is_quiet() -> bool:
        before = await calls()
        await asyncio.sleep(0.1)
        return set(_grown(before, await calls())) <= {"cmdstat_info", "cmdstat_ping"}

    await wait_until(is_quiet, message="the first looks are done")
    before = await calls()
    await asyncio.sleep(2.0)
    grown = _grown(before, await calls())
    assert grown.pop("cmdstat_info") == 1
    assert set(grown) == {"cmdstat_ping"}
    assert 2 <= grown["cmdstat_ping"] <= 5
    await hand.answer_all()
    await asyncio.gather(*waiting)


def _grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}


async def test_five_hundred_waiters_share_one_subscription(queue: PromptQueue, hand: Hand, redis_client: Redis) -> None:
    """One pub/sub connection for all; every waiter returns when its job ends, and then nothing is subscribed."""
    jobs = await queue.enqueue_many(f"prompt {n}" for n in range(500))
    ids = [job.id for job in jobs]
    waiting = [asyncio.create_task(job.wait(timeout=20)) for job in jobs]
    await wait_until(lambda: _all_heard(redis_client, tuple(ids)), message="subscribed")
    subscribers = [client["sub"] for client in await redis_client.client_list() if client["sub"] != "0"]
    assert subscribers == ["500"]
    await hand.answer_all()
    results = await asyncio.gather(*waiting)
    assert [result.id for result in results] == ids
    await wait_until(lambda: _none_heard(redis_client, ids))


async def _none_heard(redis: Redis, ids: list[str]) -> bool:
    return await listeners(redis, *ids) == 0


async def test_two_waiters_of_one_job(queue: PromptQueue, hand: Hand, redis_client: Redis) -> None:
    """A second waiter of a job neither disturbs the first nor takes its subscription along when it leaves."""
    job = await queue.enqueue("Hello")
    first = await begin(redis_client, job.wait(), job.id)
    with pytest.raises(WaitTimeout):
        await job.wait(timeout=0.05)
    assert await listeners(redis_client, job.id) == 1
    second = asyncio.create_task(job.wait())
    await hand.answer_all()
    assert await soon(first) == await soon(second)


async def test_what_another_still_listens_for_is_found(queue: PromptQueue, hand: Hand, redis_client: Redis) -> None:
    """A job that ended while somebody subscribed to it waits for others: who asks for it now need not subscribe."""
    ended, going_on = await queue.enqueue_many(["one", "two"])
    [first, second] = await hand.claim()
    results: list[str] = []

    async def collect() -> None:
        async for result in queue.as_completed([ended.id, going_on.id]):
            results.append(result.id)  # noqa: PERF401 - looked at while it grows

    collecting = await begin(redis_client, collect(), ended.id, going_on.id)
    await hand.settle([first])
    await wait_until(lambda: results)
    started = time.monotonic()
    assert (await ended.wait()).content == "done"
    assert time.monotonic() - started < 0.9, "it waited for something to be told"
    await hand.settle([second])
    await soon(collecting)


@pytest.mark.parametrize("moment", ["before the look", "after the look"])
async def test_no_end_falls_between_subscription_and_look(
    queue: PromptQueue, hand: Hand, redis_client: Redis, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The subscription stands when a waiter looks, so a job that ends right before or after that look is heard of."""
    job = await queue.enqueue("Hello")
    read, heard = reading.read_results, []

    async def read_while_it_ends(redis: Redis, ids: list[str]) -> dict[str, JobResult | None]:
        heard.append(await listeners(redis_client, job.id))
        if moment == "before the look":
            await hand.answer_all()
        found = await read(redis, ids)
        if moment == "after the look":
            await hand.answer_all()
        return found

    monkeypatch.setattr(reading, "read_results", read_while_it_ends)
    assert (await soon(job.wait())).content == "done"
    assert heard[0] == 1


async def test_a_lost_message_is_made_up_for(
    queue: PromptQueue, hand: Hand, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who hears nothing looks again after a while."""
    monkeypatch.setattr(watch, "LOOK_AGAIN_EVERY", 0.2)
    job = await queue.enqueue("Hello")
    waiting = await begin(redis_client, job.wait(), job.id)
    monkeypatch.setattr(queue._link.watcher, "_tell_of", lambda *_, **__: None)
    await hand.answer_all()
    assert (await soon(waiting)).content == "done"


async def test_a_killed_subscription_is_renewed(queue: PromptQueue, hand: Hand, redis_client: Redis) -> None:
    """A job that ends while the subscription is down is found when it stands again, long before the ten seconds."""
    jobs = await queue.enqueue_many(["first", "second"])
    waiting = [await begin(redis_client, job.wait(), job.id) for job in jobs]
    assert await redis_client.client_kill_filter(_type="pubsub") == 1
    await hand.answer_all()
    assert {(await soon(each)).content for each in waiting} == {"done"}


async def test_a_silent_connection_is_replaced(
    redis_url: str, hand: Hand, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscription whose pings are not answered (a firewall forgot it) is dropped for a new one."""
    monkeypatch.setattr(watch, "PING_EVERY", 0.1)
    async with proxied(redis_url) as proxy, PromptQueue.connect(settings=settings_for(proxy.url)) as queue:
        job = await queue.enqueue("Hello")
        looked = look_once(monkeypatch)
        waiting = asyncio.create_task(job.wait())
        await looked.wait()
        proxy.freeze(new_ones=False)
        await hand.answer_all()
        assert (await soon(waiting)).content == "done"


async def test_a_redis_that_goes_away_meanwhile_is_waited_for() -> None:
    """A Redis that is killed and comes back costs a waiter nothing but time."""
    async with (
        PrivateRedis(appendonly=True, appendfsync="always") as server,
        PromptQueue.connect(settings=settings_for(server.url)) as queue,
    ):
        job = await queue.enqueue("Hello")
        async with Redis.from_url(server.url) as redis:
            waiting = await begin(redis, job.wait(timeout=20), job.id)
        server.kill()
        server.restart()
        async with Redis.from_url(server.url) as redis:
            await Hand(redis).answer_all()
        assert (await waiting).content == "done"


async def test_waiting_begins_with_redis() -> None:
    """If Redis is away when a wait begins, that is QueueUnavailable within the Redis timeout, not after ten seconds."""
    async with PrivateRedis() as server, PromptQueue.connect(settings=settings_for(server.url)) as queue:
        server.kill()
        started = time.monotonic()
        with pytest.raises(QueueUnavailable, match="no Redis at"):
            await queue.wait("any", timeout=30)
        assert time.monotonic() - started < 2.5


async def test_as_completed_yields_in_the_order_of_ends(queue: PromptQueue, hand: Hand, redis_client: Redis) -> None:
    """First come, first served, each once, whatever the order and number of times the ids were given."""
    one, two, three = await queue.enqueue_many(["one", "two", "three"])
    jobs = {job.id: job for job in await hand.claim()}
    ended: list[str] = []

    async def collect() -> None:
        async for result in queue.as_completed([one.id, two.id, three.id, two.id], timeout=SOON):
            ended.append(result.id)  # noqa: PERF401 - looked at while it grows

    collecting = await begin(redis_client, collect(), one.id, two.id, three.id)
    for number, handle in enumerate((three, one, two), 1):
        await hand.settle([jobs[handle.id]])
        await wait_until(partial(is_as_long, ended, number))
    await collecting
    assert ended == [three.id, one.id, two.id]


async def test_as_completed_of_nothing_ends(queue: PromptQueue) -> None:
    """No ids, no results, no waiting."""
    assert [result async for result in queue.as_completed([])] == []


async def test_a_timeout_does_not_cut_the_consumers_own_code(queue: PromptQueue, hand: Hand) -> None:
    """The timeout runs out while the consumer is busy: its code goes on, the next step of the loop raises."""
    ended = await queue.enqueue("Hello")
    await hand.answer_all()
    going_on = await queue.enqueue("Hello again")
    finished = False

    async def consume() -> None:
        nonlocal finished
        async for _ in queue.as_completed([ended.id, going_on.id], timeout=0.2):
            await asyncio.sleep(0.4)
            finished = True

    with pytest.raises(WaitTimeout, match="has no result after"):
        await consume()
    assert finished
    await hand.answer_all()


async def test_a_slow_consumer_gets_what_ended_in_time(queue: PromptQueue, hand: Hand, redis_client: Redis) -> None:
    """Results that are there when the consumer comes back are given to it, though the time is up meanwhile."""
    jobs = await queue.enqueue_many(["one", "two", "three"])
    [claimed, *rest] = await hand.claim()
    await hand.settle([claimed])
    ended: list[str] = []
    async for result in queue.as_completed([job.id for job in jobs], timeout=0.3):
        ended.append(result.id)
        if len(ended) == 1:
            await hand.settle(rest)
            await asyncio.sleep(0.4)
    assert sorted(ended) == sorted(job.id for job in jobs)


@pytest.mark.parametrize("leave", ["break", "return", "error", "cancel"])
async def test_leaving_early_leaves_no_subscription(
    queue: PromptQueue, hand: Hand, redis_client: Redis, leave: str
) -> None:
    """However a consumer leaves the loop, Redis and the watcher forget it."""
    jobs = await queue.enqueue_many(["one", "two", "three"])
    ids = [job.id for job in jobs]
    await hand.settle(await hand.claim(1))
    other = await queue.enqueue("another's")
    staying = await begin(redis_client, other.wait(), other.id)

    seen = asyncio.Event()

    async def consume() -> None:
        async for _ in queue.as_completed(ids):
            seen.set()
            if leave == "break":
                break
            if leave == "return":
                return
            if leave == "error":
                raise LookupError

    with contextlib.suppress(LookupError, asyncio.CancelledError):
        if leave == "cancel":
            consuming = asyncio.create_task(consume())
            await seen.wait()
            consuming.cancel()
            await consuming
        else:
            await consume()
    gc.collect()
    await wait_until(lambda: _none_heard(redis_client, ids), timeout=2)
    assert set(queue._link.watcher._waiters) == {keys.done(other.id)}
    assert await listeners(redis_client, other.id) == 1
    await hand.answer_all()
    await soon(staying)


async def test_a_waiter_cancelled_while_subscribing_is_forgotten(
    queue: PromptQueue, hand: Hand, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel that falls into the subscribing itself leaves no waiter behind that nobody would remove."""
    one, two = await queue.enqueue_many(["one", "two"])
    first = await begin(redis_client, one.wait(timeout=SOON), one.id)
    tell, never = queue._link.watcher._tell, asyncio.Event()

    async def tell_slowly(verb: str, ids: list[str]) -> None:
        if verb == "subscribe":
            await never.wait()
        await tell(verb, ids)

    monkeypatch.setattr(queue._link.watcher, "_tell", tell_slowly)
    second = asyncio.create_task(two.wait())
    await wait_until(lambda: keys.done(two.id) in queue._link.watcher._waiters)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert keys.done(two.id) not in queue._link.watcher._waiters
    await hand.answer_all()
    await first


async def test_a_cancel_that_the_client_library_swallows_is_heeded(
    queue: PromptQueue, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11's `wait_for`, on which redis-py is built, loses cancels; a cancelled wait must end all the same."""
    job = await queue.enqueue("Hello")
    looking = asyncio.Event()

    async def swallow(redis: Redis, ids: list[str]) -> dict[str, JobResult | None]:
        looking.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(SOON)
        return dict.fromkeys(ids)

    monkeypatch.setattr(reading, "read_results", swallow)
    waiting = asyncio.create_task(job.wait())
    await looking.wait()
    waiting.cancel()
    done, _ = await asyncio.wait([waiting], timeout=1)
    assert done, "the wait goes on"
    assert waiting.cancelled()
    await hand.answer_all()


async def test_many_cancelled_waiters_all_end(queue: PromptQueue, hand: Hand, redis_client: Redis) -> None:
    """Cancelled in the middle of a storm of looks, every wait ends, and the queue is as good as before."""
    jobs = await queue.enqueue_many(f"prompt {n}" for n in range(200))
    ids = [job.id for job in jobs]
    waiting = [asyncio.create_task(job.wait()) for job in jobs]
    await wait_until(lambda: _all_heard(redis_client, tuple(ids)), message="subscribed")
    for each in waiting:
        each.cancel()
    _, left = await asyncio.wait(waiting, timeout=SOON)
    for each in left:
        each.cancel()
    assert not left, f"{len(left)} cancelled waits went on"
    assert await queue.status(ids[0]) is JobStatus.QUEUED
    await hand.answer_all()


async def connections(redis: Redis) -> set[str]:
    """The ids of all that Redis has."""
    return {client["id"] for client in await redis.client_list()}


async def test_closing_ends_the_waits(redis_url: str, redis_client: Redis) -> None:
    """`aclose` while somebody waits: the wait ends with an error, and no connection is left or made again."""
    before = await connections(redis_client)
    queue = await PromptQueue.connect(settings=settings_for(redis_url))
    job = await queue.enqueue("Hello")
    waiting = await begin(redis_client, job.wait(), job.id)
    await queue.aclose()
    done, _ = await asyncio.wait([waiting], timeout=SOON)
    waiting.cancel()
    assert done, "the wait goes on"
    with pytest.raises(QueueUnavailable, match="closed"):
        await waiting

    async def is_as_before() -> bool:
        return await connections(redis_client) <= before

    await wait_until(is_as_before)
    await Hand(redis_client).answer_all()


def run_twice(url: str, *, closes: bool) -> list[JobResult]:
    """A job waited for in vain in one event loop, and then in another; a queue for each."""
    results: list[JobResult] = []

    async def wait_in_vain() -> None:
        queue = await PromptQueue.connect(settings=settings_for(url))
        job = await queue.enqueue("Hello", id="job")
        with pytest.raises(WaitTimeout):
            await job.wait(timeout=0.05)
        if closes:
            await queue.aclose()

    async def wait() -> None:
        async with PromptQueue.connect(settings=settings_for(url)) as queue, Redis.from_url(url) as redis:
            waiting = await begin(redis, queue.wait("job", timeout=SOON), "job")
            await Hand(redis).answer_all()
            results.append(await waiting)

    asyncio.run(wait_in_vain())
    asyncio.run(wait())
    return results


def test_each_event_loop_takes_a_queue_of_its_own(redis_url: str) -> None:
    """An event loop that was closed leaves nothing behind that a queue in the next one would stumble over."""
    [result] = run_twice(redis_url, closes=True)
    assert result.content == "done"


FORGETS = """
import sys
from test_waiting_for_results import run_twice
[result] = run_twice(sys.argv[1], closes=False)
print(result.content)
"""


def test_a_forgotten_queue_does_not_disturb_the_next(redis_url: str) -> None:
    """A queue that was never closed warns, and that is all. In a process of its own, which it litters."""
    command = (sys.executable, "-W", "default::ResourceWarning", "-c", FORGETS, redis_url)
    ended = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
    assert "ResourceWarning" in ended.stderr


async def test_the_result_has_everything(queue: PromptQueue, hand: Hand) -> None:
    """What the run left and what the ledger knows, in one value."""
    job = await queue.enqueue("Hello", model="grok-4-fast", metadata={"user": "7"})
    await hand.settle(await hand.claim(), answer("Hi", "grok-4-fast-0709"))
    result = await job.wait(timeout=SOON)
    assert (result.content, result.finish_reason, result.model) == ("Hi", "stop", "grok-4-fast-0709")
    assert (result.usage.total_tokens, result.usage.cost_in_usd_ticks) == (5, 7)
    assert (result.metadata, result.provider, result.worker) == ({"user": "7"}, "hand", "hand")
    [attempt] = result.attempts
    assert (attempt.worker, attempt.code, attempt.usage) == ("hand", None, result.usage)
    assert attempt.started_at == result.started_at
    assert result.enqueued_at is not None
    assert result.finished_at is not None
    assert result.enqueued_at <= result.finished_at


async def test_the_first_look_is_at_all_of_them() -> None:
    """Not before the whole subscription stands: a look at a part would find a later end before an earlier one."""
    signals = watch.Signals(["a", "b"])
    signals.ring("a")
    signals.confirm("a")
    assert await signals.next(0.05) == {"a", "b"}, "nothing is heard before b is confirmed: the patience has run out"
    signals.confirm("b")
    assert await signals.next() == {"a", "b"}
    signals.ring("a")
    assert await signals.next() == {"a"}
