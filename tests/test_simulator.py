"""The simulator, called by the real SDK in a process of its own."""

import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import Any, get_args

import grpc
import grpc.aio
import httpx
import pytest
from pydantic import ValidationError
from xai_sdk import AsyncClient
from xai_sdk.chat import assistant, image, system, user
from xai_sdk.proto import chat_pb2, usage_pb2

from promptq.producer.errors import ErrorCode
from promptq.worker.providers.xai_errors import error_of
from promptq.worker.simulator import books
from promptq.worker.simulator.command import _port_after
from promptq.worker.simulator.control import SimulatorControl
from promptq.worker.simulator.knobs import Fault, Knobs, RateLimit, StatusName
from promptq.worker.simulator.process import (
    SimulatorDidNotStart,
    SimulatorProcess,
    running_simulator,
)
from promptq.worker.simulator.spread import Spread, parse_spread
from simulator_calls import QUESTION, Connect, ask, failure_of
from waiting import wait_until

COMMAND = (sys.executable, "-m", "promptq.worker.simulator")
pytest_plugins = ["simulator_fixture"]


# --- answers ---------------------------------------------------------------------------------------


async def test_answer_says_that_it_is_simulated(client: AsyncClient) -> None:
    """An answer begins with the mark, names the model as asked, and repeats the question."""
    response = await ask(client)
    assert response.content.startswith("[simulated]")
    assert QUESTION in response.content
    assert response.proto.model == "grok-4"
    assert "simulator" in response.proto.system_fingerprint
    assert response.finish_reason == "REASON_STOP"
    assert response.proto.created.seconds > 0
    assert response.proto.service_tier == usage_pb2.SERVICE_TIER_DEFAULT


async def test_same_prompt_same_answer(client: AsyncClient, control: SimulatorControl) -> None:
    """The answer follows from prompt and seed; ids are never given twice."""
    await control.set(answer_tokens="uniform:30,300")
    first, second, other = await ask(client), await ask(client), await ask(client, "What is 2 + 2?")
    await control.set(seed=2)
    reseeded = await ask(client)
    assert first.content == second.content
    assert len({first.content, other.content, reseeded.content}) == 3
    assert len({response.id for response in (first, second, other, reseeded)}) == 4


async def test_usage_adds_up(client: AsyncClient, control: SimulatorControl) -> None:
    """Every token field is filled: four characters a token, total = prompt + completion + reasoning."""
    cost = {"prompt": 3, "completion": 10}
    await control.set(answer_tokens=25, reasoning_tokens=7, cached_share=0.5, cost_in_usd_ticks=cost)
    usage = (await ask(client, "x" * 39)).usage
    assert usage.prompt_tokens == usage.prompt_text_tokens == 10
    assert usage.cached_prompt_text_tokens == 5
    assert usage.completion_tokens == 25
    assert usage.reasoning_tokens == 7
    assert usage.total_tokens == 42
    assert usage.cost_in_usd_ticks == 10 * 3 + (25 + 7) * 10


async def test_cost_can_be_left_out(client: AsyncClient, control: SimulatorControl) -> None:
    """Without a cost the field is absent, which is not 0."""
    await control.set(cost_in_usd_ticks=None)
    assert not (await ask(client)).usage.HasField("cost_in_usd_ticks")
    await control.set(cost_in_usd_ticks={"prompt": 0, "completion": 0})
    assert (await ask(client)).usage.HasField("cost_in_usd_ticks")


async def test_length_of_the_answer(client: AsyncClient, control: SimulatorControl) -> None:
    """A length from a range stays inside it, varies with the prompt, and the text is about as long."""
    await control.set(answer_tokens="uniform:100,200")
    responses = [await ask(client, f"Question {number}?") for number in range(20)]
    lengths = [response.usage.completion_tokens for response in responses]
    assert all(100 <= length <= 200 for length in lengths)
    assert len(set(lengths)) > 5
    assert all(
        0.75 < len(response.content) / 4 / length <= 1 for response, length in zip(responses, lengths, strict=True)
    )


async def test_max_tokens_cuts(client: AsyncClient) -> None:
    """An answer that is longer than max_tokens is cut there and says so; a shorter one is not."""
    cut, whole = await ask(client, max_tokens=20), await ask(client, max_tokens=1000)
    assert (cut.finish_reason, cut.usage.completion_tokens) == ("REASON_MAX_LEN", 20)
    assert len(cut.content) == 20 * 4
    assert whole.finish_reason == "REASON_STOP"


async def test_messages_of_several_parts(client: AsyncClient, control: SimulatorControl) -> None:
    """The prompt is the last user message, all its texts; tokens count all messages, and images."""
    messages = [
        system("Be brief."),
        user("First question"),
        assistant("First answer"),
        user("Look at", image("https://example.org/a.png"), "this picture"),
        assistant("It shows"),
    ]
    response = await client.chat.create("grok-4", messages=messages).sample()
    (entry,) = await control.journal()
    assert entry.prompt == "Look at\nthis picture"
    texts = ("Be brief.", "First question", "First answer", "Look at\nthis picture", "It shows")
    characters = sum(len(text) for text in texts)
    assert response.usage.prompt_text_tokens == -(-characters // 4)
    assert response.usage.prompt_image_tokens > 0
    assert response.usage.prompt_tokens == response.usage.prompt_text_tokens + response.usage.prompt_image_tokens


async def test_other_methods_are_unimplemented(client: AsyncClient, control: SimulatorControl) -> None:
    """A method of the API that is not simulated answers UNIMPLEMENTED and is not on the books."""
    error = await failure_of(client.tokenize.tokenize_text("Why?", "grok-4"))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert (await control.totals()).calls == 0


# --- keys ------------------------------------------------------------------------------------------


async def test_key_info(client: AsyncClient, control: SimulatorControl) -> None:
    """The Auth service tells the SDK about any key, never the key itself; it costs nothing."""
    info = await client.auth.get_api_key_info()
    assert not any((info.api_key_blocked, info.team_blocked, info.disabled))
    assert info.team_id
    assert info.acls
    assert "test" not in info.redacted_api_key
    assert (await control.totals()).calls == 0


@pytest.mark.parametrize("state", ["blocked", "team_blocked", "disabled", "incorrect"])
async def test_a_key_of_no_use(client: AsyncClient, control: SimulatorControl, state: str) -> None:
    """The knob `key`: the Auth service tells how it is, or does not know it; no generation starts with it."""
    await control.set(key=state)
    if state == "incorrect":
        assert (await failure_of(client.auth.get_api_key_info())).code() is grpc.StatusCode.INVALID_ARGUMENT
    else:
        info = await client.auth.get_api_key_info()
        told = {"blocked": info.api_key_blocked, "team_blocked": info.team_blocked, "disabled": info.disabled}
        assert [name for name, is_so in told.items() if is_so] == [state]
    error = await failure_of(ask(client))
    assert error_of(error.code(), error.details() or "", None).code == ErrorCode.BAD_KEY
    assert (await control.totals()).generations == 0


async def test_a_key_is_required(simulator: SimulatorProcess, control: SimulatorControl) -> None:
    """Without a bearer key a call ends UNAUTHENTICATED; it is seen, but no generation starts."""
    request = chat_pb2.GetCompletionsRequest(model="grok-4")
    async with grpc.aio.insecure_channel(simulator.host) as channel:
        for metadata in ((), (("authorization", "test"),), (("authorization", "Bearer "),)):
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/xai_api.Chat/GetCompletion")
            error = await failure_of(call(request.SerializeToString(), metadata=metadata))
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    totals = await control.totals()
    assert (totals.calls, totals.generations, totals.ended) == (3, 0, {"UNAUTHENTICATED": 3})


async def test_journal_has_no_key(client: AsyncClient, control: SimulatorControl) -> None:
    """The journal tells keys apart by a fingerprint and never holds the key."""
    await ask(client)
    (entry,) = await control.journal()
    assert len(entry.key) == 12
    assert "test" not in entry.key


# --- faults ----------------------------------------------------------------------------------------


async def test_status_with_trailers(client: AsyncClient, control: SimulatorControl) -> None:
    """A status reaches the client with details and trailers, binary ones decoded; nothing is charged."""
    trailers = {"retry-after": "7", "some-bin": "AAEC"}
    await control.set(faults=[Fault(kind="status", code="RESOURCE_EXHAUSTED", details="slow down", trailers=trailers)])
    error = await failure_of(ask(client))
    assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down")
    metadata = dict(error.trailing_metadata())
    assert metadata["retry-after"] == "7"
    assert metadata["some-bin"] == b"\x00\x01\x02"
    totals = await control.totals()
    assert (totals.generations, totals.ended) == (0, {"RESOURCE_EXHAUSTED": 1})
    assert totals.charged.total_tokens == 0


@pytest.mark.parametrize("code", get_args(StatusName))
async def test_every_status(client: AsyncClient, control: SimulatorControl, code: StatusName) -> None:
    """Each status code there is can be ordered, and is what the client gets."""
    await control.set(faults=[Fault(kind="status", code=code)])
    assert (await failure_of(ask(client))).code() is grpc.StatusCode[code]
    assert (await control.totals()).ended == {code: 1}


async def test_status_after_start_is_paid(client: AsyncClient, control: SimulatorControl) -> None:
    """With after_start the generation is charged, though no answer comes."""
    await control.set(faults=[Fault(kind="status", code="INTERNAL", after_start=True)], answer_tokens=50)
    assert (await failure_of(ask(client))).code() is grpc.StatusCode.INTERNAL
    totals = await control.totals()
    assert (totals.generations, totals.ended) == (1, {"INTERNAL": 1})
    assert totals.charged.completion_tokens == 50
    assert totals.answered.total_tokens == 0


async def test_dropped_call_is_paid_once_without_retries(client: AsyncClient, control: SimulatorControl) -> None:
    """A dropped call is UNAVAILABLE for the client, and one generation on the books."""
    await control.set(faults=[{"kind": "drop_call"}])
    assert (await failure_of(ask(client))).code() is grpc.StatusCode.UNAVAILABLE
    totals = await control.totals()
    assert (totals.calls, totals.generations, totals.ended) == (1, 1, {"UNAVAILABLE": 1})


async def test_sdk_retries_pay_for_several_generations(
    simulator: SimulatorProcess, control: SimulatorControl, connect: Connect
) -> None:
    """One `sample()` with the SDK's defaults and two dropped calls starts three generations."""
    await control.set(faults=[Fault(kind="drop_call", times=2)])
    response = await ask(connect(simulator.host, retries=True))
    totals = await control.totals()
    assert (totals.generations, totals.ended) == (3, {"UNAVAILABLE": 2, "OK": 1})
    assert totals.charged.total_tokens == 3 * response.usage.total_tokens
    assert totals.answered.total_tokens == response.usage.total_tokens


async def test_hanging_call_ends_when_the_client_gives_up(client: AsyncClient, control: SimulatorControl) -> None:
    """A hanging call is paid for and in flight until the client cancels, then booked CANCELLED."""
    await control.set(faults=[Fault(kind="hang")])
    call = asyncio.create_task(ask(client))
    totals = await control.until(lambda totals: totals.generations == 1)
    assert (totals.in_flight, totals.ended) == (1, {})
    call.cancel()
    totals = await control.until(lambda totals: totals.in_flight == 0)
    assert totals.ended == {"CANCELLED": 1}


async def test_cancel_is_seen_while_the_answer_takes_its_time(client: AsyncClient, control: SimulatorControl) -> None:
    """Cancelling a call in its latency ends it at the server at once, and it stays charged."""
    await control.set(latency=60)
    call = asyncio.create_task(ask(client))
    await control.until(lambda totals: totals.in_flight == 1)
    call.cancel()
    totals = await control.until(lambda totals: totals.in_flight == 0)
    assert totals.ended == {"CANCELLED": 1}
    assert totals.charged.total_tokens > 0


async def test_oversized_answer(client: AsyncClient, control: SimulatorControl) -> None:
    """An answer over the SDK's limit is RESOURCE_EXHAUSTED at the client, though the server sent it."""
    await control.set(faults=[Fault(kind="oversized")])
    error = await failure_of(ask(client))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "Received message larger than max" in (error.details() or "")
    totals = await control.totals()
    assert (totals.generations, totals.ended) == (1, {"OK": 1})


async def test_oversized_prompt_never_arrives(client: AsyncClient, control: SimulatorControl) -> None:
    """A prompt just under 20 MiB is taken; one above fails in the client, and no call is seen."""
    mib = 1 << 20
    await ask(client, "x" * (20 * mib - 1000))
    error = await failure_of(ask(client, "x" * (20 * mib + 1000)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await control.totals()).calls == 1


async def test_fault_fits_by_text_and_count(client: AsyncClient, control: SimulatorControl) -> None:
    """`match` picks calls by their prompt, `times` bounds how often; the first fault that fits happens."""
    await control.set(
        faults=[
            Fault(kind="status", code="INTERNAL", match="poison", times=1),
            Fault(kind="status", code="ABORTED", match="poison"),
        ]
    )
    await ask(client, "clean")
    assert (await failure_of(ask(client, "a poison pill"))).code() is grpc.StatusCode.INTERNAL
    assert (await failure_of(ask(client, "a poison pill"))).code() is grpc.StatusCode.ABORTED
    await ask(client, "clean")


async def test_fault_rate(client: AsyncClient, control: SimulatorControl) -> None:
    """A rate is the share of calls that fail."""
    await control.set(faults=[Fault(kind="status", code="INTERNAL", rate=0.3)])
    outcomes = await asyncio.gather(*(ask(client) for _ in range(400)), return_exceptions=True)
    failed = sum(isinstance(outcome, grpc.aio.AioRpcError) for outcome in outcomes)
    assert 80 < failed < 160


# --- latency, streams, connections ------------------------------------------------------------------


async def test_latency_is_waited(client: AsyncClient, control: SimulatorControl) -> None:
    """An answer takes as long as the knob says."""
    await control.set(latency="uniform:0.1,0.2")
    await asyncio.gather(*(ask(client) for _ in range(20)))
    entries = await control.journal()
    assert all((entry.ended_at or 0) - entry.started_at > 0.09 for entry in entries)


async def test_keepalive_pings_are_welcome(simulator: SimulatorProcess) -> None:
    """A client may ping as often as it likes; by default gRPC sends it away (GOAWAY) after three pings.

    The SDK pings every 30 s, so a long silent call would end. A gRPC client pings once a second at
    most: this one speaks HTTP/2 itself, frame by frame.
    """
    ping, goaway, pings = 6, 7, 10
    reader, writer = await asyncio.open_connection(*simulator.host.split(":"))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2_frame(4, b""))
    for number in range(pings):
        writer.write(http2_frame(ping, number.to_bytes(8)))
    kinds: list[int] = []
    while goaway not in kinds and kinds.count(ping) < pings:
        header = await reader.readexactly(9)
        await reader.readexactly(int.from_bytes(header[:3]))
        kinds.append(header[3])
    writer.close()
    await writer.wait_closed()
    assert goaway not in kinds


def http2_frame(kind: int, payload: bytes) -> bytes:
    """A frame of the connection itself, without flags."""
    return len(payload).to_bytes(3) + bytes((kind, 0)) + bytes(4) + payload


@pytest.mark.parametrize(
    ("spec", "mean", "deviation"),
    [
        ("0.5", 0.5, 0.0),
        (3, 3.0, 0.0),
        ("uniform:1,3", 2.0, 0.5774),
        ("exponential:2", 2.0, 2.0),
        ("lognormal:2,0.5", 2.2663, 1.2078),
    ],
)
def test_spread_has_its_distribution(spec: object, mean: float, deviation: float) -> None:
    """Each form of a latency is read, drawn with its mean and deviation, and written the same again."""
    spread = parse_spread(spec)
    draws = random.Random(1)
    numbers = [spread.at(draws.random()) for _ in range(20_000)]
    assert statistics.fmean(numbers) == pytest.approx(mean, rel=0.03)
    assert statistics.pstdev(numbers) == pytest.approx(deviation, rel=0.06)
    assert parse_spread(str(spread)) == spread


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "fast",
        "-1",
        "nan",
        "inf",
        "uniform:1",
        "uniform:3,1",
        "lognormal:0,1",
        "normal:1,2",
        "fixed:1,2",
        True,
        None,
    ],
)
def test_bad_latency_is_refused(spec: object) -> None:
    """Anything else is refused, and the error names the field."""
    with pytest.raises(ValidationError, match="latency"):
        Knobs.model_validate({"latency": spec})


@pytest.mark.parametrize(
    ("knobs", "field"),
    [
        ({"answer_tokens": "2.5"}, "answer_tokens"),
        ({"answer_tokens": "exponential:3"}, "answer_tokens"),
        ({"cost_in_usd_ticks": "cheap"}, "cost_in_usd_ticks"),
        ({"max_concurrent_streams": 0}, "max_concurrent_streams"),
        ({"speed": 3}, "speed"),
        ({"faults": [{"kind": "drop_call", "rate": 1.5}]}, r"faults\.0\.rate"),
        ({"faults": [{"kind": "status", "code": "OK"}]}, r"faults\.0\.code"),
        ({"faults": [{"kind": "hang", "details": "x"}]}, "details"),
        ({"faults": [{"kind": "oversized", "after_chunks": 1}]}, "after_chunks"),
        ({"faults": [{"kind": "status", "after_chunks": 1}]}, "after_start"),
        ({"tokens_per_second": 0}, "tokens_per_second"),
        ({"tokens_per_chunk": 0}, "tokens_per_chunk"),
        ({"faults": [{"kind": "status", "trailers": {"Upper": "x"}}]}, r"faults\.0\.trailers"),
        ({"faults": [{"kind": "status", "trailers": {"x-bin": "?"}}]}, r"faults\.0\.trailers"),
    ],
)
def test_bad_knob_is_refused(knobs: dict[str, Any], field: str) -> None:
    """A bad value is an error that names the field."""
    with pytest.raises(ValidationError, match=field):
        Knobs.model_validate(knobs)


def test_status_names_are_all_of_grpc() -> None:
    """The codes that a fault may have are those of gRPC, without OK."""
    assert set(get_args(StatusName)) == {code.name for code in grpc.StatusCode} - {"OK"}


async def test_max_streams(connect: Connect) -> None:
    """One connection never has more calls in flight than the limit; two connections have twice that."""
    async with running_simulator(max_concurrent_streams=4, latency=0.02) as simulator:
        clients = [connect(simulator.host, pool=True) for _ in range(2)]
        await asyncio.gather(*(ask(clients[0]) for _ in range(30)))
        assert (await simulator.control.totals()).peak_in_flight <= 4
        await simulator.control.set(latency=60)
        calls = [asyncio.create_task(ask(clients[number % 2])) for number in range(16)]
        totals = await simulator.control.until(lambda totals: totals.in_flight == 8)
        assert (totals.peak_in_flight, totals.connections, totals.calls) == (8, 2, 30 + 8)
        for call in calls:
            call.cancel()


# --- control ---------------------------------------------------------------------------------------


async def test_set_leaves_other_knobs(control: SimulatorControl) -> None:
    """`set` turns the named knobs only, and `knobs` shows them."""
    fault = Fault(kind="status", code="NOT_FOUND", trailers={"a": "b"}, match="x")
    await control.set(latency="uniform:0.1,0.2", faults=[fault])
    await control.set(answer_tokens=5)
    knobs = await control.knobs()
    assert knobs == Knobs(latency=Spread("uniform", 0.1, 0.2), answer_tokens=Spread("fixed", 5), faults=(fault,))


async def test_set_keeps_count_of_faults(client: AsyncClient, control: SimulatorControl) -> None:
    """A fault that has happened its `times` stays over when another knob is turned."""
    await control.set(faults=[Fault(kind="drop_call", times=1)])
    await failure_of(ask(client))
    await control.set(answer_tokens=10)
    await ask(client)


async def test_set_refuses_bad_values(control: SimulatorControl) -> None:
    """A bad change is refused with the field's name, on this side of the wire and on the other."""
    with pytest.raises(ValidationError, match="latency"):
        await control.set(latency="soon")
    with pytest.raises(ValueError, match="max_concurrent_streams"):
        await control.set(max_concurrent_streams=3)
    error = await failure_of(control._call("PatchKnobs", {"latency": "soon"}))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "latency" in (error.details() or "")
    assert await control.knobs() == Knobs()


async def test_reset_starts_over(client: AsyncClient, control: SimulatorControl) -> None:
    """`reset` empties the books and restores the knobs, or keeps them if told so."""
    await control.set(answer_tokens=5)
    await ask(client)
    await control.reset(keep_knobs=True)
    assert (await control.totals()).calls == 0
    assert await control.journal() == []
    assert (await control.knobs()).answer_tokens == Spread("fixed", 5)
    await control.reset()
    assert await control.knobs() == Knobs()


async def test_call_in_flight_at_reset_stays_in_the_old_books(client: AsyncClient, control: SimulatorControl) -> None:
    """A call that outlives a reset never shows in the new books, not even as a negative number."""
    await control.set(faults=[Fault(kind="hang", match="old")])
    call = asyncio.create_task(ask(client, "old"))
    await control.until(lambda totals: totals.in_flight == 1)
    await control.reset()
    call.cancel()
    await ask(client, "new")
    await wait_until(call.done)
    totals = await control.totals()
    assert (totals.calls, totals.in_flight, totals.ended) == (1, 0, {"OK": 1})


async def test_journal_tells_each_call(client: AsyncClient, control: SimulatorControl) -> None:
    """Entries come in order, can be asked since a number and by prompt, and carry the usage."""
    await control.set(faults=[Fault(kind="status", code="NOT_FOUND", match="two")])
    for prompt in ("one", "two", "three"):
        await asyncio.gather(ask(client, prompt), return_exceptions=True)
    entries = await control.journal()
    assert [(entry.number, entry.prompt, entry.ended) for entry in entries] == [
        (1, "one", "OK"),
        (2, "two", "NOT_FOUND"),
        (3, "three", "OK"),
    ]
    assert [entry.generation for entry in entries] == [True, False, True]
    assert all((entry.usage is not None) == entry.generation for entry in entries)
    assert await control.journal(since=2) == entries[2:]
    assert await control.journal(match="o") == entries[:2]


async def test_journal_longer_than_a_page(client: AsyncClient, control: SimulatorControl) -> None:
    """A burst of 2,100 calls is answered whole, and a journal of several round trips arrives whole."""
    await asyncio.gather(*(ask(client, f"{number}") for number in range(2_100)))
    entries = await control.journal()
    assert [entry.number for entry in entries] == list(range(1, 2_101))
    assert {entry.prompt for entry in entries} == {f"{number}" for number in range(2_100)}
    assert sum(entry.usage.total_tokens for entry in entries if entry.usage) == (
        (await control.totals()).charged.total_tokens
    )


def test_journal_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal forgets the oldest calls and the tails of prompts; numbers and totals go on."""
    monkeypatch.setattr(books, "JOURNAL_LENGTH", 3)
    journal = books.Books()
    for _ in range(5):
        journal.open(model="grok-4", prompt="x" * 5_000, key="", peer="")
    assert [call.number for call in journal.calls_after(0)] == [3, 4, 5]
    assert [call.number for call in journal.calls_after(4)] == [5]
    assert {len(call.prompt) for call in journal.calls_after(0)} == {1_000}
    assert journal.totals(credit=None).calls == 5


def test_seconds_are_counted_by_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call counts in the second in which it came, with what it started or that it was refused."""
    now = 1_700_000_000.9
    monkeypatch.setattr(time, "time", lambda: now)
    counted = books.Books()

    def call(model: str) -> books.Call:
        return counted.open(model=model, prompt="", key="", peer="")

    usage = books.TokenUsage(1, 0, 0, 2, 4, 1, 7, None)
    early = call("grok-4")
    counted.throttle(call("grok-4"))
    counted.start(call("grok-3"), usage)
    now += 0.2
    counted.start(call("grok-4"), usage)
    counted.start(early, usage)
    rows = [(row.second - 1_700_000_000, *list(row.model_dump().values())[1:]) for row in counted.seconds()]
    assert rows == [(0, "grok-4", 2, 1, 1, 7), (0, "grok-3", 1, 1, 0, 7), (1, "grok-4", 1, 1, 0, 7)]
    monkeypatch.setattr(books, "SECONDS_LENGTH", 3)
    call("grok-2")
    assert [row.model for row in counted.seconds()] == ["grok-3", "grok-4", "grok-2"]


async def test_seconds_add_up_to_the_totals(client: AsyncClient, control: SimulatorControl) -> None:
    """Summed over all seconds and models, there is every call, and every token that was charged."""
    await control.set(limits={"grok-4": {"rpm": 5, "mode": "per_minute"}})
    began = int(time.time())
    models = ("grok-4", "grok-3") * 8
    await asyncio.gather(*(ask(client, model=model) for model in models), return_exceptions=True)
    seconds, totals = await control.seconds(), await control.totals()
    assert {row.model for row in seconds} == {"grok-4", "grok-3"}
    assert all(began <= row.second <= time.time() for row in seconds)
    assert sum(row.calls for row in seconds) == totals.calls == 16
    assert sum(row.generations for row in seconds) == totals.generations == 13
    assert sum(row.throttled for row in seconds) == 3
    assert sum(row.total_tokens for row in seconds) == totals.charged.total_tokens
    await control.reset()
    assert await control.seconds() == []


# --- the process -----------------------------------------------------------------------------------


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """Runs a simulator that is expected to end by itself."""
    return subprocess.run((*COMMAND, *options), capture_output=True, text=True, check=False, timeout=20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_cleanly(number: signal.Signals) -> None:
    """The first line tells the address and how to use it; a signal ends it with totals and exit code 0."""
    options = ["--port", "0", "--latency", "uniform:0.1,0.2", "--tokens-per-chunk", "1", "--fault"]
    command = (*COMMAND, *options, '{"kind": "hang", "rate": 0}')
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        process.send_signal(number)
        rest, errors = process.communicate(timeout=10)
    host = ready.partition("PROMPTQ_XAI_HOST=")[2].split()[0]
    assert host.startswith("127.0.0.1:")
    assert "PROMPTQ_XAI_INSECURE=1" in ready
    assert "REST on http://127.0.0.1:" in ready
    assert (process.returncode, errors) == (0, "")
    assert "0 calls, 0 generations" in rest
    assert rest.count("\n") == 1


@pytest.mark.parametrize("option", ["--port", "--rest-port"])
def test_port_in_use_is_one_line(option: str) -> None:
    """A port that is taken is one line on stderr and exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = run("--port", "0", option, str(taken.getsockname()[1]))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "Address already in use" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ("--latency", "soon"),
        ("--fault", "{"),
        ("--fault", '{"kind": "?"}'),
        ("--knobs", "[]"),
        ("--rpm", "0"),
        ("--retry-hint", "soon"),
        ("--per-minute", "--ready-json"),
    ],
)
def test_bad_option_is_one_line(options: tuple[str, str]) -> None:
    """A bad value is one line on stderr and exit code 2."""
    ended = run(*options)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1


async def test_ends_with_its_block(connect: Connect) -> None:
    """After the block nothing listens any more, though a call hung."""
    async with running_simulator(faults=[{"kind": "hang"}]) as simulator:
        call = asyncio.create_task(ask(connect(simulator.host)))
        await simulator.control.until(lambda totals: totals.in_flight == 1)
    assert not is_listening(simulator.host)
    await failure_of(call)


async def test_start_that_fails_is_told() -> None:
    """A simulator that cannot start is an error, not a wait."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SimulatorDidNotStart):
            async with running_simulator(port=port):
                pass
    with pytest.raises(ValidationError, match="latency"):
        async with running_simulator(latency=-1):
            pass


async def test_dies_with_its_parent() -> None:
    """When the process that started it is killed, the simulator ends too."""
    program = (
        "import time\n"
        "from promptq.worker.simulator.process import simulator_process\n"
        "with simulator_process() as simulator:\n"
        "    print(simulator.host, simulator.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen((sys.executable, "-c", program), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        host, pid = parent.stdout.readline().split()
        assert is_listening(host)
        os.kill(parent.pid, signal.SIGKILL)
    try:
        await wait_until(lambda: not is_listening(host), message="the simulator is gone")
    except AssertionError:
        os.kill(int(pid), signal.SIGKILL)
        raise


async def test_limits_on_the_command_line() -> None:
    """`--rpm`, `--tpm`, `--per-minute` and `--retry-hint` are knobs for every model."""
    options = ("--port", "0", "--rpm", "120", "--tpm", "9e5", "--per-minute", "--retry-hint", "retry_info")
    with subprocess.Popen((*COMMAND, *options, "--ready-json"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        async with SimulatorControl(ready["host"]) as control:
            knobs = await control.knobs()
        process.terminate()
    limit = RateLimit(rpm=120, tpm=900_000, mode="per_minute")
    assert knobs == Knobs(limits={"*": limit}, retry_hint="retry_info")


def test_ready_line_is_json() -> None:
    """With --ready-json, programs can read the address and the totals."""
    with subprocess.Popen((*COMMAND, "--port", "0", "--ready-json"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        process.terminate()
        totals = json.loads(process.stdout.read())
    assert ready["host"] == f"127.0.0.1:{ready['port']}"
    assert ready["rest_url"].startswith("http://127.0.0.1:")
    assert totals["calls"] == 0


@pytest.mark.parametrize(("port", "rest_port"), [(0, 0), (50051, 50052), (65535, 0)])
def test_rest_port_by_default(port: int, rest_port: int) -> None:
    """It is the next one, or a free one if there is no such or any will do."""
    assert _port_after(port) == rest_port


async def test_a_signal_ends_calls_in_flight(connect: Connect) -> None:
    """A simulator that is ended while calls of every sort hang ends as cleanly."""
    command = (*COMMAND, "--port", "0", "--fault", '{"kind": "hang"}', "--ready-json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        chat = connect(ready["host"]).chat.create("grok-4", messages=[user(QUESTION)])
        body = {"model": "grok-4", "messages": [{"role": "user", "content": QUESTION}]}
        headers = {"authorization": "Bearer test"}
        async with httpx.AsyncClient(base_url=ready["rest_url"], headers=headers) as http:
            calls = [
                asyncio.create_task(chat.sample()),
                asyncio.create_task(chat.defer()),
                asyncio.create_task(http.post("/chat/completions", json=body)),
                asyncio.create_task(http.post("/chat/completions", json={**body, "stream": True})),
            ]
            async with SimulatorControl(ready["host"]) as control:
                await control.until(lambda totals: totals.generations == 4)
            process.terminate()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        totals, errors = await asyncio.to_thread(process.communicate, timeout=10)
    assert all(isinstance(outcome, Exception) for outcome in outcomes)
    assert (process.returncode, errors) == (0, "")
    assert json.loads(totals)["ended"] == {"CANCELLED": 4}


def is_listening(host: str) -> bool:
    """Whether somebody answers at `address:port`."""
    address, _, port = host.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((address, int(port))) == 0
