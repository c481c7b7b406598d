"""The conversation that a job carries: messages, their parts, and the calls of tools in them.

OpenAI's shapes are taken as they are, those of Chat Completions and of Responses, and travel as they were given;
`ImagePart.source`, `FilePart.source` and `Message.text` read either.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, model_validator

from promptq.producer.fields import Frozen, Text

ServerTool = Literal[
    "web_search",
    "x_search",
    "code_execution",
    "collections_search",
    "mcp",
    "attachment_search",
    "image_generation",
]
"""What xAI runs itself while it answers."""

Detail = Literal["auto", "low", "high"]
CallStatus = Literal["in_progress", "completed", "incomplete", "failed"]

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+=-]+)*;base64,")
_LONGEST_URL_HEAD = 256


class TextPart(Frozen):
    """A part of a message that is text."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class ImageSource(Frozen):
    """Where an image is: an http(s) URL, base64 (bare or as a `data:` URL), or the id of an uploaded file."""

    url: Text | None = None
    file_id: Text | None = None
    detail: Detail | None = None

    @model_validator(mode="after")
    def _is_one_image(self) -> Self:
        if (self.url is None) == (self.file_id is None):
            raise ValueError("needs a url or a file_id, one of them")
        if self.url is not None:
            _check_image(self.url)
        return self


class ImagePart(Frozen):
    """`{"type": "image_url", "image_url": {"url": ..., "detail": ...}}` or `{"type": "input_image", ...}`."""

    type: Literal["image_url", "input_image"]
    image_url: Annotated[ImageSource, Tag("[source]")] | Annotated[Text, Tag("[url]")] | None = None
    file_id: Text | None = None
    detail: Detail | None = None

    @property
    def source(self) -> ImageSource:
        """The image, however it was written."""
        if isinstance(self.image_url, ImageSource):
            return self.image_url
        return ImageSource.model_construct(url=self.image_url, file_id=self.file_id, detail=self.detail)

    @model_validator(mode="after")
    def _is_one_image(self) -> Self:
        if isinstance(self.image_url, ImageSource):
            if self.file_id or self.detail:
                raise ValueError("give everything of the image in image_url")
            return self
        if (self.image_url is None) == (self.file_id is None):
            raise ValueError("needs an image_url or a file_id, one of them")
        if self.image_url is not None:
            _check_image(self.image_url)
        return self


class FileSource(Frozen):
    """A file: the id of an uploaded one, an http(s) URL, or its bytes as base64 (bare or as a `data:` URL)."""

    file_id: Text | None = None
    file_url: Text | None = None
    file_data: Text | None = Field(None, repr=False)
    filename: Text | None = None
    mime_type: Text | None = None

    @property
    def data(self) -> bytes | None:
        """The bytes, if they came with it."""
        return None if self.file_data is None else _decoded(self.file_data)

    @property
    def media_type(self) -> str | None:
        """Such as `application/pdf`: as given, or as a `data:` URL says."""
        if self.mime_type or not self.file_data:
            return self.mime_type
        found = _DATA_URL.match(self.file_data[:_LONGEST_URL_HEAD])
        return found[1] if found else None

    @model_validator(mode="after")
    def _is_one_file(self) -> Self:
        self._check()
        return self

    def _check(self) -> None:
        if (self.file_id is not None) + (self.file_url is not None) + (self.file_data is not None) != 1:
            raise ValueError("needs one of file_id, file_url and file_data")
        if self.file_id is not None and (self.filename or self.mime_type):
            raise ValueError("an uploaded file has its own filename and mime_type; leave them out")
        if self.file_url is not None and not _is_url(self.file_url):
            raise ValueError("file_url must be an http(s) URL")
        if self.file_data is not None:
            _decoded(self.file_data)


class FilePart(FileSource):
    """`{"type": "file", "file": {"file_id": ...}}` or `{"type": "input_file", "file_id": ...}`."""

    type: Literal["file", "input_file"]
    file: FileSource | None = None

    @property
    def source(self) -> FileSource:
        """The file, however it was written."""
        return self.file or self

    def _check(self) -> None:
        if self.file is None:
            super()._check()
        elif any(getattr(self, name) is not None for name in FileSource.model_fields):
            raise ValueError("give everything of the file in file")


def _kind_of_part(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return _KINDS.get(kind) if isinstance(kind, str) else None


_KINDS: Final = {
    "text": "[text]",
    "input_text": "[text]",
    "output_text": "[text]",
    "image_url": "[image]",
    "input_image": "[image]",
    "file": "[file]",
    "input_file": "[file]",
}
Part = Annotated[
    Annotated[TextPart, Tag("[text]")] | Annotated[ImagePart, Tag("[image]")] | Annotated[FilePart, Tag("[file]")],
    Discriminator(
        _kind_of_part,
        custom_error_type="part_type",
        custom_error_message="must be a part of type text, image_url, file, input_text, input_image or input_file",
    ),
]


class CalledFunction(Frozen):
    """What is called; `arguments` is JSON as the model wrote it."""

    name: Text
    arguments: str = "{}"


class MessageToolCall(Frozen):
    """A call in an assistant's message. `type` tells the caller's functions from what xAI ran itself."""

    id: str
    type: Literal["function"] | ServerTool = "function"
    function: CalledFunction
    status: CallStatus | None = None
    error_message: str | None = None


def _may_be_silent(content: str | None, info: ValidationInfo) -> str | None:
    said = info.data
    if said.get("tool_calls") or said.get("encrypted_content") or (content == "" and said.get("role") == "tool"):
        return content
    raise ValueError("must not be empty, unless an assistant calls tools")


class Message(Frozen):
    """One message of the conversation that the model answers.

    `tool` answers the call `tool_call_id`. An assistant's may have calls instead of content, or beside it.
    `encrypted_content`: reasoning as an earlier answer brought it. `refusal`: OpenAI's messages have one, always None.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    name: Text | None = None
    tool_calls: tuple[MessageToolCall, ...] | None = None
    tool_call_id: Text | None = None
    reasoning_content: Text | None = None
    encrypted_content: Text | None = Field(None, repr=False)
    refusal: None = None
    # Last, since whether it may be empty depends on the others.
    content: Annotated[
        Annotated[Text, Tag("[text]")]
        | Annotated[tuple[Part, ...], Field(min_length=1), Tag("[parts]")]
        | Annotated[Literal[""] | None, AfterValidator(_may_be_silent), Tag("[nothing]")],
        Field(union_mode="left_to_right", validate_default=True),
    ] = None

    @property
    def text(self) -> str:
        """What it says in words, without images and files."""
        content = self.content
        if isinstance(content, str):
            return content
        return "".join(part.text for part in content or () if isinstance(part, TextPart))

    @property
    def attachments(self) -> Iterator[ImagePart | FilePart]:
        """Its images and files."""
        parts = () if isinstance(self.content, str) else self.content or ()
        return (part for part in parts if not isinstance(part, TextPart))


def _is_url(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://"))


def _check_image(url: str) -> None:
    if _is_url(url):
        return
    if url[:5].lower() == "data:":
        found = _DATA_URL.match(url[:_LONGEST_URL_HEAD])
        if not found or not (found[1] or "").startswith("image/"):
            raise ValueError("must be an http(s) URL, or base64 as in data:image/png;base64,...")
    _decoded(url)


def _decoded(data: str) -> bytes:
    found = _DATA_URL.match(data[:_LONGEST_URL_HEAD])
    try:
        return base64.b64decode(data[found.end() :] if found else data, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is neither a URL nor base64") from None
