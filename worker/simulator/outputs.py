"""Outputs that are more than plain prose: calls of tools, JSON, stop sequences, log probabilities.

What they cost depends on their words, so they are written before the generation is charged.
"""

import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pydantic_core import to_json
from xai_sdk.proto import chat_pb2, sample_pb2

from promptq.worker.simulator.prose import CHARACTERS_PER_TOKEN, MARK, tokens_in, write_answer
from promptq.worker.simulator.refusals import bad_request
from promptq.worker.simulator.schemas import UnknownSchema, instance_of
from promptq.worker.simulator.searches import ServerSideTool, linked, tools_run

MOST_TOP_LOGPROBS = 8

_LONGEST_EXCERPT = 72
_JSON = (chat_pb2.FORMAT_TYPE_JSON_SCHEMA, chat_pb2.FORMAT_TYPE_JSON_OBJECT)


class Length(NamedTuple):
    """How long one output of prose is, and whether it is cut there."""

    tokens: int
    is_cut: bool


def is_plain(request: chat_pb2.GetCompletionsRequest) -> bool:
    """Whether the answer is prose, and nothing was looked up for it."""
    return not (
        request.tools
        or request.stop
        or request.logprobs
        or request.top_logprobs
        or request.use_encrypted_content
        or request.HasField("tool_choice")
        or request.HasField("response_format")
        or request.HasField("search_parameters")
    )


def write_outputs(
    request: chat_pb2.GetCompletionsRequest, question: str, key: int, length: Length
) -> list[chat_pb2.CompletionOutput]:
    """All outputs: first those of xAI's own tools, then `n` for the caller.

    Raises:
        Refusal: what is asked for contradicts itself, or is not known.
    """
    _check(request)
    outputs = _of_server_side_tools(request, key)
    for number in range(max(1, request.n)):
        output = _for_the_caller(request, question, key + number, length)
        output.index = len(outputs)
        outputs.append(output)
    return outputs


def tokens_of(outputs: Iterable[chat_pb2.CompletionOutput]) -> int:
    """The tokens of what the model has written in them."""
    return sum(_tokens_of(output.message) for output in outputs if output.message.role == chat_pb2.ROLE_ASSISTANT)


def pieces_of(text: str, tokens: int = 1) -> list[str]:
    """The text in pieces of so many tokens each; the last may be shorter."""
    width = tokens * CHARACTERS_PER_TOKEN
    return [text[start : start + width] for start in range(0, len(text), width)]


def _tokens_of(message: chat_pb2.CompletionMessage) -> int:
    called = sum(len(call.function.name) + len(call.function.arguments) for call in message.tool_calls)
    return tokens_in(len(message.content) + called)


def _check(request: chat_pb2.GetCompletionsRequest) -> None:
    if request.n > 1 and tools_run(request):
        raise bad_request("n must be 1 with server-side tools.")
    if request.top_logprobs and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs.")
    if request.top_logprobs > MOST_TOP_LOGPROBS:
        raise bad_request(f"top_logprobs must be at most {MOST_TOP_LOGPROBS}.")


def _of_server_side_tools(request: chat_pb2.GetCompletionsRequest, key: int) -> list[chat_pb2.CompletionOutput]:
    """One output with the calls, then one for each result that is to be included."""
    tools = tools_run(request)
    calls = [_server_side_call(tool, f"{key:08x}_s{number}") for number, tool in enumerate(tools)]
    if not calls:
        return []
    outputs = [_output(chat_pb2.ROLE_ASSISTANT, "", sample_pb2.REASON_TOOL_CALLS, calls)]
    for tool, call in zip(tools, calls, strict=True):
        if tool.include in request.include:
            result = "\n".join((f"{MARK} Result of {tool.name}.", *tool.sources))
            outputs.append(_output(chat_pb2.ROLE_TOOL, result, sample_pb2.REASON_STOP, [call]))
    for index, output in enumerate(outputs):
        output.index = index
    return outputs


def _server_side_call(tool: ServerSideTool, number: str) -> chat_pb2.ToolCall:
    return chat_pb2.ToolCall(
        id=f"call_{number}",
        type=tool.type,
        status=chat_pb2.TOOL_CALL_STATUS_COMPLETED,
        function=chat_pb2.FunctionCall(name=tool.name, arguments="{}"),
    )


def _for_the_caller(
    request: chat_pb2.GetCompletionsRequest, question: str, key: int, length: Length
) -> chat_pb2.CompletionOutput:
    functions = _called(request)
    if functions:
        calls = [_call(function, f"{key:08x}_{number}") for number, function in enumerate(functions)]
        output = _output(chat_pb2.ROLE_ASSISTANT, "", sample_pb2.REASON_TOOL_CALLS, calls)
    else:
        content, finish_reason = _stopped(*_text(request, question, key, length), request.stop)
        content, citations = _with_links(request, content)
        output = _output(chat_pb2.ROLE_ASSISTANT, content, finish_reason)
        output.message.citations.extend(citations)
    if request.logprobs:
        output.logprobs.CopyFrom(_logprobs(output.message.content, request.top_logprobs))
    if request.use_encrypted_content:
        output.message.encrypted_content = f"simulated-{key:08x}"
    return output


def _called(request: chat_pb2.GetCompletionsRequest) -> Sequence[chat_pb2.Function]:
    """The functions to call: the named one, or the first, or each if `parallel_tool_calls` says so.

    What may be answered with text is, unless a user spoke last.
    """
    functions = [tool.function for tool in request.tools if tool.HasField("function")]
    choice = request.tool_choice
    if choice.HasField("function_name"):
        return [_named(choice.function_name, functions)]
    if choice.mode == chat_pb2.TOOL_MODE_REQUIRED and not request.tools:
        raise bad_request("tool_choice 'required' needs tools.")
    asks = bool(request.messages) and request.messages[-1].role == chat_pb2.ROLE_USER
    if choice.mode == chat_pb2.TOOL_MODE_NONE or not (asks or choice.mode == chat_pb2.TOOL_MODE_REQUIRED):
        return ()
    return functions if request.parallel_tool_calls else functions[:1]


def _named(name: str, functions: Sequence[chat_pb2.Function]) -> chat_pb2.Function:
    for function in functions:
        if function.name == name:
            return function
    raise bad_request(f"tool_choice names the function {name!r}, which is not among the tools.")


def _call(function: chat_pb2.Function, number: str) -> chat_pb2.ToolCall:
    return chat_pb2.ToolCall(
        id=f"call_{number}",
        type=chat_pb2.TOOL_CALL_TYPE_CLIENT_SIDE_TOOL,
        status=chat_pb2.TOOL_CALL_STATUS_COMPLETED,
        function=chat_pb2.FunctionCall(name=function.name, arguments=_instance(function.parameters or "{}")),
    )


def _text(
    request: chat_pb2.GetCompletionsRequest, question: str, key: int, length: Length
) -> tuple[str, sample_pb2.FinishReason]:
    match request.response_format.format_type:
        case chat_pb2.FORMAT_TYPE_JSON_SCHEMA:
            return _cut(_instance(request.response_format.schema), request.max_tokens)
        case chat_pb2.FORMAT_TYPE_JSON_OBJECT:
            return _cut(_json({"simulated": True, "asked": question[:_LONGEST_EXCERPT]}), request.max_tokens)
        case _:
            text = write_answer(question, length.tokens, key, is_cut=length.is_cut)
            return text, sample_pb2.REASON_MAX_LEN if length.is_cut else sample_pb2.REASON_STOP


def _with_links(request: chat_pb2.GetCompletionsRequest, text: str) -> tuple[str, list[chat_pb2.InlineCitation]]:
    """Prose with its links, if they fit."""
    if request.response_format.format_type in _JSON:
        return text, []
    longer, citations = linked(request, text)
    fits = request.max_tokens <= 0 or tokens_in(len(longer)) <= request.max_tokens
    return (longer, citations) if fits else (text, [])


def _instance(schema: str) -> str:
    try:
        value = instance_of(schema)
    except UnknownSchema as error:
        raise bad_request(f"Bad schema: {error}.") from None
    except ValueError:
        raise bad_request("Bad schema: it is not JSON.") from None
    return _json(value)


def _json(value: Any) -> str:
    return to_json(value).decode()


def _cut(text: str, most: int) -> tuple[str, sample_pb2.FinishReason]:
    if 0 < most < tokens_in(len(text)):
        return text[: most * CHARACTERS_PER_TOKEN], sample_pb2.REASON_MAX_LEN
    return text, sample_pb2.REASON_STOP


def _stopped(
    text: str, finish_reason: sample_pb2.FinishReason, stops: Iterable[str]
) -> tuple[str, sample_pb2.FinishReason]:
    """The text up to the first stop sequence, which is not part of it."""
    ends = [text.find(stop) for stop in stops if stop and stop in text]
    return (text[: min(ends)], sample_pb2.REASON_STOP) if ends else (text, finish_reason)


def _logprobs(text: str, alternatives: int) -> chat_pb2.LogProbs:
    return chat_pb2.LogProbs(content=[_logprob(token, alternatives) for token in pieces_of(text)])


def _logprob(token: str, alternatives: int) -> chat_pb2.LogProb:
    likely = -(zlib.crc32(token.encode()) % 1000) / 1024
    tokens = [token, *(f"{token}{number}" for number in range(1, alternatives))][:alternatives]
    return chat_pb2.LogProb(
        token=token,
        logprob=likely,
        bytes=token.encode(),
        top_logprobs=[
            chat_pb2.TopLogProb(token=other, logprob=likely - number, bytes=other.encode())
            for number, other in enumerate(tokens)
        ],
    )


def _output(
    role: chat_pb2.MessageRole,
    content: str,
    finish_reason: sample_pb2.FinishReason,
    calls: Iterable[chat_pb2.ToolCall] = (),
) -> chat_pb2.CompletionOutput:
    message = chat_pb2.CompletionMessage(role=role, content=content, tool_calls=calls)
    return chat_pb2.CompletionOutput(message=message, finish_reason=finish_reason)
