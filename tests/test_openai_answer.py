import json
from typing import Any

import pytest

from promptq.producer.entries import job_of
from promptq.producer.errors import ErrorCode
from promptq.producer.results import Output, OutputFile, TokenLogprob, ToolCall, TopLogprob, Usage
from promptq.worker.providers.base import LARGEST_ANSWER, Answer, ProviderError
from promptq.worker.providers.openai_answer import answer_of, completion_of

JOB = job_of("Hi", {"model": "grok-4"})


def choice(content: str | None = "Hi", index: int = 0, **fields: Any) -> dict[str, Any]:
    """One of the answers."""
    message = {"role": "assistant", "content": content, **fields.pop("message", {})}
    return {"index": index, "message": message, "finish_reason": "stop", **fields}


def answer(*choices: dict[str, Any], **fields: Any) -> Answer:
    """What the provider makes of such a body."""
    return answer_of(completion_of(json.dumps({"choices": choices, **fields}).encode()), JOB)


def failure(body: bytes) -> ProviderError:
    """The error that such a body is."""
    with pytest.raises(ProviderError) as caught:
        answer_of(completion_of(body), JOB)
    return caught.value


def test_all_of_an_answer() -> None:
    """With numbers that differ: each field is where it belongs."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    searched = {"id": "2", "type": "web_search_call", "function": {"name": "s", "arguments": "{}"}}
    ran = {"id": "3", "type": "code_interpreter_call", "function": {"name": "c", "arguments": ""}}
    logprob = {"token": "H", "logprob": -0.5, "bytes": [72], "top_logprobs": [{"token": "J", "logprob": -1.5}]}
    told = answer(
        choice(
            message={"reasoning_content": "hm", "tool_calls": [call, searched, ran]},
            finish_reason="tool_calls",
            logprobs={"content": [logprob], "refusal": None},
        ),
        id="r",
        model="grok-4-0709",
        citations=["https://a"],
        output_files=[{"file_id": "f", "name": "a.csv"}],
        system_fingerprint="fp",
        service_tier="priority",
        usage={
            "prompt_tokens": 1,
            "completion_tokens": 2,
            "total_tokens": 6,
            "prompt_tokens_details": {"cached_tokens": 4, "text_tokens": 5, "image_tokens": 7, "audio_tokens": 8},
            "completion_tokens_details": {"reasoning_tokens": 3},
            "num_sources_used": 9,
            "cost_in_usd_ticks": 10,
        },
    )
    assert told == Answer(
        content="Hi",
        model="grok-4-0709",
        usage=Usage(
            prompt_tokens=1,
            completion_tokens=2,
            reasoning_tokens=3,
            cached_prompt_tokens=4,
            total_tokens=6,
            cost_in_usd_ticks=10,
            prompt_text_tokens=5,
            prompt_image_tokens=7,
            num_sources_used=9,
        ),
        finish_reason="tool_calls",
        reasoning_content="hm",
        tool_calls=(ToolCall(id="1", name="f", arguments="{}"),),
        server_tool_calls=(
            ToolCall(id="2", name="s", arguments="{}", type="web_search"),
            ToolCall(id="3", name="c", arguments="", type="code_execution"),
        ),
        citations=("https://a",),
        logprobs=(
            TokenLogprob(token="H", logprob=-0.5, bytes=(72,), top_logprobs=(TopLogprob(token="J", logprob=-1.5),)),
        ),
        output_files=(OutputFile(file_id="f", name="a.csv"),),
        response_id="r",
        system_fingerprint="fp",
        service_tier="priority",
    )


@pytest.mark.parametrize("nothing", [{}, {"usage": None, "citations": None, "service_tier": None, "new": {"x": 1}}])
def test_the_least_that_is_an_answer(nothing: dict[str, Any]) -> None:
    """Servers leave out what they do not know, or send null; what is new is passed over."""
    assert answer({"message": {"content": "Hi"}}, **nothing) == Answer(
        content="Hi", model="grok-4", usage=Usage(), finish_reason="unknown"
    )


def test_usage_in_part() -> None:
    """A total that is not told is the sum; null details are none; no cost is not a cost of zero."""
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": None, "num_sources_used": None}
    assert answer(choice(), usage=usage).usage == Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7)
    assert answer(choice(), usage={"cost_in_usd_ticks": 0}).usage.cost_in_usd_ticks == 0


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("stop", "stop"),
        ("end_turn", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
        ("content_filter", "unknown"),
        (None, "unknown"),
    ],
)
def test_finish_reasons_have_our_words(theirs: str | None, ours: str) -> None:
    """One that is new to us costs nobody the answer."""
    assert answer(choice(finish_reason=theirs)).finish_reason == ours


def test_alternatives() -> None:
    """Of `n` answers the first is the content, and all are outputs, in whatever order they came."""
    told = answer(choice("b", 1), choice("a", 0))
    assert told.content == "a"
    assert told.outputs == (
        Output(index=1, content="b", finish_reason="stop"),
        Output(index=0, content="a", finish_reason="stop"),
    )


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [({"refusal": "No."}, "content", "No."), ({"reasoning": "hm"}, "reasoning_content", "hm")],
)
def test_other_servers_words(message: dict[str, Any], field: str, value: str) -> None:
    """A refusal is what the model said; reasoning has two names."""
    assert getattr(answer(choice(None, message=message)), field) == value


def test_an_answer_without_output_is_an_error_with_its_usage() -> None:
    """What it cost is told."""
    error = failure(b'{"choices": [], "usage": {"total_tokens": 9}}')
    assert (error.code, error.usage) == (ErrorCode.PROVIDER_ERROR, Usage(total_tokens=9))


@pytest.mark.parametrize(
    "body",
    [
        b"<html>secret</html>",
        b"[]",
        b'{"choices": "secret"}',
        b'{"choices": [{"message": {"content": {"secret": 1}}}]}',
        b"",
    ],
)
def test_what_is_no_answer_is_not_quoted(body: bytes) -> None:
    """It says where, and what to look at."""
    error = failure(body)
    assert error.code is ErrorCode.PROVIDER_ERROR
    assert "secret" not in error.message
    assert "PROMPTQ_OPENAI_BASE_URL" in error.message


def test_an_answer_that_is_too_large() -> None:
    """As over gRPC."""
    assert failure(b" " * (LARGEST_ANSWER + 1)).code is ErrorCode.TOO_LARGE
