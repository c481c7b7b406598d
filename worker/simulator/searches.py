"""What xAI itself would have looked up: its own tools, as they are called, counted and cited."""

from collections.abc import Sequence
from typing import NamedTuple

from xai_sdk.proto import chat_pb2

_SEARCHING = (chat_pb2.ON_SEARCH_MODE, chat_pb2.AUTO_SEARCH_MODE)
_WEB_PAGES = ("https://example.com/simulated/1", "https://example.com/simulated/2")
_POSTS = ("https://x.com/simulated/status/1",)


class ServerSideTool(NamedTuple):
    """A tool that xAI runs: the type of its calls, its name in the usage, what it finds.

    Its output is told only to who asks to `include` it; None: never.
    """

    name: str
    type: chat_pb2.ToolCallType
    used: str
    include: chat_pb2.IncludeOption | None = None
    sources: tuple[str, ...] = ()


_TOOLS = {
    tool.name: tool
    for tool in (
        ServerSideTool(
            "web_search",
            chat_pb2.TOOL_CALL_TYPE_WEB_SEARCH_TOOL,
            "SERVER_SIDE_TOOL_WEB_SEARCH",
            chat_pb2.INCLUDE_OPTION_WEB_SEARCH_CALL_OUTPUT,
            _WEB_PAGES,
        ),
        ServerSideTool(
            "x_search",
            chat_pb2.TOOL_CALL_TYPE_X_SEARCH_TOOL,
            "SERVER_SIDE_TOOL_X_SEARCH",
            chat_pb2.INCLUDE_OPTION_X_SEARCH_CALL_OUTPUT,
            _POSTS,
        ),
        ServerSideTool(
            "code_execution",
            chat_pb2.TOOL_CALL_TYPE_CODE_EXECUTION_TOOL,
            "SERVER_SIDE_TOOL_CODE_EXECUTION",
            chat_pb2.INCLUDE_OPTION_CODE_EXECUTION_CALL_OUTPUT,
        ),
        ServerSideTool(
            "collections_search",
            chat_pb2.TOOL_CALL_TYPE_COLLECTIONS_SEARCH_TOOL,
            "SERVER_SIDE_TOOL_COLLECTIONS_SEARCH",
            chat_pb2.INCLUDE_OPTION_COLLECTIONS_SEARCH_CALL_OUTPUT,
        ),
        ServerSideTool(
            "mcp",
            chat_pb2.TOOL_CALL_TYPE_MCP_TOOL,
            "SERVER_SIDE_TOOL_MCP",
            chat_pb2.INCLUDE_OPTION_MCP_CALL_OUTPUT,
        ),
        ServerSideTool(
            "attachment_search",
            chat_pb2.TOOL_CALL_TYPE_ATTACHMENT_SEARCH_TOOL,
            "SERVER_SIDE_TOOL_ATTACHMENT_SEARCH",
            chat_pb2.INCLUDE_OPTION_ATTACHMENT_SEARCH_CALL_OUTPUT,
        ),
        ServerSideTool(
            "image_generation",
            chat_pb2.TOOL_CALL_TYPE_IMAGE_GENERATION_TOOL,
            "SERVER_SIDE_TOOL_IMAGE_GENERATION",
        ),
    )
}


def tools_run(request: chat_pb2.GetCompletionsRequest) -> Sequence[ServerSideTool]:
    """The tools that xAI runs for this request: each one that is given, once, unless none may be called."""
    if not request.tools or request.tool_choice.mode == chat_pb2.TOOL_MODE_NONE:
        return ()
    kinds = [tool.WhichOneof("tool") for tool in request.tools]
    return [_TOOLS[kind] for kind in kinds if kind in _TOOLS]


def cited(request: chat_pb2.GetCompletionsRequest) -> Sequence[str]:
    """The addresses of what was found."""
    sources = [source for tool in tools_run(request) for source in tool.sources]
    if request.HasField("search_parameters"):
        search = request.search_parameters
        if search.mode in _SEARCHING and search.return_citations:
            sources += _WEB_PAGES
    return list(dict.fromkeys(sources))


def linked(request: chat_pb2.GetCompletionsRequest, text: str) -> tuple[str, list[chat_pb2.InlineCitation]]:
    """The text with a link to each source behind it, and where they stand; as it was unless they are asked for."""
    citations: list[chat_pb2.InlineCitation] = []
    if chat_pb2.INCLUDE_OPTION_INLINE_CITATIONS in request.include:
        for number, url in enumerate(cited(request), start=1):
            start, link = len(text) + 1, f"[[{number}]]({url})"
            citation = chat_pb2.InlineCitation(id=str(number), start_index=start, end_index=start + len(link))
            (citation.x_citation if url in _POSTS else citation.web_citation).url = url
            citations.append(citation)
            text = f"{text} {link}"
    return text, citations
