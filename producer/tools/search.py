"""The older way to search, without tools: in which sources, from when, and how much."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from promptq.producer.fields import Frozen, Moment, Text, Texts


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
