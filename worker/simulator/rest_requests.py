"""Reads the body of a chat completion: from JSON to the request that gRPC would have brought."""

import json
from typing import Any, Literal, NamedTuple

from pydantic import Base64Bytes, BaseModel, Field, ValidationError
from xai_sdk.proto import chat_pb2, image_pb2, usage_pb2

_ROLES = {
    "system": chat_pb2.ROLE_SYSTEM,
    "developer": chat_pb2.ROLE_DEVELOPER,
    "user": chat_pb2.ROLE_USER,
    "assistant": chat_pb2.ROLE_ASSISTANT,
    "tool": chat_pb2.ROLE_TOOL,
    "function": chat_pb2.ROLE_FUNCTION,
}
_EFFORTS = {
    "none": chat_pb2.EFFORT_NONE,
    "low": chat_pb2.EFFORT_LOW,
    "medium": chat_pb2.EFFORT_MEDIUM,
    "high": chat_pb2.EFFORT_HIGH,
    "xhigh": chat_pb2.EFFORT_XHIGH,
}
_TOOL_MODES = {
    "auto": chat_pb2.TOOL_MODE_AUTO,
    "none": chat_pb2.TOOL_MODE_NONE,
    "required": chat_pb2.TOOL_MODE_REQUIRED,
}
_SEARCH_MODES = {
    "off": chat_pb2.OFF_SEARCH_MODE,
    "on": chat_pb2.ON_SEARCH_MODE,
    "auto": chat_pb2.AUTO_SEARCH_MODE,
}
_DETAILS = {
    "auto": image_pb2.DETAIL_AUTO,
    "low": image_pb2.DETAIL_LOW,
    "high": image_pb2.DETAIL_HIGH,
}
_SERVER_SIDE_TOOLS = {
    "web_search": chat_pb2.Tool(web_search=chat_pb2.WebSearch()),
    "x_search": chat_pb2.Tool(x_search=chat_pb2.XSearch()),
    "code_execution": chat_pb2.Tool(code_execution=chat_pb2.CodeExecution()),
}
# These have the same name and meaning in both protocols.
_SAME = (
    "user",
    "n",
    "seed",
    "temperature",
    "top_p",
    "logprobs",
    "top_logprobs",
    "frequency_penalty",
    "presence_penalty",
    "parallel_tool_calls",
    "previous_response_id",
    "use_encrypted_content",
)


class UnreadableBody(ValueError):
    """The body is not the JSON of a chat completion; the message says where, and quotes nothing of it."""


class Asked(NamedTuple):
    """What a body asks, and how it is to be answered."""

    request: chat_pb2.GetCompletionsRequest
    is_streamed: bool
    with_usage: bool
    is_deferred: bool


class _ImageUrl(BaseModel):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class _File(BaseModel):
    file_id: str | None = None
    file_data: Base64Bytes | None = None
    filename: str = ""


class _Part(BaseModel):
    type: Literal["text", "image_url", "file"]
    text: str = ""
    image_url: _ImageUrl | None = None
    file: _File | None = None

    def to_proto(self) -> chat_pb2.Content:
        if self.image_url:
            image = image_pb2.ImageUrlContent(image_url=self.image_url.url, detail=_DETAILS[self.image_url.detail])
            return chat_pb2.Content(image_url=image)
        if self.file:
            file = self.file
            content = chat_pb2.FileContent(file_id=file.file_id, data=file.file_data, filename=file.filename)
            return chat_pb2.Content(file=content)
        return chat_pb2.Content(text=self.text)


class _CalledFunction(BaseModel):
    name: str
    arguments: str


class _ToolCall(BaseModel):
    id: str
    function: _CalledFunction

    def to_proto(self) -> chat_pb2.ToolCall:
        function = chat_pb2.FunctionCall(name=self.function.name, arguments=self.function.arguments)
        return chat_pb2.ToolCall(id=self.id, type=chat_pb2.TOOL_CALL_TYPE_CLIENT_SIDE_TOOL, function=function)


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None
    name: str = ""
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None
    encrypted_content: str = ""

    def to_proto(self) -> chat_pb2.Message:
        parts = [_Part(type="text", text=self.content)] if isinstance(self.content, str) else self.content
        return chat_pb2.Message(
            role=_ROLES[self.role],
            content=[part.to_proto() for part in parts or ()],
            name=self.name,
            tool_calls=[call.to_proto() for call in self.tool_calls or ()],
            tool_call_id=self.tool_call_id,
            encrypted_content=self.encrypted_content,
        )


class _Function(BaseModel):
    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class _FunctionTool(BaseModel):
    type: Literal["function"]
    function: _Function

    def to_proto(self) -> chat_pb2.Tool:
        function = self.function
        parameters = json.dumps(function.parameters)
        named = chat_pb2.Function(name=function.name, description=function.description, parameters=parameters)
        return chat_pb2.Tool(function=named)


class _ServerSideTool(BaseModel):
    type: Literal["web_search", "x_search", "code_execution"]

    def to_proto(self) -> chat_pb2.Tool:
        return _SERVER_SIDE_TOOLS[self.type]


class _Named(BaseModel):
    name: str


class _NamedChoice(BaseModel):
    function: _Named


class _Schema(BaseModel):
    schema_: dict[str, Any] = Field(default={}, alias="schema")


class _Format(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema = _Schema()

    def to_proto(self) -> chat_pb2.ResponseFormat:
        match self.type:
            case "text":
                return chat_pb2.ResponseFormat(format_type=chat_pb2.FORMAT_TYPE_TEXT)
            case "json_object":
                return chat_pb2.ResponseFormat(format_type=chat_pb2.FORMAT_TYPE_JSON_OBJECT)
            case "json_schema":
                schema = json.dumps(self.json_schema.schema_)
                return chat_pb2.ResponseFormat(format_type=chat_pb2.FORMAT_TYPE_JSON_SCHEMA, schema=schema)


class _Search(BaseModel):
    mode: Literal["off", "on", "auto"] = "auto"
    return_citations: bool = True

    def to_proto(self) -> chat_pb2.SearchParameters:
        return chat_pb2.SearchParameters(mode=_SEARCH_MODES[self.mode], return_citations=self.return_citations)


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Body(BaseModel):
    """What is answered to; what else a body has is passed over."""

    model: str
    messages: list[_Message]
    user: str | None = None
    n: int | None = Field(default=None, ge=1, le=128)
    max_tokens: int | None = Field(default=None, ge=1, lt=1 << 31)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=1 << 31)
    seed: int | None = Field(default=None, ge=-(1 << 31), lt=1 << 31)
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, lt=1 << 31)
    tools: list[_FunctionTool | _ServerSideTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | _NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: _Format | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    reasoning_effort: Literal["none", "low", "medium", "high", "xhigh"] | None = None
    search_parameters: _Search | None = None
    service_tier: Literal["auto", "default", "priority"] | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    use_encrypted_content: bool | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    deferred: bool | None = None

    def to_proto(self) -> chat_pb2.GetCompletionsRequest:
        return chat_pb2.GetCompletionsRequest(
            model=self.model,
            messages=[message.to_proto() for message in self.messages],
            max_tokens=self.max_completion_tokens or self.max_tokens,
            stop=[self.stop] if isinstance(self.stop, str) else self.stop,
            tools=[tool.to_proto() for tool in self.tools or ()],
            tool_choice=_tool_choice(self.tool_choice),
            response_format=self.response_format.to_proto() if self.response_format else None,
            reasoning_effort=_EFFORTS[self.reasoning_effort] if self.reasoning_effort else None,
            search_parameters=self.search_parameters.to_proto() if self.search_parameters else None,
            service_tier=usage_pb2.SERVICE_TIER_PRIORITY if self.service_tier == "priority" else None,
            store_messages=bool(self.store),
            **{name: getattr(self, name) for name in _SAME},
        )


def read_body(body: bytes) -> Asked:
    """Reads it.

    Raises:
        UnreadableBody: as it says.
    """
    try:
        read = _Body.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(step) for step in problem["loc"])
        raise UnreadableBody(f"Failed to read the JSON body: {where}: {problem['msg']}") from None
    with_usage = bool(read.stream_options and read.stream_options.include_usage)
    return Asked(read.to_proto(), bool(read.stream), with_usage, bool(read.deferred))


def _tool_choice(choice: Literal["auto", "none", "required"] | _NamedChoice | None) -> chat_pb2.ToolChoice | None:
    match choice:
        case None:
            return None
        case _NamedChoice():
            return chat_pb2.ToolChoice(function_name=choice.function.name)
        case _:
            return chat_pb2.ToolChoice(mode=_TOOL_MODES[choice])
