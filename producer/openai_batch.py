"""OpenAI's Batch lines, in and out: a request line to the fields of a job, a result to an output line.

Shapes: https://platform.openai.com/docs/api-reference/batch. Nothing of a request is dropped in silence: what a job
cannot say is refused, unless it says only what is so anyway.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pydantic_core

from promptq.producer.errors import ErrorCode, InvalidPayload
from promptq.producer.models import REQUEST_FIELDS, JobStatus
from promptq.producer.results import JobResult, Output, ToolCall, Usage

CUSTOM_ID: Final = "custom_id"
"""The metadata of a job in which the caller's own name for it stands."""

URL: Final = "/v1/chat/completions"

_LINE = {CUSTOM_ID, "method", "url", "body"}
_AS_IT_IS_ANYWAY: Final[dict[str, Sequence[Any]]] = {
    "n": (1,),
    "stream": (False,),
    "store": (False,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "tools": ([],),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
}
_OTHER_NAMES: Final = {"store": "store_messages"}
_FINISH_REASONS: Final = {"context": "length", "time_limit": "length", "unknown": "stop"}
_NEVER_RAN: Final = {JobStatus.CANCELLED: "batch_cancelled", JobStatus.EXPIRED: "batch_expired"}
_HTTP: Final[dict[ErrorCode, tuple[int, str]]] = {
    ErrorCode.INVALID_REQUEST: (400, "invalid_request_error"),
    ErrorCode.CONTEXT_LENGTH: (400, "invalid_request_error"),
    ErrorCode.BAD_KEY: (401, "authentication_error"),
    ErrorCode.MODERATED: (403, "permission_error"),
    ErrorCode.MODEL_NOT_FOUND: (404, "invalid_request_error"),
    ErrorCode.TOO_LARGE: (413, "invalid_request_error"),
    ErrorCode.RATE_LIMITED: (429, "rate_limit_error"),
    ErrorCode.NO_CREDIT: (429, "insufficient_quota"),
    ErrorCode.UNAVAILABLE: (503, "server_error"),
    ErrorCode.TIMEOUT: (504, "server_error"),
}
_OTHER_ERROR: Final = (500, "server_error")


def job_fields(line: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of PromptJob for one request line; its `custom_id` goes to the metadata.

    Raises InvalidPayload, which names the field and never its value.
    """
    custom_id, body = line.get(CUSTOM_ID), line.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise InvalidPayload(f"{CUSTOM_ID}: each line needs one, a text")
    if unknown := sorted(line.keys() - _LINE):
        raise InvalidPayload(f"{unknown[0][:40]}: no such field; a line has {CUSTOM_ID}, method, url and body")
    if line.get("method", "POST") != "POST":
        raise InvalidPayload("method: only POST")
    if line.get("url", URL) != URL:
        raise InvalidPayload(f"url: only {URL}")
    if not isinstance(body, dict):
        raise InvalidPayload("body: must be an object, the body of a chat completion")
    metadata = body.get("metadata") or {}
    if not isinstance(metadata, dict) or metadata.get(CUSTOM_ID, custom_id) != custom_id:
        raise InvalidPayload(f"body.metadata: must be an object, without another {CUSTOM_ID}")
    return _request(body) | {"metadata": {**metadata, CUSTOM_ID: custom_id}}


def _request(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the model is asked. Raises InvalidPayload for what a job cannot say."""
    fields: dict[str, Any] = {}
    for name, value in body.items():
        if value is None or name in ("metadata", "max_completion_tokens") or value in _AS_IT_IS_ANYWAY.get(name, ()):
            continue
        field = _OTHER_NAMES.get(name, name)
        if field not in REQUEST_FIELDS or (name in _OTHER_NAMES and field in body):
            raise InvalidPayload(f"body.{name[:40]}: not supported; leave it out")
        fields[field] = value
    if "messages" not in fields:
        raise InvalidPayload("body.messages: each line needs them")
    most = body.get("max_completion_tokens")
    if most is not None and fields.setdefault("max_tokens", most) != most:
        raise InvalidPayload("body.max_completion_tokens: is not what max_tokens says; give one of them")
    if isinstance(fields["messages"], list):
        fields["messages"] = [_message(message) for message in fields["messages"]]
    return fields


def _message(message: Any) -> Any:
    """Parts that are all text are one text. What is wrong with a message PromptJob says."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    parts = message["content"]
    if not all(isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text" for part in parts):
        return message
    if not all(isinstance(part["text"], str) for part in parts):
        return message
    return {**message, "content": "".join(part["text"] for part in parts)}


def output_line(result: JobResult) -> str:
    """One line of a batch's output: `response` holds an answer or an HTTP error, `error` why there was no call.

    Answers and errors have the same shape as in OpenAI's output and error files. A job without a custom_id goes by
    its id.
    """
    line: dict[str, Any] = {
        "id": f"batch_req_{result.id}",
        CUSTOM_ID: result.metadata.get(CUSTOM_ID, result.id),
        "response": None,
        "error": None,
    }
    if result.status in _NEVER_RAN:
        line["error"] = {"code": _NEVER_RAN[result.status], "message": _message_of(result)}
    else:
        status, body = (200, completion(result)) if result.status is JobStatus.SUCCEEDED else _failure(result)
        line["response"] = {"status_code": status, "request_id": result.response_id or result.id, "body": body}
    return pydantic_core.to_json(line).decode() + "\n"


def _failure(result: JobResult) -> tuple[int, dict[str, Any]]:
    code = result.error.code if result.error else ErrorCode.PROVIDER_ERROR
    status, kind = _HTTP.get(code, _OTHER_ERROR)
    return status, {"error": {"message": _message_of(result), "type": kind, "param": None, "code": code.value}}


def _message_of(result: JobResult) -> str:
    return result.error.message if result.error else f"the job is {result.status}"


def completion(result: JobResult) -> dict[str, Any]:
    """The answer as a chat.completion object, with what xAI's own has beside OpenAI's.

    That is `reasoning_content`, `encrypted_content`, citations, the calls of its own tools, files and cost in ticks.
    """
    body: dict[str, Any] = {
        "id": result.response_id or f"chatcmpl-{result.id}",
        "object": "chat.completion",
        "created": int(result.finished_at.timestamp()) if result.finished_at else 0,
        "model": result.model,
        "choices": _choices(result),
        "usage": _usage(result.usage),
    }
    for name in ("citations", "system_fingerprint", "service_tier", "output_files"):
        if value := getattr(result, name):
            body[name] = value
    if result.server_tool_calls:
        body["server_tool_calls"] = [_call(call) for call in result.server_tool_calls]
    return body


def _choices(result: JobResult) -> list[dict[str, Any]]:
    """The alternatives; the turns of an answer with tools are one choice, the answer."""
    alternatives = [output for output in result.outputs if output.role == "assistant"]
    if len(alternatives) > 1 and not result.server_tool_calls:
        return [_choice(output, output.tool_calls, output.index) for output in alternatives]
    return [_choice(result, result.tool_calls, 0)]


def _choice(said: JobResult | Output, calls: Sequence[ToolCall], index: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.content, "refusal": None}
    for name in ("reasoning_content", "encrypted_content", "inline_citations"):
        if value := getattr(said, name):
            message[name] = value
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    reason = said.finish_reason or "stop"
    return {
        "index": index,
        "message": message,
        "logprobs": None if said.logprobs is None else {"content": said.logprobs, "refusal": None},
        "finish_reason": _FINISH_REASONS.get(reason, reason),
    }


def _call(call: ToolCall) -> dict[str, Any]:
    told = {"id": call.id, "type": call.type, "function": {"name": call.name, "arguments": call.arguments}}
    if call.status:
        told["status"] = call.status
    return told


def _usage(usage: Usage) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
    if usage.prompt_text_tokens or usage.prompt_image_tokens:
        counts["prompt_tokens_details"] |= {
            "text_tokens": usage.prompt_text_tokens,
            "image_tokens": usage.prompt_image_tokens,
        }
    for name in ("num_sources_used", "server_side_tools_used"):
        if value := getattr(usage, name):
            counts[name] = value
    if usage.cost_in_usd_ticks is not None:
        counts["cost_in_usd_ticks"] = usage.cost_in_usd_ticks
    return counts
