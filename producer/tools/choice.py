"""Any tool, told apart by its type, and which of its tools a model must or must not use."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, Tag

from promptq.producer.tools.collections_search import CollectionsSearch
from promptq.producer.tools.functions import FunctionChoice, FunctionTool
from promptq.producer.tools.server_side import AttachmentSearch, CodeExecution, ImageGeneration, Mcp, WebSearch, XSearch

MOST_TOOLS: Final = 128

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

ToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("[mode]")] | Annotated[FunctionChoice, Tag("[function]")],
    Field(union_mode="left_to_right"),
]
