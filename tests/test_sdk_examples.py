"""What docs/from-the-sdk.md shows: the SDK's own examples, directly and as jobs, are the same on one simulator."""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import pytest
import pytest_asyncio
from google.protobuf.json_format import MessageToDict
from xai_sdk import AsyncClient
from xai_sdk.chat import Response, tool, tool_result, user
from xai_sdk.proto import chat_pb2
from xai_sdk.tools import get_tool_call_type, web_search

from pages import Page, run_block
from promptq.producer import JobResult, JobStatus, PromptQueue
from promptq.producer.results import Usage
from promptq.worker.providers.xai import XaiProvider
from promptq.worker.simulator.generations import Generations
from promptq.worker.simulator.knobs import Knobs
from promptq.worker.simulator.server import Serving, serving
from simulator_chats import WEATHER_PARAMETERS
from workers import running_worker

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:chat.sample_batch will be deprecated:PendingDeprecationWarning"),
]

PAGE: Final = Page("docs/from-the-sdk.md")
KEY: Final = "xai-Zq8tR2mWv5Lk0Ns7Yb3HcJd6"
RICH: Final = ("Images", "Reasoning", "Tools that xAI runs", "Both kinds of tools")
CLIENT_SIDE: Final = "client_side_tool"
THE_SAME: Final = ("content", "reasoning_content", "encrypted_content", "service_tier")
FINISH_REASONS: Final = {"REASON_STOP": "stop", "REASON_MAX_LEN": "length", "REASON_TOOL_CALLS": "tool_calls"}

Requests = list[chat_pb2.GetCompletionsRequest]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def simulator() -> AsyncIterator[Serving]:
    """In this process, so that its ears can be borrowed."""
    async with serving(Knobs.model_validate({"answer_tokens": "uniform:30,300", "cached_share": 0.5})) as simulator:
        yield simulator


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Requests:
    """The requests for answers that the simulator gets: whole, streamed or deferred."""
    requests: Requests = []

    def hear_and(answer: Callable[..., Any]) -> Callable[..., Any]:
        def hear(self: Generations, request: chat_pb2.GetCompletionsRequest, *rest: Any) -> Any:
            requests.append(request)
            return answer(self, request, *rest)

        return hear

    for name in ("answer", "stream", "defer"):
        monkeypatch.setattr(Generations, name, hear_and(getattr(Generations, name)))
    return requests


@pytest_asyncio.fixture(loop_scope="module")
async def client(simulator: Serving) -> AsyncIterator[AsyncClient]:
    """The SDK itself."""
    async with AsyncClient(KEY, api_host=simulator.host, use_insecure_channel=True) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def queue(simulator: Serving, redis_url: str) -> AsyncIterator[PromptQueue]:
    """A queue, and a worker that calls the same simulator with the same key."""
    provider = XaiProvider(api_key=KEY, host=simulator.host, insecure=True)
    async with PromptQueue.connect(redis_url) as queue, running_worker(redis_url, provider):
        yield queue
    await provider.aclose()


def comparable(request: chat_pb2.GetCompletionsRequest) -> Any:
    """What is asked, without what is of one call alone, and without how it was written down.

    That `previous_response_id` is the right one shows in the tokens of the prompt.
    """
    asked = MessageToDict(request)
    if "previousResponseId" in asked:
        asked["previousResponseId"] = "of the answer before"
    for call in (call for message in asked["messages"] for call in message.get("toolCalls", ())):
        if call["type"] == "TOOL_CALL_TYPE_CLIENT_SIDE_TOOL":
            call.pop("status", None)  # the caller runs it: a result tells no status
    return without_defaults(asked)


def without_defaults(said: Any) -> Any:
    """The SDK sends empty texts and False where a job leaves the field out."""
    if isinstance(said, dict):
        return {name: without_defaults(value) for name, value in said.items() if value is not False and value != ""}
    return [without_defaults(value) for value in said] if isinstance(said, list) else said


def kind_of(call: chat_pb2.ToolCall) -> str:
    """As results have it."""
    kind = get_tool_call_type(call)
    return "function" if kind == CLIENT_SIDE else kind.removesuffix("_tool")


def told_by(response: Response) -> dict[str, Any]:
    """All of the SDK's response that is not of this call alone, as results have it."""
    used = {name: getattr(response.usage, name, None) for name in Usage.model_fields}
    used["cached_prompt_tokens"] = response.usage.cached_prompt_text_tokens
    used["server_side_tools_used"] = {
        name.removeprefix("SERVER_SIDE_TOOL_").lower(): count for name, count in response.server_side_tool_usage.items()
    }
    return {
        **{name: getattr(response, name) for name in THE_SAME},
        "finish_reason": FINISH_REASONS[response.finish_reason],
        "citations": list(response.citations),
        "inline_citations": [(said.id, said.start_index, said.end_index) for said in response.inline_citations],
        "calls": [
            (call.id, kind_of(call), call.function.name, call.function.arguments) for call in response.tool_calls
        ],
        "usage": used,
    }


def told_of(result: JobResult) -> dict[str, Any]:
    """The same of a result."""
    calls = (*result.raise_for_status().server_tool_calls, *result.tool_calls)
    return {
        **{name: getattr(result, name) for name in THE_SAME},
        "finish_reason": result.finish_reason,
        "citations": list(result.citations),
        "inline_citations": [(said.id, said.start_index, said.end_index) for said in result.inline_citations],
        "calls": [(call.id, call.type, call.name, call.arguments) for call in calls],
        "usage": result.usage.model_dump(),
    }


async def ran(code: str, **names: Any) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """The names that a block has bound, and what it printed."""
    printed: list[tuple[Any, ...]] = []
    return await run_block(code, print=lambda *words: printed.append(words), **names), printed


@pytest.mark.parametrize("example", [heading for heading in PAGE.sections if PAGE.shown(heading)])
async def test_an_example(client: AsyncClient, queue: PromptQueue, heard: Requests, example: str) -> None:
    """Both ask the same, get the same, print the same, and what both call by one name has one value."""
    directly, as_jobs = PAGE.shown(example)
    by_sdk, printed = await ran(directly, client=client)
    asked = [comparable(request) for request in heard]
    heard.clear()
    by_queue, printed_by_jobs = await ran(as_jobs, queue=queue, **by_sdk)
    assert [comparable(request) for request in heard] == asked
    assert printed_by_jobs == printed
    response = by_sdk["response"] if "response" in by_sdk else by_sdk["responses"][0]
    assert told_of(by_queue["result"]) == told_by(response)
    for name in by_sdk.keys() & by_queue.keys():
        if type(by_queue[name]) is type(by_sdk[name]):
            assert by_queue[name] == by_sdk[name], name


async def test_the_examples_differ(client: AsyncClient) -> None:
    """What is compared is not nothing: each part of an answer is told by some example."""
    answers = [told_by((await ran(PAGE.shown(name)[0], client=client))[0]["response"]) for name in RICH]
    used = [answer["usage"] for answer in answers]
    for name in (*THE_SAME, "citations", "inline_citations", "calls"):
        assert any(answer[name] for answer in answers), name
    for name in Usage.model_fields:
        assert any(usage[name] for usage in used), name


async def test_a_stored_answer_of_a_job(client: AsyncClient, queue: PromptQueue) -> None:
    """By its result's `response_id` the SDK reads it again, and deletes it; then no job goes on from it."""
    options: dict[str, Any] = {"model": "grok-4", "store_messages": True}
    result = await (await queue.enqueue("Tell me about Redis.", **options)).wait()
    assert result.response_id is not None
    [stored] = await client.chat.get_stored_completion(result.response_id)
    assert told_by(stored) == told_of(result)
    assert await client.chat.delete_stored_completion(result.response_id) == result.response_id
    after = await (await queue.enqueue("Who began it?", previous_response_id=result.response_id, **options)).wait()
    assert after.status is JobStatus.FAILED
    assert after.error is not None
    assert result.response_id in after.error.message


async def test_results_of_functions_go_on_from_a_stored_answer(client: AsyncClient, queue: PromptQueue) -> None:
    """Of both kinds of tools: only the outputs of the caller's functions are sent, as the SDK does it."""
    asked: dict[str, Any] = {"model": "grok-4", "store_messages": True}
    function: dict[str, Any] = {"type": "function", "name": "temperature", "parameters": WEATHER_PARAMETERS}
    tools = [{"type": "web_search"}, function]
    by_sdk = [web_search(), tool("temperature", "", WEATHER_PARAMETERS)]
    response = await client.chat.create(messages=[user("How warm is it?")], tools=by_sdk, **asked).sample()
    said = [tool_result("21", call.id) for call in response.tool_calls if get_tool_call_type(call) == CLIENT_SIDE]
    response = await client.chat.create(messages=said, tools=by_sdk, previous_response_id=response.id, **asked).sample()
    result = await (await queue.enqueue("How warm is it?", tools=tools, **asked)).wait()
    outputs = [{"role": "tool", "tool_call_id": call.id, "content": "21"} for call in result.tool_calls]
    assert len(outputs) == len(said) == 1
    job = await queue.enqueue(outputs, tools=tools, previous_response_id=result.response_id, **asked)
    assert told_of(await job.wait()) == told_by(response)
