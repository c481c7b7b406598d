import asyncio
import pickle
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from hand import Hand
from promptq.producer import (
    ErrorCode,
    IdConflict,
    InvalidJob,
    InvalidPayload,
    JobHandle,
    JobNotFound,
    JobStatus,
    Message,
    ProducerSettings,
    PromptJob,
    PromptQueue,
    ToolCall,
    Usage,
    keys,
)
from promptq.producer.entries import CHUNK_JOBS
from promptq.worker.providers.base import Answer
from promptq.worker.providers.echo import EchoProvider
from test_codec import Bomb
from waiting import wait_until
from workers import ScriptedProvider, running_worker

SOON = 5.0


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[PromptQueue]:
    """What a backend has."""
    settings = ProducerSettings(redis_url=redis_url, redis_timeout=2)  # type: ignore[arg-type] # a str is coerced
    async with PromptQueue.connect(settings=settings) as queue:
        yield queue


async def is_in(queue: PromptQueue, job: JobHandle, status: JobStatus) -> bool:
    """Whether the job is in that state."""
    return await queue.status(job.id) is status


async def reach(queue: PromptQueue, job: JobHandle, status: JobStatus) -> None:
    """Wait until it is."""
    await wait_until(lambda: is_in(queue, job, status), message=f"{job.id} is {status}")


async def test_the_five_lines(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the README promises: connect, enqueue, wait, read the answer and its tokens."""
    monkeypatch.setenv("PROMPTQ_REDIS_URL", redis_url)
    async with running_worker(redis_url), PromptQueue.connect() as queue:
        job = await queue.enqueue("Tell me a joke", model="grok-4", max_tokens=100)
        result = await queue.wait(job.id, timeout=60)
        assert (result.content, result.usage.total_tokens) == ("Tell me a joke", 6)


async def test_a_result_tells_the_whole_story(queue: PromptQueue, redis_url: str) -> None:
    """Answer, usage, times, worker and the one attempt, from the echo provider by name."""
    before = datetime.now(UTC) - timedelta(milliseconds=2)
    async with running_worker(redis_url) as worker:
        job = await queue.enqueue("x" * 40, model="grok-4-fast", metadata={"user": "7", "": "ünï"})
        result = await job.wait(timeout=SOON)
    assert (job.created, job.queue_name) == (True, keys.lane("grok-4-fast"))
    assert (result.id, result.status, result.error) == (job.id, JobStatus.SUCCEEDED, None)
    assert (result.content, result.model, result.finish_reason) == ("x" * 40, "grok-4-fast", "stop")
    assert result.usage == Usage(prompt_tokens=10, completion_tokens=10, total_tokens=20)
    assert result.usage.cost_usd is None
    assert (result.provider, result.worker) == ("echo", worker.name)
    assert result.metadata == {"user": "7", "": "ünï"}
    [attempt] = result.attempts
    assert (attempt.worker, attempt.code, attempt.usage) == (worker.name, None, result.usage)
    assert result.enqueued_at is not None
    assert result.started_at is not None
    assert result.finished_at is not None
    times = [before, result.enqueued_at, result.started_at, attempt.finished_at, result.finished_at]
    assert times == sorted(times)
    assert all(time.tzinfo is UTC or time.utcoffset() == timedelta(0) for time in times)
    assert await queue.result(job.id) == result
    assert await queue.results([job.id, "nobody"]) == {job.id: result}


class Talkative(EchoProvider):
    """Answers with all that an answer can hold."""

    async def sample(self, job: PromptJob, timeout: float, hear: object = None) -> Answer:
        """Says nothing, and asks for a tool."""
        return Answer(
            content="",
            model="grok-4-0709",
            usage=Usage(reasoning_tokens=2**40, cached_prompt_tokens=3, cost_in_usd_ticks=2**60),
            finish_reason="tool_calls",
            reasoning_content="hm",
            tool_calls=(ToolCall(id="1", name="look", arguments='{"at":[],"n":12345678901234567890}'),),
            citations=("https://x.ai",),
            response_id="abc",
        )


async def test_nothing_of_an_answer_is_lost(queue: PromptQueue, redis_url: str) -> None:
    """Tool calls, citations, reasoning and long integers come back as they were."""
    async with running_worker(redis_url, Talkative()):
        result = await (await queue.enqueue("Hello")).wait(timeout=SOON)
    assert result.model == "grok-4-0709"
    assert (result.finish_reason, result.reasoning_content, result.response_id) == ("tool_calls", "hm", "abc")
    assert result.tool_calls == (ToolCall(id="1", name="look", arguments='{"at":[],"n":12345678901234567890}'),)
    assert result.citations == ("https://x.ai",)
    assert (result.usage.reasoning_tokens, result.usage.cost_in_usd_ticks) == (2**40, 2**60)


@pytest.mark.parametrize(
    "given",
    [
        "Hello",
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        [Message(role="user", content="Hello")],
        {"prompt": "Hello", "temperature": 0.5},
        PromptJob(messages=(Message(role="user", content="Hello"),), max_tokens=5),
    ],
    ids=["prompt", "messages", "Message", "dict", "PromptJob"],
)
async def test_every_form_of_a_job_runs(queue: PromptQueue, redis_url: str, given: Any) -> None:
    """A prompt, messages, a dict and a PromptJob, one by one and in a batch."""
    async with running_worker(redis_url):
        one = await queue.enqueue(given)
        many = await queue.enqueue_many([given, given])
        assert len({one.id, *(job.id for job in many)}) == 3
        for job in (one, *many):
            assert (await job.wait(timeout=SOON)).content == "Hello"


async def test_the_life_of_a_job(queue: PromptQueue, redis_url: str) -> None:
    """Delayed, queued, running, succeeded: `status` follows, and `result` is None until the end."""
    provider = ScriptedProvider()
    job = await queue.enqueue("hang", delay=0.2)
    assert (job.status, await queue.status(job.id)) == (JobStatus.DELAYED, JobStatus.DELAYED)
    async with running_worker(redis_url, provider):
        await reach(queue, job, JobStatus.RUNNING)
        assert await queue.result(job.id) is None
        other = await queue.enqueue("Hello", model="nobody serves this", delay=3600)
        assert await queue.results([job.id, other.id]) == {job.id: None, other.id: None}
        provider.release.set()
        assert (await job.wait(timeout=SOON)).status is JobStatus.SUCCEEDED
    assert await queue.cancel(other.id)


OPTIONS: dict[str, dict[str, Any]] = {"delayed": {"delay": 3600}, "expired": {"deadline": 0.001}}
STATES = ["queued", "delayed", "running", "succeeded", "failed", "cancelled", "expired"]


@pytest.mark.parametrize("state", STATES)
async def test_an_id_is_enqueued_once(queue: PromptQueue, redis_url: str, state: str) -> None:
    """In whatever state a job is, enqueuing it again says so, and runs nothing; another request is IdConflict."""
    provider = ScriptedProvider()
    prompt = {"running": "hang", "failed": "fail moderated"}.get(state, "Hello")
    options = OPTIONS.get(state, {})
    first = await queue.enqueue(prompt, id="job", **options)
    assert (first.created, first.id) == (True, "job")
    if state == "cancelled":
        await queue.cancel("job")
    if state in {"queued", "delayed", "cancelled"}:
        await check_again(queue, prompt, state)
        await queue.cancel("job")
        return
    if state == "expired":
        await asyncio.sleep(0.002)
    async with running_worker(redis_url, provider):
        await reach(queue, first, JobStatus(state))
        await check_again(queue, prompt, state)
        provider.release.set()
        await first.wait(timeout=SOON)
    assert len(provider.started) == (state != "expired")


async def check_again(queue: PromptQueue, prompt: str, state: str) -> None:
    """Enqueue `job` a second time, alike and differently."""
    again = await queue.enqueue(prompt, id="job", priority="high", tenant="else", metadata={"other": "delivery"})
    assert (again.created, again.id, again.status.value) == (False, "job", state)
    [in_batch] = await queue.enqueue_many([{"prompt": prompt, "id": "job"}])
    assert (in_batch.created, in_batch.status.value) == (False, state)
    with pytest.raises(IdConflict, match="'job'") as caught:
        await queue.enqueue(f"{prompt}, but differently", id="job")
    assert caught.value.id == "job"


async def test_the_same_id_at_once(queue: PromptQueue, redis_url: str) -> None:
    """Fifty who enqueue the same job at the same moment: one creates it, all can wait for it, it runs once."""
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider):
        jobs = await asyncio.gather(*(queue.enqueue("Hello", id="job") for _ in range(50)))
        results = await asyncio.gather(*(job.wait(timeout=SOON) for job in jobs))
    assert sum(job.created for job in jobs) == 1
    assert len({result.id for result in results}) == 1
    assert provider.started == ["Hello"]


async def test_an_id_is_free_again_when_its_result_is_gone(queue: PromptQueue, redis_url: str) -> None:
    """The result's time is the dedupe window: after it the same id is a new job."""
    async with running_worker(redis_url):
        job = await queue.enqueue("Hello", id="job", result_ttl=0.1)
        await job.wait(timeout=SOON)

        async def is_free() -> bool:
            return not await queue.results(["job"])

        await wait_until(is_free)
        assert (await queue.enqueue("something else", id="job")).created
        assert (await queue.wait("job", timeout=SOON)).content == "something else"


@pytest.mark.parametrize(
    ("prompt", "ttl", "seconds"),
    [
        ("Hello", None, 100),
        ("fail moderated", None, 200),
        ("Hello", 50, 50),
        ("fail moderated", timedelta(minutes=1), 60),
    ],
)
async def test_results_are_kept_for_their_time(
    queue: PromptQueue, redis_client: Redis, redis_url: str, *, prompt: str, ttl: Any, seconds: float
) -> None:
    """The job's own `result_ttl`, else the workers' settings; ledger and result go together."""
    async with running_worker(redis_url, ScriptedProvider(), result_ttl=100, failure_ttl=200):
        job = await queue.enqueue(prompt, result_ttl=ttl)
        await job.wait(timeout=SOON)
    for key in (keys.result(job.id), keys.ledger(job.id)):
        assert seconds - 10 < await redis_client.ttl(key) <= seconds


@pytest.mark.parametrize(
    "code", [ErrorCode.MODERATED, ErrorCode.INVALID_REQUEST, ErrorCode.CONTEXT_LENGTH, ErrorCode.MODEL_NOT_FOUND]
)
async def test_what_cannot_succeed_fails_at_once(queue: PromptQueue, redis_url: str, code: ErrorCode) -> None:
    """One attempt, a failed result with code and message, and the attempt on the books."""
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider):
        result = await (await queue.enqueue(f"fail {code}")).wait(timeout=SOON)
    assert result.status is JobStatus.FAILED
    assert result.error is not None
    assert (result.error.code, result.error.message) == (code, "as the prompt said")
    assert [attempt.code for attempt in result.attempts] == [code]
    assert len(provider.started) == 1
    assert (await queue.stats()).failed == 1


async def test_the_failed_are_counted_as_long_as_they_are_kept(queue: PromptQueue, redis_url: str) -> None:
    """A failure that is kept for a moment does not push out of `stats` one that is kept for days."""
    async with running_worker(redis_url, ScriptedProvider()):
        long = await queue.enqueue("fail moderated", result_ttl=timedelta(days=3))
        await long.wait(timeout=SOON)
        short = await queue.enqueue("fail moderated", result_ttl=0.05)
        await short.wait(timeout=SOON)

        async def are_counted(many: int) -> bool:
            return (await queue.stats()).failed == many

        await wait_until(lambda: are_counted(1))
        await (await queue.enqueue("fail moderated", result_ttl=60)).wait(timeout=SOON)
        assert await are_counted(2)


async def test_a_broken_provider_is_tried_again(queue: PromptQueue, redis_url: str) -> None:
    """Every attempt is on the job, until `max_attempts`."""
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider):
        result = await (await queue.enqueue("fail provider_error", max_attempts=2)).wait(timeout=2 * SOON)
    assert result.error is not None
    assert result.error.code is ErrorCode.PROVIDER_ERROR
    assert len(result.attempts) == len(provider.started) == 2


async def test_priorities_go_first(queue: PromptQueue, redis_url: str) -> None:
    """High before normal before low, each in the order of arrival."""
    provider = ScriptedProvider()
    wanted = [("low", "l1"), ("normal", "n1"), ("high", "h1"), ("low", "l2"), ("normal", "n2"), ("high", "h2")]
    jobs = [await queue.enqueue(prompt, priority=priority) for priority, prompt in wanted]
    async with running_worker(redis_url, provider, max_jobs=1):
        await asyncio.gather(*(job.wait(timeout=SOON) for job in jobs))
    assert provider.started == ["h1", "h2", "n1", "n2", "l1", "l2"]


async def test_tenants_take_turns(queue: PromptQueue, redis_url: str) -> None:
    """Somebody's thousand jobs do not hold up another's two."""
    provider = ScriptedProvider()
    jobs = await queue.enqueue_many([f"big {n}" for n in range(4)], tenant="big")
    jobs += await queue.enqueue_many(["small 0", "small 1"], tenant="small")
    async with running_worker(redis_url, provider, max_jobs=1):
        await asyncio.gather(*(job.wait(timeout=SOON) for job in jobs))
    assert set(provider.started[:4]) == {"big 0", "small 0", "big 1", "small 1"}
    assert provider.started[4:] == ["big 2", "big 3"]


async def test_a_delay_is_kept(queue: PromptQueue, redis_url: str) -> None:
    """A delayed job runs when its time has come, not before, and not long after, on an idle worker."""
    async with running_worker(redis_url):
        started = time.monotonic()
        job = await queue.enqueue("Hello", delay=timedelta(seconds=0.5))
        result = await job.wait(timeout=SOON)
        waited = time.monotonic() - started
    assert result.started_at is not None
    assert result.enqueued_at is not None
    assert result.started_at - result.enqueued_at >= timedelta(seconds=0.499)
    assert waited < 1.5


@pytest.mark.parametrize("kind", ["from now", "point in time"])
async def test_a_deadline_ends_a_queued_job(queue: PromptQueue, redis_url: str, kind: str) -> None:
    """A job whose deadline passes while it waits for a slot is `expired`, never called."""
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider, max_jobs=1):
        blocking = await queue.enqueue("hang")
        await reach(queue, blocking, JobStatus.RUNNING)
        deadline = 0.3 if kind == "from now" else datetime.now(UTC) + timedelta(seconds=0.3)
        result = await (await queue.enqueue("Hello", deadline=deadline)).wait(timeout=SOON)
        assert result.status is JobStatus.EXPIRED
        assert result.error is not None
        assert result.error.code is ErrorCode.EXPIRED
        assert result.attempts == ()
        provider.release.set()
        await blocking.wait(timeout=SOON)
    assert provider.started == ["hang"]


async def test_a_deadline_ends_a_running_call(queue: PromptQueue, redis_url: str) -> None:
    """A job whose deadline passes in the middle of its call: the call is cancelled, and on the books."""
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider):
        result = await (await queue.enqueue("hang", deadline=0.3)).wait(timeout=SOON)
    assert result.status is JobStatus.EXPIRED
    assert provider.cancelled == ["hang"]
    assert [attempt.code for attempt in result.attempts] == [ErrorCode.EXPIRED]


async def test_a_queued_job_is_cancelled_at_once(queue: PromptQueue, redis_url: str) -> None:
    """Without any worker: a result is there at once, and nothing will ever run."""
    queued = await queue.enqueue("Hello", metadata={"a": "b"})
    delayed = await queue.enqueue("Hello", delay=3600)
    for job in (queued, delayed):
        assert await queue.cancel(job.id) is True
        assert await queue.status(job.id) is JobStatus.CANCELLED
        assert await queue.cancel(job.id) is False
    result = await queue.wait(queued.id, timeout=1)
    assert (result.status, result.error and result.error.code) == (JobStatus.CANCELLED, ErrorCode.CANCELLED)
    assert (result.metadata, result.attempts) == ({"a": "b"}, ())
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider):
        await (await queue.enqueue("Goodbye")).wait(timeout=SOON)
    assert provider.started == ["Goodbye"]


async def test_a_running_call_is_cancelled_quickly(queue: PromptQueue, redis_url: str) -> None:
    """The provider's call is really cancelled, well within a second, and its neighbours run on."""
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider):
        job, neighbour = await queue.enqueue_many(["hang 1", "hang 2"])
        await wait_until(lambda: len(provider.started) == 2)
        started = time.monotonic()
        assert await queue.cancel(job.id) is True
        result = await job.wait(timeout=SOON)
        assert time.monotonic() - started < 0.8
        assert result.status is JobStatus.CANCELLED
        assert provider.cancelled == ["hang 1"]
        assert [attempt.code for attempt in result.attempts] == [ErrorCode.CANCELLED]
        assert await queue.status(neighbour.id) is JobStatus.RUNNING
        provider.release.set()
        assert (await neighbour.wait(timeout=SOON)).status is JobStatus.SUCCEEDED


async def test_cancelling_what_is_over_or_unknown(queue: PromptQueue, redis_url: str) -> None:
    """False for a job that had ended, whose result stays; JobNotFound for none."""
    async with running_worker(redis_url):
        job = await queue.enqueue("Hello")
        result = await job.wait(timeout=SOON)
        assert await queue.cancel(job.id) is False
        assert await queue.result(job.id) == result
    with pytest.raises(JobNotFound, match="nobody"):
        await queue.cancel("nobody")


@pytest.mark.parametrize("read", ["status", "result", "wait", "cancel"])
async def test_an_unknown_id_is_said(queue: PromptQueue, read: str) -> None:
    """JobNotFound, a LookupError, names the id."""
    with pytest.raises(JobNotFound, match="'nobody'") as caught:
        await getattr(queue, read)("nobody")
    assert isinstance(caught.value, LookupError)
    assert caught.value.id == "nobody"


async def test_stats_count_by_lane(queue: PromptQueue, redis_url: str) -> None:
    """What waits by band, what is delayed and what runs, lane by lane; an empty lane is gone."""
    provider = ScriptedProvider()
    assert (await queue.stats()).lanes == ()
    async with running_worker(redis_url, provider, max_jobs=2):
        running = await queue.enqueue_many(["hang 1", "hang 2"], model="a")
        await wait_until(lambda: len(provider.started) == 2)
        waiting = await queue.enqueue_many(["1", "2", "3"], model="a", priority="high")
        waiting += await queue.enqueue_many(["1", "2"], model="a")
        waiting += await queue.enqueue_many(["1"], model="b", priority="low")
        delayed = await queue.enqueue("later", model="a", delay=3600)
        a, b = (await queue.stats()).lanes
        assert (a.lane, a.high, a.normal, a.low, a.delayed, a.running, a.queued) == ("a", 3, 2, 0, 1, 2, 5)
        assert (b.lane, b.high, b.normal, b.low, b.delayed, b.running, b.queued) == ("b", 0, 0, 1, 0, 0, 1)
        assert a.paused_until is None
        await queue.cancel(delayed.id)
        provider.release.set()
        await asyncio.gather(*(job.wait(timeout=SOON) for job in running + waiting))
    assert (await queue.stats()).lanes == ()


async def test_stats_tell_a_pause(queue: PromptQueue, redis_url: str) -> None:
    """A model that the provider throttled is paused, with until when and why; its job is back in the queue, unspent."""
    async with running_worker(redis_url, ScriptedProvider()):
        job = await queue.enqueue("fail rate_limited")

        async def pause() -> Any:
            lanes = (await queue.stats()).lanes
            return lanes and lanes[0].paused_until

        await wait_until(pause)
        [lane] = (await queue.stats()).lanes
        assert lane.pause_reason is ErrorCode.RATE_LIMITED
        assert lane.paused_until is not None
        assert lane.paused_until > datetime.now(UTC) - timedelta(seconds=1)
        await wait_until(lambda: is_in(queue, job, JobStatus.QUEUED))
        await queue.cancel(job.id)


async def test_many_results_are_read_at_once(queue: PromptQueue, redis_url: str) -> None:
    """Any number of ids, from any iterable; those nobody knows are left out."""
    async with running_worker(redis_url):
        jobs = await queue.enqueue_many(f"prompt {n}" for n in range(450))
        ended = {result.id: result async for result in queue.as_completed([job.id for job in jobs], timeout=20)}
    assert [ended[job.id].content for job in jobs] == [f"prompt {n}" for n in range(450)]
    assert await queue.results(each for job in jobs for each in (job.id, f"not {job.id}")) == ended


@pytest.mark.parametrize("key", [keys.result, keys.payload], ids=["result", "payload"])
async def test_a_pickle_in_redis_is_never_run(
    queue: PromptQueue, redis_client: Redis, redis_url: str, tmp_path: Path, key: Any
) -> None:
    """Whoever can write into Redis cannot run code here: neither where jobs are run nor where results are read."""
    bomb = Bomb.bytes(tmp_path / "went off", pickle.HIGHEST_PROTOCOL)
    async with running_worker(redis_url) as worker:
        delayed = await queue.enqueue("Hello", delay=0.1)
        await redis_client.set(key(delayed.id), bomb, ex=60)
        if key is keys.payload:
            result = await delayed.wait(timeout=SOON)
            assert result.status is JobStatus.FAILED
            assert result.error is not None
            assert (result.error.code, "pickle" in result.error.message) == (ErrorCode.INVALID_REQUEST, True)
            assert result.attempts == ()
        else:
            for read in (queue.result, queue.wait):
                with pytest.raises(InvalidPayload, match=delayed.id):
                    await read(delayed.id)
        assert (await (await queue.enqueue("Hello")).wait(timeout=SOON)).status is JobStatus.SUCCEEDED
        assert worker.is_claiming
        await reach(queue, delayed, JobStatus.FAILED if key is keys.payload else JobStatus.SUCCEEDED)
    assert not (tmp_path / "went off").exists()


def test_a_handle_shows_what_it_is() -> None:
    """Its `repr` is for a log: id and state."""
    handle = JobHandle("a", True, JobStatus.QUEUED, "arq:queue:m", _queue=None)  # type: ignore[arg-type] # not used
    assert repr(handle) == "JobHandle('a', created=True, status='queued')"


async def test_a_worker_can_be_closed_at_any_moment(redis_url: str) -> None:
    """Told to renew and to end in the same moment, the task that keeps leases ends: a shutdown must not hang."""
    async with running_worker(redis_url) as worker:
        keeping = asyncio.create_task(worker._keep_leases())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        worker._ask_to_renew()
        keeping.cancel()
        done, _ = await asyncio.wait([keeping], timeout=1)
        keeping.cancel()
        assert done, "it goes on"


async def test_what_a_refused_chunk_accepted_is_told(queue: PromptQueue, redis_client: Redis) -> None:
    """A chunk with a conflict is under way when the next one turns out to be bad."""
    await queue.enqueue("another prompt", id="job-0")

    def jobs() -> Iterator[dict[str, str]]:
        yield from ({"prompt": "Hello", "id": f"job-{number}"} for number in range(2 * CHUNK_JOBS))
        yield {"prompt": "Hello", "nonsense": "yes"}

    with pytest.raises(InvalidJob) as caught:
        await queue.enqueue_many(jobs())
    assert caught.value.accepted == tuple(f"job-{number}" for number in range(1, CHUNK_JOBS))
    await Hand(redis_client).answer_all()
