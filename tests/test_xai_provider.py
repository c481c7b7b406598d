"""XaiProvider: the real SDK over real channels, against the simulator in a process of its own."""

import asyncio
import base64
import contextlib
import gc
import os
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.any_pb2 import Any as AnyProto
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import ValidationError
from xai_sdk import AsyncClient
from xai_sdk.proto import chat_pb2, chat_pb2_grpc, sample_pb2, usage_pb2

from promptq.producer.errors import ErrorCode
from promptq.producer.messages import Message
from promptq.producer.models import PromptJob
from promptq.producer.results import BOOKED, ToolCall, Usage
from promptq.worker.providers.api_key import ApiKeyError
from promptq.worker.providers.base import LONGEST_JOB_TIMEOUT, Answer, Delta, Hear, Provider, ProviderError
from promptq.worker.providers.xai import XaiProvider
from promptq.worker.providers.xai_pool import REST, ClientPool, connections_for
from promptq.worker.settings import Settings
from promptq.worker.simulator.process import RunningSimulator, running_simulator
from waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "xai-Zq8tR2mWv5Lk0Ns7Yb3HcJd6"
MAX_STREAMS = 100


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_simulator() -> AsyncIterator[RunningSimulator]:
    """One process for all tests of this file."""
    async with running_simulator(max_concurrent_streams=MAX_STREAMS) as simulator:
        yield simulator


@pytest_asyncio.fixture(loop_scope="module")
async def sim(shared_simulator: RunningSimulator) -> RunningSimulator:
    """The simulator with empty books and knobs as at its start."""
    await shared_simulator.control.reset()
    return shared_simulator


@pytest_asyncio.fixture(loop_scope="module")
async def xai(sim: RunningSimulator) -> AsyncIterator[XaiProvider]:
    """A provider that calls the simulator."""
    async with open_provider(sim.host) as provider:
        yield provider


@asynccontextmanager
async def open_provider(host: str, **options: Any) -> AsyncIterator[XaiProvider]:
    """A provider, closed at the end."""
    provider = XaiProvider(api_key=KEY, host=host, insecure=True, **options)
    try:
        yield provider
    finally:
        await provider.aclose()


def job(prompt: str = "Why is the sky blue?", **fields: Any) -> PromptJob:
    """A job as the worker sees it: with a model."""
    return PromptJob.model_validate({"prompt": prompt, "model": "grok-4"} | fields)


def deaf(delta: Delta) -> None:
    """Has the answer streamed."""


async def refused(xai: XaiProvider, prompt: str = "Why is the sky blue?", **fields: Any) -> ProviderError:
    """The error that a call brings."""
    with pytest.raises(ProviderError) as caught:
        await xai.sample(job(prompt, **fields), 60)
    return caught.value


class ScriptedChat(chat_pb2_grpc.ChatServicer):
    """Keeps requests and the time they were given; answers what it is told to."""

    def __init__(self) -> None:
        self.requests: list[chat_pb2.GetCompletionsRequest] = []
        self.time_given: list[float] = []
        self.answer = _answer()

    async def GetCompletion(  # noqa: N802 - the protocol's name
        self, request: chat_pb2.GetCompletionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> chat_pb2.GetChatCompletionResponse:
        """Answers at once."""
        self.requests.append(request)
        self.time_given.append(context.time_remaining())
        return self.answer


def _answer(*outputs: chat_pb2.CompletionOutput, **fields: Any) -> chat_pb2.GetChatCompletionResponse:
    return chat_pb2.GetChatCompletionResponse(outputs=outputs or [_output("Because.")], **fields)


def _output(content: str, finish_reason: int = sample_pb2.REASON_STOP, **fields: Any) -> chat_pb2.CompletionOutput:
    message = chat_pb2.CompletionMessage(content=content, **{"role": chat_pb2.ROLE_ASSISTANT} | fields)
    output = chat_pb2.CompletionOutput(message=message)
    output.finish_reason = cast(sample_pb2.FinishReason, finish_reason)
    return output


def _function_call(name: str, type_: int) -> chat_pb2.ToolCall:
    call = chat_pb2.ToolCall(id=f"id-{name}", function=chat_pb2.FunctionCall(name=name, arguments='{"x": 1'))
    call.type = cast(chat_pb2.ToolCallType, type_)
    return call


@asynccontextmanager
async def scripted(**options: Any) -> AsyncIterator[tuple[ScriptedChat, XaiProvider]]:
    """A server in this process whose answers the test writes, and a provider that calls it."""
    chat, server = ScriptedChat(), grpc.aio.server()
    chat_pb2_grpc.add_ChatServicer_to_server(chat, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_provider(f"127.0.0.1:{port}", **options) as provider:
            yield chat, provider
    finally:
        await server.stop(None)


# The answer


async def test_answer_and_usage_are_what_xai_sent(sim: RunningSimulator, xai: XaiProvider) -> None:
    """Content, reasoning, model, id and every field of the usage arrive as they were sent and charged."""
    await sim.control.set(reasoning_tokens=40, cached_share=0.5)
    provider: Provider = xai
    answer = await provider.sample(job("Why is the sky blue? " * 20), 60)
    [entry] = await sim.control.journal()
    charged = entry.usage
    assert charged is not None
    assert entry.model == answer.model == "grok-4"
    assert answer.content
    assert answer.reasoning_content
    assert answer.response_id
    assert answer.finish_reason == "stop"
    assert (answer.tool_calls, answer.citations) == ((), ())
    assert answer.usage.model_dump() == {
        "prompt_tokens": charged.prompt_tokens,
        "completion_tokens": charged.completion_tokens,
        "reasoning_tokens": 40,
        "cached_prompt_tokens": charged.cached_prompt_text_tokens,
        "total_tokens": charged.total_tokens,
        "cost_in_usd_ticks": charged.cost_in_usd_ticks,
    } | {name: getattr(answer.usage, name) for name in Usage.model_fields if name not in BOOKED}
    assert all(answer.usage.amounts())


async def test_no_cost_is_not_a_cost_of_zero(sim: RunningSimulator, xai: XaiProvider) -> None:
    """`cost_in_usd_ticks` is None only if xAI left the field out."""
    await sim.control.set(cost_in_usd_ticks=None)
    assert (await xai.sample(job(), 60)).usage.cost_in_usd_ticks is None
    await sim.control.set(cost_in_usd_ticks={"prompt": 0, "completion": 0})
    assert (await xai.sample(job(), 60)).usage.cost_in_usd_ticks == 0


async def test_a_cut_answer_says_so(xai: XaiProvider) -> None:
    """An answer that `max_tokens` cut has the finish reason `length`."""
    assert (await xai.sample(job(max_tokens=3), 60)).finish_reason == "length"


async def test_finish_reasons_have_our_words() -> None:
    """Every reason that the SDK knows has a word; one it does not know costs nobody the answer."""
    words = {}
    async with scripted() as (chat, xai):
        for value in [*sample_pb2.FinishReason.values(), 77]:
            chat.answer = _answer(_output("Because.", value))
            answer = await xai.sample(job(), 60)
            assert answer.content == "Because."
            words[value] = answer.finish_reason
    assert words == {
        sample_pb2.REASON_INVALID: "unknown",
        sample_pb2.REASON_MAX_LEN: "length",
        sample_pb2.REASON_MAX_CONTEXT: "context",
        sample_pb2.REASON_STOP: "stop",
        sample_pb2.REASON_TOOL_CALLS: "tool_calls",
        sample_pb2.REASON_TIME_LIMIT: "time_limit",
        77: "unknown",
    }


@pytest.mark.filterwarnings("ignore:chat.sample_batch will be deprecated:PendingDeprecationWarning")
async def test_several_answers() -> None:
    """One call asks for all of them."""
    async with scripted() as (chat, xai):
        chat.answer = _answer(_output("one"), _output("two"))
        chat.answer.outputs[1].index = 1
        answer = await xai.sample(job(n=2), 60)
        assert chat.requests[-1].n == 2
    assert (answer.content, [output.content for output in answer.outputs]) == ("one", ["one", "two"])


async def test_tools_and_citations() -> None:
    """Of an answer with server-side tools: the last text, all citations, and the calls left to the caller."""
    async with scripted() as (chat, xai):
        calls = [
            _function_call("search", chat_pb2.TOOL_CALL_TYPE_WEB_SEARCH_TOOL),
            _function_call("weather", chat_pb2.TOOL_CALL_TYPE_CLIENT_SIDE_TOOL),
            _function_call("old", chat_pb2.TOOL_CALL_TYPE_INVALID),
            chat_pb2.ToolCall(id="no function"),
        ]
        outputs = [
            _output("Let me look.", tool_calls=calls),
            _output("a page", role=chat_pb2.ROLE_TOOL),
            _output("Rain.", sample_pb2.REASON_TOOL_CALLS),
        ]
        for index, output in enumerate(outputs):
            output.index = index
        chat.answer = _answer(*outputs, citations=["https://a.example", "https://b.example"])
        answer = await xai.sample(job(), 60)
    assert answer == Answer(
        content="Rain.",
        model="grok-4",
        usage=answer.usage,
        finish_reason="tool_calls",
        tool_calls=(
            ToolCall(id="id-weather", name="weather", arguments='{"x": 1'),
            ToolCall(id="id-old", name="old", arguments='{"x": 1'),
        ),
        server_tool_calls=(
            ToolCall(id="id-search", name="search", arguments='{"x": 1', type="web_search", status="in_progress"),
        ),
        citations=("https://a.example", "https://b.example"),
        outputs=answer.outputs,
        response_id=None,
    )
    assert [output.role for output in answer.outputs] == ["assistant", "tool", "assistant"]


async def test_an_answer_without_output_is_an_error_with_its_usage() -> None:
    """Nothing in the answer is no answer; what it cost is told."""
    async with scripted() as (chat, xai):
        usage = usage_pb2.SamplingUsage(total_tokens=9, cost_in_usd_ticks=5)
        chat.answer = chat_pb2.GetChatCompletionResponse(usage=usage)
        error = await refused(xai)
    assert error.code is ErrorCode.PROVIDER_ERROR
    assert error.usage is not None
    assert (error.usage.total_tokens, error.usage.cost_in_usd_ticks) == (9, 5)


# The request

OPTIONS: dict[str, Any] = {
    "max_tokens": 7,
    "temperature": 0.5,
    "top_p": 0.25,
    "frequency_penalty": -0.5,
    "presence_penalty": 1.5,
    "seed": -3,
    "user": "u-1",
}


async def test_every_option_is_sent_and_only_if_set() -> None:
    """Each option arrives with its value; without it the request has no such field."""
    async with scripted() as (chat, xai):
        await xai.sample(job(**OPTIONS, reasoning_effort="xhigh", stop=["a", "b"], timeout=5, max_attempts=2), 60)
        await xai.sample(job(), 60)
        await xai.sample(job(temperature=0.0, frequency_penalty=0.0, seed=0), 60)
    full, bare, zeros = chat.requests
    assert {name: getattr(full, name) for name in OPTIONS} == OPTIONS
    assert full.reasoning_effort == chat_pb2.EFFORT_XHIGH
    assert list(full.stop) == ["a", "b"]
    assert {field.name for field, _ in bare.ListFields()} == {"messages", "model", "n"}
    assert {field.name for field, _ in zeros.ListFields()} >= {"temperature", "frequency_penalty", "seed"}


@pytest.mark.parametrize("effort", ["none", "low", "medium", "high", "xhigh"])
async def test_every_reasoning_effort_can_be_sent(effort: str) -> None:
    """The SDK knows every effort that a job may ask for."""
    async with scripted() as (chat, xai):
        await xai.sample(job(reasoning_effort=effort), 60)
    assert chat_pb2.ReasoningEffort.Name(chat.requests[0].reasoning_effort) == f"EFFORT_{effort.upper()}"


async def test_messages_keep_role_and_order() -> None:
    """A conversation arrives as it was written, with all four roles."""
    roles = ["system", "developer", "user", "assistant", "user"]
    messages = [{"role": role, "content": f"{place} ü"} for place, role in enumerate(roles)]
    async with scripted() as (chat, xai):
        await xai.sample(PromptJob.model_validate({"messages": messages, "model": "grok-4"}), 60)
    sent = [(chat_pb2.MessageRole.Name(m.role), [part.text for part in m.content]) for m in chat.requests[0].messages]
    assert sent == [(f"ROLE_{role.upper()}", [f"{place} ü"]) for place, role in enumerate(roles)]


async def test_a_request_that_cannot_be_built_is_the_jobs_fault(sim: RunningSimulator, xai: XaiProvider) -> None:
    """No model, or text that is no Unicode: invalid_request, without a call."""
    error = await refused(xai, model=None)
    assert (error.code, error.message) == (ErrorCode.INVALID_REQUEST, "the job names no model")
    broken = PromptJob.model_construct(
        messages=(Message.model_construct(role="user", content="my secret \ud800"),), model="grok-4"
    )
    with pytest.raises(ProviderError, match="UnicodeEncodeError") as caught:
        await xai.sample(broken, 60)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert (await sim.control.totals()).calls == 0


@pytest.mark.parametrize("hear", [None, deaf])
async def test_prompts_do_not_go_into_traces(
    sim: RunningSimulator, xai: XaiProvider, monkeypatch: pytest.MonkeyPatch, hear: Hear | None
) -> None:
    """The SDK's spans have neither prompt nor answer, unless the environment asks for them."""
    spans = InMemorySpanExporter()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("xai_sdk.aio.chat.tracer", tracing.get_tracer("test"))
    monkeypatch.delenv("XAI_SDK_DISABLE_SENSITIVE_TELEMETRY_ATTRIBUTES")
    async with open_provider(sim.host) as fresh:
        await fresh.sample(job("my secret"), 60, hear)
    assert "secret" not in spans.get_finished_spans()[-1].to_json()
    monkeypatch.setenv("XAI_SDK_DISABLE_SENSITIVE_TELEMETRY_ATTRIBUTES", "0")
    async with open_provider(sim.host) as asked_for:
        await asked_for.sample(job("my secret"), 60, hear)
    assert "secret" in spans.get_finished_spans()[-1].to_json()


# One call, never more, and never longer than the caller wants


async def test_a_dropped_call_is_not_repeated(sim: RunningSimulator, xai: XaiProvider) -> None:
    """One `sample` whose connection breaks in mid-generation starts one generation: the queue retries."""
    await sim.control.set(faults=[{"kind": "drop_call"}])
    error = await refused(xai)
    assert error.code is ErrorCode.UNAVAILABLE
    totals = await sim.control.totals()
    assert (totals.calls, totals.generations) == (1, 1)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED", "UNKNOWN"])
async def test_a_refused_call_is_not_repeated(sim: RunningSimulator, xai: XaiProvider, code: str) -> None:
    """One `sample` is one call, whatever code it ends with."""
    await sim.control.set(faults=[{"kind": "status", "code": code}])
    await refused(xai)
    assert (await sim.control.totals()).calls == 1


async def test_the_callers_timeout_ends_the_call_at_the_server(sim: RunningSimulator, xai: XaiProvider) -> None:
    """When `asyncio.timeout` ends the wait, it is a TimeoutError here and CANCELLED there."""
    await sim.control.set(faults=[{"kind": "hang"}])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await xai.sample(job(), 0.3)
    totals = await sim.control.until(lambda totals: totals.in_flight == 0)
    assert totals.ended == {"CANCELLED": 1}


async def test_cancelling_ends_the_call_at_the_server(sim: RunningSimulator, xai: XaiProvider) -> None:
    """Our own cancel comes through as CancelledError, and the generation is stopped."""
    await sim.control.set(faults=[{"kind": "hang"}])
    task = asyncio.create_task(xai.sample(job(), 60))
    await sim.control.until(lambda totals: totals.generations == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await sim.control.until(lambda totals: totals.in_flight == 0)
    [entry] = await sim.control.journal()
    assert entry.ended == "CANCELLED"


@pytest.mark.parametrize(("hear", "after_chunks"), [(None, 0), (deaf, 0), (deaf, 2)], ids=["whole", "start", "middle"])
async def test_cancelling_leaves_nothing_running_at_any_moment(
    sim: RunningSimulator, xai: XaiProvider, hear: Hear | None, after_chunks: int
) -> None:
    """A call that is cancelled after any number of turns of the event loop does not run on unseen."""
    await xai.sample(job("connect"), 60)
    await sim.control.set(faults=[{"kind": "hang", "after_chunks": after_chunks}])
    for turns in range(40):
        task = asyncio.create_task(xai.sample(job(f"turn {turns}"), 60, hear))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await sim.control.set(faults=[])
    await xai.sample(job("all before this have arrived"), 60)
    totals = await sim.control.until(lambda totals: totals.in_flight == 0)
    assert totals.ended.get("CANCELLED", 0) == totals.calls - 2


@pytest.mark.parametrize("hear", [None, deaf])
async def test_a_call_that_xai_cancels_is_an_error(sim: RunningSimulator, xai: XaiProvider, hear: Hear | None) -> None:
    """CANCELLED by the server is a ProviderError: it must not look like our own cancel."""
    await sim.control.set(faults=[{"kind": "status", "code": "CANCELLED", "after_start": True}])
    with pytest.raises(ProviderError) as caught:
        await xai.sample(job(), 60, hear)
    assert caught.value.code is ErrorCode.PROVIDER_ERROR


async def test_a_listener_that_fails_ends_the_call(sim: RunningSimulator, xai: XaiProvider) -> None:
    """At the server too, at once: nobody pays for what nobody hears."""
    await sim.control.set(faults=[{"kind": "hang", "after_chunks": 2}])

    def fail(delta: Delta) -> None:
        raise RuntimeError(f"cannot hear {delta.output}")

    with pytest.raises(ProviderError, match="RuntimeError: cannot hear 0"):
        await xai.sample(job(), 60, fail)
    totals = await sim.control.until(lambda totals: totals.in_flight == 0)
    assert totals.ended == {"CANCELLED": 1}


@pytest.mark.parametrize("job_timeout", [1.0, 3600.0, 10 * LONGEST_JOB_TIMEOUT])
async def test_the_rpc_outlives_every_job(job_timeout: float) -> None:
    """The time given to a call is longer than the worker's timeout and than the longest a job may ask for."""
    job(timeout=LONGEST_JOB_TIMEOUT)
    with pytest.raises(ValidationError):
        job(timeout=LONGEST_JOB_TIMEOUT + 1)
    async with scripted(job_timeout=job_timeout) as (chat, xai):
        await xai.sample(job(), job_timeout)
    assert chat.time_given[0] > max(job_timeout, LONGEST_JOB_TIMEOUT) + 60


# Errors


async def test_an_answer_too_large_to_receive(sim: RunningSimulator, xai: XaiProvider) -> None:
    """An answer over the client's limit is too_large, not a rate limit: it was paid, and would be again."""
    await sim.control.set(faults=[{"kind": "oversized"}])
    assert (await refused(xai)).code is ErrorCode.TOO_LARGE
    assert (await sim.control.totals()).generations == 1


async def test_a_prompt_too_large_to_send(sim: RunningSimulator, xai: XaiProvider) -> None:
    """A prompt over the client's limit is too_large and never leaves this process."""
    assert (await refused(xai, "x" * (21 << 20))).code is ErrorCode.TOO_LARGE
    assert (await sim.control.totals()).calls == 0


async def test_no_server_is_unavailable() -> None:
    """Nobody at the address: unavailable."""
    async with open_provider("127.0.0.1:1") as xai:
        assert (await refused(xai)).code is ErrorCode.UNAVAILABLE


async def test_trailers_arrive(sim: RunningSimulator, xai: XaiProvider) -> None:
    """`retry-after` and RetryInfo come through the SDK and the channel."""
    packed = AnyProto()
    packed.Pack(RetryInfo(retry_delay=Duration(seconds=20)))
    info = base64.b64encode(Status(code=8, details=[packed]).SerializeToString()).decode()
    fault = {"kind": "status", "code": "RESOURCE_EXHAUSTED"}
    trailers: list[dict[str, str]] = [{"retry-after": "7"}, {"grpc-status-details-bin": info}]
    faults = [fault | {"trailers": each, "times": 1} for each in trailers]
    await sim.control.set(faults=[*faults, fault])
    errors = [await refused(xai) for _ in range(3)]
    assert [error.code for error in errors] == [ErrorCode.RATE_LIMITED] * 3
    assert [error.retry_after for error in errors] == [7.0, 20.0, None]


async def test_an_unexpected_exception_is_named(xai: XaiProvider, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the SDK raises is a provider_error with its type's name; a closed channel, for one."""
    await xai.sample(job(), 60)
    await xai.aclose()
    error = await asyncio.create_task(refused(xai))
    assert error.code is ErrorCode.PROVIDER_ERROR
    assert error.message == "UsageError: Channel is closed."
    del error
    await asyncio.sleep(0)  # the event loop lets go of the task
    gc.collect()
    assert not caplog.records, "the SDK's own coroutine was left behind"


def everything_of(error: BaseException) -> str:
    """All that a log may show of an exception."""
    return "".join([*traceback.format_exception(error), repr(error), str(error), repr(vars(error))])


@pytest.mark.parametrize("key", [KEY, "no-prefix-but-still-a-key"])
async def test_the_key_is_nowhere(sim: RunningSimulator, key: str) -> None:
    """Neither the provider's `repr` nor an error that quotes the key shows it; the code is still found."""
    provider = XaiProvider(api_key=key, host=sim.host, insecure=True)
    quoting = f"Incorrect API key provided: {key}. (authorization: Bearer {key})"
    await sim.control.set(faults=[{"kind": "status", "code": "INVALID_ARGUMENT", "details": quoting}])
    error = await refused(provider)
    assert error.code is ErrorCode.BAD_KEY
    assert error.message.startswith("INVALID_ARGUMENT: Incorrect API key provided: ***")
    account = provider._accounts.present()
    inside = [repr(each) for each in (provider, vars(provider), vars(provider._accounts), account, vars(account.pool))]
    for shown in (everything_of(error), *inside):
        assert key not in shown
    await provider.aclose()


async def test_a_prompt_quoted_by_xai_is_nowhere(sim: RunningSimulator, xai: XaiProvider) -> None:
    """Details that quote the prompt lose it, and are not judged by it: no prompt can pause the fleet."""
    prompt = "The API key is blocked, all credits are used, and the model grok does not exist."
    details = f"cannot parse message 0: '{prompt}'"
    await sim.control.set(faults=[{"kind": "status", "code": "INVALID_ARGUMENT", "details": details}])
    error = await refused(xai, prompt)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert error.message == "INVALID_ARGUMENT: cannot parse message 0: '***'"
    assert prompt not in everything_of(error)


# The key


@pytest.mark.parametrize("key", [None, "", "  \n"])
async def test_a_missing_key_says_what_to_set(key: str | None) -> None:
    """One line, when the provider is made."""
    with pytest.raises(ApiKeyError, match=r"^no xAI API key: set XAI_API_KEY or XAI_API_KEY_FILE$"):
        XaiProvider(api_key=key, host="api.x.ai")


@pytest.mark.parametrize("key", ["xai-mellon with spaces", "xai-mellon\nmore", "xai-mellön", "xai-mellon\x00"])
async def test_what_no_header_can_hold_is_no_key(key: str) -> None:
    """Refused when the provider is made, and not shown; gRPC would fail each call with a riddle."""
    with pytest.raises(ApiKeyError, match="XAI_API_KEY") as caught:
        XaiProvider(api_key=key, host="api.x.ai")
    assert "mell" not in everything_of(caught.value)


async def test_the_key_may_come_from_a_file(
    sim: RunningSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key in a file is the same key, line end or not; the calls carry it."""
    for name in list(os.environ):
        if name.startswith(("XAI_API_KEY", "PROMPTQ_")):
            monkeypatch.delenv(name)
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    monkeypatch.setenv("PROMPTQ_XAI_HOST", sim.host)
    monkeypatch.setenv("PROMPTQ_XAI_INSECURE", "1")
    for variable, value in {"XAI_API_KEY_FILE": str(path), "XAI_API_KEY": f" {KEY} "}.items():
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            provider = XaiProvider.from_settings(Settings())
            await provider.sample(job(), 60)
            await provider.aclose()
    from_file, from_environment = await sim.control.journal()
    assert from_file.key == from_environment.key != ""
    with pytest.raises(ApiKeyError, match="no xAI API key"):
        XaiProvider.from_settings(Settings())


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file or directory"), (b"\xff\xfe", "it is not text"), (b"\n", "no xAI API key")],
)
async def test_a_bad_key_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, reason: str
) -> None:
    """A file that is not there, not text or empty is the same typed error."""
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("XAI_API_KEY_FILE", str(path))
    with pytest.raises(ApiKeyError, match=reason) as caught:
        XaiProvider.from_settings(Settings())
    assert "\n" not in str(caught.value)


# The pool


async def test_more_calls_than_a_connection_takes_run_at_once(sim: RunningSimulator) -> None:
    """250 calls run at once although a connection takes 100: none waits inside the client."""
    await sim.control.set(faults=[{"kind": "hang", "match": "endless"}])
    async with open_provider(sim.host, max_jobs=250) as xai:
        endless = [asyncio.create_task(xai.sample(job(f"endless {number}"), 60)) for number in range(250)]
        totals = await sim.control.until(lambda totals: totals.in_flight == 250)
        assert totals.connections == connections_for(250) >= 3
        for call in endless:
            call.cancel()
        await asyncio.wait(endless)
        await sim.control.set(latency=0.3)
        answers = await asyncio.gather(*(xai.sample(job(f"prompt {number}"), 60) for number in range(250)))
    assert len({answer.response_id for answer in answers}) == 250
    totals = await sim.control.until(lambda totals: totals.in_flight == 0)
    assert totals.ended == {"CANCELLED": 250, "OK": 250}
    assert totals.connections == connections_for(250)


async def test_the_pools_connections_are_its_own(sim: RunningSimulator) -> None:
    """Two providers with the same options do not share a connection either."""
    async with open_provider(sim.host) as one, open_provider(sim.host) as other:
        await asyncio.gather(one.sample(job(), 60), other.sample(job(), 60))
    assert (await sim.control.totals()).connections == 2


async def test_closing_closes_every_connection() -> None:
    """After `aclose` the server sees each connection end; closing twice, or unused, is no error."""
    opened, ended = 0, 0

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened, ended
        opened += 1
        writer.write(b"\0\0\0\4\0\0\0\0\0")  # HTTP/2 SETTINGS, the least that makes a connection
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass
        ended += 1
        writer.close()

    server = await asyncio.start_server(watch, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        xai = XaiProvider(api_key=KEY, host=f"127.0.0.1:{port}", insecure=True, max_jobs=240)
        await xai.aclose()
        xai = XaiProvider(api_key=KEY, host=f"127.0.0.1:{port}", insecure=True, max_jobs=240)
        calls = asyncio.gather(*(xai.sample(job(), 60) for _ in range(6)))
        await wait_until(lambda: opened == 3, message="three connections")
        calls.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calls
        del calls  # gRPC keeps a connection while a call is referred to, even by a traceback
        gc.collect()
        assert ended == 0
        await xai.aclose()
        await wait_until(lambda: ended == 3, message="all connections have ended")
        await xai.aclose()


@pytest.mark.parametrize(("max_jobs", "connections"), [(1, 1), (80, 1), (81, 2), (250, 4), (10_000, 125), (10**6, 128)])
async def test_size_of_the_pool(max_jobs: int, connections: int) -> None:
    """80 calls to a connection, and no more connections than is sane."""
    assert connections_for(max_jobs) == connections


UNAVAILABLE = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())


class Clients:
    """Opens stand-ins for clients and counts them."""

    def __init__(self) -> None:
        self.opened: list[object] = []
        self.now = 0.0

    def pool(self, size: int) -> ClientPool:
        """A pool of such clients, on this object's clock."""
        return ClientPool(cast(Callable[[], AsyncClient], self._open), size, clock=lambda: self.now)

    def _open(self) -> object:
        self.opened.append(object())
        return self.opened[-1]


@pytest.fixture
def clients() -> Clients:
    """Stand-ins for clients."""
    return Clients()


async def test_the_least_busy_client_is_next(clients: Clients) -> None:
    """Calls spread evenly, a client is opened when it is first needed, and a place given back is used."""
    pool = clients.pool(3)
    with contextlib.ExitStack() as calls:
        first = calls.enter_context(pool.lend())
        assert clients.opened == [first]
        lent = [first, *(calls.enter_context(pool.lend()) for _ in range(5))]
        assert [lent.count(cast(AsyncClient, client)) for client in clients.opened] == [2, 2, 2]
        with pool.lend() as seventh:
            pass
        with pool.lend() as eighth:
            assert eighth is seventh
    with pool.lend() as again:
        assert again is first


async def test_a_broken_connection_does_not_draw_all_calls(clients: Clients) -> None:
    """A connection that fails at once is always the least busy one: it rests a moment, then is tried again."""
    pool = clients.pool(2)
    with pytest.raises(grpc.aio.AioRpcError), pool.lend() as broken:
        raise UNAVAILABLE
    with contextlib.ExitStack() as calls:
        assert broken not in [calls.enter_context(pool.lend()) for _ in range(5)]
        clients.now += REST
        assert calls.enter_context(pool.lend()) is broken


async def test_a_single_unavailable_call_rests_nothing(clients: Clients) -> None:
    """A connection on which other calls go on is not broken: it keeps its share."""
    pool = clients.pool(2)
    with pool.lend() as first, pool.lend() as second, pool.lend() as third:
        assert third is first
        with pool.lend() as fourth, pytest.raises(grpc.aio.AioRpcError), pool.lend() as failing:
            raise UNAVAILABLE
        assert (fourth, failing) == (second, first)
        with pool.lend() as fifth, pool.lend() as sixth:
            assert (fifth, sixth) == (second, first)


@pytest.mark.parametrize("raised", [RuntimeError("bug"), asyncio.CancelledError()])
async def test_a_failed_call_gives_its_place_back(clients: Clients, raised: BaseException) -> None:
    """However a call ends, it is no longer counted as in flight."""
    pool = clients.pool(2)
    with pytest.raises(type(raised)), pool.lend() as client:
        raise raised
    with pool.lend() as next_client:
        assert next_client is client
