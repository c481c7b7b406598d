import asyncio
import gc
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

from promptq.producer import (
    Delta,
    ErrorCode,
    IdConflict,
    InvalidJob,
    JobError,
    JobNotFound,
    JobStatus,
    Message,
    ProducerSettings,
    PromptJob,
    PromptQueue,
    QueueUnavailable,
    ToolCall,
    Usage,
    WaitTimeout,
)
from promptq.producer.results import InlineCitation, Output, OutputFile, TokenLogprob, TopLogprob
from promptq.producer.testing import NO_ANSWER, Answer, Answers, MemoryQueue, echo
from promptq.producer.testing.server import Clock
from promptq.producer.watch import PING_EVERY
from promptq.producer.wire import Wire
from promptq.worker.providers import base
from waiting import wait_until

pytestmark = pytest.mark.producer

HOUR = 3600


@pytest.fixture
async def queue() -> AsyncIterator[MemoryQueue]:
    """One that echoes."""
    async with MemoryQueue() as queue:
        yield queue


async def ask(queue: MemoryQueue, *prompts: str) -> list[str]:
    """Enqueue one by one; the answers are there at once."""
    results = [await queue.result((await queue.enqueue(prompt)).id) for prompt in prompts]
    return [result.content for result in results if result]


async def in_capitals(job: PromptJob) -> str:
    """An answer that takes a moment."""
    await asyncio.sleep(0.001)
    return echo(job).upper()


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (echo, ["one", "two"]),
        ("42", ["42", "42"]),
        (Answer(content="42"), ["42", "42"]),
        (["first", Answer(content="second"), "third"], ["first", "second"]),
        ((f"number {n}" for n in range(9)), ["number 0", "number 1"]),
        ({"two": "zwei", "one": "eins"}, ["eins", "zwei"]),
        (lambda job: f"{job.id and len(job.id)} {job.model}", ["32 grok-4", "32 grok-4"]),
        (in_capitals, ["ONE", "TWO"]),
    ],
    ids=["echo", "text", "Answer", "list", "iterator", "by prompt", "function", "async function"],
)
async def test_every_form_of_answers(answers: Answers, told: list[str]) -> None:
    """Jobs are answered before `enqueue` returns, as the test says."""
    async with MemoryQueue(answers) as queue:
        assert await ask(queue, "one", "two") == told


async def test_an_answer_holds_all_that_a_provider_can_say(queue: MemoryQueue) -> None:
    """Nothing of it is lost, and what is left out is ordinary."""
    usage = Usage(reasoning_tokens=2**40, cached_prompt_tokens=3, cost_in_usd_ticks=2**60)
    said: dict[str, Any] = {
        "content": "",
        "model": "grok-4-0709",
        "usage": usage,
        "finish_reason": "tool_calls",
        "reasoning_content": "hm",
        "encrypted_content": "==",
        "tool_calls": (ToolCall(id="1", name="look", arguments='{"at":[],"n":12345678901234567890}'),),
        "server_tool_calls": (ToolCall(id="2", name="search", arguments="{}", type="mcp", status="completed"),),
        "citations": ("https://x.ai",),
        "inline_citations": (InlineCitation(id="1", type="web", url="https://x.ai", end_index=3),),
        "logprobs": (TokenLogprob(token="a", logprob=-0.5, top_logprobs=(TopLogprob(token="b", logprob=-1.5),)),),
        "outputs": (Output(content="Hi"), Output(index=1, role="tool")),
        "output_files": (OutputFile(file_id="f", name="a.csv"),),
        "response_id": "abc",
        "system_fingerprint": "fp",
        "service_tier": "priority",
    }
    assert set(said) == set(Answer.model_fields) == set(base.Answer._fields)
    queue.answer_with(Answer(**said))
    result = await (await queue.enqueue("Hello")).wait()
    assert {name: getattr(result, name) for name in said} == said
    assert [attempt.usage for attempt in result.attempts] == [usage]


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (ErrorCode.MODERATED, JobStatus.FAILED),
        (ErrorCode.RATE_LIMITED, JobStatus.FAILED),
        (JobError(code=ErrorCode.PROVIDER_ERROR, message="boom"), JobStatus.FAILED),
        (ErrorCode.CANCELLED, JobStatus.CANCELLED),
        (ErrorCode.EXPIRED, JobStatus.EXPIRED),
    ],
)
async def test_a_failure_is_an_answer(queue: MemoryQueue, failure: ErrorCode | JobError, status: JobStatus) -> None:
    """The job ends so, at once, and the queue goes on."""
    queue.answer_with([failure, "fine"])
    result = await (await queue.enqueue("Hello")).wait()
    assert result.status is status
    assert result.error is not None
    wanted = failure if isinstance(failure, JobError) else JobError(code=failure, message="as the test said")
    assert result.error == wanted
    assert await ask(queue, "Hello") == ["fine"]


async def test_a_streamed_answer_comes_word_by_word(queue: MemoryQueue) -> None:
    """With its thoughts and its tool calls first; of several outputs each at once; without `stream` all at once."""
    call = ToolCall(id="c", name="weather", arguments="{}")
    outputs = tuple(Output(index=index, role="assistant", content=text) for index, text in enumerate(["a b", "c"]))
    answers = [Answer(content="one two ", reasoning_content="hm", tool_calls=(call,)), Answer(outputs=outputs)]
    told = []
    for answer, stream in itertools.product([*answers, Answer()], [True, False]):
        queue.answer_with(answer)
        job = await queue.enqueue("Hello", stream=stream)
        *deltas, _ = [event async for event in job.events(timeout=5)]
        pieces = [delta for delta in deltas if isinstance(delta, Delta)]
        told.append([(each.content, each.reasoning_content, each.tool_calls, each.output) for each in pieces])
    assert told == [
        [("one", "hm", (call,), 0), (" two", "", (), 0), (" ", "", (), 0)],
        [("one two ", "hm", (call,), 0)],
        *([("a b", "", (), 0), ("c", "", (), 1)] for _ in range(2)),
        *([] for _ in range(2)),
    ]


def give_nothing(_: PromptJob) -> Any:
    """A function that forgot to return."""


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        (["only one"], AssertionError, "no answer is left for the prompt 'two'"),
        ({"one": "eins"}, AssertionError, "no answer for the prompt 'two'; there are answers for 'one'"),
        ({}, AssertionError, "no answer for the prompt 'one'; there are answers for no prompt at all"),
        (give_nothing, TypeError, "the answer to 'one' is of type NoneType; give a str, Answer,"),
        ([7], TypeError, "the answer to 'one' is of type int"),
    ],
    ids=["list", "by prompt", "empty", "nothing", "number"],
)
async def test_an_answer_that_is_missing_fails_the_test(
    queue: MemoryQueue, answers: Any, error: type[Exception], message: str
) -> None:
    """It comes out of the call that enqueued the job, and names the prompt."""
    queue.answer_with(answers)
    with pytest.raises(error, match=message):
        await ask(queue, "one", "two")


async def test_a_long_prompt_is_cut_in_messages(queue: MemoryQueue) -> None:
    """A message stays on its line."""
    queue.answer_with([])
    with pytest.raises(AssertionError) as caught:
        await queue.enqueue("word\n" * 100)
    assert len(str(caught.value)) < 150
    assert "\n" not in str(caught.value)


async def test_an_assertion_in_an_answer_reaches_the_test(queue: MemoryQueue) -> None:
    """What a callable raises comes out of `enqueue`."""

    def answer(job: PromptJob) -> str:
        assert job.model == "grok-3", "wrong model"
        return ""

    queue.answer_with(answer)
    with pytest.raises(AssertionError, match="wrong model"):
        await queue.enqueue("Hello")


async def test_no_answer_leaves_a_job_running(queue: MemoryQueue) -> None:
    """Waiting for it times out; it can be answered later, once."""
    queue.answer_with(NO_ANSWER)
    job = await queue.enqueue("Hello")
    assert await queue.status(job.id) is JobStatus.RUNNING
    with pytest.raises(WaitTimeout):
        await job.wait(timeout=0.01)
    waiting = asyncio.create_task(job.wait())
    await asyncio.sleep(0.01)
    await queue.answer(job.id, NO_ANSWER)
    assert await queue.status(job.id) is JobStatus.RUNNING
    await queue.answer(job.id, "late")
    assert (await waiting).content == "late"
    with pytest.raises(LookupError, match="is succeeded: only a job that runs can be answered"):
        await queue.answer(job.id, "again")
    with pytest.raises(JobNotFound):
        await queue.answer("nobody", "Hello")


async def test_a_held_queue_is_run_step_by_step(queue: MemoryQueue) -> None:
    """One job at a time in the queue's order, then the rest, then by itself again."""
    queue.hold()
    jobs = [await queue.enqueue(prompt, priority=priority) for prompt, priority in PRIORITIES]
    assert {await queue.status(job.id) for job in jobs} == {JobStatus.QUEUED}
    first = await queue.run_next()
    assert first is not None
    assert (echo(first), first.id, first.priority) == ("now", jobs[2].id, "high")
    assert [await queue.status(job.id) for job in jobs] == [JobStatus.QUEUED, JobStatus.QUEUED, JobStatus.SUCCEEDED]
    assert [echo(job) for job in await queue.run_all()] == ["soon", "some day"]
    assert await queue.run_next() is None
    assert await queue.run_all() == []
    held = await queue.enqueue("held")
    assert await queue.result(held.id) is None
    await queue.release()
    assert (await queue.result(held.id)) is not None
    assert await ask(queue, "at once") == ["at once"]


PRIORITIES = [("some day", "low"), ("soon", "normal"), ("now", "high")]


async def test_time_is_moved_by_hand(queue: MemoryQueue) -> None:
    """A job runs when its delay is over, though the deadline passes within the same jump."""
    delays = await queue.enqueue_many(
        [{"prompt": f"in {n} h", "delay": n * HOUR} for n in (3, 1, 2)], deadline=4 * HOUR
    )
    order = ["in 1 h", "in 2 h", "in 3 h"]
    started = asyncio.get_running_loop().time()
    await queue.advance(HOUR - 10)
    assert {await queue.status(job.id) for job in delays} == {JobStatus.DELAYED}
    await queue.advance(timedelta(hours=9))
    ended = [result async for result in queue.as_completed([job.id for job in delays])]
    assert [result.content for result in ended] == order
    for hours, result in enumerate(ended, 1):
        assert result.started_at is not None
        assert result.enqueued_at is not None
        late = result.started_at - result.enqueued_at - timedelta(hours=hours)
        assert timedelta(0) <= late < timedelta(seconds=10)
    assert asyncio.get_running_loop().time() - started < 5


async def test_moved_time_is_the_time_of_all_that_follows(queue: MemoryQueue) -> None:
    """Delays and deadlines of new jobs count from then on."""
    await queue.advance(2 * HOUR)
    job = await queue.enqueue("Hello", delay=HOUR, deadline=2 * HOUR)
    assert await queue.status(job.id) is JobStatus.DELAYED
    await queue.advance(HOUR - 10)
    assert await queue.status(job.id) is JobStatus.DELAYED
    await queue.advance(11)
    assert await queue.status(job.id) is JobStatus.SUCCEEDED


def test_time_never_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the machine's clock does: jobs end one after the other."""
    monkeypatch.setattr(time, "time_ns", lambda: 1_800_000_000_000_000_000)
    clock = Clock()
    assert [clock.now() for _ in range(3)] == [1_800_000_000_000, 1_800_000_000_001, 1_800_000_000_002]
    clock.move(1000)
    assert [clock.now() for _ in range(2)] == [1_800_000_001_000, 1_800_000_001_001]


@pytest.mark.parametrize("state", [JobStatus.QUEUED, JobStatus.RUNNING])
async def test_a_deadline_passes_by_hand(queue: MemoryQueue, state: JobStatus) -> None:
    """Whether the job is held or runs."""
    if state is JobStatus.QUEUED:
        queue.hold()
    queue.answer_with(NO_ANSWER)
    job = await queue.enqueue("Hello", deadline=datetime.now(UTC) + timedelta(hours=1))
    await queue.advance(HOUR - 10)
    assert await queue.status(job.id) is state
    await queue.advance(11)
    assert await queue.status(job.id) is JobStatus.EXPIRED


async def test_a_held_job_is_queued_when_its_delay_is_over(queue: MemoryQueue) -> None:
    """And waits there."""
    queue.hold()
    job = await queue.enqueue("Hello", delay=HOUR)
    await queue.advance(2 * HOUR)
    assert await queue.status(job.id) is JobStatus.QUEUED
    assert [echo(job) for job in await queue.run_all()] == ["Hello"]


async def test_results_go_when_their_time_is_over(queue: MemoryQueue) -> None:
    """`result_ttl` and the settings hold in moved time, for `stats` too; what runs is kept."""
    queue.answer_with({"Hello": "Hi", "bad": ErrorCode.MODERATED, "hang": NO_ANSWER})
    short, kept, hangs = await queue.enqueue_many(
        [{"prompt": "bad", "result_ttl": HOUR}, {"prompt": "bad"}, {"prompt": "hang"}]
    )
    assert (await queue.stats()).failed == 2
    await queue.advance(HOUR + 1)
    assert set(await queue.results([short.id, kept.id, hangs.id])) == {kept.id, hangs.id}
    assert (await queue.stats()).failed == 1
    good = await queue.enqueue("Hello")
    await queue.advance(timedelta(days=4))
    assert set(await queue.results([good.id, kept.id])) == {kept.id}
    await queue.advance(timedelta(days=4))
    assert set(await queue.results([short.id, kept.id, hangs.id])) == {hangs.id}
    assert (await queue.stats()).failed == 0


EVERY_FIELD: dict[str, Any] = {
    "messages": (Message(role="system", content="Be brief."), Message(role="user", content="Hello")),
    "model": "grok-3",
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "frequency_penalty": 1,
    "presence_penalty": 1,
    "reasoning_effort": "low",
    "seed": 7,
    "stop": ("stop",),
    "user": "anna",
    "safety_identifier": "a1b2",
    "n": 2,
    "logprobs": True,
    "top_logprobs": 2,
    "tools": ({"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}},),
    "tool_choice": {"type": "function", "function": {"name": "look"}},
    "parallel_tool_calls": False,
    "max_turns": 3,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [None]}}},
    "search_parameters": {"mode": "on", "sources": [{"type": "web"}], "from_date": "2026-01-01"},
    "include": ("inline_citations",),
    "store_messages": True,
    "previous_response_id": "r",
    "use_encrypted_content": True,
    "agent_count": 4,
    "service_tier": "priority",
    "guidelines": ({"type": "policy", "category": "nsfw", "behavior": "decline"},),
    "timeout": 10,
    "max_attempts": 2,
    "stream": True,
    "conversation": "chat",
    "id": "job",
    "priority": "high",
    "tenant": "tenant",
    "delay": timedelta(seconds=0.25),
    "deadline": timedelta(hours=1),
    "result_ttl": timedelta(days=1),
    "metadata": {"a": "b", "ü": ""},
    "group": "group",
}


async def test_what_was_enqueued_is_kept_whole(queue: MemoryQueue) -> None:
    """With every field that a job has."""
    assert set(EVERY_FIELD) == set(PromptJob.model_fields)
    moment = datetime(2100, 1, 1, tzinfo=UTC)
    await queue.enqueue(PromptJob(**EVERY_FIELD))
    await queue.enqueue("Hello", deadline=moment)
    first, second = queue.enqueued
    assert first == PromptJob(**EVERY_FIELD)
    assert second == PromptJob.model_validate(
        {"prompt": "Hello", "model": "grok-4", "deadline": moment, "id": second.id}
    )
    assert second.id


async def test_only_what_was_accepted_counts(queue: MemoryQueue) -> None:
    """No duplicates, no conflicts, nothing of a list that was refused."""
    queue.assert_nothing_enqueued()
    await queue.enqueue("one", id="1")
    await queue.enqueue("one", id="1")
    with pytest.raises(IdConflict):
        await queue.enqueue_many([{"prompt": "two", "id": "2"}, {"prompt": "else", "id": "1"}])
    with pytest.raises(InvalidJob):
        await queue.enqueue_many(["three", ""])
    assert [echo(job) for job in queue.enqueued] == ["one", "two"]
    queue.assert_enqueued("one", times=1)


@pytest.mark.parametrize(
    ("prompt", "fields"),
    [
        ("What is 6 x 7?", {}),
        ("What is 6 x 7?", {"model": "grok-4", "tenant": "anna", "delay": 60, "times": 1}),
        (None, {"metadata": {"user": "7"}}),
        (None, {"delay": timedelta(minutes=1), "times": 1}),
        (None, {"times": 3}),
        ("Hello", {"times": 2}),
        ("Goodbye", {"times": 0}),
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}], {"times": 1}),
    ],
)
async def test_assertions_that_hold(queue: MemoryQueue, prompt: Any, fields: dict[str, Any]) -> None:
    """A prompt is the last message or all of them; fields are compared as PromptJob has them."""
    await enqueue_three(queue)
    queue.assert_enqueued(prompt, **fields)


async def enqueue_three(queue: MemoryQueue) -> None:
    """One with options, two alike."""
    await queue.enqueue("What is 6 x 7?", id="sum", tenant="anna", delay=60, metadata={"user": "7"})
    await queue.enqueue([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}])
    await queue.enqueue("Hello", model="grok-3", max_tokens=5)


ENQUEUED = """
enqueued were:
  1. 'What is 6 x 7?', model='grok-4', tenant='anna', delay=datetime.timedelta(seconds=60), metadata={'user': '7'}
  2. 'Hello', model='grok-4'
  3. 'Hello', model='grok-3', max_tokens=5"""


@pytest.mark.parametrize(
    ("prompt", "fields", "message"),
    [
        ("What is 6 x 8?", {}, "a job should have been enqueued, 0 were: 'What is 6 x 8?'"),
        ("What is 6", {"model": "grok-4"}, "a job should have been enqueued, 0 were: 'What is 6', model='grok-4'"),
        (
            "What is 6 x 7?",
            {"model": "grok-3"},
            "a job should have been enqueued, 0 were: 'What is 6 x 7?', model='grok-3'",
        ),
        ("Hello", {"times": 3}, "3 of them should have been enqueued, 2 were: 'Hello'"),
        ("Hello", {"times": 0}, "0 of them should have been enqueued, 2 were: 'Hello'"),
        (None, {"times": 1}, "1 of them should have been enqueued, 3 were: any"),
    ],
)
async def test_assertions_that_fail_say_what_was_enqueued(
    queue: MemoryQueue, prompt: Any, fields: dict[str, Any], message: str
) -> None:
    """What was looked for, how often it was there, and every job with what is not ordinary about it."""
    await enqueue_three(queue)
    with pytest.raises(AssertionError) as caught:
        queue.assert_enqueued(prompt, **fields)
    assert str(caught.value) == message + ENQUEUED
    with pytest.raises(AssertionError) as caught:
        queue.assert_nothing_enqueued()
    assert str(caught.value) == "nothing should have been enqueued" + ENQUEUED


async def test_what_was_asked_for_is_shown(queue: MemoryQueue) -> None:
    """Ids, too, when they are what the assertion is about."""
    with pytest.raises(AssertionError, match=r"\nnothing was enqueued$"):
        queue.assert_enqueued("Hello")
    await queue.enqueue("Hello", id="job")
    with pytest.raises(AssertionError, match=r"'Hello', model='grok-4', id='job', priority='normal'$"):
        queue.assert_enqueued("Hello", id="else", priority="high")


async def test_an_assertion_knows_the_fields_of_a_job(queue: MemoryQueue) -> None:
    """A misspelt one is an error, not an assertion that can never hold."""
    with pytest.raises(InvalidJob, match="modell: no such option"):
        queue.assert_enqueued("Hello", modell="grok-4")


async def test_each_queue_has_a_redis_of_its_own() -> None:
    """The same id in two queues is two jobs."""
    async with MemoryQueue("one") as one, MemoryQueue("two") as two:
        for queue, told in ((one, "one"), (two, "two")):
            assert (await queue.enqueue(f"Hello {told}", id="job")).created
            assert (await queue.wait("job")).content == told


async def test_whoever_enqueues_finds_an_answer(queue: MemoryQueue) -> None:
    """However many do so at once, and though some answers take their time: nobody's job is still being answered."""

    async def answer(job: PromptJob) -> str:
        await asyncio.sleep(0.1 if echo(job) == "slow" else 0.01)
        return echo(job)

    async def ask_all(*prompts: str) -> list[str | None]:
        jobs = await queue.enqueue_many(prompts)
        found = await queue.results(job.id for job in jobs)
        return [result.content if result else None for result in found.values()]

    queue.answer_with(answer)
    one, two = await asyncio.gather(ask_all("one", "slow"), ask_all("two"))
    assert (one, two) == (["one", "slow"], ["two"])


async def test_an_answer_may_ask_on(queue: MemoryQueue) -> None:
    """A callable that uses the queue itself does not wait for itself."""

    async def answer(job: PromptJob) -> str:
        prompt = echo(job)
        if prompt == "three":
            return "!"
        further = await queue.enqueue_many([{"one": "two", "two": "three"}[prompt]] * 2)
        told = await asyncio.gather(*(each.wait(timeout=1) for each in further))
        return prompt + "".join(result.content for result in told)

    queue.answer_with(answer)
    async with asyncio.timeout(5):
        assert await ask(queue, "one", "three") == ["onetwo!!two!!", "!"]


async def test_a_job_cancelled_in_the_middle_of_its_answer_stays_cancelled(queue: MemoryQueue) -> None:
    """The answer comes too late."""

    async def answer(job: PromptJob) -> str:
        assert await queue.cancel(str(job.id))
        return "too late"

    queue.answer_with(answer)
    result = await (await queue.enqueue("Hello")).wait()
    assert (result.status, result.content) == (JobStatus.CANCELLED, "")


async def test_nothing_is_left_of_a_closed_queue() -> None:
    """No task, no timer, no thread: whatever it had to do."""
    before, threads = asyncio.all_tasks(), threading.active_count()
    async with MemoryQueue(NO_ANSWER) as queue:
        job = await queue.enqueue("Hello", delay=0.1, deadline=HOUR)
        waiting = asyncio.create_task(job.wait())

        async def is_running() -> bool:
            return await queue.status(job.id) is JobStatus.RUNNING

        await wait_until(is_running)
        await queue.enqueue("later", delay=HOUR)
        assert threading.active_count() == threads
    with pytest.raises(QueueUnavailable):
        await waiting
    assert asyncio.all_tasks() == before
    assert queue._alarm is not None
    assert queue._alarm.cancelled()


async def test_a_slow_answer_ends_with_the_queue() -> None:
    """One that a timer began is cancelled."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def answer(_: PromptJob) -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    async with MemoryQueue(answer) as queue:
        await queue.enqueue("Hello", delay=0.3)
        await began.wait()
    assert ended.is_set()


async def test_an_error_behind_the_tests_back_comes_out_at_the_end() -> None:
    """What an answer raises that a timer asked for is raised when the queue is closed."""
    queue = MemoryQueue([])
    await queue.enqueue("Hello", delay=0.3)
    await wait_until(lambda: queue._woken and queue._woken.done())
    with pytest.raises(AssertionError, match="no answer is left for the prompt 'Hello'"):
        await queue.aclose()


async def test_an_idle_queue_does_nothing(queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a job is waited for, nobody asks Redis again and again."""
    queue.answer_with(NO_ANSWER)
    job = await queue.enqueue("Hello")
    waiting = asyncio.create_task(job.wait())
    await asyncio.sleep(0.05)
    sent: list[str] = []
    execute, call = Redis.execute_command, Wire.call

    async def noted_execute(redis: Redis, *args: Any, **options: Any) -> Any:
        sent.append(args[0])
        return await execute(redis, *args, **options)  # type: ignore[no-untyped-call] # redis-py's own

    async def noted_call(wire: Wire, commands: Sequence[Sequence[Any]]) -> list[Any]:
        sent.extend(command[0] for command in commands)
        return await call(wire, commands)

    monkeypatch.setattr(Redis, "execute_command", noted_execute)
    monkeypatch.setattr(Wire, "call", noted_call)
    await asyncio.sleep(0.2)
    assert sent == []
    await queue.answer(job.id, "Hi")
    assert (await waiting).content == "Hi"
    assert sent != []


async def test_it_stands_in_for_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """For applications that connect by themselves, in either form."""
    monkeypatch.setattr(PromptQueue, "connect", partial(MemoryQueue.connect, answers="42"))
    settings = ProducerSettings(default_model="grok-3", enqueue_replicas=2)
    async with PromptQueue.connect("redis://nowhere", settings=settings) as queue:
        assert isinstance(queue, MemoryQueue)
        assert await ask(queue, "Hello") == ["42"]
        queue.assert_enqueued("Hello", model="grok-3")
    queue = await PromptQueue.connect()
    assert (await (await queue.enqueue("Hello")).wait()).content == "42"
    await queue.aclose()


def serve_in_a_thread(queue: MemoryQueue) -> list[str]:
    """What an application does under a synchronous test client; nobody closes the queue."""
    told: list[str] = []

    async def serve() -> None:
        for prompt in ("one", "two", "one"):
            job = await queue.enqueue(prompt, id=prompt)
            told.append((await job.wait(timeout=5)).content)
        await queue.enqueue("later", delay=HOUR)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    thread.join()
    return told


def test_it_serves_an_application_in_another_thread() -> None:
    """It is made before there is a loop, and looked at from outside; left open, it warns of nothing, delays no end."""
    queue = MemoryQueue(answers="42")
    began = time.monotonic()
    assert serve_in_a_thread(queue) == ["42"] * 3
    assert time.monotonic() - began < PING_EVERY
    queue.assert_enqueued("one", times=1)
    queue.assert_enqueued(times=3)
    del queue
    gc.collect()


async def test_closing_right_after_a_wait_takes_no_time() -> None:
    """The subscription of the wait does not hold it up."""
    clock = asyncio.get_running_loop().time
    async with MemoryQueue() as queue:
        await (await queue.enqueue("Hello")).wait()
        ended = clock()
    assert clock() - ended < 2


@pytest.mark.parametrize("missing", ["fakeredis", "lupa"])
def test_without_its_extra_it_says_what_to_install(missing: str) -> None:
    """In one line."""
    code = f"import sys; sys.modules[{missing!r}] = None; import promptq.producer, promptq.producer.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = "ImportError: promptq.producer.testing needs fakeredis: pip install 'promptq[testing]'"
    assert done.stderr.splitlines()[-1] == last
    assert "During handling" not in done.stderr


async def test_failures_are_answers_however_many(queue: MemoryQueue) -> None:
    """What pauses a real model, outage upon outage, is here what the test said: each job fails."""
    queue.answer_with(ErrorCode.UNAVAILABLE)
    jobs = await queue.enqueue_many(["Hello"] * 25)
    assert {await queue.status(job.id) for job in jobs} == {JobStatus.FAILED}
    queue.answer_with("again")
    assert len(await queue.requeue(*(job.id for job in jobs))) == 25
    assert {await queue.status(job.id) for job in jobs} == {JobStatus.SUCCEEDED}
    assert len(queue.enqueued) == 25


async def test_limits_go_by_the_time_of_the_queue(queue: MemoryQueue) -> None:
    """One a minute is one for every minute that passes by hand."""
    await queue.set_limits("grok-4", rpm=1)
    await queue.enqueue_many(["Hello"] * 3)
    for ended in (1, 2, 3):
        [model] = await queue.limits()
        assert model.limits.rpm == 1
        assert sum(lane.queued for lane in (await queue.stats()).lanes) == 3 - ended
        await queue.advance(61)
    queue.answer_with(ErrorCode.MODERATED)
    job = await queue.enqueue("Hello")
    assert [result.id async for result in queue.failed()] == [job.id]


async def test_what_waits_runs_when_its_model_may(queue: MemoryQueue) -> None:
    """Before the call returns that says so: resume, a limit taken away, an answer that leaves its place."""
    await queue.pause("grok-4")
    paused = await queue.enqueue("Hello")
    assert await queue.status(paused.id) is JobStatus.QUEUED
    await queue.resume("grok-4")
    assert await queue.status(paused.id) is JobStatus.SUCCEEDED

    await queue.set_limits("grok-4", in_flight=1)
    queue.answer_with([NO_ANSWER, NO_ANSWER, "last"])
    first, second, third = await queue.enqueue_many(["Hello"] * 3)
    await queue.answer(first.id, "done")
    assert await queue.status(second.id) is JobStatus.RUNNING
    await queue.set_limits("grok-4")
    assert await queue.status(third.id) is JobStatus.SUCCEEDED
