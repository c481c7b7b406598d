"""Both clients of xAI, gRPC and REST: the same jobs have the same results, the same faults the same codes."""

import json
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import pytest
import pytest_asyncio

from promptq.producer import JobResult, JobStatus, PromptQueue
from promptq.producer.entries import job_of
from promptq.producer.errors import ErrorCode
from promptq.worker.providers.base import Answer, Provider, ProviderError
from promptq.worker.providers.openai import OpenAIProvider
from promptq.worker.providers.xai import XaiProvider
from promptq.worker.simulator.process import RunningSimulator, running_simulator
from simulator_chats import WEATHER_PARAMETERS, Pet
from workers import running_worker

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:chat.sample_batch will be deprecated:PendingDeprecationWarning"),
]

KEY: Final = "xai-Zq8tR2mWv5Lk0Ns7Yb3HcJd6"
QUESTION: Final = "Natalia sold 48 clips in April, and half as many in May. How many is that?"
WEATHER: Final = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER_PARAMETERS}}
TIME: Final = {"type": "function", "name": "get_time", "description": "Tells the time."}

JOBS: Final[dict[str, tuple[Any, dict[str, Any]]]] = {
    "plain": (QUESTION, {}),
    "system and developer": (
        [
            {"role": "system", "content": "Brief."},
            {"role": "developer", "content": "In German."},
            {"role": "user", "name": "Ann", "content": QUESTION},
        ],
        {},
    ),
    "several parts and an image": (
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look."},
                    {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}},
                    {"type": "input_text", "text": QUESTION},
                ],
            }
        ],
        {},
    ),
    "a function": (QUESTION, {"tools": [WEATHER]}),
    "a named function": (
        QUESTION,
        {"tools": [WEATHER, TIME], "tool_choice": {"type": "function", "function": {"name": "get_time"}}},
    ),
    "no function": (QUESTION, {"tools": [WEATHER], "tool_choice": "none"}),
    "any function": (QUESTION, {"tools": [WEATHER], "tool_choice": "required"}),
    "functions side by side": (QUESTION, {"tools": [WEATHER, TIME], "parallel_tool_calls": True}),
    "one function of several": (QUESTION, {"tools": [WEATHER, TIME], "parallel_tool_calls": False}),
    "a tool loop": (
        [
            {"role": "user", "content": QUESTION},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Bern"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        ],
        {"tools": [WEATHER]},
    ),
    "json_object": (QUESTION, {"response_format": "json_object"}),
    "json_schema": (QUESTION, {"response_format": Pet}),
    "an unnamed schema": (
        QUESTION,
        {"response_format": {"type": "json_schema", "json_schema": {"schema": Pet.model_json_schema()}}},
    ),
    "reasoning": (QUESTION, {"reasoning_effort": "high"}),
    "logprobs": (QUESTION, {"logprobs": True, "top_logprobs": 2}),
    "several answers": (QUESTION, {"n": 2}),
    "a stop": (QUESTION, {"stop": ["Natalia", "clips"]}),
    "a cut": (QUESTION, {"max_tokens": 20}),
    "a seed": (QUESTION, {"seed": 7}),
    "penalties and the like": (
        QUESTION,
        {"frequency_penalty": 0.5, "presence_penalty": -0.5, "temperature": 0.0, "top_p": 0.5, "user": "u"},
    ),
    "priority": (QUESTION, {"service_tier": "priority"}),
    "a search": (QUESTION, {"search_parameters": {"mode": "on", "sources": [{"type": "web"}]}}),
}

# What one answer has and another cannot.
OF_THE_CALL: Final = {"response_id": "each call has its own"}
OF_THE_RUN: Final = {
    **OF_THE_CALL,
    "id": "two jobs",
    "provider": "the difference itself",
    "worker": "two workers",
    "enqueued_at": "two times",
    "started_at": "two times",
    "finished_at": "two times",
    "attempts": "they have worker and times; code and usage are compared",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_simulator() -> AsyncIterator[RunningSimulator]:
    """One process for all tests of this file."""
    async with running_simulator() as simulator:
        yield simulator


@pytest_asyncio.fixture(loop_scope="module")
async def sim(shared_simulator: RunningSimulator) -> RunningSimulator:
    """Empty books; answers of many lengths, part of each prompt from the cache."""
    await shared_simulator.control.reset()
    await shared_simulator.control.set(answer_tokens="uniform:30,300", cached_share=0.5)
    return shared_simulator


@pytest_asyncio.fixture(loop_scope="module")
async def both(sim: RunningSimulator) -> AsyncIterator[tuple[Provider, Provider]]:
    """The two, with one simulator and one key."""
    xai = XaiProvider(api_key=KEY, host=sim.host, insecure=True)
    rest = OpenAIProvider(api_key=KEY, base_url=sim.rest_url)
    yield xai, rest
    await xai.aclose()
    await rest.aclose()


async def told(provider: Provider, name: str) -> dict[str, Any]:
    """All of the answer that is not of this call alone."""
    messages, options = JOBS[name]
    answer = await provider.sample(job_of(messages, {"model": "grok-4", **options}), 60)
    return answer._asdict() | dict.fromkeys(OF_THE_CALL, None)


@pytest.mark.parametrize("name", JOBS)
async def test_the_same_answer(sim: RunningSimulator, both: tuple[Provider, Provider], name: str) -> None:
    """Field by field, usage and cost included; and the same was charged."""
    by_grpc, by_rest = [await told(provider, name) for provider in both]
    assert by_rest == by_grpc
    one, other = await sim.control.journal()
    assert (one.usage, one.prompt, one.key) == (other.usage, other.prompt, other.key)


async def test_the_jobs_differ(both: tuple[Provider, Provider]) -> None:
    """What is compared is not nothing: the options are heard, and every field of an answer is told by some job."""
    answers = [await told(both[1], name) for name in JOBS]
    empty = {"encrypted_content", "server_tool_calls", "inline_citations", "output_files"} | set(OF_THE_CALL)
    for name in set(Answer._fields) - empty:
        assert any(answer[name] for answer in answers), name
    assert {answer["finish_reason"] for answer in answers} == {"stop", "length", "tool_calls"}
    assert len({json.dumps(answer, default=str) for answer in answers}) > len(JOBS) // 2


def plain(result: JobResult) -> dict[str, Any]:
    """What two runs can have in common, in JSON."""
    attempts = [(attempt.code, attempt.usage) for attempt in result.attempts]
    return result.model_dump(mode="json", exclude=set(OF_THE_RUN)) | {"attempts": attempts}


async def test_the_same_results(both: tuple[Provider, Provider], redis_url: str) -> None:
    """Through Redis and a worker, to the reader: every kind of job, one worker with each client."""
    results: list[list[JobResult]] = []
    async with PromptQueue.connect(redis_url) as queue:
        for provider in both:
            async with running_worker(redis_url, provider):
                jobs = [await queue.enqueue(messages, **options) for messages, options in JOBS.values()]
                results.append([await queue.wait(job.id, timeout=60) for job in jobs])
    for name, by_grpc, by_rest in zip(JOBS, *results, strict=True):
        assert by_grpc.status is JobStatus.SUCCEEDED
        assert (name, plain(by_rest)) == (name, plain(by_grpc))
        assert by_rest.provider == "openai"


async def failures(both: tuple[Provider, Provider]) -> list[tuple[ErrorCode, float | None, bool, bool]]:
    """How a call of each ends that is refused."""
    ends = []
    for provider in both:
        with pytest.raises(ProviderError) as caught:
            await provider.sample(job_of(QUESTION, {"model": "grok-4"}), 60)
        error = caught.value
        ends.append((error.code, error.retry_after, error.was_sent, error.is_stale))
    return ends


WORDS: Final = [
    ("PERMISSION_DENIED", "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_X", ErrorCode.MODERATED),
    (
        "INVALID_ARGUMENT",
        "This model's maximum prompt length is 500000 but the request contains 637815 tokens.",
        ErrorCode.CONTEXT_LENGTH,
    ),
    ("INVALID_ARGUMENT", "Incorrect API key provided: na***ys.", ErrorCode.BAD_KEY),
    ("PERMISSION_DENIED", "Your newly created team doesn't have any credits or licenses yet.", ErrorCode.NO_CREDIT),
    ("FAILED_PRECONDITION", "No credits left.", ErrorCode.NO_CREDIT),
    ("INVALID_ARGUMENT", "cannot count credits", ErrorCode.INVALID_REQUEST),
    ("NOT_FOUND", "The model grok-0 does not exist. Is it the correct API key?", ErrorCode.MODEL_NOT_FOUND),
    ("UNAVAILABLE", "The service is temporarily at capacity", ErrorCode.RATE_LIMITED),
    ("RESOURCE_EXHAUSTED", "Request too large: the rate limit is 10 tokens", ErrorCode.TOO_LARGE),
]
CODES: Final = [code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


@pytest.mark.parametrize("after_start", [False, True])
@pytest.mark.parametrize("said", [*WORDS, *((code, "no", None) for code in CODES)])
async def test_the_same_code_for_a_status(
    sim: RunningSimulator,
    both: tuple[Provider, Provider],
    said: tuple[str, str, ErrorCode | None],
    after_start: bool,
) -> None:
    """By the words where they are known, by the status otherwise; before or after the generation; with the wait."""
    code, details, means = said
    fault = {"kind": "status", "code": code, "details": details, "after_start": after_start}
    await sim.control.set(faults=[fault | {"trailers": {"retry-after": "7"}}])
    by_grpc, by_rest = await failures(both)
    assert by_rest == by_grpc
    assert by_rest[0] is (means or by_rest[0])
    assert (await sim.control.totals()).calls == 2


@pytest.mark.parametrize(
    ("knobs", "means"),
    [
        ({"key": "incorrect"}, ErrorCode.BAD_KEY),
        ({"key": "expired"}, ErrorCode.BAD_KEY),
        ({"key": "blocked"}, ErrorCode.BAD_KEY),
        ({"key": "team_blocked"}, ErrorCode.BAD_KEY),
        ({"credit_in_usd_ticks": 0}, ErrorCode.NO_CREDIT),
        ({"credit_in_usd_ticks": 0, "no_credit_code": "PERMISSION_DENIED"}, ErrorCode.NO_CREDIT),
        ({"faults": [{"kind": "drop_call"}]}, ErrorCode.UNAVAILABLE),
        ({"faults": [{"kind": "oversized"}]}, ErrorCode.TOO_LARGE),
    ],
    ids=str,
)
async def test_the_same_code_for_a_fault(
    sim: RunningSimulator, both: tuple[Provider, Provider], knobs: dict[str, Any], means: ErrorCode
) -> None:
    """Keys, credit, connections that break, and an answer that nobody can take."""
    await sim.control.set(**knobs)
    by_grpc, by_rest = await failures(both)
    assert by_rest == by_grpc
    assert by_rest[0] is means


async def test_the_same_code_for_a_limit(sim: RunningSimulator, both: tuple[Provider, Provider]) -> None:
    """Of one account, whose minute the first call has used up."""
    await sim.control.set(limits={"*": {"rpm": 1, "mode": "per_minute"}})
    await told(both[1], "plain")
    assert await failures(both) == [(ErrorCode.RATE_LIMITED, None, True, False)] * 2


async def test_the_same_code_where_nobody_is() -> None:
    """It was not sent, so it costs no attempt."""
    xai = XaiProvider(api_key=KEY, host="127.0.0.1:1", insecure=True)
    rest = OpenAIProvider(api_key=KEY, base_url="http://127.0.0.1:1/v1")
    assert await failures((xai, rest)) == [(ErrorCode.UNAVAILABLE, None, False, False)] * 2
    await xai.aclose()
    await rest.aclose()


@pytest.mark.parametrize("state", ["good", "incorrect", "expired", "blocked", "team_blocked", "disabled"])
async def test_the_same_probe(sim: RunningSimulator, both: tuple[Provider, Provider], state: str) -> None:
    """A key that is refused is `bad_key` for both; it costs nothing."""
    await sim.control.set(key=state)
    for provider in both:
        code = None
        try:
            await provider.probe()
        except ProviderError as error:
            code = error.code
        assert code is (None if state == "good" else ErrorCode.BAD_KEY)
    assert (await sim.control.totals()).calls == 0
