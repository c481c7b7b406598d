"""Pages of Markdown whose code the tests run as it stands there."""

import re
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent
_SECTION = re.compile(r"^## (.*?)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)


class Page:
    """A page by its sections; the place is relative to the checkout."""

    def __init__(self, place: str) -> None:
        self.sections: dict[str, str] = dict(_SECTION.findall((_ROOT / place).read_text()))

    def shown(self, heading: str, language: str = "python") -> list[str]:
        """The blocks of code under a heading."""
        blocks = _CODE.finditer(self.sections[heading])
        return [block["text"] for block in blocks if block["language"] == language]


async def run_block(code: str, **names: Any) -> dict[str, Any]:
    """Runs code that may `await`, with these names in reach; returns the names that it has bound."""
    indented = "\n".join(f"    {line}" for line in code.splitlines())
    exec(f"async def main():\n{indented}\n    return locals()", names)  # noqa: S102 - the page's own words
    bound: dict[str, Any] = await names["main"]()
    return bound
