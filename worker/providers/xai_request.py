"""From a job to the arguments of `chat.create`: everything that its signature has, in xAI's own messages."""

import json
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.json_format import ParseDict
from xai_sdk.proto import chat_pb2, image_pb2

from promptq.producer.messages import FilePart, ImagePart, Message, MessageToolCall, Part, TextPart
from promptq.producer.models import PromptJob
from promptq.producer.tools import (
    CollectionsSearch,
    FunctionChoice,
    FunctionTool,
    Guideline,
    IncludeOption,
    ResponseFormat,
    SearchParameters,
    Tool,
)

NO_PARAMETERS: Final = '{"type": "object", "properties": {}}'

_AS_IT_IS: Final = (
    "max_tokens",
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "reasoning_effort",
    "seed",
    "stop",
    "user",
    "safety_identifier",
    "logprobs",
    "top_logprobs",
    "parallel_tool_calls",
    "max_turns",
    "store_messages",
    "previous_response_id",
    "use_encrypted_content",
    "agent_count",
    "service_tier",
)

_ROLES: Final = {
    "system": chat_pb2.ROLE_SYSTEM,
    "developer": chat_pb2.ROLE_DEVELOPER,
    "user": chat_pb2.ROLE_USER,
    "assistant": chat_pb2.ROLE_ASSISTANT,
    "tool": chat_pb2.ROLE_TOOL,
}
_DETAILS: Final = {
    "auto": image_pb2.DETAIL_AUTO,
    "low": image_pb2.DETAIL_LOW,
    "high": image_pb2.DETAIL_HIGH,
}
_FORMATS: Final = {
    "text": chat_pb2.FORMAT_TYPE_TEXT,
    "json_object": chat_pb2.FORMAT_TYPE_JSON_OBJECT,
    "json_schema": chat_pb2.FORMAT_TYPE_JSON_SCHEMA,
}


def create_arguments(job: PromptJob) -> dict[str, Any]:
    """What `chat.create` takes beside the model. What is None is left out of it."""
    arguments: dict[str, Any] = {"messages": [_message(message) for message in job.messages]}
    for name in _AS_IT_IS:
        if (value := getattr(job, name)) is not None:
            arguments[name] = value
    for name, convert in _CONVERTED.items():
        if (value := getattr(job, name)) is not None:
            arguments[name] = convert(value)
    return arguments


def _message(message: Message) -> chat_pb2.Message:
    said = message.content
    parts = [chat_pb2.Content(text=said)] if isinstance(said, str) else [_part(part) for part in said or ()]
    return chat_pb2.Message(
        role=_ROLES[message.role],
        content=parts,
        name=message.name,
        tool_calls=[_tool_call(call) for call in message.tool_calls or ()],
        tool_call_id=message.tool_call_id,
        reasoning_content=message.reasoning_content,
        encrypted_content=message.encrypted_content,
    )


def _part(part: Part) -> chat_pb2.Content:
    if isinstance(part, TextPart):
        return chat_pb2.Content(text=part.text)
    if isinstance(part, ImagePart):
        return _image(part)
    return _file(part)


def _image(part: ImagePart) -> chat_pb2.Content:
    source = part.source
    return chat_pb2.Content(
        image_url=image_pb2.ImageUrlContent(
            image_url=source.url, file_id=source.file_id, detail=_DETAILS[source.detail or "auto"]
        )
    )


def _file(part: FilePart) -> chat_pb2.Content:
    source = part.source
    return chat_pb2.Content(
        file=chat_pb2.FileContent(
            file_id=source.file_id,
            url=source.file_url,
            data=source.data,
            filename=source.filename,
            mime_type=source.media_type,
        )
    )


def _tool_call(call: MessageToolCall) -> chat_pb2.ToolCall:
    kind = "CLIENT_SIDE" if call.type == "function" else call.type.upper()
    status = f"TOOL_CALL_STATUS_{call.status.upper()}" if call.status else None
    return chat_pb2.ToolCall(
        id=call.id,
        type=f"TOOL_CALL_TYPE_{kind}_TOOL",
        status=status,
        error_message=call.error_message,
        function=chat_pb2.FunctionCall(name=call.function.name, arguments=call.function.arguments),
    )


def _tool(tool: Tool) -> chat_pb2.Tool:
    if isinstance(tool, FunctionTool):
        spec = tool.spec
        parameters = NO_PARAMETERS if spec.parameters is None else json.dumps(spec.parameters)
        return chat_pb2.Tool(
            function=chat_pb2.Function(
                name=spec.name, description=spec.description, strict=bool(spec.strict), parameters=parameters
            )
        )
    fields = tool.model_dump(mode="json", exclude_none=True, exclude={"type", "retrieval_mode"})
    if isinstance(tool, CollectionsSearch) and tool.retrieval_mode:
        fields[f"{tool.retrieval_mode}_retrieval"] = {}
    kind = "code_execution" if tool.type == "code_interpreter" else tool.type
    return ParseDict({kind: fields}, chat_pb2.Tool())


def _tool_choice(choice: str | FunctionChoice) -> str | chat_pb2.ToolChoice:
    return choice if isinstance(choice, str) else chat_pb2.ToolChoice(function_name=choice.chosen)


def _response_format(wanted: ResponseFormat) -> chat_pb2.ResponseFormat:
    schema = json.dumps(wanted.json_schema["schema"]) if wanted.json_schema else None
    return chat_pb2.ResponseFormat(format_type=_FORMATS[wanted.type], schema=schema)


def _search_parameters(search: SearchParameters) -> chat_pb2.SearchParameters:
    fields = search.model_dump(mode="json", exclude_none=True)
    fields["mode"] = f"{search.mode.upper()}_SEARCH_MODE"
    fields["sources"] = [{source.pop("type"): source} for source in fields.get("sources", ())]
    return ParseDict(fields, chat_pb2.SearchParameters())


def _include(options: tuple[IncludeOption, ...]) -> list[int]:
    return [chat_pb2.IncludeOption.Value(f"INCLUDE_OPTION_{option.upper()}") for option in options]


def _guidelines(guidelines: tuple[Guideline, ...]) -> list[dict[str, str]]:
    return [guideline.model_dump() for guideline in guidelines]


_CONVERTED: Final[dict[str, Callable[[Any], Any]]] = {
    "tools": lambda tools: [_tool(tool) for tool in tools],
    "tool_choice": _tool_choice,
    "response_format": _response_format,
    "search_parameters": _search_parameters,
    "include": _include,
    "guidelines": _guidelines,
}
