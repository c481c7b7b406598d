"""Both clients of xAI, gRPC and REST, whole or streamed: the same jobs have the same results, the same faults the same
codes.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import pytest
import pytest_asyncio

from promptq.producer import JobResult, JobStatus, PromptQueue
from promptq.producer.entries import job_of
from promptq.producer.errors import ErrorCode
from promptq.producer.results import ToolCall
from promptq.worker.providers.base import Answer, Delta, Hear, Provider, ProviderError
from promptq.worker.providers.openai import OpenAIProvider
from promptq.worker.providers.xai import XaiProvider
from promptq.worker.simulator.process import RunningSimulator
from simulator_chats import WEATHER_PARAMETERS, Pet
from workers import running_worker

pytest_plugins = ["simulator_fixture"]
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:chat.(sample|stream)_batch will be deprecated:PendingDeprecationWarning"),
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
    "logprobs of a call": (QUESTION, {"logprobs": True, "tools": [WEATHER]}),
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

# REST has no words for these.
OF_GRPC_ALONE: Final[dict[str, tuple[Any, dict[str, Any]]]] = {
    "xAI's own tools": (QUESTION, {"tools": [{"type": "web_search"}, {"type": "x_search"}, WEATHER]}),
    "their results": (
        QUESTION,
        {"tools": [{"type": "web_search"}, {"type": "code_execution"}], "include": ["web_search_call_output"]},
    ),
    "links in the text": (QUESTION, {"tools": [{"type": "web_search"}], "include": ["inline_citations"]}),
    "encrypted reasoning": (QUESTION, {"use_encrypted_content": True, "reasoning_effort": "low"}),
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


@pytest_asyncio.fixture(loop_scope="module")
async def sim(sim: RunningSimulator) -> RunningSimulator:
    """Answers of many lengths, in small chunks, part of each prompt from the cache."""
    await sim.control.set(answer_tokens="uniform:30,300", tokens_per_chunk=4, cached_share=0.5)
    return sim


@pytest_asyncio.fixture(loop_scope="module")
async def both(sim: RunningSimulator) -> AsyncIterator[tuple[Provider, Provider]]:
    """The two, with one simulator and one key."""
    xai = XaiProvider(api_key=KEY, host=sim.host, insecure=True)
    rest = OpenAIProvider(api_key=KEY, base_url=sim.rest_url)
    yield xai, rest
    await xai.aclose()
    await rest.aclose()


async def told(provider: Provider, name: str, hear: Hear | None = None) -> dict[str, Any]:
    """All of the answer that is not of this call alone."""
    messages, options = (JOBS | OF_GRPC_ALONE)[name]
    answer = await provider.sample(job_of(messages, {"model": "grok-4", **options}), 60, hear)
    return answer._asdict() | dict.fromkeys(OF_THE_CALL, None)


Text = dict[int, tuple[str, str, tuple[ToolCall, ...]]]


async def streamed(provider: Provider, name: str) -> dict[str, Any]:
    """The same, of an answer that comes in pieces, which put together are its outputs."""
    heard: list[Delta] = []
    answer = await told(provider, name, heard.append)
    pieces: Text = {}
    for delta in heard:
        content, reasoning, calls = pieces.get(delta.output, ("", "", ()))
        pieces[delta.output] = (
            content + delta.content,
            reasoning + delta.reasoning_content,
            calls + delta.tool_calls,
        )
    assert pieces == written(answer)
    assert len(heard) > (1 if answer["content"] else 0)
    return answer


def written(answer: dict[str, Any]) -> Text:
    """What there is to hear of it, output by output."""
    calls = (*answer["server_tool_calls"], *answer["tool_calls"])
    whole = {0: (answer["content"], answer["reasoning_content"], calls)}
    several = {out.index: (out.content, out.reasoning_content, out.tool_calls) for out in answer["outputs"]}
    return several or whole


@pytest.mark.parametrize("name", JOBS)
async def test_the_same_answer(sim: RunningSimulator, both: tuple[Provider, Provider], name: str) -> None:
    """Field by field, usage and cost included, whole or streamed; and the same was charged."""
    answers = [await ask(provider, name) for provider in both for ask in (told, streamed)]
    for answer in answers[1:]:
        assert answer == answers[0]
    one, *others = await sim.control.journal()
    assert {(entry.usage, entry.prompt, entry.key) for entry in others} == {(one.usage, one.prompt, one.key)}


@pytest.mark.parametrize("name", OF_GRPC_ALONE)
async def test_the_same_answer_in_a_stream(both: tuple[Provider, Provider], name: str) -> None:
    """Of what only gRPC can say: turns of xAI's own tools are outputs of their own, and the last one is the answer."""
    assert await streamed(both[0], name) == await told(both[0], name)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_conversation_is_known_by_a_digest(
    sim: RunningSimulator, both: tuple[Provider, Provider], is_streamed: bool
) -> None:
    """The same for each of its jobs and for both clients; what they begin with is cached; other jobs have none."""
    said = [{"role": "user", "content": f"{QUESTION} {number}"} for number in range(3)]
    cached = []
    for provider in both:
        for count in (1, 2, 3):
            job = job_of(said[:count], {"model": type(provider).__name__, "conversation": "Ann's chat, ü"})
            answer = await provider.sample(job, 60, deaf if is_streamed else None)
            cached.append(answer.usage.cached_prompt_tokens / answer.usage.prompt_tokens)
        await provider.sample(job_of(QUESTION, {"model": "grok-4"}), 60, deaf if is_streamed else None)
    names = [entry.conversation for entry in await sim.control.journal()]
    assert set(names) == {names[0], ""}
    assert [bool(name) for name in names] == [True, True, True, False] * 2
    assert re.fullmatch("[0-9a-f]{32}", names[0])
    assert cached == pytest.approx([0.5, 0.5, 2 / 3] * 2, rel=0.1)


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


End = tuple[ErrorCode, float | None, bool, bool]


def deaf(delta: Delta) -> None:
    """Has the answer streamed."""


async def failures(both: tuple[Provider, Provider], hear: Hear | None = None) -> list[End]:
    """How a call of each ends that is refused."""
    ends = []
    for provider in both:
        with pytest.raises(ProviderError) as caught:
            await provider.sample(job_of(QUESTION, {"model": "grok-4"}), 60, hear)
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


# When a call may be refused: before the generation, or after it, or so many chunks later.
MOMENTS: Final[list[tuple[dict[str, Any], Hear | None]]] = [
    ({}, None),
    ({"after_start": True}, None),
    ({}, deaf),
    ({"after_start": True}, deaf),
    ({"after_start": True, "after_chunks": 2}, deaf),
]


@pytest.mark.parametrize("said", [*WORDS, *((code, "no", None) for code in CODES)])
async def test_the_same_code_for_a_status(
    sim: RunningSimulator, both: tuple[Provider, Provider], said: tuple[str, str, ErrorCode | None]
) -> None:
    """By the words where they are known, by the status otherwise; at every moment; with the wait."""
    code, details, means = said
    for moment, hear in MOMENTS:
        fault = {"kind": "status", "code": code, "details": details, "trailers": {"retry-after": "7"}, **moment}
        await sim.control.set(faults=[fault])
        by_grpc, by_rest = await failures(both, hear)
        means = means or by_grpc[0]
        assert by_grpc == (means, 7.0, True, False)
        # A stream of REST that has begun has no headers left to say how long to wait.
        assert by_rest == (means, None if "after_chunks" in moment else 7.0, True, False)
    assert (await sim.control.totals()).calls == 10


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
        ({"faults": [{"kind": "drop_call", "after_chunks": 2}]}, ErrorCode.UNAVAILABLE),
        ({"faults": [{"kind": "oversized"}]}, ErrorCode.TOO_LARGE),
    ],
    ids=str,
)
async def test_the_same_code_for_a_fault(
    sim: RunningSimulator, both: tuple[Provider, Provider], knobs: dict[str, Any], means: ErrorCode
) -> None:
    """Keys, credit, connections that break, and an answer that nobody can take."""
    await sim.control.set(**knobs)
    assert await failures(both) + await failures(both, deaf) == [(means, None, True, False)] * 4


async def test_the_same_end_in_the_middle(sim: RunningSimulator, both: tuple[Provider, Provider]) -> None:
    """What was written before is heard; a caller who stops waiting ends the call at the server."""
    for fault in ({"kind": "drop_call"}, {"kind": "hang"}):
        await sim.control.set(faults=[fault | {"after_chunks": 3}])
        heard: list[list[Delta]] = [[], []]
        for provider, pieces in zip(both, heard, strict=True):
            with pytest.raises((ProviderError, TimeoutError)):
                async with asyncio.timeout(0.1):
                    await provider.sample(job_of(QUESTION, {"model": "grok-4"}), 0.1, pieces.append)
        assert heard[0] == heard[1]
        assert len(heard[0]) == 3
    totals = await sim.control.until(lambda totals: totals.in_flight == 0)
    assert totals.ended == {"UNAVAILABLE": 2, "CANCELLED": 2}


async def test_the_same_code_for_a_limit(sim: RunningSimulator, both: tuple[Provider, Provider]) -> None:
    """Of one account, whose minute the first call has used up."""
    await sim.control.set(limits={"*": {"rpm": 1, "mode": "per_minute"}})
    await told(both[1], "plain")
    assert await failures(both) + await failures(both, deaf) == [(ErrorCode.RATE_LIMITED, None, True, False)] * 4


async def test_the_same_code_where_nobody_is() -> None:
    """It was not sent, so it costs no attempt."""
    xai = XaiProvider(api_key=KEY, host="127.0.0.1:1", insecure=True)
    rest = OpenAIProvider(api_key=KEY, base_url="http://127.0.0.1:1/v1")
    ends = await failures((xai, rest)) + await failures((xai, rest), deaf)
    assert ends == [(ErrorCode.UNAVAILABLE, None, False, False)] * 4
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
