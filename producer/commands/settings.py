"""How `promptq limits set` and `promptq tenants set` change some of what is set, and leave the rest."""

from collections.abc import Mapping
from typing import Any, Final

from promptq.producer.console import CommandError

NOTHING: Final = "none"
"""What a user gives to take a limit away."""


def changed(now: Any, given: Mapping[str, str | None]) -> dict[str, int | None]:
    """All fields: those that were given as given, the others as they are `now`. Raises CommandError."""
    if not any(text is not None for text in given.values()):
        raise CommandError(f"say what to change: {', '.join(map(_option, given))}")
    chosen = {field: _number(field, text) for field, text in given.items() if text is not None}
    return {field: getattr(now, field) for field in given} | chosen


def _number(field: str, text: str) -> int | None:
    if text == NOTHING:
        return None
    try:
        return int(text)
    except ValueError:
        raise CommandError(f"{_option(field)}: give a whole number, or {NOTHING}") from None


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"
