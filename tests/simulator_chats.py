"""What chats with a simulator are about: two functions, and a shape."""

import json
from typing import Any

from pydantic import BaseModel
from xai_sdk.chat import tool
from xai_sdk.proto import chat_pb2

WEATHER_PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city"],
}
WEATHER = tool("get_weather", "Tells the weather.", WEATHER_PARAMETERS)
TIME = tool("get_time", "Tells the time.", {"type": "object", "properties": {}})


class Pet(BaseModel):
    """A shape for structured output."""

    name: str
    age: int


def as_json(tool: chat_pb2.Tool) -> dict[str, Any]:
    """A function as REST has it."""
    function = tool.function
    parameters = json.loads(function.parameters)
    named = {"name": function.name, "description": function.description, "parameters": parameters}
    return {"type": "function", "function": named}
