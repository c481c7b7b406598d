"""What a model may use and how it is to answer: tools, the choice among them, search, and the format of the answer.

OpenAI's shapes are taken as they are. Fields of xAI's own tools are called as in its protocol, so that the worker
copies them; a newer name for one of them is an alias that says so.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from promptq.producer.fields import Frozen, Text

MOST_TOOLS: Final = 128

JsonObject = dict[str, Any]
Texts = tuple[Text, ...]


def _moment(value: Any) -> Any:
    """An ISO date or time, in UTC where it names no zone."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("must be an ISO 8601 date or time") from None
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    return value


Moment = Annotated[datetime, BeforeValidator(_moment)]


class Function(Frozen):
    """A function of the caller's that the model may ask for; `parameters` is a JSON Schema."""

    name: Text
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class FunctionTool(Frozen):
    """`{"type": "function", "function": {...}}`, or the fields of the function beside the type."""

    type: Literal["function"]
    function: Function | None = None
    name: Text | None = None
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None

    @property
    def spec(self) -> Function:
        """The function, however it was written."""
        return self.function or Function(
            name=str(self.name), description=self.description, parameters=self.parameters, strict=self.strict
        )

    @model_validator(mode="after")
    def _is_one_function(self) -> Self:
        beside = any(getattr(self, name) is not None for name in Function.model_fields)
        if self.function is not None and beside:
            raise ValueError("give everything of the function in function")
        if self.function is None and self.name is None:
            raise ValueError("needs a function with a name")
        return self


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


class Reranker(Frozen):
    """The model that ranks what was found."""

    model: Text | None = None
    instructions: Text | None = None


class RankFusion(Frozen):
    """Ranks by both searches, each with its weight."""

    k: int | None = None
    embedding_weight: float | None = None
    text_weight: float | None = None


class HybridRetrieval(Frozen):
    """By meaning and by words."""

    search_multiplier: int | None = None
    reranker_model: Reranker | None = None
    reciprocal_rank_fusion: RankFusion | None = None

    @model_validator(mode="after")
    def _ranks_one_way(self) -> Self:
        if self.reranker_model and self.reciprocal_rank_fusion:
            raise ValueError("give reranker_model or reciprocal_rank_fusion, not both")
        return self


class OneWayRetrieval(Frozen):
    """By meaning (semantic) or by words (keyword) alone."""

    reranker: Reranker | None = None


class CollectionsSearch(Frozen):
    """Searches collections of documents. One way of retrieval: by name, or by its own object for details."""

    type: Literal["collections_search"]
    collection_ids: Texts = Field(min_length=1, max_length=10)
    limit: int | None = Field(None, ge=1)
    instructions: Text | None = None
    retrieval_mode: Literal["hybrid", "semantic", "keyword"] | None = None
    hybrid_retrieval: HybridRetrieval | None = None
    semantic_retrieval: OneWayRetrieval | None = None
    keyword_retrieval: OneWayRetrieval | None = None

    @model_validator(mode="after")
    def _retrieves_one_way(self) -> Self:
        ways = (self.retrieval_mode, self.hybrid_retrieval, self.semantic_retrieval, self.keyword_retrieval)
        if sum(way is not None for way in ways) > 1:
            raise ValueError("give one way of retrieval")
        return self


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


_ALIASES: Final = {"code_interpreter": "code_execution"}


def _kind_of_tool(tool: Any) -> str | None:
    kind = tool.get("type") if isinstance(tool, Mapping) else getattr(tool, "type", None)
    return f"[{_ALIASES.get(kind, kind)}]" if isinstance(kind, str) else None


ServerTools = (
    Annotated[WebSearch, Tag("[web_search]")]
    | Annotated[XSearch, Tag("[x_search]")]
    | Annotated[CodeExecution, Tag("[code_execution]")]
    | Annotated[CollectionsSearch, Tag("[collections_search]")]
    | Annotated[Mcp, Tag("[mcp]")]
    | Annotated[AttachmentSearch, Tag("[attachment_search]")]
    | Annotated[ImageGeneration, Tag("[image_generation]")]
)
Tool = Annotated[
    Annotated[FunctionTool, Tag("[function]")] | ServerTools,
    Discriminator(
        _kind_of_tool,
        custom_error_type="tool_type",
        custom_error_message="must be a tool of type function, web_search, x_search, code_execution, "
        "collections_search, mcp, attachment_search or image_generation",
    ),
]


class FunctionName(Frozen):
    """Which function."""

    name: Text


class FunctionChoice(Frozen):
    """`{"type": "function", "function": {"name": ...}}`, or the name beside the type: this function is called."""

    type: Literal["function"]
    function: FunctionName | None = None
    name: Text | None = None

    @property
    def chosen(self) -> str:
        """The function's name."""
        return self.function.name if self.function else str(self.name)

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.function is None) == (self.name is None):
            raise ValueError("needs the name of one function")
        return self


ToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("[mode]")] | Annotated[FunctionChoice, Tag("[function]")],
    Field(union_mode="left_to_right"),
]


class ResponseFormat(Frozen):
    """`{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}`, `json_object` or `text`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonObject | None = Field(None, description="`schema`, and OpenAI's `name`, `description`, `strict`.")

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("a json_schema goes with the type json_schema, and with no other")
        if self.json_schema is not None:
            if not isinstance(self.json_schema.get("schema"), dict):
                raise ValueError("json_schema needs an object named schema")
            if unknown := self.json_schema.keys() - {"name", "description", "schema", "strict"}:
                raise ValueError(f"json_schema has {len(unknown)} fields beside name, description, schema and strict")
        return self


def _format(given: Any) -> Any:
    """A pydantic class stands for its schema, a word for the type of that name."""
    if isinstance(given, type) and issubclass(given, BaseModel):
        schema = {"name": given.__name__, "schema": given.model_json_schema(), "strict": True}
        return {"type": "json_schema", "json_schema": schema}
    if given in ("text", "json_object"):
        return {"type": given}
    return given


AnyResponseFormat = Annotated[ResponseFormat, BeforeValidator(_format)]


class WebSource(Frozen):
    """Pages of the web."""

    type: Literal["web"]
    country: Text | None = None
    excluded_websites: Texts | None = Field(None, max_length=5)
    allowed_websites: Texts | None = Field(None, max_length=5)
    safe_search: bool = True


class NewsSource(Frozen):
    """News."""

    type: Literal["news"]
    country: Text | None = None
    excluded_websites: Texts | None = Field(None, max_length=5)
    safe_search: bool = True


class XSource(Frozen):
    """Posts on X, by at least so many likes and views."""

    type: Literal["x"]
    included_x_handles: Texts | None = None
    excluded_x_handles: Texts | None = None
    post_favorite_count: int | None = Field(None, ge=0)
    post_view_count: int | None = Field(None, ge=0)


class RssSource(Frozen):
    """Feeds."""

    type: Literal["rss"]
    links: Texts = Field(min_length=1)


def _kind_of_source(source: Any) -> str | None:
    kind = source.get("type") if isinstance(source, Mapping) else getattr(source, "type", None)
    return f"[{kind}]" if isinstance(kind, str) else None


Source = Annotated[
    Annotated[WebSource, Tag("[web]")]
    | Annotated[NewsSource, Tag("[news]")]
    | Annotated[XSource, Tag("[x]")]
    | Annotated[RssSource, Tag("[rss]")],
    Discriminator(
        _kind_of_source,
        custom_error_type="source_type",
        custom_error_message="must be a source of type web, news, x or rss",
    ),
]


class SearchParameters(Frozen):
    """The older way to search, without tools."""

    mode: Literal["auto", "on", "off"] = "auto"
    sources: tuple[Source, ...] | None = None
    from_date: Moment | None = None
    to_date: Moment | None = None
    return_citations: bool = True
    max_search_results: int | None = Field(None, ge=1)


class Guideline(Frozen):
    """What the model declines to write."""

    type: Literal["policy"]
    category: Literal["nsfw", "violence", "profanity"]
    behavior: Literal["decline"]


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
