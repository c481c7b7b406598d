import asyncio
import json
import pickle
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import arq.jobs
import pytest
from arq.connections import ArqRedis
from arq.jobs import Job, ResultNotFound
from redis.asyncio import Redis

from promptq.producer import (
    ErrorCode,
    IdConflict,
    JobExpired,
    JobFailed,
    JobHandle,
    JobResult,
    JobStatus,
    ProducerSettings,
    PromptQueue,
    codec,
    keys,
)
from promptq.worker import engine
from promptq.worker.engine import PromptWorker
from test_codec import Bomb
from waiting import wait_until
from workers import ScriptedProvider, running_worker

SOON = 5.0
INTAKE = keys.lane(keys.INTAKE)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain arq wakes nobody: an idle worker finds its jobs by looking."""
    monkeypatch.setattr(engine, "POLL_IDLE", 0.05)
    monkeypatch.setattr(engine, "POLL_BACKLOG", 0.05)


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[PromptQueue]:
    """Our own library, to see what it makes of plain arq jobs."""
    settings = ProducerSettings(redis_url=redis_url, redis_timeout=2)  # type: ignore[arg-type] # a str is coerced
    async with PromptQueue.connect(settings=settings) as queue:
        yield queue


@pytest.fixture
def arq_redis(redis_client: Redis) -> ArqRedis:
    """What a plain arq client makes of itself to talk to us."""
    return ArqRedis(
        connection_pool=redis_client.connection_pool,
        job_serializer=codec.dumps,
        job_deserializer=codec.loads,
    )


async def enqueue(redis: ArqRedis, *args: Any, **options: Any) -> Job:
    """As a plain arq client does, into the intake."""
    job = await redis.enqueue_job("sample_prompt", *args, _queue_name=INTAKE, **options)
    assert job is not None
    return job


def arq_job(redis: ArqRedis, handle: JobHandle) -> Job:
    """A job of ours, seen through arq's own class."""
    return Job(handle.id, redis, _queue_name=handle.queue_name, _deserializer=codec.loads)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((), {"prompt": "Hello"}),
        (("Hello",), {"max_tokens": 5}),
        ((), {"messages": [{"role": "user", "content": "Hello"}]}),
        (([{"role": "user", "content": "Hello"}],), {}),
        (({"prompt": "Hello", "temperature": 1},), {}),
    ],
    ids=repr,
)
async def test_a_plain_arq_client_is_served(
    queue: PromptQueue, arq_redis: ArqRedis, redis_url: str, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """`enqueue_job` with our codec, end to end: arq's result is our JobResult, and our library reads it, too."""
    async with running_worker(redis_url):
        job = await enqueue(arq_redis, *args, **options)
        result = await job.result(timeout=SOON, poll_delay=0.02)
        assert isinstance(result, JobResult)
        assert (result.id, result.status, result.content) == (job.job_id, JobStatus.SUCCEEDED, "Hello")
        assert await job.status() is arq.jobs.JobStatus.complete
        assert (await queue.wait(job.job_id, timeout=SOON)).content == "Hello"


async def test_arqs_job_gets_the_default_model(queue: PromptQueue, arq_redis: ArqRedis, redis_url: str) -> None:
    """A job without a model asks the worker's default one, by its name."""
    async with running_worker(redis_url, default_model="grok-3"):
        await enqueue(arq_redis, prompt="Hello", _job_id="job")
        result = await queue.wait("job", timeout=SOON)
    assert result.model == "grok-3"


async def test_arqs_job_has_our_options(queue: PromptQueue, arq_redis: ArqRedis, redis_url: str) -> None:
    """Metadata, model, priority and the like are keyword arguments of the job."""
    async with running_worker(redis_url):
        await enqueue(
            arq_redis,
            "Hello",
            model="grok-3",
            metadata={"a": "b"},
            priority="high",
            tenant="t",
            result_ttl=50,
            _job_id="job",
        )
        result = await queue.wait("job", timeout=SOON)
    assert (result.model, result.metadata) == ("grok-3", {"a": "b"})
    assert 40 < await arq_redis.ttl(keys.result("job")) <= 50


async def test_arqs_job_id_is_the_id(queue: PromptQueue, arq_redis: ArqRedis, redis_url: str) -> None:
    """`_job_id` dedupes in arq's way among its clients, and in ours among ours, before and after the run."""
    await enqueue(arq_redis, prompt="Hello", model="grok-4", _job_id="job")
    assert await arq_redis.enqueue_job("sample_prompt", prompt="Hello", _queue_name=INTAKE, _job_id="job") is None
    assert await queue.status("job") is JobStatus.QUEUED
    with pytest.raises(IdConflict):
        await queue.enqueue("Goodbye", id="job")
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider):
        await queue.wait("job", timeout=SOON)
        assert await arq_redis.enqueue_job("sample_prompt", prompt="Hello", _queue_name=INTAKE, _job_id="job") is None
        again = await queue.enqueue("Hello", id="job", model="grok-4")
        assert (again.created, again.status) == (False, JobStatus.SUCCEEDED)
        with pytest.raises(IdConflict):
            await queue.enqueue("Goodbye", id="job")
    assert provider.started == ["Hello"]


async def test_arqs_defer_is_kept(queue: PromptQueue, arq_redis: ArqRedis, redis_url: str) -> None:
    """`_defer_by`: not before, though the worker is idle."""
    async with running_worker(redis_url):
        started = time.monotonic()
        job = await enqueue(arq_redis, prompt="Hello", _defer_by=0.6)
        await asyncio.sleep(0.2)
        assert await job.status() is arq.jobs.JobStatus.deferred
        result = await queue.wait(job.job_id, timeout=SOON)
        assert time.monotonic() - started >= 0.6
    assert result.status is JobStatus.SUCCEEDED


async def test_the_payload_of_a_foreign_job_does_not_expire(
    queue: PromptQueue, arq_redis: ArqRedis, redis_url: str
) -> None:
    """Arq gives a payload a day: once a worker has seen the job it stays until the job has run."""
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider, max_jobs=1):
        blocking = await queue.enqueue("hang")
        await wait_until(lambda: provider.started == ["hang"])
        await queue.enqueue("hang 2")
        provider.release.set()
        await enqueue(arq_redis, prompt="Hello", delay=0.3, _job_id="job", _expires=600)

        async def is_adopted() -> bool:
            return bool(await arq_redis.exists(keys.ledger("job")))

        await wait_until(is_adopted)
        assert await arq_redis.ttl(keys.payload("job")) == -1
        await queue.wait("job", timeout=SOON)
        await blocking.wait(timeout=SOON)
        await wait_until(lambda: len(provider.started) == 3)


async def test_stats_of_foreign_jobs(queue: PromptQueue, arq_redis: ArqRedis, redis_url: str) -> None:
    """A plain arq job that runs is running, in its model's lane, and delayed in none."""
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider):
        job = await enqueue(arq_redis, prompt="hang", model="grok-3")
        await wait_until(lambda: provider.started == ["hang"])
        lanes = (await queue.stats()).lanes
        assert sum(lane.running for lane in lanes) == 1
        assert sum(lane.queued for lane in lanes) == 0
        assert sum(lane.delayed for lane in lanes) == 0
        provider.release.set()
        await queue.wait(job.job_id, timeout=SOON)


def payload(**fields: Any) -> bytes:
    """A good payload but for these fields."""
    return json.dumps({"t": None, "f": "sample_prompt", "a": [], "k": {"prompt": "Hello"}, "et": 1} | fields).encode()


REFUSED = {
    "unknown function": (payload(f="delete_everything"), "delete_everything"),
    "no function": (payload(f=None), "sample_prompt"),
    "unknown option": (payload(k={"prompt": "Hello", "max_token": 5}), "max_token"),
    "bad option": (payload(k={"prompt": "Hello", "priority": "urgent"}), "priority"),
    "no prompt": (payload(k={}), "messages"),
    "two arguments": (payload(a=["Hello", "Goodbye"]), "prompt"),
    "arguments that are none": (payload(a=5), "prompt"),
    "options that are none": (payload(k=[1]), "prompt"),
    "an id of its own": (payload(k={"prompt": "Hello", "id": "other"}), "id"),
    "a deadline before the calendar": (payload(k={"prompt": "Hello", "deadline": "0001-01-01T00:00:00"}), "deadline"),
    "not JSON": (b"\xff\x00\xfe", "JSON"),
    "nothing": (b"", "expire"),
    "a list": (b"[1]", "object"),
    "too deep": (b"[" * 100_000, "JSON"),
    "cut off": (payload()[:-5], "JSON"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_is_no_job_fails(queue: PromptQueue, arq_redis: ArqRedis, redis_url: str, what: str) -> None:
    """A failed result says why, arq's Job raises it, and the worker lives on to serve the next."""
    data, why = REFUSED[what]
    await put(arq_redis, "bad", data)
    async with running_worker(redis_url) as worker:
        result = await queue.wait("bad", timeout=SOON)
        assert result.status is JobStatus.FAILED
        assert result.error is not None
        assert result.error.code is ErrorCode.INVALID_REQUEST
        assert why in result.error.message
        with pytest.raises(JobFailed, match=why):
            await Job("bad", arq_redis, INTAKE, codec.loads).result(timeout=SOON, poll_delay=0.02)
        await is_alive(queue, arq_redis, worker)


async def put(redis: Redis, job_id: str | bytes, data: bytes) -> None:
    """As `enqueue_job` does, without its checks."""
    name = job_id.encode() if isinstance(job_id, str) else job_id
    await redis.set(keys.payload("").encode() + name, data, ex=60)
    await redis.zadd(INTAKE, {name: round(time.time() * 1000)})


async def is_alive(queue: PromptQueue, redis: ArqRedis, worker: PromptWorker) -> None:
    """A good job of either kind is served, and nothing is left in the intake."""
    await enqueue(redis, prompt="Hello", _job_id="good")
    assert (await queue.wait("good", timeout=SOON)).status is JobStatus.SUCCEEDED
    assert (await (await queue.enqueue("Hello")).wait(timeout=SOON)).status is JobStatus.SUCCEEDED
    assert worker.is_claiming
    assert await redis.zcard(INTAKE) == 0


@pytest.mark.parametrize("et", [10**30, -(10**30), 10**15, -1, True, None, "soon", 1.5, [1]], ids=repr)
async def test_a_strange_time_of_enqueuing_stops_nobody(
    queue: PromptQueue, arq_redis: ArqRedis, redis_url: str, et: Any
) -> None:
    """Whatever stands as `et`, the job runs and its result can be read; the worker lives on."""
    await put(arq_redis, "job", payload(et=et))
    async with running_worker(redis_url) as worker:
        result = await queue.wait("job", timeout=SOON)
        assert result.status is JobStatus.SUCCEEDED
        assert isinstance(result.enqueued_at, datetime)
        await is_alive(queue, arq_redis, worker)


async def test_an_id_that_is_no_text_stops_nobody(queue: PromptQueue, arq_redis: ArqRedis, redis_url: str) -> None:
    """Bytes that are no UTF-8 where an id should be: the worker throws them out and serves the others."""
    await put(arq_redis, b"\xff\xfe", payload())
    async with running_worker(redis_url) as worker:
        await is_alive(queue, arq_redis, worker)


async def test_a_pickled_payload_fails_and_is_never_run(
    queue: PromptQueue, redis_client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """What arq does by default is refused, and the error says what to give arq instead."""
    plain = ArqRedis(connection_pool=redis_client.connection_pool)
    await put(redis_client, "bomb", Bomb.bytes(tmp_path / "went off", pickle.HIGHEST_PROTOCOL))
    async with running_worker(redis_url):
        job = await plain.enqueue_job("sample_prompt", prompt="Hello", _queue_name=INTAKE)
        assert job is not None
        for job_id in (job.job_id, "bomb"):
            result = await queue.wait(job_id, timeout=SOON)
            assert result.status is JobStatus.FAILED
            assert result.error is not None
            assert "codec.dumps" in result.error.message
    assert not (tmp_path / "went off").exists()


async def test_an_expired_payload_fails(queue: PromptQueue, arq_redis: ArqRedis, redis_url: str) -> None:
    """Arq let the payload expire before a worker came: a failed result, not a silence."""
    job = await enqueue(arq_redis, prompt="Hello", _expires=0.01)

    async def is_gone() -> bool:
        return not await arq_redis.exists(keys.payload(job.job_id))

    await wait_until(is_gone)
    async with running_worker(redis_url) as worker:

        async def is_known() -> bool:
            return job.job_id in await queue.results([job.job_id])

        await wait_until(is_known)
        result = await queue.wait(job.job_id, timeout=SOON)
        assert result.status is JobStatus.FAILED
        assert result.error is not None
        assert "expire" in result.error.message
        await is_alive(queue, arq_redis, worker)


async def test_a_foreign_job_is_cancelled_before_a_worker_saw_it(
    queue: PromptQueue, arq_redis: ArqRedis, redis_url: str
) -> None:
    """`cancel` works on what plain arq enqueued, too, with no worker there."""
    job = await enqueue(arq_redis, prompt="Hello")
    assert await queue.cancel(job.job_id) is True
    assert (await queue.wait(job.job_id, timeout=1)).status is JobStatus.CANCELLED
    with pytest.raises(asyncio.CancelledError):
        await job.result(timeout=1)
    assert await arq_redis.zcard(INTAKE) == 0


async def test_arqs_job_class_reads_a_queued_job(queue: PromptQueue, arq_redis: ArqRedis) -> None:
    """Status queued, the arguments in `info`, no result yet."""
    handle = await queue.enqueue("Hello", max_tokens=5)
    job = arq_job(arq_redis, handle)
    assert await job.status() is arq.jobs.JobStatus.queued
    info = await job.info()
    assert info is not None
    assert (info.function, list(info.args), info.kwargs["max_tokens"]) == ("sample_prompt", [], 5)
    assert info.kwargs == {"messages": [{"role": "user", "content": "Hello"}], "model": "grok-4", "max_tokens": 5}
    assert abs((datetime.now(info.enqueue_time.tzinfo) - info.enqueue_time).total_seconds()) < 60
    assert await job.result_info() is None
    with pytest.raises(asyncio.TimeoutError):
        await job.result(timeout=0.02, poll_delay=0.01)
    await queue.cancel(handle.id)


async def test_arqs_job_class_reads_a_deferred_job(queue: PromptQueue, arq_redis: ArqRedis) -> None:
    """Status deferred, and the time in the score."""
    handle = await queue.enqueue("Hello", delay=3600)
    job = arq_job(arq_redis, handle)
    assert await job.status() is arq.jobs.JobStatus.deferred
    info = await job.info()
    assert info is not None
    assert info.score is not None
    assert 3500 < info.score / 1000 - time.time() < 3700
    await queue.cancel(handle.id)


async def test_arqs_job_class_reads_a_running_job(queue: PromptQueue, arq_redis: ArqRedis, redis_url: str) -> None:
    """Status in_progress, and `result` waits for it."""
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider):
        handle = await queue.enqueue("hang")
        await wait_until(lambda: provider.started == ["hang"])
        job = arq_job(arq_redis, handle)
        assert await job.status() is arq.jobs.JobStatus.in_progress
        waiting = asyncio.create_task(job.result(timeout=SOON, poll_delay=0.02))
        provider.release.set()
        result = await waiting
        assert result.content == "hang"


@pytest.mark.parametrize(
    ("prompt", "options", "kind"),
    [
        ("Hello", {}, None),
        ("fail moderated", {}, JobFailed),
        ("Hello", {"deadline": 0.001}, JobExpired),
        ("hang", {"deadline": 0.2}, JobExpired),
        ("cancelled while queued", {"delay": 3600}, asyncio.CancelledError),
        ("hang, and cancelled", {}, asyncio.CancelledError),
    ],
)
async def test_arqs_job_class_reads_an_ended_job(
    queue: PromptQueue,
    arq_redis: ArqRedis,
    redis_url: str,
    *,
    prompt: str,
    options: dict[str, Any],
    kind: type[BaseException] | None,
) -> None:
    """Status complete; `result` is a JobResult, or raises our exception, or CancelledError; `info` has it all."""
    provider = ScriptedProvider()
    handle = await queue.enqueue(prompt, **options)
    await asyncio.sleep(0.002)
    async with running_worker(redis_url, provider) as worker:
        if "cancelled" in prompt:
            if prompt.startswith("hang"):
                await wait_until(lambda: provider.started)
            await queue.cancel(handle.id)
        ours = await handle.wait(timeout=SOON)
    job = arq_job(arq_redis, handle)
    assert await job.status() is arq.jobs.JobStatus.complete
    info = await job.result_info()
    assert info is not None
    assert (info.success, info.job_id, info.queue_name, info.function) == (
        kind is None, handle.id, handle.queue_name, "sample_prompt",
    )  # fmt: skip
    assert info.enqueue_time <= info.start_time <= info.finish_time
    again = await job.info()
    assert again is not None
    assert (again.kwargs, again.score, again.enqueue_time) == (info.kwargs, None, info.enqueue_time)
    if kind is None:
        assert info.result.content == ours.content
        assert (await job.result()).worker == worker.name
        return
    with pytest.raises(kind) as caught:
        await job.result(timeout=1)
    if isinstance(caught.value, JobFailed):
        assert caught.value.result.error == ours.error


async def test_arqs_job_class_knows_no_stranger(arq_redis: ArqRedis) -> None:
    """An unknown id is not found."""
    job = Job("nobody", arq_redis, _queue_name=INTAKE, _deserializer=codec.loads)
    assert await job.status() is arq.jobs.JobStatus.not_found
    assert await job.info() is None
    with pytest.raises(ResultNotFound):
        await job.result(timeout=1)


@pytest.mark.parametrize("state", ["queued", "deferred", "running"])
async def test_arqs_abort_cancels(queue: PromptQueue, arq_redis: ArqRedis, redis_url: str, state: str) -> None:
    """`Job.abort()` is True for a job in any state that has not ended; a running call is really cancelled."""
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider, max_jobs=1):
        handle = await queue.enqueue("hang", delay=3600 if state == "deferred" else None)
        if state != "deferred":
            await wait_until(lambda: provider.started == ["hang"])
        blocking = handle
        if state == "queued":
            handle = await queue.enqueue("Hello")
        job = arq_job(arq_redis, handle)
        assert await job.abort(timeout=SOON, poll_delay=0.02) is True
        assert await queue.status(handle.id) is JobStatus.CANCELLED
        assert provider.cancelled == (["hang"] if state == "running" else [])
        assert await arq_redis.zcard(keys.ABORT) == 0
        provider.release.set()
        await blocking.wait(timeout=SOON)
    assert provider.started == (["hang"] if state != "deferred" else [])


async def test_arqs_abort_of_a_foreign_job(queue: PromptQueue, arq_redis: ArqRedis, redis_url: str) -> None:
    """A plain client's own job, aborted before and while it runs."""
    provider = ScriptedProvider()
    deferred = await enqueue(arq_redis, prompt="Hello", _defer_by=3600)
    async with running_worker(redis_url, provider):
        assert await deferred.abort(timeout=SOON, poll_delay=0.02) is True
        running = await enqueue(arq_redis, prompt="hang")
        await wait_until(lambda: provider.started == ["hang"])
        assert await running.abort(timeout=SOON, poll_delay=0.02) is True
        assert await queue.status(running.job_id) is JobStatus.CANCELLED
    assert provider.cancelled == ["hang"]


@pytest.mark.parametrize("prompt", ["Hello", "fail moderated"])
async def test_arqs_abort_comes_too_late(queue: PromptQueue, arq_redis: ArqRedis, redis_url: str, prompt: str) -> None:
    """For a job that has ended `abort` is False, or raises its failure as in arq; the result stays."""
    async with running_worker(redis_url, ScriptedProvider()):
        handle = await queue.enqueue(prompt)
        before = await handle.wait(timeout=SOON)
        job = arq_job(arq_redis, handle)
        if before.status is JobStatus.SUCCEEDED:
            assert await job.abort(timeout=1) is False
        else:
            with pytest.raises(JobFailed):
                await job.abort(timeout=1)
        assert await queue.result(handle.id) == before

        async def is_swept() -> bool:
            return bool(await arq_redis.zcard(keys.ABORT) == 0)

        await wait_until(is_swept)


async def test_a_duplicates_handle_names_the_queue_it_stands_in(
    queue: PromptQueue, arq_redis: ArqRedis, redis_url: str
) -> None:
    """Our handle of a job that plain arq enqueued: arq's own class finds the job with it."""
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider):
        await enqueue(arq_redis, prompt="Hello", model="grok-4", delay=3600, _job_id="job")

        async def is_adopted() -> bool:
            return bool(await arq_redis.exists(keys.ledger("job")))

        await wait_until(is_adopted)
        handle = await queue.enqueue("Hello", model="grok-4", id="job")
        assert (handle.created, handle.status) == (False, JobStatus.DELAYED)
        assert await arq_job(arq_redis, handle).status() is arq.jobs.JobStatus.deferred
        await queue.cancel("job")


async def test_arqs_own_list_of_jobs(queue: PromptQueue, arq_redis: ArqRedis, redis_url: str) -> None:
    """`queued_jobs` and `all_job_results`, which dashboards use, read ours."""
    queued = await queue.enqueue("Hello", delay=3600)
    [listed] = await arq_redis.queued_jobs(queue_name=queued.queue_name)
    assert (listed.job_id, listed.function) == (queued.id, "sample_prompt")
    await queue.cancel(queued.id)
    async with running_worker(redis_url):
        ended = await queue.enqueue("Hello")
        await ended.wait(timeout=SOON)
    results = {result.job_id: result for result in await arq_redis.all_job_results()}
    assert set(results) == {queued.id, ended.id}
    assert results[ended.id].result.content == "Hello"
