"""What a model may use and how it is to answer: tools, the choice among them, search, and the format of the answer.

OpenAI's shapes are taken as they are. Fields of xAI's own tools are called as in its protocol, so that the worker
copies them; a newer name for one of them is an alias that says so.
"""

from promptq.producer.tools.answer import AnyResponseFormat, Guideline, ResponseFormat
from promptq.producer.tools.choice import MOST_TOOLS, ServerTools, Tool, ToolChoice
from promptq.producer.tools.collections_search import (
    CollectionsSearch,
    HybridRetrieval,
    OneWayRetrieval,
    RankFusion,
    Reranker,
)
from promptq.producer.tools.functions import Function, FunctionChoice, FunctionName, FunctionTool
from promptq.producer.tools.search import NewsSource, RssSource, SearchParameters, Source, WebSource, XSource
from promptq.producer.tools.server_side import (
    AttachmentSearch,
    CodeExecution,
    ImageGeneration,
    IncludeOption,
    Mcp,
    UserLocation,
    WebSearch,
    XSearch,
)

__all__ = [
    "MOST_TOOLS",
    "AnyResponseFormat",
    "AttachmentSearch",
    "CodeExecution",
    "CollectionsSearch",
    "Function",
    "FunctionChoice",
    "FunctionName",
    "FunctionTool",
    "Guideline",
    "HybridRetrieval",
    "ImageGeneration",
    "IncludeOption",
    "Mcp",
    "NewsSource",
    "OneWayRetrieval",
    "RankFusion",
    "Reranker",
    "ResponseFormat",
    "RssSource",
    "SearchParameters",
    "ServerTools",
    "Source",
    "Tool",
    "ToolChoice",
    "UserLocation",
    "WebSearch",
    "WebSource",
    "XSearch",
    "XSource",
]
