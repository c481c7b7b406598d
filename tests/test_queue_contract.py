"""What a PromptQueue does: the same tests for the real one with a real worker, and for the one in memory."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import fakeredis
import pytest

from leftovers import assert_no_leftovers
from promptq.producer import (
    Delta,
    Ended,
    ErrorCode,
    GroupCounts,
    GroupNotFound,
    IdConflict,
    InvalidJob,
    InvalidSetting,
    JobCancelled,
    JobEvent,
    JobExpired,
    JobFailed,
    JobHandle,
    JobNotFound,
    JobStatus,
    Limits,
    Message,
    PayloadTooLarge,
    ProducerSettings,
    PromptJob,
    PromptQueue,
    QueueFull,
    QueueUnavailable,
    Usage,
    WaitTimeout,
    failed,
)
from promptq.producer.entries import CHUNK_JOBS
from stages import MemoryStage, RealStage, Stage
from waiting import wait_until

SOON = 5.0
OPTIONS: dict[str, dict[str, Any]] = {"delayed": {"delay": 3600}, "expired": {"deadline": 0.001}}


@pytest.fixture(params=["real", "memory"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """A queue and its worker; at the end nothing may be left in Redis."""
    few: dict[str, Any] = {"max_queued": 300, "max_payload": 1024, "default_model": "grok-test"}
    if request.param == "memory":
        in_memory = MemoryStage(ProducerSettings(**few))
        async with in_memory.queue:
            yield in_memory
            server = in_memory.queue._link.redis.connection_pool.connection_kwargs["server"]
            assert_no_leftovers(fakeredis.FakeRedis(server=server))
        return
    url = request.getfixturevalue("redis_url")
    async with PromptQueue.connect(settings=ProducerSettings(redis_url=url, redis_timeout=2, **few)) as queue:
        yield RealStage(queue, url)


async def is_in(stage: Stage, job: JobHandle, status: JobStatus) -> bool:
    """Whether the job is in that state."""
    return await stage.queue.status(job.id) is status


async def reach(stage: Stage, job: JobHandle, status: JobStatus) -> None:
    """Wait until it is."""
    await wait_until(lambda: is_in(stage, job, status), message=f"{job.id} is {status}")


async def run(stage: Stage, *prompts: Any, **options: Any) -> list[JobHandle]:
    """Enqueue, and run to the end."""
    jobs = await stage.queue.enqueue_many(prompts, **options)
    async with stage.working():
        for job in jobs:
            await job.wait(timeout=SOON)
    return jobs


async def test_a_job_is_answered(stage: Stage) -> None:
    """The handle tells of a new job that is queued; the result has the answer, and what is known of the job."""
    before = datetime.now(UTC) - timedelta(milliseconds=2)
    job = await stage.queue.enqueue("Tell me a joke", metadata={"user": "7", "": "ünï"})
    assert (job.created, job.status) == (True, JobStatus.QUEUED)
    assert job.queue_name.endswith(":grok-test")
    assert await stage.queue.status(job.id) is JobStatus.QUEUED
    assert await stage.queue.result(job.id) is None
    async with stage.working():
        result = await stage.queue.wait(job.id, timeout=SOON)
    assert result is not None
    assert result.raise_for_status() is result
    assert (result.id, result.status, result.content) == (job.id, JobStatus.SUCCEEDED, "Tell me a joke")
    assert (result.model, result.finish_reason, result.error) == ("grok-test", "stop", None)
    assert result.usage == Usage(prompt_tokens=3, completion_tokens=3, total_tokens=6)
    assert (result.metadata, result.group) == ({"user": "7", "": "ünï"}, None)
    [attempt] = result.attempts
    assert (attempt.worker, attempt.code, attempt.usage) == (result.worker, None, result.usage)
    assert result.enqueued_at is not None
    assert result.started_at is not None
    assert result.finished_at is not None
    times = [before, result.enqueued_at, result.started_at, attempt.finished_at, result.finished_at]
    assert times == sorted(times)
    assert all(time.utcoffset() == timedelta(0) for time in times)
    assert await stage.queue.status(job.id) is JobStatus.SUCCEEDED
    assert await stage.queue.results([job.id, "nobody"]) == {job.id: result}


@pytest.mark.parametrize(
    "given",
    [
        "Hello",
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        {"prompt": "Hello", "temperature": 0.5},
        PromptJob(messages=(Message(role="user", content="Hello"),), max_tokens=5),
    ],
    ids=["prompt", "messages", "dict", "PromptJob"],
)
async def test_every_form_of_a_job_is_taken(stage: Stage, given: Any) -> None:
    """Alone and in a batch; without an id each gets its own."""
    one = await stage.queue.enqueue(given)
    many = await stage.queue.enqueue_many([given, given])
    assert len({one.id, *(job.id for job in many)}) == 3
    async with stage.working():
        assert [(await job.wait(timeout=SOON)).content for job in (one, *many)] == ["Hello"] * 3


@pytest.mark.parametrize("state", ["queued", "delayed", "running", "succeeded", "failed", "cancelled", "expired"])
async def test_an_id_is_enqueued_once(stage: Stage, state: str) -> None:
    """In whatever state a job is, enqueuing it again says so and runs nothing; another request is IdConflict."""
    prompt = {"running": "hang", "failed": "fail moderated"}.get(state, "Hello")
    options = OPTIONS.get(state, {})
    first = await stage.queue.enqueue(prompt, id="job", **options)
    assert (first.created, first.id) == (True, "job")
    if state in {"queued", "delayed"}:
        await check_again(stage, prompt, state)
    if state in {"queued", "delayed", "cancelled"}:
        assert await stage.queue.cancel("job")
    if state == "cancelled":
        await check_again(stage, prompt, state)
    await asyncio.sleep(0.002)
    async with stage.working():
        if state in {"running", "succeeded", "failed", "expired"}:
            await reach(stage, first, JobStatus(state))
            await check_again(stage, prompt, state)
        await stage.finish()
        await first.wait(timeout=SOON)
    assert stage.started == ([prompt] if state in {"running", "succeeded", "failed"} else [])


async def check_again(stage: Stage, prompt: str, state: str) -> None:
    """Enqueue `job` a second time, alike and differently."""
    again = await stage.queue.enqueue(prompt, id="job", priority="high", tenant="else", metadata={"other": "delivery"})
    assert (again.created, again.id, again.status.value) == (False, "job", state)
    with pytest.raises(IdConflict, match="'job'"):
        await stage.queue.enqueue(f"{prompt}, but differently", id="job")


async def test_the_same_id_at_once(stage: Stage) -> None:
    """Many who enqueue the same job at the same moment: one creates it, all can wait for it, it runs once."""
    async with stage.working():
        jobs = await asyncio.gather(*(stage.queue.enqueue("Hello", id="job") for _ in range(20)))
        results = await asyncio.gather(*(job.wait(timeout=SOON) for job in jobs))
    assert sum(job.created for job in jobs) == 1
    assert [result.id for result in results] == ["job"] * 20
    assert stage.started == ["Hello"]


async def test_a_batch_with_a_conflict_is_accepted_but_for_it(stage: Stage) -> None:
    """The error names the id; `accepted` has the others, and they run."""
    await stage.queue.enqueue("Hello", id="taken")
    batch = [{"prompt": "one", "id": "1"}, {"prompt": "else", "id": "taken"}, {"prompt": "two", "id": "2"}]
    with pytest.raises(IdConflict) as caught:
        await stage.queue.enqueue_many(batch)
    assert (caught.value.id, caught.value.accepted) == ("taken", ("1", "2"))
    async with stage.working():
        told = [(await stage.queue.wait(job_id, timeout=SOON)).content for job_id in ("taken", "1", "2")]
    assert told == ["Hello", "one", "two"]


@pytest.mark.parametrize(
    ("bad", "error", "field"),
    [
        ({"prompt": "x", "temperatur": 1}, InvalidJob, "temperatur"),
        ({"prompt": "x", "temperature": 3}, InvalidJob, "temperature"),
        ({"prompt": ""}, InvalidJob, "prompt"),
        ({"prompt": "x", "deadline": -1}, InvalidJob, "deadline"),
        ({"prompt": "x" * 1200}, PayloadTooLarge, "prompt"),
    ],
    ids=["unknown", "out of range", "empty", "in the past", "too large"],
)
async def test_a_bad_job_in_a_list_stops_all_of_it(
    stage: Stage, bad: dict[str, Any], error: type[InvalidJob], field: str
) -> None:
    """Nothing of the list is written; the error names position and field."""
    with pytest.raises(error) as caught:
        await stage.queue.enqueue_many([{"prompt": "Hello", "id": "good"}, bad])
    assert (caught.value.position, caught.value.field, caught.value.accepted) == (1, field, ())
    with pytest.raises(JobNotFound):
        await stage.queue.status("good")


async def test_a_bad_job_in_a_stream_stops_what_follows(stage: Stage) -> None:
    """From an iterator jobs are taken in chunks: those of the chunks before are accepted, and named."""
    stream = (f"prompt {n}" if n < CHUNK_JOBS + 10 else 7 for n in range(2 * CHUNK_JOBS))
    with pytest.raises(InvalidJob) as caught:
        await stage.queue.enqueue_many(stream)  # type: ignore[arg-type] # the point
    assert len(caught.value.accepted) == CHUNK_JOBS
    async with stage.working():
        ended = [result async for result in stage.queue.as_completed(caught.value.accepted, timeout=4 * SOON)]
    assert len(ended) == len(stage.started) == CHUNK_JOBS


async def test_a_full_lane_refuses(stage: Stage) -> None:
    """QueueFull, and nothing of the call is written; duplicates and other lanes are taken."""
    jobs = await stage.queue.enqueue_many([f"prompt {n}" for n in range(250)])
    with pytest.raises(QueueFull, match="250 of 300"):
        await stage.queue.enqueue_many([f"more {n}" for n in range(51)])
    assert not (await stage.queue.enqueue("prompt 0", id=jobs[0].id)).created
    other = await stage.queue.enqueue("Hello", model="another")
    async with stage.working(slots=100):
        async for _ in stage.queue.as_completed([other.id, *(job.id for job in jobs)], timeout=4 * SOON):
            pass
    assert len(stage.started) == 251


async def test_priorities_go_first(stage: Stage) -> None:
    """High before normal before low, each in the order of arrival."""
    wanted = [("low", "l1"), ("normal", "n1"), ("high", "h1"), ("low", "l2"), ("normal", "n2"), ("high", "h2")]
    jobs = [await stage.queue.enqueue(prompt, priority=priority) for priority, prompt in wanted]
    async with stage.working(slots=1):
        await asyncio.gather(*(job.wait(timeout=SOON) for job in jobs))
    assert stage.started == ["h1", "h2", "n1", "n2", "l1", "l2"]


async def test_tenants_take_turns(stage: Stage) -> None:
    """Somebody's many jobs do not hold up another's few."""
    jobs = await stage.queue.enqueue_many([f"big {n}" for n in range(4)], tenant="big")
    jobs += await stage.queue.enqueue_many(["small 0", "small 1"], tenant="small")
    async with stage.working(slots=1):
        await asyncio.gather(*(job.wait(timeout=SOON) for job in jobs))
    assert stage.started == ["big 0", "small 0", "big 1", "small 1", "big 2", "big 3"]


async def test_a_delayed_job_runs_when_it_is_due(stage: Stage) -> None:
    """Not before, and then by itself."""
    async with stage.working():
        job = await stage.queue.enqueue("Hello", delay=0.3)
        assert (job.status, await stage.queue.status(job.id)) == (JobStatus.DELAYED, JobStatus.DELAYED)
        assert await stage.queue.result(job.id) is None
        result = await job.wait(timeout=SOON)
    assert result.status is JobStatus.SUCCEEDED
    assert result.enqueued_at is not None
    assert result.started_at is not None
    assert result.started_at - result.enqueued_at >= timedelta(seconds=0.3)


@pytest.mark.parametrize("kind", ["from now", "point in time"])
async def test_a_deadline_ends_a_job_that_nobody_ran(stage: Stage, kind: str) -> None:
    """It expires without a call; a deadline that is kept changes nothing."""
    now = datetime.now(UTC)
    deadline: Any = 0.05 if kind == "from now" else now + timedelta(seconds=0.05)
    late = await stage.queue.enqueue("late", deadline=deadline)
    early = await stage.queue.enqueue("early", deadline=3600 if kind == "from now" else now + timedelta(hours=1))
    await asyncio.sleep(0.06)
    async with stage.working():
        result = await late.wait(timeout=SOON)
        assert (await early.wait(timeout=SOON)).status is JobStatus.SUCCEEDED
    assert (result.status, result.error and result.error.code) == (JobStatus.EXPIRED, ErrorCode.EXPIRED)
    assert result.attempts == ()
    assert stage.started == ["early"]
    with pytest.raises(JobExpired):
        result.raise_for_status()


async def test_a_deadline_ends_a_running_call(stage: Stage) -> None:
    """In the middle of it; the call is on the books."""
    async with stage.working():
        result = await (await stage.queue.enqueue("hang", deadline=0.3)).wait(timeout=SOON)
    assert (result.status, result.error and result.error.code) == (JobStatus.EXPIRED, ErrorCode.EXPIRED)
    assert [attempt.code for attempt in result.attempts] == [ErrorCode.EXPIRED]


async def test_waiting_gives_up_and_the_job_goes_on(stage: Stage) -> None:
    """WaitTimeout names the job and the time; a later wait has the result."""
    async with stage.working():
        job = await stage.queue.enqueue("hang")
        await reach(stage, job, JobStatus.RUNNING)
        with pytest.raises(WaitTimeout, match=f"{job.id}.*0.05 s"):
            await job.wait(timeout=0.05)
        assert await stage.queue.status(job.id) is JobStatus.RUNNING
        await stage.finish()
        assert (await job.wait(timeout=SOON)).status is JobStatus.SUCCEEDED


async def test_somebody_who_waits_hears_of_the_end(stage: Stage) -> None:
    """A wait that began while the job was queued ends when it is run, long before the look that is made in any case."""
    job = await stage.queue.enqueue("Hello")
    waiting = [asyncio.create_task(job.wait()) for _ in range(3)]
    await asyncio.sleep(0.1)
    async with stage.working(), asyncio.timeout(SOON):
        assert [result.content for result in await asyncio.gather(*waiting)] == ["Hello"] * 3


async def test_as_completed_yields_in_the_order_of_ends(stage: Stage) -> None:
    """Whatever the order in which they were enqueued or asked for; each once."""
    jobs = await stage.queue.enqueue_many(
        [{"prompt": "3", "priority": "low"}, {"prompt": "1", "priority": "high"}, {"prompt": "2"}]
    )
    async with stage.working(slots=1):
        ids = [job.id for job in jobs] * 2
        told = [result async for result in stage.queue.as_completed(ids, timeout=SOON)]
    assert {result.content for result in told} == {"1", "2", "3"}
    assert told == sorted(told, key=lambda result: (result.finished_at, result.started_at))
    assert [result async for result in stage.queue.as_completed([])] == []


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_followed(stage: Stage, stream: bool) -> None:
    """Put together, the pieces are the answer, for who came before it and for who comes late or again."""
    job = await stage.queue.enqueue("one two  three ", stream=stream)
    waiting = asyncio.create_task(followed(job))
    async with stage.working():
        events = await waiting
    *deltas, ended = events
    assert isinstance(ended, Ended)
    assert ended.result == await stage.queue.result(job.id)
    assert (ended.result.content, content_of(deltas)) == ("one two  three ", "one two  three ")
    assert (ended.result.time_to_first_token is not None) is stream
    assert await followed(job) == events
    for number, event in enumerate(events[:-1], 1):
        assert await followed(job, event.id) == events[number:]
    assert await followed(job, ended.id) == [ended]


async def followed(job: JobHandle, after: str | None = None) -> list[JobEvent]:
    """All events from there on."""
    return [event async for event in job.events(after, timeout=SOON)]


def content_of(deltas: list[Any]) -> str:
    """They must be nothing else."""
    assert all(isinstance(delta, Delta) for delta in deltas)
    return "".join(delta.content for delta in deltas)


async def test_every_end_is_followed(stage: Stage) -> None:
    """Whatever it is, it comes once; an id that nobody knows is JobNotFound."""
    late = await stage.queue.enqueue("late", stream=True, deadline=0.001)
    gone = await stage.queue.enqueue("gone", stream=True)
    failed = await stage.queue.enqueue("fail moderated", stream=True)
    await stage.queue.cancel(gone.id)
    await asyncio.sleep(0.002)
    async with stage.working():
        for job, status in ((late, "expired"), (gone, "cancelled"), (failed, "failed")):
            [ended] = await followed(job)
            assert isinstance(ended, Ended)
            assert (ended.result.id, ended.result.status) == (job.id, status)
    with pytest.raises(JobNotFound):
        [_ async for _ in stage.queue.events("nobody")]


async def test_many_results_are_read_at_once(stage: Stage) -> None:
    """Any number of ids, from any iterable; open jobs are None, those nobody knows are left out."""
    jobs = await run(stage, *(f"prompt {n}" for n in range(220)))
    later = await stage.queue.enqueue("Hello", delay=3600)
    found = await stage.queue.results(each for job in (*jobs, later) for each in (job.id, f"not {job.id}"))
    told = {job_id: result and result.content for job_id, result in found.items()}
    assert told == {**{job.id: f"prompt {n}" for n, job in enumerate(jobs)}, later.id: None}
    await stage.queue.cancel(later.id)


@pytest.mark.parametrize("read", ["status", "result", "wait", "cancel"])
async def test_an_unknown_id_is_said(stage: Stage, read: str) -> None:
    """JobNotFound names the id."""
    with pytest.raises(JobNotFound, match="'nobody'"):
        await getattr(stage.queue, read)("nobody")


async def test_what_is_not_running_is_cancelled_at_once(stage: Stage) -> None:
    """Queued or delayed: a result is there at once, without a call; cancelling again says that it is over."""
    jobs = [await stage.queue.enqueue("Hello", metadata={"a": "b"}, delay=delay) for delay in (None, 3600)]
    for job in jobs:
        assert await stage.queue.cancel(job.id) is True
        result = await stage.queue.result(job.id)
        assert result is not None
        assert (result.status, result.error and result.error.code) == (JobStatus.CANCELLED, ErrorCode.CANCELLED)
        assert (result.metadata, result.attempts) == ({"a": "b"}, ())
        assert await stage.queue.cancel(job.id) is False
        with pytest.raises(JobCancelled):
            result.raise_for_status()
    await run(stage, "Goodbye")
    assert stage.started == ["Goodbye"]


async def test_a_running_call_is_cancelled(stage: Stage) -> None:
    """It ends soon, with its attempt on the books, and its neighbour goes on."""
    async with stage.working():
        job, neighbour = await stage.queue.enqueue_many(["hang 1", "hang 2"])
        for each in (job, neighbour):
            await reach(stage, each, JobStatus.RUNNING)
        assert await stage.queue.cancel(job.id) is True
        result = await job.wait(timeout=SOON)
        assert result.status is JobStatus.CANCELLED
        assert [attempt.code for attempt in result.attempts] == [ErrorCode.CANCELLED]
        assert await stage.queue.status(neighbour.id) is JobStatus.RUNNING
        await stage.finish()
        assert (await neighbour.wait(timeout=SOON)).status is JobStatus.SUCCEEDED
        assert await stage.queue.cancel(neighbour.id) is False
        assert await job.wait(timeout=SOON) == result


@pytest.mark.parametrize("code", [ErrorCode.MODERATED, ErrorCode.INVALID_REQUEST, ErrorCode.CONTEXT_LENGTH])
async def test_a_failure_is_a_result(stage: Stage, code: ErrorCode) -> None:
    """With code and message, one attempt, and an exception for who asks for one."""
    [job] = await run(stage, f"fail {code}")
    result = await job.wait()
    assert (result.status, result.content) == (JobStatus.FAILED, "")
    assert result.error is not None
    assert (result.error.code, result.error.message) == (code, "as the prompt said")
    assert [attempt.code for attempt in result.attempts] == [code]
    assert (await stage.queue.stats()).failed == 1
    with pytest.raises(JobFailed, match=str(code)) as caught:
        result.raise_for_status()
    assert caught.value.result == result


async def test_an_id_is_free_again_when_its_result_is_gone(stage: Stage) -> None:
    """The result's time is the dedupe window."""
    async with stage.working():
        await (await stage.queue.enqueue("Hello", id="job", result_ttl=0.2)).wait(timeout=SOON)
        await (await stage.queue.enqueue("Hello", id="kept", result_ttl=60)).wait(timeout=SOON)

        async def is_free() -> bool:
            return list(await stage.queue.results(["job", "kept"])) == ["kept"]

        await wait_until(is_free)
        assert (await stage.queue.enqueue("something else", id="job")).created
        assert (await stage.queue.wait("job", timeout=SOON)).content == "something else"


async def test_stats_count_by_lane(stage: Stage) -> None:
    """What waits by band, what is delayed and what runs, lane by lane; an empty lane is gone."""
    assert (await stage.queue.stats()).lanes == ()
    async with stage.working():
        running = await stage.queue.enqueue_many(["hang 1", "hang 2"], model="a")
        for job in running:
            await reach(stage, job, JobStatus.RUNNING)
        delayed = await stage.queue.enqueue("later", model="b", delay=3600)
        a, b = (await stage.queue.stats()).lanes
        assert (a.lane, a.queued, a.delayed, a.running) == ("a", 0, 0, 2)
        assert (b.lane, b.queued, b.delayed, b.running) == ("b", 0, 1, 0)
        await stage.queue.cancel(delayed.id)
        await stage.finish()
        await asyncio.gather(*(job.wait(timeout=SOON) for job in running))
    waiting = await stage.queue.enqueue_many(["1", "2", "3"], model="a", priority="high")
    waiting += await stage.queue.enqueue_many(["1", "2"], model="a")
    waiting += await stage.queue.enqueue_many(["1"], model="a", priority="low")
    [a] = (await stage.queue.stats()).lanes
    assert (a.lane, a.high, a.normal, a.low, a.queued, a.running) == ("a", 3, 2, 1, 6, 0)
    async with stage.working():
        await asyncio.gather(*(job.wait(timeout=SOON) for job in waiting))
    assert (await stage.queue.stats()).lanes == ()


async def test_a_group_is_counted_and_read(stage: Stage) -> None:
    """Its jobs by state, their results in the order of their ends, and nobody else's."""
    group = stage.queue.group("run")
    with pytest.raises(GroupNotFound, match="'run'"):
        await group.counts()
    await stage.queue.enqueue_many(["last", "fail moderated"], group="run", priority="low")
    await stage.queue.enqueue("first", group="run", priority="high")
    other = await stage.queue.enqueue("another's", group="other")
    assert await group.counts() == GroupCounts(name="run", queued=3)
    async with stage.working(slots=1):
        told = [(result.content, result.group) async for result in group.results(timeout=SOON)]
        await other.wait(timeout=SOON)
    assert told == [("first", "run"), ("last", "run"), ("", "run")]
    counts = await group.counts()
    assert counts == GroupCounts(name="run", succeeded=2, failed=1)
    assert (counts.total, counts.open, counts.progress) == (3, 0, 1.0)
    assert [result.content async for result in group.results(timeout=SOON)] == ["first", "last", ""]


async def test_a_group_is_cancelled(stage: Stage) -> None:
    """What waits, what is delayed and what runs; what had ended stays."""
    group = stage.queue.group("run")
    async with stage.working():
        await (await stage.queue.enqueue("Hello", group="run")).wait(timeout=SOON)
        running = await stage.queue.enqueue("hang", group="run")
        await stage.queue.enqueue("later", group="run", delay=3600)
        await reach(stage, running, JobStatus.RUNNING)
        assert await group.counts() == GroupCounts(name="run", succeeded=1, running=1, delayed=1)
        assert await group.cancel() == 2
        ended = [result.status async for result in group.results(timeout=SOON)]
    assert ended == [JobStatus.SUCCEEDED, JobStatus.CANCELLED, JobStatus.CANCELLED]
    assert await group.counts() == GroupCounts(name="run", succeeded=1, cancelled=2)


async def test_calls_in_flight_are_limited(stage: Stage) -> None:
    """By a limit that is set while jobs wait; the end of a call makes room, and so does a higher limit."""
    await stage.queue.set_limits("grok-test", in_flight=1)
    jobs = await stage.queue.enqueue_many(["hang 1", "hang 2", "hang 3"])
    async with stage.working():
        await reach(stage, jobs[0], JobStatus.RUNNING)
        assert [await stage.queue.status(job.id) for job in jobs[1:]] == [JobStatus.QUEUED] * 2
        [lane] = (await stage.queue.stats()).lanes
        assert (lane.running, lane.queued, lane.limited_by, lane.limited_to) == (1, 2, "in_flight", 1)
        await stage.queue.set_limits("grok-test", rpm=600, in_flight=2)
        [model] = await stage.queue.limits()
        assert (model.model, model.limits) == ("grok-test", Limits(rpm=600, in_flight=2))
        await reach(stage, jobs[1], JobStatus.RUNNING)
        await stage.queue.set_limits("grok-test")
        await reach(stage, jobs[2], JobStatus.RUNNING)
        await stage.finish()
        await asyncio.gather(*(job.wait(timeout=SOON) for job in jobs))
    [model] = await stage.queue.limits()
    assert (model.limits, model.in_flight) == (Limits(), 0)
    assert model.requests > 0
    assert model.tokens > 0


async def test_a_limit_makes_jobs_wait(stage: Stage) -> None:
    """Two a second, of which 200 ms may be saved up: three take 0.8 s, and the queue says why."""
    await stage.queue.set_limits("grok-test", rpm=120)
    jobs = await stage.queue.enqueue_many(["1", "2", "3"])
    async with stage.working():
        first = await jobs[0].wait(timeout=SOON)
        [lane] = (await stage.queue.stats()).lanes
        assert (lane.limited_by, lane.limited_to) == ("rpm", 120)
        last = await jobs[2].wait(timeout=SOON)
    assert first.started_at is not None
    assert last.started_at is not None
    assert timedelta(seconds=0.7) <= last.started_at - first.started_at <= timedelta(seconds=3)
    await stage.queue.set_limits("grok-test")


async def test_an_operator_pauses_a_model(stage: Stage) -> None:
    """Its jobs wait until it is resumed; a call under way goes on, and so do other models."""
    async with stage.working():
        running = await stage.queue.enqueue("hang")
        await reach(stage, running, JobStatus.RUNNING)
        await stage.queue.pause("grok-test")
        waiting = await stage.queue.enqueue("Hello")
        await (await stage.queue.enqueue("Hello", model="another")).wait(timeout=SOON)
        await stage.finish()
        await running.wait(timeout=SOON)
        assert await stage.queue.status(waiting.id) is JobStatus.QUEUED
        [lane] = (await stage.queue.stats()).lanes
        assert (lane.lane, lane.paused_by_operator, lane.paused_until) == ("grok-test", True, None)
        assert [each.paused_by_operator for each in await stage.queue.limits()] == [False, True]
        await stage.queue.resume("grok-test")
        assert (await waiting.wait(timeout=SOON)).status is JobStatus.SUCCEEDED
    assert not any(each.paused_by_operator for each in await stage.queue.limits())


async def test_a_tenant_has_more_turns(stage: Stage) -> None:
    """Three for one of others; and then like any other again."""
    await stage.queue.set_tenant("acme", weight=3)
    jobs = await stage.queue.enqueue_many([f"acme {number}" for number in range(6)], tenant="acme")
    jobs += await stage.queue.enqueue_many(["small 0", "small 1"], tenant="small")
    acme, small = await stage.queue.tenants()
    assert (acme.name, acme.weight, acme.max_queued, acme.waiting) == ("acme", 3, None, 6)
    assert (small.name, small.weight, small.max_queued, small.waiting) == ("small", 1, None, 2)
    async with stage.working(slots=1):
        await asyncio.gather(*(job.wait(timeout=SOON) for job in jobs))
    assert [stage.started.index(f"small {number}") for number in range(2)] == [1, 5]
    assert [(each.name, each.waiting) for each in await stage.queue.tenants()] == [("acme", 0)]
    await stage.queue.set_tenant("acme")
    assert await stage.queue.tenants() == ()


async def test_a_tenant_at_its_cap_is_refused(stage: Stage) -> None:
    """QueueFull, and nothing of the call is written; delayed jobs count, running ones do not, nor those of others."""
    await stage.queue.set_tenant("acme", max_queued=3)
    jobs = [await stage.queue.enqueue("Hello", tenant="acme", delay=0.3)]
    jobs += await stage.queue.enqueue_many(["1", "2"], tenant="acme", model="another")
    with pytest.raises(QueueFull, match="3 jobs of tenant 'acme' wait, 1 more would pass its cap of 3"):
        await stage.queue.enqueue("more", tenant="acme", id="more")
    with pytest.raises(JobNotFound):
        await stage.queue.status("more")
    jobs.append(await stage.queue.enqueue("Hello", tenant="else"))
    async with stage.working():
        await asyncio.gather(*(job.wait(timeout=SOON) for job in jobs))
        hanging = await stage.queue.enqueue_many(["hang 1", "hang 2", "hang 3"], tenant="acme")
        for job in hanging:
            await reach(stage, job, JobStatus.RUNNING)
        assert (await (await stage.queue.enqueue("more", tenant="acme")).wait(timeout=SOON)).content == "more"
        await stage.finish()
        await asyncio.gather(*(job.wait(timeout=SOON) for job in hanging))
    await stage.queue.set_tenant("acme")


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda queue: queue.set_limits("grok-test", rpm=0), "rpm"),
        (lambda queue: queue.set_limits("grok-test", tpm=1.5), "tpm"),
        (lambda queue: queue.set_limits("", in_flight=1), "model"),
        (lambda queue: queue.set_limits("promptq", in_flight=1), "model"),
        (lambda queue: queue.pause(" "), "model"),
        (lambda queue: queue.resume("a\nb"), "model"),
        (lambda queue: queue.set_tenant("acme", weight=0), "weight"),
        (lambda queue: queue.set_tenant("acme", weight=101), "weight"),
        (lambda queue: queue.set_tenant("acme", max_queued=-1), "max_queued"),
        (lambda queue: queue.set_tenant("", weight=1), "name"),
    ],
)
async def test_what_cannot_be_set_is_refused(stage: Stage, call: Any, field: str) -> None:
    """InvalidSetting, a ValueError, names the field; nothing is written."""
    with pytest.raises(InvalidSetting) as caught:
        await call(stage.queue)
    assert isinstance(caught.value, ValueError)
    assert (caught.value.field, str(caught.value)) == (field, f"{field}: {caught.value.reason}")
    assert (await stage.queue.limits(), await stage.queue.tenants()) == ((), ())


async def read_failed(stage: Stage, **wanted: Any) -> list[str]:
    """The ids of failed jobs."""
    return [result.id async for result in stage.queue.failed(**wanted)]


async def test_failed_jobs_are_listed(stage: Stage) -> None:
    """Oldest first, by error and by model, with their results; not those that ended otherwise."""
    await run(stage, {"prompt": "fail moderated", "id": "1"}, {"prompt": "Hello", "id": "2"})
    await run(stage, {"prompt": "fail context_length", "id": "3"})
    await run(stage, {"prompt": "fail moderated", "id": "4", "model": "another"})
    first, *_ = [result async for result in stage.queue.failed()]
    assert first == await stage.queue.result("1")
    assert await read_failed(stage) == ["1", "3", "4"]
    assert await read_failed(stage, code="moderated") == ["1", "4"]
    assert await read_failed(stage, model="grok-test") == ["1", "3"]
    assert await read_failed(stage, code=ErrorCode.MODERATED, model="grok-test") == ["1"]
    assert await read_failed(stage, code=ErrorCode.STALLED) == []
    with pytest.raises(ValueError, match="'nonsense'"):
        await read_failed(stage, code="nonsense")


async def test_a_failed_job_is_requeued(stage: Stage) -> None:
    """It runs again and is waited for again; its result has the attempts of both, and its group counts it once."""
    [job] = await run(stage, "fail moderated", group="run", metadata={"user": "7"})
    before = await job.wait(timeout=SOON)
    assert await stage.queue.requeue(job.id) == (job.id,)
    assert await stage.queue.status(job.id) is JobStatus.QUEUED
    assert await stage.queue.result(job.id) is None
    assert await read_failed(stage) == []
    group = stage.queue.group("run")
    assert await group.counts() == GroupCounts(name="run", queued=1)
    async with stage.working():
        after = await job.wait(timeout=SOON)
        assert [result async for result in group.results(timeout=SOON)] == [after]
    assert (after.status, after.metadata, after.group) == (JobStatus.FAILED, {"user": "7"}, "run")
    assert after.attempts[:1] == before.attempts
    assert [attempt.code for attempt in after.attempts] == [ErrorCode.MODERATED] * 2
    assert await group.counts() == GroupCounts(name="run", failed=1)
    assert await read_failed(stage) == [job.id]
    assert stage.started == ["fail moderated"] * 2


async def test_only_failed_jobs_are_requeued(stage: Stage) -> None:
    """Others stay as they are; an unknown id is said when all others are requeued."""
    failed, ended = await run(stage, "fail moderated", "Hello")
    waiting = await stage.queue.enqueue("Hello")
    assert await stage.queue.requeue() == ()
    assert await stage.queue.requeue(ended.id, waiting.id) == ()
    assert await stage.queue.status(ended.id) is JobStatus.SUCCEEDED
    with pytest.raises(JobNotFound, match="'nobody'") as caught:
        await stage.queue.requeue("nobody", ended.id, failed.id, "else")
    assert (caught.value.id, caught.value.accepted) == ("nobody", (failed.id,))
    async with stage.working():
        await asyncio.gather(*(job.wait(timeout=SOON) for job in (failed, waiting)))
    assert stage.started.count("fail moderated") == 2
    assert stage.started.count("Hello") == 2


async def test_many_are_requeued_while_they_are_listed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is left out, and none comes twice, even if it fails again at once."""
    monkeypatch.setattr(failed, "READ_AT_ONCE", 20)
    jobs = await stage.queue.enqueue_many(["fail moderated"] * 50)
    ids = {job.id for job in jobs}
    async with stage.working(slots=100):
        async for _ in stage.queue.as_completed(ids, timeout=4 * SOON):
            pass
        seen = list[str]()
        async for result in stage.queue.failed():
            seen.append(result.id)
            assert await stage.queue.requeue(result.id) == (result.id,)
            await stage.queue.wait(result.id, timeout=SOON)
    assert len(seen) == len(ids)
    assert set(seen) == ids
    assert len(stage.started) == 2 * len(ids)


async def test_a_closed_queue_says_so(stage: Stage) -> None:
    """Any call after `aclose`."""
    await stage.queue.aclose()
    for call in (stage.queue.enqueue("Hello"), stage.queue.stats(), stage.queue.result("job")):
        with pytest.raises(QueueUnavailable, match="was closed"):
            await call


async def test_a_conflict_before_a_bad_job_hides_nothing(stage: Stage) -> None:
    """What was accepted beside a conflict, in the chunk that was under way when a later job was refused, is named."""
    await stage.queue.enqueue("Another", id="0")
    jobs = [{"prompt": "Hello", "id": str(number)} for number in range(CHUNK_JOBS + 2)]
    jobs[-1]["prompt"] = ""
    with pytest.raises(InvalidJob) as caught:
        await stage.queue.enqueue_many(iter(jobs))
    assert caught.value.accepted == tuple(str(number) for number in range(1, CHUNK_JOBS))
    async with stage.working():
        ended = [result async for result in stage.queue.as_completed(["0", *caught.value.accepted], timeout=4 * SOON)]
    assert len(ended) == CHUNK_JOBS
