"""From xAI's response to an Answer. Reads the message itself: the SDK's properties fail on words that are new to it."""

from collections.abc import Iterable
from typing import Any, Final

from xai_sdk.proto import chat_pb2, sample_pb2, usage_pb2

from promptq.producer.errors import ErrorCode
from promptq.producer.models import PromptJob
from promptq.producer.results import InlineCitation, Output, OutputFile, TokenLogprob, ToolCall, TopLogprob, Usage
from promptq.worker.providers.base import Answer, ProviderError

UNKNOWN: Final = "unknown"

_FINISH_REASONS: Final = {
    sample_pb2.REASON_STOP: "stop",
    sample_pb2.REASON_MAX_LEN: "length",
    sample_pb2.REASON_MAX_CONTEXT: "context",
    sample_pb2.REASON_TOOL_CALLS: "tool_calls",
    sample_pb2.REASON_TIME_LIMIT: "time_limit",
}
_ROLES: Final = {chat_pb2.ROLE_ASSISTANT: "assistant", chat_pb2.ROLE_TOOL: "tool"}


def _words(enum: Any, prefix: str, suffix: str = "") -> dict[int, str]:
    """Its values as they stand in results: `TOOL_CALL_TYPE_MCP_TOOL` is `mcp`."""
    return {value: name.removeprefix(prefix).removesuffix(suffix).lower() for name, value in enum.items() if value}


_CALL_TYPES: Final = _words(chat_pb2.ToolCallType, "TOOL_CALL_TYPE_", "_TOOL") | {
    chat_pb2.TOOL_CALL_TYPE_INVALID: "function",
    chat_pb2.TOOL_CALL_TYPE_CLIENT_SIDE_TOOL: "function",
}
_CALL_STATUSES: Final = _words(chat_pb2.ToolCallStatus, "TOOL_CALL_STATUS_") | {
    chat_pb2.TOOL_CALL_STATUS_IN_PROGRESS: "in_progress"
}
_SERVER_TOOLS: Final = _words(usage_pb2.ServerSideTool, "SERVER_SIDE_TOOL_")
_TIERS: Final = _words(usage_pb2.ServiceTier, "SERVICE_TIER_")


def answer_of(response: chat_pb2.GetChatCompletionResponse, job: PromptJob) -> Answer:
    """The answer. Raises ProviderError if there is none in it."""
    usage = _usage(response.usage)
    told = [out for out in response.outputs if out.message.role == chat_pb2.ROLE_ASSISTANT]
    if not told:
        raise ProviderError(ErrorCode.PROVIDER_ERROR, "an answer without any output", usage=usage)
    has_alternatives = job.n is not None and job.n > 1
    # Of several turns the last one is the answer.
    chosen = min(told, key=lambda out: out.index) if has_alternatives else told[-1]
    calls = [call for out in ([chosen] if has_alternatives else told) for call in tool_calls_of(out.message.tool_calls)]
    message = chosen.message
    return Answer(
        content=message.content,
        model=response.model or str(job.model),
        usage=usage,
        finish_reason=_FINISH_REASONS.get(chosen.finish_reason, UNKNOWN),
        reasoning_content=message.reasoning_content,
        encrypted_content=message.encrypted_content,
        tool_calls=tuple(call for call in calls if call.type == "function"),
        server_tool_calls=_server_calls(response),
        citations=tuple(response.citations),
        inline_citations=tuple(map(_citation, message.citations)),
        logprobs=_logprobs(chosen),
        outputs=tuple(map(_output, response.outputs)) if len(response.outputs) > 1 else (),
        output_files=tuple(OutputFile(file_id=file.file_id, name=file.name) for file in response.output_files),
        response_id=response.id or None,
        system_fingerprint=response.system_fingerprint or None,
        service_tier=_TIERS.get(response.service_tier, UNKNOWN) if response.service_tier else None,
    )


def _server_calls(response: chat_pb2.GetChatCompletionResponse) -> tuple[ToolCall, ...]:
    """Each once, as it was last told of: a tool's own output tells of its call again."""
    calls = (call for output in response.outputs for call in tool_calls_of(output.message.tool_calls))
    return tuple({call.id: call for call in calls if call.type != "function"}.values())


def _output(output: chat_pb2.CompletionOutput) -> Output:
    message = output.message
    return Output(
        index=output.index,
        role=_ROLES.get(message.role, UNKNOWN),
        content=message.content,
        reasoning_content=message.reasoning_content,
        encrypted_content=message.encrypted_content,
        finish_reason=_FINISH_REASONS.get(output.finish_reason, UNKNOWN) if output.finish_reason else None,
        tool_calls=tool_calls_of(message.tool_calls),
        inline_citations=tuple(map(_citation, message.citations)),
        logprobs=_logprobs(output),
    )


def tool_calls_of(calls: Iterable[chat_pb2.ToolCall]) -> tuple[ToolCall, ...]:
    """Those that call something."""
    return tuple(_tool_call(call) for call in calls if call.HasField("function"))


def _tool_call(call: chat_pb2.ToolCall) -> ToolCall:
    """The caller's functions have no status: it is the caller who runs them."""
    kind = _CALL_TYPES.get(call.type, UNKNOWN)
    return ToolCall(
        id=call.id,
        name=call.function.name,
        arguments=call.function.arguments,
        type=kind,
        status=None if kind == "function" else _CALL_STATUSES.get(call.status, UNKNOWN),
        error_message=call.error_message or None,
    )


def _citation(citation: chat_pb2.InlineCitation) -> InlineCitation:
    told: dict[str, Any] = {"type": UNKNOWN}
    match citation.WhichOneof("citation"):
        case "web_citation":
            told = {"type": "web", "url": citation.web_citation.url}
        case "x_citation":
            told = {"type": "x", "url": citation.x_citation.url}
        case "collections_citation":
            found = citation.collections_citation
            told = {
                "type": "collections",
                "file_id": found.file_id,
                "chunk_id": found.chunk_id,
                "chunk_content": found.chunk_content,
                "score": found.score,
                "collection_ids": tuple(found.collection_ids),
            }
    return InlineCitation(id=citation.id, start_index=citation.start_index, end_index=citation.end_index, **told)


def _logprobs(output: chat_pb2.CompletionOutput) -> tuple[TokenLogprob, ...] | None:
    """None if it has none: a stream does not tell whether they were only empty."""
    if not output.logprobs.content:
        return None
    return tuple(
        TokenLogprob(**_token(token), top_logprobs=tuple(TopLogprob(**_token(top)) for top in token.top_logprobs))
        for token in output.logprobs.content
    )


def _token(token: chat_pb2.LogProb | chat_pb2.TopLogProb) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": tuple(token.bytes) or None}


def _usage(usage: usage_pb2.SamplingUsage) -> Usage:
    tools: dict[str, int] = {}
    for tool in usage.server_side_tools_used:
        name = _SERVER_TOOLS.get(tool, UNKNOWN)
        tools[name] = tools.get(name, 0) + 1
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cached_prompt_tokens=usage.cached_prompt_text_tokens,
        total_tokens=usage.total_tokens,
        cost_in_usd_ticks=usage.cost_in_usd_ticks if usage.HasField("cost_in_usd_ticks") else None,
        prompt_text_tokens=usage.prompt_text_tokens,
        prompt_image_tokens=usage.prompt_image_tokens,
        num_sources_used=usage.num_sources_used,
        server_side_tools_used=tools,
    )
