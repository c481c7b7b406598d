"""What chats with a simulator are about: two functions."""

from xai_sdk.chat import tool

WEATHER_PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city"],
}
WEATHER = tool("get_weather", "Tells the weather.", WEATHER_PARAMETERS)
TIME = tool("get_time", "Tells the time.", {"type": "object", "properties": {}})
