"""All of chat over gRPC, by the real SDK: tools, structured output, streams, stored and deferred answers."""

import asyncio
import gc
import json
import time
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from xai_sdk import AsyncClient
from xai_sdk.aio.chat import Chat
from xai_sdk.chat import (
    Response,
    assistant,
    file,
    image,
    required_tool,
    system,
    tool,
    tool_result,
    user,
)
from xai_sdk.proto import chat_pb2, deferred_pb2
from xai_sdk.search import SearchParameters
from xai_sdk.tools import code_execution, web_search, x_search

from promptq.worker.simulator.control import SimulatorControl
from promptq.worker.simulator.generations import Caller, Generations
from promptq.worker.simulator.knobs import Fault, Knobs
from promptq.worker.simulator.refusals import Refusal
from promptq.worker.simulator.state import State
from simulator_calls import QUESTION, ask, failure_of
from simulator_chats import TIME, WEATHER, Pet

pytest_plugins = ["simulator_fixture"]


def chat(client: AsyncClient, **params: Any) -> Chat:
    """A chat with one question, not yet asked."""
    return client.chat.create("grok-4", messages=[user(QUESTION)], **params)


async def streamed(client: AsyncClient, **params: Any) -> tuple[Response, list[chat_pb2.GetChatCompletionChunk]]:
    """One question, answered in chunks: what the SDK makes of them, and the chunks."""
    pairs = [pair async for pair in chat(client, **params).stream()]
    return pairs[-1][0], [chunk.proto for _, chunk in pairs]


# --- tools -------------------------------------------------------------------------------------------


async def test_a_function_is_called_and_its_result_answered(client: AsyncClient) -> None:
    """After a user's message the first function is called with arguments that fit; after its result comes text."""
    talk = chat(client, tools=[WEATHER, TIME])
    response = await talk.sample()
    (call,) = response.tool_calls
    assert response.finish_reason == "REASON_TOOL_CALLS"
    assert call.type == chat_pb2.TOOL_CALL_TYPE_CLIENT_SIDE_TOOL
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert (type(arguments["city"]), arguments["unit"]) == (str, "C")
    answer = await talk.append(response).append(tool_result("sunny", call.id)).sample()
    assert not answer.tool_calls
    assert answer.content.startswith("[simulated]")
    assert answer.usage.prompt_tokens > response.usage.prompt_tokens


@pytest.mark.parametrize(
    ("params", "called"),
    [
        ({}, ["get_weather"]),
        ({"tool_choice": "auto"}, ["get_weather"]),
        ({"tool_choice": "none"}, []),
        ({"tool_choice": "required"}, ["get_weather"]),
        ({"tool_choice": required_tool("get_time")}, ["get_time"]),
        ({"parallel_tool_calls": True}, ["get_weather", "get_time"]),
        ({"parallel_tool_calls": False}, ["get_weather"]),
    ],
    ids=str,
)
async def test_which_functions_are_called(client: AsyncClient, params: dict[str, Any], called: list[str]) -> None:
    """The first, the named one, each of them, or none; ids tell calls apart."""
    response = await ask(client, tools=[WEATHER, TIME], **params)
    assert [call.function.name for call in response.tool_calls] == called
    assert len({call.id for call in response.tool_calls}) == len(called)
    assert bool(response.content) is not bool(called)


async def test_required_calls_even_after_a_result(client: AsyncClient) -> None:
    """`required` does not leave the choice; `auto` calls only after a user."""
    messages = [user(QUESTION), tool_result("sunny")]
    for choice, count in (("required", 1), ("auto", 0)):
        response = await client.chat.create(
            "grok-4", messages=messages, tools=[WEATHER], tool_choice="required" if choice == "required" else "auto"
        ).sample()
        assert len(response.tool_calls) == count


@pytest.mark.parametrize(
    "params",
    [
        {"tools": [WEATHER], "tool_choice": required_tool("get_wether")},
        {"tool_choice": "required"},
        {"tools": [tool("f", "", {"type": "string", "pattern": "^(ab){17}$"})]},
        {"top_logprobs": 2},
        {"logprobs": True, "top_logprobs": 9},
    ],
    ids=["unknown function", "no function", "unknown schema", "no logprobs", "too many"],
)
async def test_contradictions_are_refused(client: AsyncClient, control: SimulatorControl, params: Any) -> None:
    """What nobody could answer is INVALID_ARGUMENT, and free."""
    assert (await failure_of(ask(client, **params))).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await control.totals()).generations == 0


async def test_server_side_tools(client: AsyncClient, control: SimulatorControl) -> None:
    """Their calls have their types, stand in outputs before the answer, and are counted; sources are cited."""
    tools = [web_search(), x_search(), code_execution()]
    response = await ask(client, tools=tools, include=["web_search_call_output"])
    assert [chat_pb2.ToolCallType.Name(call.type) for call in response.tool_calls] == [
        "TOOL_CALL_TYPE_WEB_SEARCH_TOOL",
        "TOOL_CALL_TYPE_X_SEARCH_TOOL",
        "TOOL_CALL_TYPE_CODE_EXECUTION_TOOL",
    ]
    assert len(response.tool_outputs) == 1
    assert len(response.proto.outputs) == 3
    assert response.content.startswith("[simulated]")
    assert response.finish_reason == "REASON_STOP"
    assert set(response.server_side_tool_usage) == {
        "SERVER_SIDE_TOOL_WEB_SEARCH",
        "SERVER_SIDE_TOOL_X_SEARCH",
        "SERVER_SIDE_TOOL_CODE_EXECUTION",
    }
    assert len(response.citations) == response.usage.num_sources_used == 3
    (entry,) = await control.journal()
    assert entry.usage is not None
    assert len(entry.usage.server_side_tools_used) == entry.usage.num_sources_used == 3


@pytest.mark.parametrize(("mode", "count"), [("on", 2), ("auto", 2), ("off", 0)])
async def test_search_parameters_bring_citations(client: AsyncClient, mode: Any, count: int) -> None:
    """A search that is on or left to the model is cited."""
    response = await ask(client, search_parameters=SearchParameters(mode=mode))
    assert len(response.citations) == response.usage.num_sources_used == count


async def test_inline_citations(client: AsyncClient) -> None:
    """Who includes them gets links to all sources in the text, and their places; JSON and short answers have none."""
    params: dict[str, Any] = {"tools": [web_search(), x_search()], "include": ["inline_citations"]}
    response = await ask(client, **params)
    found = [
        (citation.id, response.content[citation.start_index : citation.end_index])
        for citation in response.inline_citations
    ]
    assert found == [(f"{number}", f"[[{number}]]({url})") for number, url in enumerate(response.citations, start=1)]
    kinds = [citation.WhichOneof("citation") for citation in response.inline_citations]
    assert kinds == ["web_citation", "web_citation", "x_citation"]
    assert response.usage.completion_tokens > -(-len(response.content) // 4)  # with the calls
    others: list[dict[str, Any]] = [{"include": []}, {"response_format": Pet}, {"max_tokens": 20}]
    for other in others:
        assert not (await ask(client, **params | other)).inline_citations


# --- what is asked and answered ----------------------------------------------------------------------


async def test_structured_output(client: AsyncClient) -> None:
    """`parse` gets an instance of its shape; json_object is an object; max_tokens cuts both."""
    response, pet = await chat(client).parse(Pet)
    assert pet == (await chat(client).parse(Pet))[1]
    assert response.usage.completion_tokens == -(-len(response.content) // 4)
    assert isinstance(json.loads((await ask(client, response_format="json_object")).content), dict)
    cut = await ask(client, response_format=Pet, max_tokens=2)
    assert (len(cut.content), cut.finish_reason, cut.usage.completion_tokens) == (8, "REASON_MAX_LEN", 2)


async def test_attachments_are_counted(client: AsyncClient) -> None:
    """Images and files are tokens of the prompt."""
    parts = ("Look", image("https://example.org/a.png"), file("file-1"), file(data=b"%PDF", filename="a.pdf"))
    response = await client.chat.create("grok-4", messages=[user(*parts)]).sample()
    one = await client.chat.create("grok-4", messages=[user(*parts[:2])]).sample()
    assert response.usage.prompt_image_tokens == 3 * one.usage.prompt_image_tokens > 0


async def test_stop_sequences(client: AsyncClient) -> None:
    """The answer ends before the first of them, and only what is left is paid."""
    whole = await ask(client)
    response = await ask(client, stop=["nowhere", "asked", "Natalia"])
    assert response.content == whole.content.partition("asked")[0]
    assert response.finish_reason == "REASON_STOP"
    assert response.usage.completion_tokens == -(-len(response.content) // 4) < whole.usage.completion_tokens


async def test_logprobs(client: AsyncClient) -> None:
    """Each token has one, and as many alternatives as asked for; together they are the text."""
    response = await ask(client, logprobs=True, top_logprobs=3)
    tokens = response.logprobs.content
    assert "".join(token.token for token in tokens) == response.content
    assert len(tokens) == response.usage.completion_tokens
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in tokens)
    assert all(token.top_logprobs[0].token == token.token for token in tokens)
    assert not (await ask(client)).logprobs.content


@pytest.mark.parametrize("params", [{}, {"logprobs": True}], ids=["plain", "not plain"])
@pytest.mark.filterwarnings("ignore:chat.sample_batch:PendingDeprecationWarning")
async def test_several_outputs(client: AsyncClient, params: dict[str, Any]) -> None:
    """`n` answers to one question differ, and are one call and one generation."""
    responses = await chat(client, **params).sample_batch(3)
    assert len({response.content for response in responses}) == 3
    assert [output.index for output in responses[0].proto.outputs] == [0, 1, 2]


@pytest.mark.parametrize(
    ("effort", "tokens"), [("none", 0), ("low", 10), ("medium", 20), ("high", 40), ("xhigh", 80), (None, 10)]
)
async def test_reasoning_effort(client: AsyncClient, control: SimulatorControl, effort: Any, tokens: int) -> None:
    """More effort is more tokens; the trace is there whenever there are any."""
    await control.set(reasoning_tokens=10)
    response = await ask(client, reasoning_effort=effort)
    assert response.usage.reasoning_tokens == tokens
    assert bool(response.reasoning_content) is bool(tokens)


async def test_priority_costs_double(client: AsyncClient) -> None:
    """The tier that is asked for is granted, told, and paid."""
    default, priority = await ask(client), await ask(client, service_tier="priority")
    assert (default.service_tier, priority.service_tier) == ("default", "priority")
    assert priority.usage.cost_in_usd_ticks == 2 * default.usage.cost_in_usd_ticks


async def test_encrypted_content_comes_back(client: AsyncClient) -> None:
    """It is part of the answer, and counted when it is sent again."""
    response = await ask(client, use_encrypted_content=True)
    assert response.encrypted_content
    without = await client.chat.create(
        "grok-4", messages=[user(QUESTION), assistant(response.content), user("And?")]
    ).sample()
    again = await chat(client).append(response).append(user("And?")).sample()
    assert again.usage.prompt_tokens > without.usage.prompt_tokens


async def test_a_compacted_conversation(client: AsyncClient, control: SimulatorControl) -> None:
    """Its messages become one, which costs a call, and makes the next one's prompt smaller."""
    talk = chat(client)
    response = await talk.sample()
    compacted = await talk.append(response).compact()
    assert (compacted.dropped_message_count, len(talk.messages)) == (2, 1)
    assert compacted.usage.prompt_tokens > response.usage.prompt_tokens
    assert (await talk.append(user("And?")).sample()).usage.prompt_tokens < response.usage.prompt_tokens
    await control.set(credit_in_usd_ticks=0)
    assert (await failure_of(talk.compact())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    totals = await control.totals()
    assert (totals.calls, totals.generations) == (4, 3)


# --- stored and deferred -----------------------------------------------------------------------------


async def test_stored_conversation(client: AsyncClient, control: SimulatorControl) -> None:
    """A stored answer is read again and gone on with: all of it counts as the prompt; deleted it is unknown."""
    first = await client.chat.create(
        "grok-4", messages=[system("Brief."), user(QUESTION)], store_messages=True
    ).sample()
    (again,) = await client.chat.get_stored_completion(first.id)
    assert again.proto == first.proto
    second = await ask(client, "And in June?", previous_response_id=first.id, store_messages=True)
    spoken = ("Brief.", QUESTION, first.content, "And in June?")
    assert second.usage.prompt_tokens == -(-sum(map(len, spoken)) // 4)
    third = await ask(client, "And in July?", previous_response_id=second.id)
    assert third.usage.prompt_tokens > second.usage.prompt_tokens
    assert await client.chat.delete_stored_completion(first.id) == first.id
    for call in (
        ask(client, previous_response_id=first.id),
        client.chat.get_stored_completion(first.id),
        client.chat.delete_stored_completion(third.id),
    ):
        assert (await failure_of(call)).code() is grpc.StatusCode.NOT_FOUND
    totals = await control.totals()
    assert (totals.generations, totals.ended) == (3, {"OK": 3, "NOT_FOUND": 1})


async def test_deferred_answer(client: AsyncClient, control: SimulatorControl) -> None:
    """It is pending until it is there, given once, and one call on the books."""
    await control.set(latency=0.3)
    stub = client.chat._stub
    request = chat(client).proto
    started = await stub.StartDeferredCompletion(request)
    poll = deferred_pb2.GetDeferredRequest(request_id=started.request_id)
    assert (await stub.GetDeferredCompletion(poll)).status == deferred_pb2.PENDING
    await control.until(lambda totals: totals.in_flight == 0)
    done = await stub.GetDeferredCompletion(poll)
    assert done.status == deferred_pb2.DONE
    assert (await failure_of(stub.GetDeferredCompletion(poll))).code() is grpc.StatusCode.NOT_FOUND
    await control.set(latency=0)
    assert done.response.outputs[0].message.content == (await ask(client)).content
    assert (await chat(client).defer()).content == done.response.outputs[0].message.content
    totals = await control.totals()
    assert (totals.calls, totals.generations) == (3, 3)


async def test_deferred_answer_fails(client: AsyncClient, control: SimulatorControl) -> None:
    """What is refused is refused at once; what fails later says so later, and was paid."""
    faults = [{"kind": "status", "times": 1}, {"kind": "drop_call"}]
    await control.set(faults=faults)
    stub = client.chat._stub
    request = chat(client).proto
    assert (await failure_of(stub.StartDeferredCompletion(request))).code() is grpc.StatusCode.UNAVAILABLE
    started = await stub.StartDeferredCompletion(request)
    await control.until(lambda totals: totals.in_flight == 0)
    polled = await stub.GetDeferredCompletion(deferred_pb2.GetDeferredRequest(request_id=started.request_id))
    assert polled.status == deferred_pb2.FAILED
    assert (await control.totals()).generations == 1


# --- streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"tools": [WEATHER, TIME], "parallel_tool_calls": True},
        {"tools": [web_search(), WEATHER], "include": ["web_search_call_output"]},
        {"tools": [x_search()], "include": ["inline_citations"]},
        {"response_format": Pet},
        {"reasoning_effort": "low", "use_encrypted_content": True},
        {"max_tokens": 20},
        {"stop": ["Natalia"]},
        {"search_parameters": SearchParameters(mode="on"), "service_tier": "priority"},
    ],
    ids=str,
)
async def test_a_stream_is_the_same_answer(client: AsyncClient, control: SimulatorControl, params: Any) -> None:
    """Chunks put together are what a whole answer is; a stream is one call and one generation."""
    whole = (await ask(client, **params)).proto
    response, chunks = await streamed(client, **params)
    response.proto.id = whole.id
    response.proto.created.CopyFrom(whole.created)
    assert response.proto == whole
    assert [bool(chunk.usage.total_tokens) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    totals = await control.totals()
    assert (totals.calls, totals.generations, totals.ended) == (2, 2, {"OK": 2})


async def test_reasoning_streams_first(client: AsyncClient, control: SimulatorControl) -> None:
    """Reasoning is over before the text begins; both come in pieces of so many tokens."""
    await control.set(tokens_per_chunk=3)
    _, chunks = await streamed(client, reasoning_effort="high")
    deltas = [output.delta for chunk in chunks for output in chunk.outputs]
    kinds = ["reasoning" if delta.reasoning_content else "text" for delta in deltas if delta.ByteSize() > 2]
    assert kinds == sorted(kinds)
    assert kinds.count("reasoning") > 1
    assert max(len(delta.content) for delta in deltas) == max(len(delta.reasoning_content) for delta in deltas) == 12


async def test_logprobs_stream_with_their_tokens(client: AsyncClient) -> None:
    """Each chunk has those of its own text."""
    _, chunks = await streamed(client, logprobs=True)
    outputs = [output for chunk in chunks for output in chunk.outputs]
    assert outputs[0].logprobs.content
    for output in outputs:
        assert "".join(token.token for token in output.logprobs.content) == output.delta.content


async def test_pace(client: AsyncClient, control: SimulatorControl) -> None:
    """The first token comes after the latency, the last after the rest, streamed or not; sleeps do not add up."""
    await control.set(latency=0.2, answer_tokens=600, tokens_per_second=1500, tokens_per_chunk=1)
    began = time.monotonic()
    times = [time.monotonic() - began async for _ in chat(client).stream()]
    assert len(times) > 500
    assert 0.2 <= times[0] < 0.45
    assert 0.58 <= times[-1] < 0.8
    began = time.monotonic()
    await ask(client)
    assert time.monotonic() - began >= 0.6


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"kind": "drop_call"}, grpc.StatusCode.UNAVAILABLE),
        ({"kind": "status", "after_start": True, "code": "INTERNAL"}, grpc.StatusCode.INTERNAL),
    ],
    ids=["drop_call", "status"],
)
@pytest.mark.parametrize("after_chunks", [0, 2, 10_000])
async def test_a_stream_breaks(
    client: AsyncClient, control: SimulatorControl, fault: dict[str, Any], code: grpc.StatusCode, after_chunks: int
) -> None:
    """It fails after so many chunks, never with all of them; it is paid, and booked as it ended."""
    _, chunks = await streamed(client)
    await control.set(faults=[{**fault, "after_chunks": after_chunks}])
    got = 0

    async def read() -> None:
        nonlocal got
        async for _ in chat(client).stream():
            got += 1

    assert (await failure_of(read())).code() is code
    assert got == min(after_chunks, len(chunks) - 1)
    totals = await control.totals()
    assert (totals.generations, totals.ended) == (2, {"OK": 1, code.name: 1})


@pytest.mark.parametrize(
    "knobs", [{"faults": [{"kind": "hang", "after_chunks": 1}]}, {"tokens_per_second": 1}], ids=str
)
async def test_a_cancelled_stream_ends(client: AsyncClient, control: SimulatorControl, knobs: Any) -> None:
    """A stream that hangs or is slow is in flight until its client goes away, then booked CANCELLED."""
    await control.set(**knobs, latency=0)
    call = asyncio.create_task(streamed(client))
    await control.until(lambda totals: totals.generations == 1)
    assert (await control.totals()).in_flight == 1
    call.cancel()
    totals = await control.until(lambda totals: totals.in_flight == 0)
    assert (totals.generations, totals.ended) == (1, {"CANCELLED": 1})


async def test_a_stream_that_is_not_read_to_its_end() -> None:
    """Closed between two chunks, it is booked CANCELLED."""
    state = State(Knobs())
    request = chat_pb2.GetCompletionsRequest(model="grok-4", messages=[user(QUESTION)])
    async with aclosing(Generations(state).stream(request, Caller(key="key", peer="peer"))) as chunks:
        await anext(chunks)
    totals = state.totals()
    assert (totals.in_flight, totals.ended) == (0, {"CANCELLED": 1})


async def test_a_conversation_begins_in_the_cache() -> None:
    """With what its last call has in common with it, as far as generations started; by key, model and name."""
    generations = Generations(State(Knobs(faults=(Fault(kind="status", match="refused"),))))

    async def cached(*said: str, model: str = "grok-4", **caller: str) -> int:
        messages = [user(each) for each in said]
        request = chat_pb2.GetCompletionsRequest(model=model, messages=messages)
        response = await generations.answer(request, Caller(**{"key": "key", "peer": "", "conversation": "c"} | caller))
        return response.usage.cached_prompt_text_tokens

    assert await cached("a" * 40) == 0
    with pytest.raises(Refusal):
        await cached("a" * 40, "b" * 20, "refused")
    assert await cached("a" * 40, "b" * 20, "now") == 10
    assert await cached("a" * 40, "b" * 20, "now", "then") == 16
    assert await cached("a" * 40, "other", "now") == 10
    assert await cached("other") == 0
    await cached("a" * 40)
    for elsewhere in ({"model": "grok-3"}, {"key": "other"}, {"conversation": "d"}, {"conversation": ""}):
        assert await cached("a" * 40, **elsewhere) == 0
    assert await cached("a" * 40, conversation="") == 0


async def test_a_reset_forgets_answers_and_ends_no_call() -> None:
    """Stored and deferred answers go with the knobs; a deferred call that hangs goes on in the old books."""
    state = State(Knobs(faults=(Fault(kind="hang", match="deferred"),)))
    generations = Generations(state)
    caller = Caller(key="key", peer="peer")
    stored = chat_pb2.GetCompletionsRequest(model="grok-4", messages=[user("Why?")], store_messages=True)
    response_id = (await generations.answer(stored, caller)).id
    deferred = chat_pb2.GetCompletionsRequest(model="grok-4", messages=[user("deferred")])
    request_id = generations.defer(deferred, caller)
    books = state.books
    state.reset(keep_knobs=False)
    gc.collect()
    with pytest.raises(Refusal):
        state.conversations.stored(response_id)
    with pytest.raises(Refusal):
        state.conversations.deferred(request_id)
    await asyncio.sleep(0)
    assert books.totals(credit=None).in_flight == 1
    await generations.aclose()
    assert books.totals(credit=None).ended == {"OK": 1, "CANCELLED": 1}


async def test_a_stream_is_refused_as_a_call_is(client: AsyncClient, control: SimulatorControl) -> None:
    """Limits and credit are the same for both."""
    await control.set(limits={"*": {"rpm": 1}})
    await ask(client)
    assert (await failure_of(streamed(client))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await control.totals()).generations == 1


async def test_an_oversized_stream(client: AsyncClient, control: SimulatorControl) -> None:
    """Its text comes in one chunk, which is more than the client takes."""
    await control.set(faults=[{"kind": "oversized"}])
    assert (await failure_of(streamed(client))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await control.totals()).generations == 1
