import base64
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from promptq.producer import InvalidJob, Message, PromptJob
from promptq.producer.codec import decode
from promptq.producer.entries import digest_of, entry_of, job_in, job_of
from promptq.producer.messages import FilePart, ImagePart
from promptq.producer.settings import ProducerSettings

pytestmark = pytest.mark.producer

PNG = base64.b64encode(b"\x89PNG not really").decode()
SETTINGS = ProducerSettings()


def user(*parts: Any) -> PromptJob:
    """A job with one message of these parts."""
    return job_of([{"role": "user", "content": list(parts)}], {})


def crossed(job: PromptJob) -> PromptJob:
    """As the worker reads it."""
    return job_in(decode(entry_of(job, SETTINGS).payload))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://a.example/b.png", "detail": "high"}},
        {"type": "image_url", "image_url": "https://a.example/b.png", "detail": "high"},
        {"type": "input_image", "image_url": "https://a.example/b.png", "detail": "high"},
    ],
)
def test_images_in_every_spelling(part: dict[str, Any]) -> None:
    """They travel as they were given and are read alike."""
    job = crossed(user({"type": "text", "text": "What is it?"}, part))
    [image] = job.messages[0].attachments
    assert isinstance(image, ImagePart)
    assert (image.source.url, image.source.detail) == ("https://a.example/b.png", "high")
    assert job.messages[0].text == "What is it?"
    assert job.messages[0].model_dump(mode="json", exclude_none=True)["content"][1] == part


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"file_data": f"data:image/png;base64,{PNG}", "filename": "a.png"}},
        {"type": "input_file", "file_data": PNG, "filename": "a.png", "mime_type": "image/png"},
    ],
)
def test_files_in_every_spelling(part: dict[str, Any]) -> None:
    """Their bytes, name and type come out, whether the type stands beside them or in a data URL."""
    [file] = crossed(user(part)).messages[0].attachments
    assert isinstance(file, FilePart)
    assert (file.source.data, file.source.filename) == (b"\x89PNG not really", "a.png")
    assert file.source.media_type == "image/png"


TOOL_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL], "refusal": None},
        {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]},
        {"role": "assistant", "tool_calls": [TOOL_CALL]},
        {"role": "tool", "tool_call_id": "1", "content": ""},
        {"role": "user", "encrypted_content": "gAAA"},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}, {"type": "output_text", "text": ""}]},
    ],
)
def test_messages_that_are_good(message: dict[str, Any]) -> None:
    """As OpenAI's clients write them."""
    job = job_of([message], {})
    assert crossed(job).messages == job.messages


IMAGE = {"type": "image_url", "image_url": {"url": "https://a.example"}}


def said(part: dict[str, Any]) -> dict[str, Any]:
    """A user's message of one part."""
    return {"role": "user", "content": [part]}


BAD: list[tuple[str, Any]] = [
    ("messages.0.content", {"role": "assistant", "content": None}),
    ("messages.0.content", {"role": "user", "content": []}),
    ("messages.0.content", {"role": "user", "content": 5}),
    ("messages.0.content.0", said({"type": "secret"})),
    ("messages.0.content.0.text", said({"type": "text", "text": 5})),
    ("messages.0.content.0", said({"type": "image_url"})),
    ("messages.0.content.0.image_url.detail", said(IMAGE | {"image_url": {"url": "https://a", "detail": "secret"}})),
    ("messages.0.content.0", said({"type": "input_image", "image_url": "?secret"})),
    ("messages.0.content.0", said({"type": "input_image", "image_url": "data:text/html;base64,AAAA"})),
    ("messages.0.content.0", said({"type": "input_file", "file_data": "?secret"})),
    ("messages.0.content.0", said({"type": "input_file", "file_id": "a", "file_url": "b"})),
    ("messages.0.content.0.file", said({"type": "file", "file": {"filename": "secret"}})),
    ("messages.0.tool_calls.0.function", {"role": "assistant", "tool_calls": [{"id": "1"}]}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "message"), BAD)
def test_bad_messages_name_the_field(field: str, message: dict[str, Any]) -> None:
    """And never its value: it may be a prompt."""
    with pytest.raises(InvalidJob) as caught:
        job_of([message], {})
    assert caught.value.field == field
    assert "secret" not in str(caught.value)


class Weather(BaseModel):
    """What a structured answer holds."""

    city: str
    degrees: float | None = None


def test_a_pydantic_class_is_its_schema() -> None:
    """The same as if the schema were written by hand, in OpenAI's shape."""
    by_hand = {"name": "Weather", "schema": Weather.model_json_schema(), "strict": True}
    written = job_of("Hi", {"response_format": {"type": "json_schema", "json_schema": by_hand}})
    assert (
        job_of("Hi", {"response_format": Weather})
        == written
        == crossed(written.model_copy(update={"model": None})).model_copy(update={"model": None})
    )


def test_a_schema_crosses_as_it_is() -> None:
    """Nothing in it counts as left out, not even null."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"enum": [None], "default": None, "a": []}}}
    [read] = crossed(job_of("Hi", {"tools": [tool]})).tools or ()
    assert read.model_dump(mode="json", exclude_none=True) == tool


FUNCTION = {"type": "function", "name": "f"}
BAD_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("top_logprobs", {"top_logprobs": 3}),
    ("tool_choice", {"tool_choice": "required"}),
    ("tool_choice", {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "secret"}}}),
    ("tool_choice", {"tools": [FUNCTION], "tool_choice": "secret"}),
    ("tools.0", {"tools": [{"type": "secret"}]}),
    ("tools.0", {"tools": [{"type": "function"}]}),
    ("tools", {"tools": [FUNCTION] * 129}),
    ("tools.0", {"tools": [{"type": "web_search", "allowed_domains": ["a"], "excluded_domains": ["b"]}]}),
    ("tools.0.collection_ids", {"tools": [{"type": "collections_search"}]}),
    ("tools.0.from_date", {"tools": [{"type": "x_search", "from_date": "secret"}]}),
    ("response_format", {"response_format": {"type": "json_schema"}}),
    ("response_format", {"response_format": {"type": "json_schema", "json_schema": {"secret": 1}}}),
    ("response_format", {"response_format": dict}),
    ("search_parameters.sources.0.links", {"search_parameters": {"sources": [{"type": "rss"}]}}),
    ("agent_count", {"agent_count": 5}),
    ("include.0", {"include": ["secret"]}),
    ("guidelines.0.category", {"guidelines": [{"type": "policy", "category": "secret", "behavior": "decline"}]}),
]


@pytest.mark.parametrize(("field", "options"), BAD_OPTIONS)
def test_bad_options_name_the_field(field: str, options: dict[str, Any]) -> None:
    """What xAI would refuse is refused before it is enqueued."""
    with pytest.raises(InvalidJob) as caught:
        job_of("Hi", options)
    assert caught.value.field == field
    assert "secret" not in str(caught.value)


def test_secrets_of_a_tool_stay_out_of_its_repr() -> None:
    """The token of an MCP server, and its headers."""
    job = job_of("Hi", {"tools": [{"type": "mcp", "server_url": "https://a", "authorization": "hush",
                                   "extra_headers": {"X-Key": "hush"}}]})  # fmt: skip
    assert "hush" not in repr(job)


def test_images_are_no_text() -> None:
    """Their estimate does not grow with their bytes; those of tools and schemas do."""

    def tokens(job: PromptJob) -> int:
        return int(entry_of(job, SETTINGS).estimate.partition("/")[0])

    def image(size: int) -> dict[str, str]:
        return {"type": "input_image", "image_url": base64.b64encode(b"x" * size).decode()}

    assert tokens(user(image(3))) == tokens(user(image(300_000))) == 1_004
    assert tokens(user(image(3), image(3))) == 2_004
    plain, tool = job_of("Hi", {}), {"type": "function", "name": "f", "description": "x" * 4_000}
    assert 1_000 < tokens(job_of("Hi", {"tools": [tool]})) - tokens(plain) < 1_100
    assert entry_of(job_of("Hi", {"max_tokens": 10, "n": 3}), SETTINGS).estimate.endswith("/30")


def test_plain_requests_keep_their_digest() -> None:
    """Enqueued again after an upgrade, a job is still the same."""
    job = job_of("hi", {"model": "grok-4", "max_tokens": 200})
    assert digest_of(job, SETTINGS) == "0bc3dc47139ec656db6d21db6055ae00"


def test_a_message_is_frozen_and_strict() -> None:
    """Fields that are none are mistakes."""
    with pytest.raises(ValidationError):
        Message.model_validate({"role": "user", "content": "Hi", "contents": "Hi"})
