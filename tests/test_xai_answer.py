from typing import Any, Final

import pytest
from google.protobuf.json_format import ParseDict
from xai_sdk.proto import chat_pb2, usage_pb2

from promptq.producer import JobResult, JobStatus, codec
from promptq.producer.entries import job_of
from promptq.producer.results import Output, OutputFile, TokenLogprob, ToolCall, TopLogprob, Usage
from promptq.worker.outcome import Succeeded
from promptq.worker.providers.base import Answer
from promptq.worker.providers.xai_answer import answer_of
from promptq.worker.settlement import _told

SAMPLING_USAGE: Final = {name: name for name in Usage.model_fields if name != "cached_prompt_tokens"} | {
    "cached_prompt_tokens": "cached_prompt_text_tokens"
}
LEFT_OUT: Final = {
    "created": "the result has its own times",
    "settings": "they repeat the request",
    "debug_output": "it holds the prompt, and is xAI's own",
}


def response(**fields: Any) -> chat_pb2.GetChatCompletionResponse:
    """As the server would send it."""
    return ParseDict({"model": "grok-4", **fields}, chat_pb2.GetChatCompletionResponse())


def said(content: str, index: int = 0, **message: Any) -> dict[str, Any]:
    """One output of the assistant."""
    return {
        "index": index,
        "finish_reason": "REASON_STOP",
        "message": {"role": "ROLE_ASSISTANT", "content": content, **message},
    }


def call(name: str, kind: str, status: str = "COMPLETED") -> dict[str, Any]:
    """A call of a tool in an output."""
    return {
        "id": f"id-{name}",
        "type": f"TOOL_CALL_TYPE_{kind}_TOOL",
        "status": f"TOOL_CALL_STATUS_{status}",
        "function": {"name": name, "arguments": "{}"},
    }


def answer(job: dict[str, Any] | None = None, **fields: Any) -> Answer:
    """What the provider makes of a response."""
    return answer_of(response(**fields), job_of("Hi", job or {}))


def result(answered: Answer) -> JobResult:
    """What the reader gets: through the record in Redis."""
    record = codec.decode(codec.dumps({"id": "a", "r": _told(Succeeded(answered))}))
    return codec.result_of(record)


def test_every_field_of_the_usage_is_carried() -> None:
    """With numbers that differ, and all the way to the reader. A field of a new SDK fails here."""
    fields: Any = usage_pb2.SamplingUsage.DESCRIPTOR.fields
    assert {field.name for field in fields} == set(SAMPLING_USAGE.values())
    sent: dict[str, Any] = {field.name: number for number, field in enumerate(fields, 1)}
    tools = ["SERVER_SIDE_TOOL_WEB_SEARCH", "SERVER_SIDE_TOOL_MCP", "SERVER_SIDE_TOOL_WEB_SEARCH"]
    told = result(answer(outputs=[said("Hi")], usage=sent | {"server_side_tools_used": tools})).usage
    expected = {ours: sent[theirs] for ours, theirs in SAMPLING_USAGE.items()}
    assert told.model_dump() == expected | {"server_side_tools_used": {"web_search": 2, "mcp": 1}}
    assert (told + told).num_sources_used == 2 * told.num_sources_used
    assert (told + told).server_side_tools_used == {"web_search": 4, "mcp": 2}


def test_every_field_of_a_response_is_known() -> None:
    """Carried, or left out for a reason."""
    carried = {"id", "outputs", "model", "system_fingerprint", "usage", "citations", "output_files", "service_tier"}
    fields = {field.name for field in chat_pb2.GetChatCompletionResponse.DESCRIPTOR.fields}
    assert fields == carried | set(LEFT_OUT)
    outputs = {field.name for field in chat_pb2.CompletionOutput.DESCRIPTOR.fields}
    assert outputs == {"finish_reason", "index", "message", "logprobs"}
    message = {field.name for field in chat_pb2.CompletionMessage.DESCRIPTOR.fields}
    assert message == {"content", "reasoning_content", "role", "tool_calls", "encrypted_content", "citations"}


def test_all_of_an_answer() -> None:
    """What stands beside the content comes through the record in Redis."""
    citations = [
        {"id": "1", "start_index": 2, "end_index": 5, "web_citation": {"url": "https://a"}},
        {"id": "2", "x_citation": {"url": "https://x"}},
        {"id": "3", "collections_citation": {"file_id": "f", "chunk_id": "c", "score": 0.5, "collection_ids": ["d"]}},
    ]
    logprobs = {"content": [{"token": "H", "logprob": -0.5, "bytes": "SA==",
                             "top_logprobs": [{"token": "J", "logprob": -1.5}]}]}  # fmt: skip
    output = said("Hi", reasoning_content="hm", encrypted_content="==", citations=citations) | {"logprobs": logprobs}
    told = result(
        answer(
            outputs=[output],
            id="r",
            system_fingerprint="fp",
            service_tier="SERVICE_TIER_PRIORITY",
            output_files=[{"file_id": "f", "name": "a.csv"}],
            citations=["https://a"],
        )
    )
    assert (told.content, told.reasoning_content, told.encrypted_content) == ("Hi", "hm", "==")
    assert (told.response_id, told.system_fingerprint, told.service_tier) == ("r", "fp", "priority")
    assert told.output_files == (OutputFile(file_id="f", name="a.csv"),)
    assert told.citations == ("https://a",)
    web, post, document = told.inline_citations
    assert (web.type, web.url, web.start_index, web.end_index) == ("web", "https://a", 2, 5)
    assert (post.type, post.url) == ("x", "https://x")
    assert (document.type, document.file_id, document.chunk_id, document.score) == ("collections", "f", "c", 0.5)
    assert told.logprobs == (
        TokenLogprob(token="H", logprob=-0.5, bytes=(72,), top_logprobs=(TopLogprob(token="J", logprob=-1.5),)),
    )
    assert told.outputs == ()


def test_alternatives() -> None:
    """Of `n` answers the first is the content, and all are outputs, in whatever order they came."""
    told = result(answer({"n": 3}, outputs=[said("c", 2), said("a", 0), said("b", 1)]))
    assert told.content == "a"
    assert sorted((output.index, output.content) for output in told.outputs) == [(0, "a"), (1, "b"), (2, "c")]


def test_turns_with_tools() -> None:
    """The last one is the answer; each call of xAI's own tools is told of once, as it ended."""
    outputs = [
        said("", tool_calls=[call("search", "WEB_SEARCH", "IN_PROGRESS")]),
        {
            "index": 1,
            "message": {"role": "ROLE_TOOL", "content": "a page", "tool_calls": [call("search", "WEB_SEARCH")]},
        },
        said("Look.", 2, tool_calls=[call("weather", "CLIENT_SIDE")]),
    ]
    told = result(answer(outputs=outputs))
    assert told.content == "Look."
    assert told.tool_calls == (ToolCall(id="id-weather", name="weather", arguments="{}"),)
    assert told.server_tool_calls == (
        ToolCall(id="id-search", name="search", arguments="{}", type="web_search", status="completed"),
    )
    replayed = told.to_messages()
    assert [(message.role, message.tool_call_id) for message in replayed] == [
        ("assistant", None),
        ("tool", "id-search"),
        ("assistant", None),
    ]
    assert told.to_message().tool_calls == replayed[-1].tool_calls


def test_words_of_a_newer_server() -> None:
    """Values that no SDK has a name for fail nothing."""
    sent = response(outputs=[said("Hi", citations=[{"id": "1"}], tool_calls=[call("new", "MCP")])])
    sent.service_tier = 99  # type: ignore[assignment] # as a newer server would
    sent.outputs[0].finish_reason = 99  # type: ignore[assignment]
    sent.outputs[0].message.tool_calls[0].type = 99  # type: ignore[assignment]
    sent.outputs[0].message.tool_calls[0].status = 99  # type: ignore[assignment]
    sent.usage.server_side_tools_used.append(99)  # type: ignore[arg-type]
    newer = chat_pb2.GetChatCompletionResponse.FromString(sent.SerializeToString() + b"\xfa\x7d\x01x")
    told = result(answer_of(newer, job_of("Hi", {})))
    assert (told.content, told.service_tier, told.finish_reason) == ("Hi", "unknown", "unknown")
    assert told.usage.server_side_tools_used == {"unknown": 1}
    [tool] = told.server_tool_calls
    assert (tool.type, tool.status) == ("unknown", "unknown")


@pytest.mark.parametrize("output", [Output(content="Hi", reasoning_content="hm"), Output(role="tool")])
def test_an_output_is_a_message(output: Output) -> None:
    """Of its role, with what it says."""
    message = output.to_message()
    assert (message.role, message.content) == (output.role, output.content)


def test_a_result_of_an_older_worker_is_read() -> None:
    """What it does not tell is as if there was none."""
    old = {"status": "succeeded", "content": "Hi", "finish_reason": "stop", "model": "m", "usage": {"total_tokens": 2},
           "tool_calls": [{"id": "1", "name": "f", "arguments": "{}"}]}  # fmt: skip
    told = codec.result_of({"id": "a", "r": old})
    assert told.status is JobStatus.SUCCEEDED
    assert told.tool_calls[0].type == "function"
    assert told.usage == Usage(total_tokens=2)
