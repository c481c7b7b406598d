from typing import Any

import pytest

from promptq.producer.entries import job_of
from promptq.producer.errors import ErrorCode
from promptq.producer.models import REQUEST_FIELDS
from promptq.worker.providers.base import ProviderError
from promptq.worker.providers.openai_request import AS_IT_IS, CONVERTED, NO_PARAMETERS, REFUSED, body_of

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
PNG = "iVBORw0KGgo="


def body(prompt: Any = "Hi", **options: Any) -> dict[str, Any]:
    """What is sent."""
    return body_of(job_of(prompt, {"model": "grok-4", **options}))


def part(given: dict[str, Any]) -> Any:
    """What becomes of one part of a message."""
    return body([{"role": "user", "content": [given]}])["messages"][0]["content"][0]


def test_every_field_of_a_job_is_carried_or_refused() -> None:
    """A new one fails here: carry it, or refuse it by name."""
    kinds = [*AS_IT_IS, *CONVERTED, *REFUSED, "model", "messages"]
    assert len(kinds) == len(set(kinds))
    assert set(kinds) == REQUEST_FIELDS


def test_every_option_arrives() -> None:
    """With its value, under the name that REST has for it."""
    as_it_is: dict[str, Any] = {
        "n": 2,
        "temperature": 0.0,
        "top_p": 0.5,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.5,
        "reasoning_effort": "xhigh",
        "seed": 0,
        "stop": ("a", "b"),
        "user": "u",
        "safety_identifier": "s",
        "logprobs": True,
        "top_logprobs": 3,
        "parallel_tool_calls": False,
        "service_tier": "priority",
    }
    assert set(as_it_is) == set(AS_IT_IS)
    sent = body(max_tokens=5, **as_it_is)
    expected = {"model": "grok-4", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 5}
    assert sent == expected | as_it_is


def test_what_is_left_out_stays_out() -> None:
    """A plain prompt is a message and a model."""
    assert body() == {"model": "grok-4", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools of type web_search"),
        ({"tools": [{"type": "mcp", "server_url": "https://m.example"}]}, "tools of type mcp"),
        ({"max_turns": 2}, "max_turns"),
        ({"include": ["inline_citations"]}, "include"),
        ({"store_messages": True}, "store_messages"),
        ({"previous_response_id": "r"}, "previous_response_id"),
        ({"use_encrypted_content": True}, "use_encrypted_content"),
        ({"agent_count": 4}, "agent_count"),
        ({"guidelines": [{"type": "policy", "category": "nsfw", "behavior": "decline"}]}, "guidelines"),
        ({"prompt": [{"role": "assistant", "encrypted_content": "x"}]}, "messages.encrypted_content"),
        (
            {"prompt": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "mcp", "function": {"name": "f"}}]}]},
            "messages.tool_calls of type mcp",
        ),
    ],
)
def test_what_rest_cannot_say_is_refused_by_name(options: dict[str, Any], field: str) -> None:
    """Nothing that was asked for is dropped in silence."""
    with pytest.raises(ProviderError) as caught:
        body(**options)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert caught.value.message == f"{field}: a chat completion over REST cannot say it; provider xai can"


def test_what_asks_for_nothing_is_not_refused() -> None:
    """False is what REST does anyway."""
    assert body(store_messages=False, use_encrypted_content=False, include=[]) == body()


def test_a_job_without_a_model_is_refused() -> None:
    """As provider xai does."""
    with pytest.raises(ProviderError, match="the job names no model"):
        body_of(job_of("Hi", {}))


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"type": "input_text", "text": "Hi"}, {"type": "text", "text": "Hi"}),
        (
            {"type": "image_url", "image_url": {"url": "https://a.example", "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://a.example", "detail": "low"}},
        ),
        (
            {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        ),
        (
            {"type": "input_image", "image_url": PNG},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        ),
        (
            {"type": "input_image", "image_url": "/9j/"},
            {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/"}},
        ),
        ({"type": "input_image", "file_id": "f"}, {"type": "image_url", "image_url": {"file_id": "f"}}),
        ({"type": "input_file", "file_id": "f"}, {"type": "file", "file": {"file_id": "f"}}),
        (
            {"type": "input_file", "file_url": "https://a.example/b.pdf"},
            {"type": "file", "file": {"url": "https://a.example/b.pdf"}},
        ),
        (
            {"type": "file", "file": {"file_data": "SGk=", "filename": "a.txt", "mime_type": "text/plain"}},
            {"type": "file", "file": {"file_data": "data:text/plain;base64,SGk=", "filename": "a.txt"}},
        ),
        (
            {"type": "file", "file": {"file_data": "data:text/plain;base64,SGk="}},
            {"type": "file", "file": {"file_data": "data:text/plain;base64,SGk="}},
        ),
    ],
)
def test_parts(given: dict[str, Any], sent: dict[str, Any]) -> None:
    """Either of OpenAI's shapes becomes that of Chat Completions; bare base64 becomes a URL."""
    assert part(given) == sent


def test_a_tool_loop_in_messages() -> None:
    """Calls and what they gave, in OpenAI's shape; reasoning goes back to xAI."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "name": "Ann", "content": "Hi"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": ""},
    ]
    assert body(messages)["messages"] == messages


def test_functions_choice_and_format() -> None:
    """Flat or nested, a function is nested; a schema without a name gets one, since REST wants it."""
    sent = body(
        tools=[
            {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": True},
            {"type": "function", "function": {"name": "g"}},
        ],
        tool_choice={"type": "function", "name": "f"},
        response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}},
    )
    assert sent["tools"] == [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}},
        {"type": "function", "function": {"name": "g", "parameters": NO_PARAMETERS}},
    ]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert sent["response_format"] == {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


def test_search_parameters_go_beside_what_openai_knows() -> None:
    """In xAI's shape, with days."""
    search = {"mode": "on", "from_date": "2026-01-02T03:04:05Z", "sources": [{"type": "web", "country": "CH"}]}
    sent = body(search_parameters=search)["extra_body"]["search_parameters"]
    source = {"type": "web", "country": "CH", "safe_search": True}
    assert sent == {"mode": "on", "from_date": "2026-01-02", "return_citations": True, "sources": [source]}
