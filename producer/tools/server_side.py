"""Tools that the provider runs itself, and what it may add of their output.

Fields are called as in xAI's protocol, so that the worker copies them.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from promptq.producer.fields import Frozen, Moment, Text, Texts


class UserLocation(Frozen):
    """Where the user of a web search is: `country` as in ISO 3166-1 alpha-2, `timezone` as in IANA's database."""

    country: Text | None = None
    city: Text | None = None
    region: Text | None = None
    timezone: Text | None = None


def _not_both(chosen: Texts | None, excluded: Texts | None) -> None:
    if chosen and excluded:
        raise ValueError("allow some or exclude some, not both")


class WebSearch(Frozen):
    """Searches the web and reads pages."""

    type: Literal["web_search"]
    allowed_domains: Texts | None = Field(None, max_length=5)
    excluded_domains: Texts | None = Field(None, max_length=5)
    enable_image_understanding: bool | None = None
    enable_image_search: bool | None = None
    user_location: UserLocation | None = None

    @model_validator(mode="after")
    def _allows_or_excludes(self) -> Self:
        _not_both(self.allowed_domains, self.excluded_domains)
        return self


class XSearch(Frozen):
    """Searches posts on X; handles without the @."""

    type: Literal["x_search"]
    from_date: Moment | None = None
    to_date: Moment | None = None
    allowed_x_handles: Texts | None = None
    excluded_x_handles: Texts | None = None
    enable_image_understanding: bool | None = None
    enable_video_understanding: bool | None = None

    @model_validator(mode="after")
    def _allows_or_excludes(self) -> Self:
        _not_both(self.allowed_x_handles, self.excluded_x_handles)
        return self


class CodeExecution(Frozen):
    """Runs code that the model writes. OpenAI's name for it is `code_interpreter`."""

    type: Literal["code_execution", "code_interpreter"]


class Mcp(Frozen):
    """Calls the tools of a remote MCP server. `authorization` and `extra_headers` go there, and never into a repr."""

    type: Literal["mcp"]
    server_url: Text
    server_label: Text | None = None
    server_description: Text | None = None
    allowed_tool_names: Texts | None = None
    authorization: Text | None = Field(None, repr=False)
    extra_headers: dict[str, str] | None = Field(None, repr=False)


class AttachmentSearch(Frozen):
    """Searches the files of the conversation."""

    type: Literal["attachment_search"]
    limit: int | None = Field(None, ge=1)


class ImageGeneration(Frozen):
    """Makes and edits images."""

    type: Literal["image_generation"]
    action: Literal["auto", "generate", "edit"] | None = None


IncludeOption = Literal[
    "web_search_call_output",
    "x_search_call_output",
    "code_execution_call_output",
    "collections_search_call_output",
    "attachment_search_call_output",
    "mcp_call_output",
    "inline_citations",
    "verbose_streaming",
    "code_execution_files_output",
]
