"""Gathering: chunks of every kind become the message of a whole answer. Without a server."""

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from xai_sdk.proto import chat_pb2, sample_pb2, usage_pb2

from promptq.producer.errors import ErrorCode
from promptq.producer.results import ToolCall
from promptq.worker.providers import xai_stream
from promptq.worker.providers.base import Delta, ProviderError
from promptq.worker.providers.xai_stream import Gathering


def chunk(*outputs: chat_pb2.CompletionOutputChunk, **fields: Any) -> chat_pb2.GetChatCompletionChunk:
    """With what each chunk of a stream has."""
    return chat_pb2.GetChatCompletionChunk(
        outputs=outputs, id="r-1", model="grok-4", created=Timestamp(seconds=1), **fields
    )


def piece(index: int = 0, *, end: Any = None, tokens: tuple[str, ...] = (), **delta: Any) -> Any:
    """Of one output."""
    logprobs = chat_pb2.LogProbs(content=[chat_pb2.LogProb(token=token) for token in tokens]) if tokens else None
    return chat_pb2.CompletionOutputChunk(
        index=index, delta=chat_pb2.Delta(**delta), finish_reason=end, logprobs=logprobs
    )


def search(status: Any, **function: str) -> chat_pb2.ToolCall:
    """A call that xAI runs itself."""
    return chat_pb2.ToolCall(
        id="s-1",
        type=chat_pb2.TOOL_CALL_TYPE_WEB_SEARCH_TOOL,
        status=status,
        function=chat_pb2.FunctionCall(name="web_search", **function),
    )


def gathered(*chunks: chat_pb2.GetChatCompletionChunk) -> tuple[chat_pb2.GetChatCompletionResponse, list[Delta]]:
    """The response, and what was heard on the way."""
    gathering = Gathering()
    heard = [delta for each in chunks for delta in gathering.add(each)]
    return gathering.response(), heard


ASSISTANT = chat_pb2.ROLE_ASSISTANT
SEARCHING = search(chat_pb2.TOOL_CALL_STATUS_IN_PROGRESS)
SEARCHED = search(chat_pb2.TOOL_CALL_STATUS_COMPLETED, arguments="{}")


def test_every_field_of_a_chunk_is_kept() -> None:
    """What a later chunk does not repeat stays; what comes in parts is put together; a call told again is one call."""
    cited = chat_pb2.InlineCitation(id="1", web_citation=chat_pb2.WebCitation(url="https://a.example"))
    made = chat_pb2.OutputFile(file_id="f-1", name="a.txt")
    response, heard = gathered(
        chunk(piece(role=ASSISTANT, reasoning_content="Hm", tool_calls=[SEARCHING]), system_fingerprint="fp"),
        chunk(piece(tool_calls=[SEARCHED], end=sample_pb2.REASON_TOOL_CALLS), service_tier="SERVICE_TIER_PRIORITY"),
        chunk(piece(1, role=chat_pb2.ROLE_TOOL, content="a page")),
        chunk(piece(2, role=ASSISTANT, content="Ra", tokens=("R", "a")), citations=["https://a.example"]),
        chunk(piece(2, content="in.", tokens=("in", "."), citations=[cited], encrypted_content="x")),
        chunk(
            piece(2, end=sample_pb2.REASON_STOP, encrypted_content="y"), usage=usage_pb2.SamplingUsage(total_tokens=9)
        ),
        chunk(piece(2), output_files=[made], citations=["https://b.example"]),
    )
    message = chat_pb2.CompletionMessage
    tokens = [chat_pb2.LogProb(token=token) for token in ("R", "a", "in", ".")]
    assert response == chat_pb2.GetChatCompletionResponse(
        id="r-1",
        model="grok-4",
        system_fingerprint="fp",
        service_tier="SERVICE_TIER_PRIORITY",
        usage=usage_pb2.SamplingUsage(total_tokens=9),
        citations=["https://a.example", "https://b.example"],
        output_files=[made],
        outputs=[
            chat_pb2.CompletionOutput(
                index=0,
                finish_reason=sample_pb2.REASON_TOOL_CALLS,
                message=message(role=ASSISTANT, reasoning_content="Hm", tool_calls=[SEARCHED]),
            ),
            chat_pb2.CompletionOutput(index=1, message=message(role=chat_pb2.ROLE_TOOL, content="a page")),
            chat_pb2.CompletionOutput(
                index=2,
                finish_reason=sample_pb2.REASON_STOP,
                message=message(role=ASSISTANT, content="Rain.", encrypted_content="xy", citations=[cited]),
                logprobs=chat_pb2.LogProbs(content=tokens),
            ),
        ],
    )
    told = ToolCall(id="s-1", name="web_search", arguments="", type="web_search", status="in_progress")
    assert heard == [
        Delta("", "Hm", (told,)),
        Delta(tool_calls=(told.model_copy(update={"arguments": "{}", "status": "completed"}),)),
        Delta("a page", output=1),
        Delta("Ra", output=2),
        Delta("in.", output=2),
    ]


def test_every_field_that_a_chunk_can_have_is_known() -> None:
    """One that the SDK gets with a new version has to be gathered, or named here with the reason why not."""
    of_all = {field.name for field in chat_pb2.GetChatCompletionChunk.DESCRIPTOR.fields}
    not_told = {"created": "no field of an Answer", "debug_output": "for xAI's own testers"}
    assert of_all - set(not_told) == {*xai_stream._OF_ALL, "usage", "citations", "output_files", "outputs"}
    assert {field.name for field in chat_pb2.CompletionOutputChunk.DESCRIPTOR.fields} == {
        "index", "delta", "finish_reason", "logprobs",
    }  # fmt: skip
    assert {field.name for field in chat_pb2.Delta.DESCRIPTOR.fields} == {
        "content", "reasoning_content", "encrypted_content", "role", "tool_calls", "citations",
    }  # fmt: skip


def test_calls_without_an_id_are_different_calls() -> None:
    """Each is kept."""
    calls = [chat_pb2.ToolCall(function=chat_pb2.FunctionCall(name=name)) for name in ("a", "b")]
    response, _ = gathered(chunk(piece(tool_calls=calls)))
    assert [call.function.name for call in response.outputs[0].message.tool_calls] == ["a", "b"]


@pytest.mark.parametrize("endless", [{"content": "four"}, {"tool_calls": [SEARCHED]}, {"tokens": ("four",)}], ids=str)
def test_an_endless_answer_ends(monkeypatch: pytest.MonkeyPatch, endless: dict[str, Any]) -> None:
    """As a whole one that is too large; no worker fills up with it."""
    monkeypatch.setattr(xai_stream, "LARGEST_ANSWER", 30)
    with pytest.raises(ProviderError) as caught:
        gathered(*[chunk(piece(**endless))] * 9)
    assert caught.value.code is ErrorCode.TOO_LARGE
