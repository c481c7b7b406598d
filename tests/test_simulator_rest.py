"""The simulator's REST API, called by the real OpenAI client, and compared with gRPC."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from xai_sdk import AsyncClient
from xai_sdk.chat import Response, assistant, image, required_tool, system, tool_result, user
from xai_sdk.search import SearchParameters
from xai_sdk.tools import web_search

from promptq.worker.simulator.control import SimulatorControl
from promptq.worker.simulator.process import SimulatorProcess
from simulator_calls import QUESTION
from simulator_chats import TIME, WEATHER, Pet, as_json

pytest_plugins = ["simulator_fixture"]

ASKED = {"model": "grok-4", "messages": [{"role": "user", "content": QUESTION}]}


@pytest.fixture
async def rest(simulator: SimulatorProcess, control: SimulatorControl) -> AsyncIterator[AsyncOpenAI]:
    """A client of the shared simulator, whose books are empty."""
    async with AsyncOpenAI(base_url=simulator.rest_url, api_key="test", max_retries=0) as client:
        yield client


@pytest.fixture
async def http(simulator: SimulatorProcess, control: SimulatorControl) -> AsyncIterator[httpx.AsyncClient]:
    """The same without a library in between."""
    headers = {"authorization": "Bearer test"}
    async with httpx.AsyncClient(base_url=simulator.rest_url, headers=headers) as client:
        yield client


async def asked(rest: AsyncOpenAI, **params: Any) -> Any:
    """One question, one answer, as JSON."""
    return (await rest.chat.completions.create(**{**ASKED, **params})).model_dump(exclude_none=True)


async def streamed(rest: AsyncOpenAI, **params: Any) -> list[Any]:
    """One question, answered in chunks, as JSON."""
    stream = await rest.chat.completions.create(**{**ASKED, **params}, stream=True)
    return [chunk.model_dump(exclude_none=True) async for chunk in stream]


def joined(chunks: list[Any]) -> list[dict[str, Any]]:
    """What chunks say together, by choice, in the shape of `told_by_grpc`."""
    said: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            one = said.setdefault(choice["index"], {"content": "", "reasoning": "", "calls": [], "finish": None})
            one["content"] += choice["delta"].get("content", "")
            one["reasoning"] += choice["delta"].get("reasoning_content", "")
            one["calls"] += [called(call) for call in choice["delta"].get("tool_calls", ())]
            one["finish"] = choice.get("finish_reason", one["finish"])
    return [said[index] for index in range(len(said))]


def told(answer: Any) -> list[dict[str, Any]]:
    """The choices of a whole answer, in the same shape."""
    return [
        {
            "content": choice["message"].get("content", ""),
            "reasoning": choice["message"].get("reasoning_content", ""),
            "calls": [called(call) for call in choice["message"].get("tool_calls", ())],
            "finish": choice["finish_reason"],
        }
        for choice in answer["choices"]
    ]


def called(call: Any) -> tuple[str, str, str]:
    """A call of a function."""
    return call["id"], call["function"]["name"], call["function"]["arguments"]


def told_by_grpc(response: Response) -> list[dict[str, Any]]:
    """The same of gRPC's answer with one output for the caller."""
    calls = [call for call in response.tool_calls if call.type == 1]
    return [
        {
            "content": response.content,
            "reasoning": response.reasoning_content,
            "calls": [(call.id, call.function.name, call.function.arguments) for call in calls],
            "finish": {"REASON_STOP": "stop", "REASON_MAX_LEN": "length"}.get(response.finish_reason, "tool_calls"),
        }
    ]


def used(usage: Any) -> dict[str, int]:
    """REST's usage with gRPC's names."""
    return {
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "total_tokens": usage["total_tokens"],
        "prompt_text_tokens": usage["prompt_tokens_details"]["text_tokens"],
        "prompt_image_tokens": usage["prompt_tokens_details"]["image_tokens"],
        "cached_prompt_text_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "reasoning_tokens": usage["completion_tokens_details"]["reasoning_tokens"],
        "num_sources_used": usage["num_sources_used"],
        "cost_in_usd_ticks": usage["cost_in_usd_ticks"],
    }


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "cut": ({"max_tokens": 20}, {"max_completion_tokens": 20}),
    "stopped": ({"stop": ["Natalia"]}, {"stop": "Natalia"}),
    "seed": ({"seed": 7}, {"seed": 7}),
    "reasoning": ({"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
    "function": ({"tools": [WEATHER]}, {"tools": [as_json(WEATHER)]}),
    "functions": (
        {"tools": [WEATHER, TIME], "parallel_tool_calls": True},
        {"tools": [as_json(WEATHER), as_json(TIME)], "parallel_tool_calls": True},
    ),
    "named function": (
        {"tools": [WEATHER, TIME], "tool_choice": required_tool("get_time")},
        {
            "tools": [as_json(WEATHER), as_json(TIME)],
            "tool_choice": {"type": "function", "function": {"name": "get_time"}},
        },
    ),
    "no function": (
        {"tools": [WEATHER], "tool_choice": "none"},
        {"tools": [as_json(WEATHER)], "tool_choice": "none"},
    ),
    "object": ({"response_format": "json_object"}, {"response_format": {"type": "json_object"}}),
    "schema": (
        {"response_format": Pet},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "pet", "schema": Pet.model_json_schema()},
            }
        },
    ),
    "server-side tool": ({"tools": [web_search()]}, {"tools": [{"type": "web_search"}]}),
    "search": (
        {"search_parameters": SearchParameters(mode="on")},
        {"extra_body": {"search_parameters": {"mode": "on"}}},
    ),
    "priority": ({"service_tier": "priority"}, {"service_tier": "priority"}),
    "messages": (
        {
            "messages": [
                system("Brief."),
                user("Look", image("https://example.org/a.png", detail="low")),
                assistant("A cat."),
                tool_result("42", "call_1"),
            ]
        },
        {
            "messages": [
                {"role": "system", "content": "Brief."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Look"},
                        {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}},
                    ],
                },
                {"role": "assistant", "content": "A cat."},
                {"role": "tool", "content": "42", "tool_call_id": "call_1"},
            ]
        },
    ),
}


@pytest.mark.parametrize(("by_grpc", "by_rest"), CASES.values(), ids=CASES)
async def test_the_same_answer_every_way(
    client: AsyncClient, rest: AsyncOpenAI, control: SimulatorControl, by_grpc: dict[str, Any], by_rest: dict[str, Any]
) -> None:
    """gRPC, REST and a REST stream say the same, call the same, cite the same, and cost the same."""
    await control.set(answer_tokens="uniform:30,300", cached_share=0.5)
    response = await client.chat.create("grok-4", **{"messages": [user(QUESTION)], **by_grpc}).sample()
    answer = await asked(rest, **by_rest)
    chunks = await streamed(rest, **by_rest, stream_options={"include_usage": True})
    assert told(answer) == joined(chunks) == told_by_grpc(response)
    usage = {name: getattr(response.usage, name) for name in used(answer["usage"])}
    assert used(answer["usage"]) == used(chunks[-1]["usage"]) == usage
    assert answer.get("citations", []) == chunks[-1].get("citations", []) == list(response.citations)
    assert answer["service_tier"] == response.service_tier
    journal = await control.journal()
    assert [entry.usage == journal[0].usage for entry in journal] == [True] * 3
    assert {(entry.model, entry.prompt, entry.key) for entry in journal} == {
        (journal[0].model, journal[0].prompt, journal[0].key)
    }


async def test_a_conversation_with_a_function(rest: AsyncOpenAI) -> None:
    """What the client sends back of a call is read: then comes text."""
    tools = [as_json(WEATHER)]
    first = (await rest.chat.completions.create(**ASKED, tools=tools)).choices[0].message  # type: ignore[call-overload]
    (call,) = first.tool_calls
    assert json.loads(call.function.arguments)["unit"] == "C"
    result = {"role": "tool", "content": "sunny", "tool_call_id": call.id}
    answer = await asked(rest, messages=[*ASKED["messages"], first.model_dump(), result], tools=tools)
    assert told(answer)[0]["content"].startswith("[simulated]")


async def test_several_choices_and_logprobs(rest: AsyncOpenAI) -> None:
    """`n` choices differ; log probabilities are those of the text; both also when streamed."""
    answer = await asked(rest, n=2, logprobs=True, top_logprobs=2)
    assert len({choice["content"] for choice in told(answer)}) == 2
    for choice in answer["choices"]:
        tokens = choice["logprobs"]["content"]
        assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
        assert all(len(token["top_logprobs"]) == 2 for token in tokens)
    assert joined(await streamed(rest, n=2, logprobs=True, top_logprobs=2)) == told(answer)


async def test_usage_of_a_stream_is_for_who_asks(rest: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    """Without include_usage there is none; the stream ends with [DONE] either way."""
    assert not any("usage" in chunk for chunk in await streamed(rest))
    for options in ({}, {"stream_options": {"include_usage": True}}):
        answer = await http.post("/chat/completions", json={**ASKED, "stream": True, **options})
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = answer.text.removesuffix("\n\n").split("\n\n")
        assert events[-1] == "data: [DONE]"
        assert all(json.loads(event.removeprefix("data: ")) for event in events[:-1])


async def test_a_deferred_answer(http: httpx.AsyncClient, control: SimulatorControl) -> None:
    """It is accepted, then there once; one that fails says so."""

    async def start() -> str:
        reply = await http.post(
            "/chat/completions", json={**ASKED, "tools": [{"type": "web_search"}], "deferred": True}
        )
        return f"/chat/deferred-completion/{reply.json()['request_id']}"

    await control.set(latency=0.1)
    place = await start()
    pending = await http.get(place)
    assert (pending.status_code, pending.content) == (202, b"")
    await control.until(lambda totals: totals.in_flight == 0)
    [choice] = (await http.get(place)).json()["choices"]
    assert choice["message"]["content"].startswith("[simulated]")
    assert (await http.get(place)).status_code == 404
    await control.set(latency=0, faults=[{"kind": "drop_call"}])
    place = await start()
    await control.until(lambda totals: totals.in_flight == 0)
    assert (await http.get(place)).status_code == 500
    assert (await control.totals()).generations == 2


async def test_models(rest: AsyncOpenAI, control: SimulatorControl) -> None:
    """They are listed for a good key, free of charge; one that is not there is not found."""
    models = [model.id async for model in await rest.models.list()]
    assert "grok-4" in models
    assert (await rest.models.retrieve("grok-4")).id == "grok-4"
    with pytest.raises(openai.NotFoundError):
        await rest.models.retrieve("grok-0")
    await control.set(key="blocked")
    with pytest.raises(openai.PermissionDeniedError):
        await rest.models.list()
    assert (await control.totals()).calls == 0


# --- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("INVALID_ARGUMENT", 400),
        ("UNAUTHENTICATED", 401),
        ("PERMISSION_DENIED", 403),
        ("NOT_FOUND", 404),
        ("ABORTED", 409),
        ("RESOURCE_EXHAUSTED", 429),
        ("INTERNAL", 500),
        ("UNKNOWN", 500),
        ("UNAVAILABLE", 503),
        ("DEADLINE_EXCEEDED", 504),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_status_in_xais_envelope(
    http: httpx.AsyncClient, control: SimulatorControl, code: str, status: int, is_streamed: bool
) -> None:
    """Each fault has its HTTP status, its code and words in the body, and its trailers as headers."""
    fault = {"kind": "status", "code": code, "details": "no", "trailers": {"retry-after": "7", "some-bin": "AAEC"}}
    await control.set(faults=[fault])
    answer = await http.post("/chat/completions", json={**ASKED, "stream": is_streamed})
    assert (answer.status_code, answer.headers["retry-after"]) == (status, "7")
    assert "some-bin" not in answer.headers
    assert answer.json() == {"code": code.lower().replace("_", "-"), "error": "no"}
    totals = await control.totals()
    assert (totals.generations, totals.ended) == (0, {code: 1})


@pytest.mark.parametrize(("hint", "header"), [("none", None), ("retry_after", "60"), ("retry_info", None)])
async def test_a_limit_is_shared(
    client: AsyncClient, rest: AsyncOpenAI, control: SimulatorControl, hint: str, header: str | None
) -> None:
    """What a key has used up over gRPC, it has used up over REST; the wait is told as the knob says."""
    await control.set(limits={"*": {"rpm": 1, "mode": "per_minute"}}, retry_hint=hint)
    await client.chat.create("grok-4", messages=[user(QUESTION)]).sample()
    with pytest.raises(openai.RateLimitError) as caught:
        await asked(rest)
    assert caught.value.response.headers.get("retry-after") == header
    assert caught.value.response.json()["error"].startswith("Too many requests for team")
    totals = await control.totals()
    assert (totals.generations, totals.ended) == (1, {"OK": 1, "RESOURCE_EXHAUSTED": 1})


@pytest.mark.parametrize(
    ("knobs", "status", "said"),
    [
        ({"key": "incorrect"}, 400, "Incorrect API key"),
        ({"key": "expired"}, 401, "expired"),
        ({"key": "blocked"}, 403, "blocked"),
        ({"credit_in_usd_ticks": 0}, 429, "used all available credits"),
        ({"credit_in_usd_ticks": 0, "no_credit_code": "PERMISSION_DENIED"}, 403, "used all available credits"),
    ],
    ids=str,
)
async def test_a_key_or_account_of_no_use(
    http: httpx.AsyncClient, control: SimulatorControl, knobs: dict[str, Any], status: int, said: str
) -> None:
    """No generation starts; the words are xAI's."""
    await control.set(**knobs)
    answer = await http.post("/chat/completions", json=ASKED)
    assert answer.status_code == status
    assert said in answer.json()["error"]
    assert (await control.totals()).generations == 0


async def test_a_key_is_required(http: httpx.AsyncClient, control: SimulatorControl) -> None:
    """Without one a call is refused, and seen."""
    for key in ("", "Basic test"):
        answer = await http.post("/chat/completions", json=ASKED, headers={"authorization": key})
        assert answer.status_code == 401
    totals = await control.totals()
    assert (totals.calls, totals.generations) == (2, 0)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"model": "grok-4"}',
        b'{"model": "grok-4", "messages": [{"role": "robot", "content": "secret"}]}',
        b'{"model": "grok-4", "messages": [], "tool_choice": {"secret": 1}}',
        b'{"model": "grok-4", "messages": [], "n": 0}',
        b'{"model": "grok-4", "messages": [], "max_tokens": 99999999999}',
    ],
)
async def test_a_body_that_is_none(http: httpx.AsyncClient, control: SimulatorControl, body: bytes) -> None:
    """It is 422 with the place, without a word of the body; the connection goes on."""
    answer = await http.post("/chat/completions", content=body)
    assert answer.status_code == 422
    assert "secret" not in answer.text.partition(":")[2]
    assert (await http.post("/chat/completions", json=ASKED)).status_code == 200
    assert (await control.totals()).calls == 1


async def test_what_is_not_there(http: httpx.AsyncClient) -> None:
    """Other paths and methods have xAI's envelope, too."""
    for answer in (await http.get("/nothing"), await http.get("/chat/completions")):
        assert answer.status_code in (404, 405)
        assert set(answer.json()) == {"code", "error"}
    unknown = await http.post("/chat/completions", json={**ASKED, "previous_response_id": "none"})
    assert unknown.status_code == 404


@pytest.mark.parametrize("after_chunks", [0, 2])
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_dropped_connection(
    rest: AsyncOpenAI, control: SimulatorControl, is_streamed: bool, after_chunks: int
) -> None:
    """The connection ends without an answer, or in the middle of it: paid, and booked UNAVAILABLE."""
    await control.set(faults=[{"kind": "drop_call", "after_chunks": after_chunks}])
    with pytest.raises(openai.APIConnectionError):
        await (streamed(rest) if is_streamed else asked(rest))
    totals = await control.totals()
    assert (totals.generations, totals.ended) == (1, {"UNAVAILABLE": 1})


async def test_a_status_in_the_middle_of_a_stream(rest: AsyncOpenAI, control: SimulatorControl) -> None:
    """It comes as an event with xAI's envelope; the client raises it."""
    await control.set(faults=[{"kind": "status", "after_start": True, "code": "INTERNAL", "after_chunks": 2}])
    stream = await rest.chat.completions.create(**ASKED, stream=True)  # type: ignore[call-overload]
    assert (await anext(stream)).choices
    assert (await anext(stream)).choices
    with pytest.raises(openai.APIError, match="during streaming"):
        await anext(stream)
    totals = await control.totals()
    assert (totals.generations, totals.ended) == (1, {"INTERNAL": 1})


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("after_chunks", [0, 2])
async def test_a_client_that_goes_away(
    rest: AsyncOpenAI, control: SimulatorControl, is_streamed: bool, after_chunks: int
) -> None:
    """A call that hangs is in flight until its client gives up, then booked CANCELLED, and paid."""
    await control.set(faults=[{"kind": "hang", "after_chunks": after_chunks}])
    call = asyncio.create_task(streamed(rest) if is_streamed else asked(rest))
    assert (await control.until(lambda totals: totals.generations == 1)).in_flight == 1
    call.cancel()
    totals = await control.until(lambda totals: totals.in_flight == 0)
    assert (totals.generations, totals.ended) == (1, {"CANCELLED": 1})


async def test_many_at_once(rest: AsyncOpenAI, client: AsyncClient, control: SimulatorControl) -> None:
    """Calls over both protocols are on the same books, each once."""
    await control.set(latency=0.05)
    await asyncio.gather(
        *(asked(rest, stop=str(number)) for number in range(50)),
        *(client.chat.create("grok-4", messages=[user(QUESTION)]).sample() for _ in range(50)),
    )
    totals = await control.totals()
    assert (totals.calls, totals.generations, totals.ended) == (100, 100, {"OK": 100})
