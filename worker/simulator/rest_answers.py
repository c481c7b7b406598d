"""Writes answers, chunks and errors of chat completions as JSON.

Calls of xAI's own tools are left out: a client of this API would take them for its own. Their sources
and their number are told.
"""

from collections.abc import Iterable
from typing import Any

import grpc
from xai_sdk.proto import chat_pb2, sample_pb2, usage_pb2

from promptq.worker.simulator.refusals import Refusal
from promptq.worker.simulator.rest_requests import Asked

_FINISH_REASONS = {
    sample_pb2.REASON_STOP: "stop",
    sample_pb2.REASON_MAX_LEN: "length",
    sample_pb2.REASON_MAX_CONTEXT: "length",
    sample_pb2.REASON_TIME_LIMIT: "length",
    sample_pb2.REASON_TOOL_CALLS: "tool_calls",
}
_TIERS = {usage_pb2.SERVICE_TIER_PRIORITY: "priority"}
_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


def response_json(response: chat_pb2.GetChatCompletionResponse) -> dict[str, Any]:
    """A whole answer; with xAI's own tools, only the output behind them."""
    for_the_caller = (output for output in response.outputs if not _is_of_the_server(output.message))
    choices = [
        {
            "index": index,
            "message": _message(output.message),
            "finish_reason": _FINISH_REASONS[output.finish_reason],
            "logprobs": _logprobs(output.logprobs) if output.HasField("logprobs") else None,
        }
        for index, output in enumerate(for_the_caller)
    ]
    answer = {**_head(response, "chat.completion"), "choices": choices, "usage": _usage(response.usage)}
    return answer | _citations(response.citations)


def chunk_json(chunk: chat_pb2.GetChatCompletionChunk, asked: Asked) -> dict[str, Any] | None:
    """A chunk; None if it has nothing for a client of this API. Usage is for who asks for it."""
    head = _head(chunk, "chat.completion.chunk")
    if not chunk.outputs:
        rest = _citations(chunk.citations) | ({"usage": _usage(chunk.usage)} if asked.with_usage else {})
        return {**head, "choices": [], **rest} if rest else None
    (output,) = chunk.outputs
    if _is_of_the_server(output.delta):
        return None
    if output.index and asked.request.n <= 1:
        output.index = 0
    return {**head, "choices": [_choice(output)]}


def error_json(refusal: Refusal) -> dict[str, Any]:
    """XAI's envelope."""
    return {"code": refusal.code.name.lower().replace("_", "-"), "error": refusal.details}


def http_status(code: grpc.StatusCode) -> int:
    """The HTTP status that stands for a gRPC one."""
    return _STATUSES.get(code, 500)


def http_headers(refusal: Refusal) -> dict[str, str]:
    """The trailers that HTTP can carry: those in plain text."""
    return {key: value for key, value in refusal.trailers.items() if not key.endswith("-bin")}


def _head(answer: chat_pb2.GetChatCompletionResponse | chat_pb2.GetChatCompletionChunk, kind: str) -> dict[str, Any]:
    return {
        "id": answer.id,
        "object": kind,
        "created": answer.created.seconds,
        "model": answer.model,
        "system_fingerprint": answer.system_fingerprint,
        "service_tier": _TIERS.get(answer.service_tier, "default"),
    }


def _message(message: chat_pb2.CompletionMessage) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant", "content": message.content or None, "refusal": None}
    if message.reasoning_content:
        said["reasoning_content"] = message.reasoning_content
    if message.encrypted_content:
        said["encrypted_content"] = message.encrypted_content
    if message.tool_calls:
        said["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    return said


def _choice(output: chat_pb2.CompletionOutputChunk) -> dict[str, Any]:
    delta = output.delta
    said: dict[str, Any] = {"role": "assistant"}
    for name in ("content", "reasoning_content", "encrypted_content"):
        if getattr(delta, name):
            said[name] = getattr(delta, name)
    if delta.tool_calls:
        said["tool_calls"] = [{"index": index, **_tool_call(call)} for index, call in enumerate(delta.tool_calls)]
    choice = {"index": output.index, "delta": said, "finish_reason": _FINISH_REASONS.get(output.finish_reason)}
    return choice | ({"logprobs": _logprobs(output.logprobs)} if output.HasField("logprobs") else {})


def _is_of_the_server(said: chat_pb2.CompletionMessage | chat_pb2.Delta) -> bool:
    is_a_call = any(call.type != chat_pb2.TOOL_CALL_TYPE_CLIENT_SIDE_TOOL for call in said.tool_calls)
    return is_a_call or said.role != chat_pb2.ROLE_ASSISTANT


def _tool_call(call: chat_pb2.ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _logprobs(logprobs: chat_pb2.LogProbs) -> dict[str, Any]:
    content = [
        {**_logprob(token), "top_logprobs": [_logprob(other) for other in token.top_logprobs]}
        for token in logprobs.content
    ]
    return {"content": content, "refusal": None}


def _logprob(token: chat_pb2.LogProb | chat_pb2.TopLogProb) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.bytes)}


def _citations(citations: Iterable[str]) -> dict[str, Any]:
    told = list(citations)
    return {"citations": told} if told else {}


def _usage(usage: usage_pb2.SamplingUsage) -> dict[str, Any]:
    told: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "text_tokens": usage.prompt_text_tokens,
            "audio_tokens": 0,
            "image_tokens": usage.prompt_image_tokens,
            "cached_tokens": usage.cached_prompt_text_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
        "num_sources_used": usage.num_sources_used,
    }
    if usage.HasField("cost_in_usd_ticks"):
        told["cost_in_usd_ticks"] = usage.cost_in_usd_ticks
    if usage.server_side_tools_used:
        names = [usage_pb2.ServerSideTool.Name(tool) for tool in usage.server_side_tools_used]
        told["server_side_tools_used"] = names
    return told
