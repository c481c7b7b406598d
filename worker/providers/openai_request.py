"""From a job to the body of a chat completion over REST, as xAI and OpenAI document it.

What that cannot say is refused by the field's name, and never dropped: xAI takes it over gRPC alone, or in its
Responses API.
"""

from collections.abc import Callable
from typing import Any, Final, NoReturn

from promptq.producer.errors import ErrorCode
from promptq.producer.messages import FilePart, ImagePart, Message, MessageToolCall, Part, TextPart
from promptq.producer.models import PromptJob
from promptq.producer.tools import FunctionChoice, FunctionTool, ResponseFormat, SearchParameters, Tool
from promptq.worker.providers.base import ProviderError

NO_PARAMETERS: Final = {"type": "object", "properties": {}}

AS_IT_IS: Final = (
    "n",
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
    "service_tier",
)
REFUSED: Final = (
    "max_turns",
    "include",
    "store_messages",
    "previous_response_id",
    "use_encrypted_content",
    "agent_count",
    "guidelines",
)
"""False and empty ones ask for nothing, and pass."""

_UNNAMED_SCHEMA: Final = "answer"
_IMAGES: Final = {"iVBORw0KGgo": "png", "R0lGOD": "gif", "UklGR": "webp"}
"""How their base64 begins; anything else is taken for a JPEG."""


def body_of(job: PromptJob) -> dict[str, Any]:
    """The arguments of `chat.completions.create`. What is None is left out of it.

    Raises ProviderError (`invalid_request`), which names the field.
    """
    if job.model is None:
        raise ProviderError(ErrorCode.INVALID_REQUEST, "the job names no model")
    for name in REFUSED:
        if getattr(job, name):
            _refuse(name)
    body: dict[str, Any] = {"model": job.model, "messages": [_message(message) for message in job.messages]}
    for name in AS_IT_IS:
        if (value := getattr(job, name)) is not None:
            body[name] = value
    for name, (theirs, convert) in CONVERTED.items():
        if (value := getattr(job, name)) is not None:
            body[theirs] = convert(value)
    return body


def _refuse(what: str) -> NoReturn:
    said = f"{what}: a chat completion over REST cannot say it; provider xai can"
    raise ProviderError(ErrorCode.INVALID_REQUEST, said)


def _message(message: Message) -> dict[str, Any]:
    if message.encrypted_content is not None:
        _refuse("messages.encrypted_content")
    content = message.content
    said: dict[str, Any] = {
        "role": message.role,
        "content": content if isinstance(content, str | None) else [_part(part) for part in content],
    }
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            said[name] = value
    if message.tool_calls:
        said["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    return said


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return _image(part) if isinstance(part, ImagePart) else _file(part)


def _image(part: ImagePart) -> dict[str, Any]:
    source = part.source
    place = {"file_id": source.file_id} if source.url is None else {"url": _image_url(source.url)}
    return {"type": "image_url", "image_url": place | ({"detail": source.detail} if source.detail else {})}


def _image_url(url: str) -> str:
    """Bare base64 is for gRPC alone."""
    if url[:8].lower().startswith(("http://", "https://", "data:")):
        return url
    kind = next((kind for start, kind in _IMAGES.items() if url.startswith(start)), "jpeg")
    return f"data:image/{kind};base64,{url}"


def _file(part: FilePart) -> dict[str, Any]:
    source = part.source
    if source.file_id is not None:
        return {"type": "file", "file": {"file_id": source.file_id}}
    if source.file_url is not None:
        return {"type": "file", "file": {"url": source.file_url}}
    data = str(source.file_data)
    if source.mime_type and not data.startswith("data:"):
        data = f"data:{source.mime_type};base64,{data}"
    return {"type": "file", "file": {"file_data": data} | ({"filename": source.filename} if source.filename else {})}


def _tool_call(call: MessageToolCall) -> dict[str, Any]:
    if call.type != "function":
        _refuse(f"messages.tool_calls of type {call.type}")
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _tool(tool: Tool) -> dict[str, Any]:
    if not isinstance(tool, FunctionTool):
        _refuse(f"tools of type {tool.type}")
    function = tool.spec.model_dump(exclude_none=True)
    return {"type": "function", "function": {"parameters": NO_PARAMETERS} | function}


def _tool_choice(choice: str | FunctionChoice) -> str | dict[str, Any]:
    if isinstance(choice, str):
        return choice
    return {"type": "function", "function": {"name": choice.chosen}}


def _response_format(wanted: ResponseFormat) -> dict[str, Any]:
    if wanted.json_schema is None:
        return {"type": wanted.type}
    return {"type": wanted.type, "json_schema": {"name": _UNNAMED_SCHEMA} | wanted.json_schema}


def _search_parameters(search: SearchParameters) -> dict[str, Any]:
    """XAI's own, which the OpenAI client has no argument for; dates without a time, as xAI's REST has them."""
    fields = search.model_dump(mode="json", exclude_none=True)
    for name in ("from_date", "to_date"):
        if (moment := getattr(search, name)) is not None:
            fields[name] = moment.date().isoformat()
    return {"search_parameters": fields}


CONVERTED: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "max_tokens": ("max_completion_tokens", int),  # the older name is refused for OpenAI's reasoning models
    "tools": ("tools", lambda tools: [_tool(tool) for tool in tools]),
    "tool_choice": ("tool_choice", _tool_choice),
    "response_format": ("response_format", _response_format),
    "search_parameters": ("extra_body", _search_parameters),
}
"""By our name: theirs, and how it is written."""
