import datetime as dt
import inspect
import json
from typing import Any, Final

import grpc
import pytest
from google.protobuf.message import Message as Proto
from xai_sdk import tools
from xai_sdk.chat import file, image, required_tool, text, tool, tool_result
from xai_sdk.proto import chat_pb2
from xai_sdk.search import SearchParameters, news_source, rss_source, web_source, x_source
from xai_sdk.sync.chat import Client

from promptq.producer import PromptJob
from promptq.producer.entries import job_of
from promptq.producer.models import REQUEST_FIELDS
from promptq.worker.providers.wording import quotable_texts
from promptq.worker.providers.xai_request import create_arguments

LEFT_OUT: Final = {
    "conversation_id": "it names spans of the SDK's own traces, and is not sent",
    "batch_request_id": "it is for xAI's Batch API, which a queue of its own has no use for",
}


def created(**arguments: Any) -> chat_pb2.GetCompletionsRequest:
    """What the SDK makes of these arguments; nothing is sent."""
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        return Client(channel).create("grok-4", **arguments).proto


def request(job: PromptJob) -> chat_pb2.GetCompletionsRequest:
    """What it makes of ours."""
    return created(**create_arguments(job))


def test_every_parameter_of_the_sdk_is_carried() -> None:
    """A new SDK that knows more fails here: carry it, or say why not."""
    known = set(inspect.signature(Client.create).parameters)
    assert known - {"self"} == (REQUEST_FIELDS - {"n"}) | set(LEFT_OUT)


def test_every_field_of_a_request_is_carried() -> None:
    """`n` is an argument of sample_batch."""
    assert {field.name for field in chat_pb2.GetCompletionsRequest.DESCRIPTOR.fields} == REQUEST_FIELDS


EVERY_OPTION: dict[str, Any] = {
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "reasoning_effort": "xhigh",
    "seed": 7,
    "stop": ("stop",),
    "user": "u",
    "safety_identifier": "s",
    "logprobs": True,
    "top_logprobs": 3,
    "tools": ({"type": "code_execution"},),
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_turns": 3,
    "response_format": "json_object",
    "search_parameters": {"mode": "on"},
    "include": ("inline_citations", "code_execution_files_output"),
    "store_messages": True,
    "previous_response_id": "r",
    "use_encrypted_content": True,
    "agent_count": 16,
    "service_tier": "priority",
    "guidelines": ({"type": "policy", "category": "nsfw", "behavior": "decline"},),
}


def test_every_option_arrives() -> None:
    """Set on a job, none of them is empty in the request."""
    assert set(EVERY_OPTION) == REQUEST_FIELDS - {"model", "messages", "n"}
    sent = {field.name for field, _ in request(job_of("Hi", EVERY_OPTION)).ListFields()}
    assert sent == REQUEST_FIELDS - {"n"}


def test_what_is_left_out_stays_out() -> None:
    """A plain prompt is a message and a model."""
    assert {field.name for field, _ in request(job_of("Hi", {})).ListFields()} == {"messages", "model"}


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
DAY = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
TOOLS: list[tuple[dict[str, Any], chat_pb2.Tool]] = [
    (
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}},
        tool("f", "d", SCHEMA),
    ),
    ({"type": "function", "name": "f", "description": "d", "parameters": SCHEMA}, tool("f", "d", SCHEMA)),
    (
        {
            "type": "web_search",
            "allowed_domains": ["a.example"],
            "enable_image_understanding": True,
            "enable_image_search": False,
            "user_location": {"country": "CH", "timezone": "Europe/Zurich"},
        },
        tools.web_search(
            allowed_domains=["a.example"],
            enable_image_understanding=True,
            user_location_country="CH",
            user_location_timezone="Europe/Zurich",
        ),
    ),
    (
        {
            "type": "x_search",
            "from_date": "2026-01-02",
            "to_date": "2026-01-02T01:00:00+01:00",
            "allowed_x_handles": ["xai"],
            "enable_image_understanding": False,
            "enable_video_understanding": True,
        },
        tools.x_search(DAY, DAY, ["xai"], enable_video_understanding=True),
    ),
    ({"type": "code_execution"}, tools.code_execution()),
    ({"type": "code_interpreter"}, tools.code_execution()),
    ({"type": "image_generation", "action": "edit"}, tools.image_generation("edit")),
    (
        {"type": "collections_search", "collection_ids": ["c"], "limit": 3, "retrieval_mode": "semantic"},
        tools.collections_search(["c"], 3, retrieval_mode="semantic"),
    ),
    (
        {"type": "collections_search", "collection_ids": ["c"], "instructions": "i", "keyword_retrieval": {}},
        tools.collections_search(["c"], instructions="i", retrieval_mode="keyword"),
    ),
    (
        {
            "type": "mcp",
            "server_url": "https://m.example",
            "server_label": "l",
            "server_description": "d",
            "allowed_tool_names": ["t"],
            "authorization": "a",
            "extra_headers": {"X-A": "b"},
        },
        tools.mcp("https://m.example", "l", "d", ["t"], "a", {"X-A": "b"}),
    ),
    ({"type": "attachment_search", "limit": 2}, chat_pb2.Tool(attachment_search=chat_pb2.AttachmentSearch(limit=2))),
]


@pytest.mark.parametrize(("given", "expected"), TOOLS)
def test_tools_are_those_of_the_sdk(given: dict[str, Any], expected: chat_pb2.Tool) -> None:
    """Byte for byte what its helpers make."""
    assert list(request(job_of("Hi", {"tools": [given]})).tools) == [expected]


def test_every_kind_of_tool_is_known() -> None:
    """A new one in the protocol fails here."""
    assert {str(expected.WhichOneof("tool")) for _, expected in TOOLS} == {
        field.name for field in chat_pb2.Tool.DESCRIPTOR.fields
    }


def _leaves(descriptor: Any) -> set[str]:
    return {field.name for field in descriptor.fields}


@pytest.mark.parametrize(
    ("proto", "model"),
    [
        (chat_pb2.WebSearch, "WebSearch"),
        (chat_pb2.WebSearchUserLocation, "UserLocation"),
        (chat_pb2.XSearch, "XSearch"),
        (chat_pb2.CollectionsSearch, "CollectionsSearch"),
        (chat_pb2.MCP, "Mcp"),
        (chat_pb2.AttachmentSearch, "AttachmentSearch"),
        (chat_pb2.ImageGeneration, "ImageGeneration"),
        (chat_pb2.Function, "Function"),
        (chat_pb2.SearchParameters, "SearchParameters"),
        (chat_pb2.WebSource, "WebSource"),
        (chat_pb2.NewsSource, "NewsSource"),
        (chat_pb2.XSource, "XSource"),
        (chat_pb2.RssSource, "RssSource"),
    ],
)
def test_every_field_of_a_tool_is_carried(proto: type[Proto], model: str) -> None:
    """By the protocol's own names, so that the worker copies them."""
    from promptq.producer import tools as ours

    assert _leaves(proto.DESCRIPTOR) == set(getattr(ours, model).model_fields) - {"type", "retrieval_mode"}


def test_search_parameters_are_those_of_the_sdk() -> None:
    """With every kind of source."""
    given = {
        "mode": "on",
        "from_date": "2026-01-02",
        "max_search_results": 4,
        "sources": [
            {"type": "web", "country": "CH", "allowed_websites": ["a.example"]},
            {"type": "news", "excluded_websites": ["b.example"], "safe_search": False},
            {"type": "x", "included_x_handles": ["xai"], "post_favorite_count": 3},
            {"type": "rss", "links": ["https://a.example/rss"]},
        ],
    }
    expected = SearchParameters(
        mode="on",
        from_date=DAY,
        max_search_results=4,
        sources=[
            web_source("CH", allowed_websites=["a.example"]),
            news_source(excluded_websites=["b.example"], safe_search=False),
            x_source(included_x_handles=["xai"], post_favorite_count=3),
            rss_source(["https://a.example/rss"]),
        ],
    )
    made = request(job_of("Hi", {"search_parameters": given}))
    assert made.search_parameters == created(search_parameters=expected).search_parameters


PARTS: list[tuple[dict[str, Any], chat_pb2.Content]] = [
    ({"type": "input_text", "text": "Hi"}, text("Hi")),
    (
        {"type": "image_url", "image_url": {"url": "https://a.example", "detail": "low"}},
        image("https://a.example", detail="low"),
    ),
    ({"type": "input_image", "image_url": "data:image/png;base64,AAAA"}, image("data:image/png;base64,AAAA")),
    ({"type": "input_file", "file_id": "f"}, file("f")),
    (
        {"type": "file", "file": {"file_data": "data:text/plain;base64,SGk=", "filename": "a.txt"}},
        file(data=b"Hi", filename="a.txt", mime_type="text/plain"),
    ),
    ({"type": "input_file", "file_url": "https://a.example/b.pdf"}, file(url="https://a.example/b.pdf")),
]


@pytest.mark.parametrize(("given", "expected"), PARTS)
def test_parts_are_those_of_the_sdk(given: dict[str, Any], expected: chat_pb2.Content) -> None:
    """Byte for byte what its helpers make."""
    assert list(request(job_of([{"role": "user", "content": [given]}], {})).messages[0].content) == [expected]


def test_a_tool_loop_in_messages() -> None:
    """Calls and their results go as the SDK sends them."""
    messages: list[dict[str, Any]] = [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "2", "type": "mcp", "function": {"name": "g"}, "status": "failed", "error_message": "no"},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    asked, told = request(job_of(messages, {})).messages
    assert told == tool_result("sunny", "1")
    assert [call.type for call in asked.tool_calls] == [
        chat_pb2.TOOL_CALL_TYPE_CLIENT_SIDE_TOOL,
        chat_pb2.TOOL_CALL_TYPE_MCP_TOOL,
    ]
    assert asked.tool_calls[1].status == chat_pb2.TOOL_CALL_STATUS_FAILED
    assert (asked.role, list(asked.content)) == (chat_pb2.ROLE_ASSISTANT, [])


def test_choice_and_format() -> None:
    """A function by its name, a schema as JSON."""
    options = {
        "tools": [{"type": "function", "name": "f"}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    }
    made = request(job_of("Hi", options))
    assert made.tool_choice == required_tool("f")
    assert made.response_format.format_type == chat_pb2.FORMAT_TYPE_JSON_SCHEMA
    assert json.loads(made.response_format.schema) == SCHEMA


def test_what_an_error_may_quote() -> None:
    """Prompts and secrets of tools, but no words of the protocol."""
    options = {"tools": [{"type": "mcp", "server_url": "https://m.example", "authorization": "hush"}]}
    texts = set(quotable_texts(job_of([{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}], options)))
    assert texts == {"Hi", "https://m.example", "hush"}
