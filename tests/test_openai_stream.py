"""What openai_stream.py makes of the events of servers that differ. Without a server."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from promptq.producer.entries import job_of
from promptq.producer.errors import ErrorCode
from promptq.producer.results import Output, ToolCall, Usage
from promptq.worker.providers import openai_stream
from promptq.worker.providers.base import Answer, Delta, ProviderError
from promptq.worker.providers.openai_answer import answer_of
from promptq.worker.providers.openai_errors import error_of
from promptq.worker.providers.openai_stream import ErrorEvent, completion_in

DONE = "[DONE]"
JOB = job_of("Hi", {"model": "grok-4"})


def piece(index: int = 0, end: str | None = None, *, logprobs: Any = None, **delta: Any) -> dict[str, Any]:
    """A chunk with a part of one output."""
    return {"choices": [{"index": index, "delta": delta, "finish_reason": end, "logprobs": logprobs}]}


def call(index: int | None = None, **function: str) -> dict[str, Any]:
    """A part of a call; `id` begins one."""
    return {"index": index, "id": function.pop("id", None), "type": "function", "function": function}


async def streamed(*events: Any, cut: int = 1 << 20, end: str = "\n\n") -> tuple[Answer, list[Delta]]:
    """The answer, and what was heard, of events that come in blocks of `cut` bytes."""
    lines = (event if isinstance(event, str) else json.dumps(event, ensure_ascii=False) for event in events)
    wire = "".join(f"data: {line}{end}" for line in lines).encode()

    async def blocks() -> AsyncIterator[bytes]:
        for start in range(0, len(wire), cut):
            yield wire[start : start + cut]

    heard: list[Delta] = []
    return answer_of(await completion_in(blocks(), heard.append), JOB), heard


@pytest.mark.parametrize("cut", [1, 3, 1000])
@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\n: a comment\nevent: x\n\n"])
async def test_events_may_be_cut_anywhere(cut: int, end: str) -> None:
    """Also within a character; a line separator of Unicode ends no line."""
    answer, heard = await streamed(
        piece(content="ü\u2028"), piece(content="ö"), piece(end="stop"), DONE, cut=cut, end=end
    )
    assert (answer.content, answer.finish_reason) == ("ü\u2028ö", "stop")
    assert heard == [Delta("ü\u2028"), Delta("ö")]


async def test_what_comes_beside_the_outputs() -> None:
    """In whatever chunk it comes; of what comes again, the last counts; no usage is a usage of zero."""
    head = {"id": "r-1", "model": "grok-4-0709", "system_fingerprint": "fp", "service_tier": "priority"}
    usage = [{"prompt_tokens": 2, "completion_tokens": number} for number in (1, 5)]
    last = {"choices": [], "usage": usage[1], "citations": ["https://a.example"], "output_files": [{"file_id": "f"}]}
    answer, _ = await streamed(piece(content="a") | head | {"usage": usage[0]}, piece(end="length"), last, DONE)
    assert answer.usage == Usage(prompt_tokens=2, completion_tokens=5, total_tokens=7)
    assert (answer.response_id, answer.model, answer.system_fingerprint) == ("r-1", "grok-4-0709", "fp")
    assert (answer.service_tier, answer.finish_reason, answer.citations) == (
        "priority",
        "length",
        ("https://a.example",),
    )
    assert [file.file_id for file in answer.output_files] == ["f"]
    answer, _ = await streamed(piece(content="a", end="stop"), DONE)
    assert answer.usage == Usage()


async def test_several_answers_come_between_each_other() -> None:
    """Each has its own pieces, reasons, reasoning and log probabilities."""
    tokens = {"content": [{"token": "a", "logprob": -1.0}]}
    answer, heard = await streamed(
        piece(1, content="b"),
        piece(0, reasoning="Hm"),
        piece(0, content="a", logprobs=tokens),
        piece(0, content="a", logprobs=tokens),
        piece(1, "length", content="b"),
        piece(0, "stop"),
        DONE,
    )
    assert [(each.content, each.finish_reason) for each in answer.outputs] == [("bb", "length"), ("aa", "stop")]
    assert (answer.content, answer.reasoning_content, len(answer.logprobs or ())) == ("aa", "Hm", 2)
    assert heard == [
        Delta("b", output=1),
        Delta(reasoning_content="Hm"),
        Delta("a"),
        Delta("a"),
        Delta("b", output=1),
    ]
    assert isinstance(answer.outputs[0], Output)


CALLS = (ToolCall(id="1", name="f", arguments='{"a": 1}'), ToolCall(id="2", name="g", arguments="{}"))


@pytest.mark.parametrize("has_index", [True, False])
async def test_calls_are_told_whole(has_index: bool) -> None:
    """Their arguments come in pieces, one call after the other; some servers leave out which one it is."""
    first, second = (0, 1) if has_index else (None, None)
    events = [
        piece(tool_calls=[call(first, id="1", name="f", arguments="")]),
        piece(tool_calls=[call(first, arguments='{"a":')]),
        piece(tool_calls=[call(first, arguments=" 1}")]),
        piece(tool_calls=[call(second, id="2", name="g", arguments="{}")]),
    ]
    for end in ([piece(end="tool_calls"), DONE], [DONE]):
        answer, heard = await streamed(*events, *end)
        assert answer.tool_calls == CALLS
        assert heard == [Delta(tool_calls=CALLS)]


async def test_a_refusal_stands_for_the_answer() -> None:
    """As in an answer that comes at once."""
    answer, heard = await streamed(piece(refusal="I "), piece(refusal="won't."), piece(end="stop"), DONE)
    assert answer.content == "".join(delta.content for delta in heard) == "I won't."


async def test_a_server_without_a_last_event() -> None:
    """Where each output has its reason to end, nothing is missing."""
    answer, _ = await streamed(piece(content="a"), piece(end="stop"))
    assert answer.content == "a"


@pytest.mark.parametrize("events", [[], [piece(content="a")], [piece(0, "stop"), piece(1, content="a")]], ids=str)
async def test_a_stream_that_is_cut_off(events: list[Any]) -> None:
    """A part of an answer is none, however cleanly the connection was closed."""
    with pytest.raises(ProviderError) as caught:
        await streamed(*events)
    assert caught.value.code is ErrorCode.UNAVAILABLE


async def test_what_is_no_chunk() -> None:
    """It says what to look at, and quotes nothing."""
    with pytest.raises(ProviderError, match="see PROMPTQ_OPENAI_BASE_URL") as caught:
        await streamed("<html>secret")
    assert caught.value.code is ErrorCode.PROVIDER_ERROR
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "event",
    [
        piece(content="four"),
        piece(tool_calls=[call(0, arguments="four")]),
        piece(tool_calls=[call(id="another")]),
        piece(logprobs={"content": [{"token": "four", "logprob": -1.0}]}),
        "x" * 11,
    ],
)
async def test_an_endless_stream_ends(monkeypatch: pytest.MonkeyPatch, event: Any) -> None:
    """Whatever it is that does not end, of the answer or a line: no worker fills up with it."""
    monkeypatch.setattr(openai_stream, "LARGEST_ANSWER", 10 if isinstance(event, str) else 200)
    with pytest.raises(ProviderError) as caught:
        await streamed(*[event] * 60, cut=5)
    assert caught.value.code is ErrorCode.TOO_LARGE


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"code": "resource-exhausted", "error": "no"}, ErrorCode.RATE_LIMITED),
        ({"code": "unavailable", "error": "no"}, ErrorCode.UNAVAILABLE),
        ({"code": "failed-precondition", "error": "No credits left."}, ErrorCode.NO_CREDIT),
        ({"code": "new-to-us", "error": "no"}, ErrorCode.PROVIDER_ERROR),
        ({"error": {"message": "no", "type": "server_error", "code": None}}, ErrorCode.PROVIDER_ERROR),
        ({"error": {"message": "no", "type": "rate_limit_exceeded"}}, ErrorCode.RATE_LIMITED),
        ({"error": {"message": "no", "code": "context_length_exceeded"}}, ErrorCode.CONTEXT_LENGTH),
        ({"error": {"message": "no", "code": 503, "status": "UNAVAILABLE"}}, ErrorCode.UNAVAILABLE),
        ({"object": "error", "message": "no", "code": 400}, ErrorCode.INVALID_REQUEST),
        ({"error": "no"}, ErrorCode.PROVIDER_ERROR),
    ],
    ids=str,
)
async def test_an_error_in_the_stream(event: Any, code: ErrorCode) -> None:
    """Means what the same words and code would mean as an answer of their own; secrets are taken out."""
    with pytest.raises(ErrorEvent) as caught:
        await streamed(piece(content="a"), event)
    error = error_of(caught.value, lambda said: said.replace("no", "***"))
    assert (error.code, error.was_sent) == (code, True)
    assert error.message == ("in the stream: No credits left." if code is ErrorCode.NO_CREDIT else "in the stream: ***")


def test_thousands_of_calls_take_no_longer_than_their_number() -> None:
    """The pieces of a call are found at once, so that one odd answer does not hold up all others of its worker."""
    calls = [call(index, arguments="{}") for index in range(8000)]
    event, gathering = json.dumps(piece(tool_calls=calls)).encode(), openai_stream.Gathering()
    began = time.process_time()
    assert not list(gathering.add(event))
    assert time.process_time() - began < 0.6
