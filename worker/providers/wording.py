"""What xAI says when it refuses, over gRPC or REST: what that means, and how it may be shown.

xAI documents its codes, not its wording, and has sent the same refusal under different codes. So the rules read the
text where its wording is known; where none fits, xai_errors.py and openai_errors.py go by the code. Loads no vendor's
library.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from promptq.producer.errors import ErrorCode
from promptq.producer.models import PromptJob

LONGEST_MESSAGE: Final = 500
LONGEST_RETRY_AFTER: Final = 600.0

# The first rule that fits decides. Those that fail one job stand before those that pause the fleet:
# a refusal that quotes a job, or only mentions API keys, must not stop everybody else's.
_RULES: Final = (
    (r"violates usage guidelines|SAFETY_CHECK", ErrorCode.MODERATED),
    (r"maximum prompt length|context (length|window)", ErrorCode.CONTEXT_LENGTH),
    # By gRPC's C core (both directions) and Go; by Rust's tonic.
    (r"message larger than max|message length too large|request too large", ErrorCode.TOO_LARGE),
    # Goes on with "Please ensure you're using the correct API key".
    (r"\bmodel\b.* does not exist", ErrorCode.MODEL_NOT_FOUND),
    # A model that is full wants what a limit wants: fewer calls, and nobody's attempt spent.
    (r"too many (requests|tokens) for|rate limit|at capacity", ErrorCode.RATE_LIMITED),
    (r"\bcredits?\b|spending limit", ErrorCode.NO_CREDIT),
    (r"\bAPI[ _-]?key|correct credentials", ErrorCode.BAD_KEY),
)
_COMPILED: Final = [(re.compile(says, re.IGNORECASE | re.DOTALL), means) for says, means in _RULES]

_LOOKS_LIKE_A_KEY: Final = re.compile(r"\bbearer\s+\S+|\b(?:xai|sk)-[\w-]{6,}", re.IGNORECASE)
_HIDDEN: Final = "***"
_SHORTEST_SOURCE: Final = 8
_LONGEST_OVERLAP: Final = 24
_LONGEST_LOOK: Final = 1_000

_QUOTABLE: Final = {"messages", "tools", "response_format", "search_parameters"}
_NO_TEXT: Final = {"type", "role", "status", "detail", "mode", "retrieval_mode", "action"}


def meaning_of(said: str, *, may_be_unpaid: bool) -> ErrorCode | None:
    """What these words mean; None if they are new to us. Pure.

    `may_be_unpaid`: whether they came under a code that also tells of an account that has no credit. Under any other,
    a mention of credits says nothing.
    """
    for says, means in _COMPILED:
        if (may_be_unpaid or means is not ErrorCode.NO_CREDIT) and says.search(said):
            return means
    return None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The longest wait that they ask for, in seconds, 600 at most; None for nonsense, or a date. By lower-case name."""
    waits = [*_seconds(headers.get("retry-after")), *_seconds(headers.get("retry-after-ms"), unit=1e-3)]
    return longest_of(waits)


def longest_of(waits: Iterable[float]) -> float | None:
    """Of seconds that somebody asks for: the most, 600 at most; None if it is none at all."""
    meant = (wait for wait in waits if wait > 0 and math.isfinite(wait))
    return max((min(wait, LONGEST_RETRY_AFTER) for wait in meant), default=None)


def _seconds(value: str | None, unit: float = 1.0) -> list[float]:
    try:
        return [] if value is None else [float(value) * unit]
    except ValueError:
        return []


def quotable_texts(job: PromptJob) -> Iterator[str]:
    """What the caller wrote, which an error may quote: prompts, images, schemas, and the secrets of MCP servers."""
    request = job.model_dump(mode="json", include=_QUOTABLE, exclude_none=True)
    return _texts_in(request)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts_in(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            if name not in _NO_TEXT or not isinstance(each, str):
                yield from _texts_in(each)


def presentable(text: str) -> str:
    """`text` on one line of at most 500 characters, with `***` for what looks like a key."""
    line = _LOOKS_LIKE_A_KEY.sub(_HIDDEN, _one_line(text))
    return line if len(line) <= LONGEST_MESSAGE else line[: LONGEST_MESSAGE - 1] + "…"


def without_quotes(text: str, sources: Iterable[str]) -> str:
    """The first 1,000 characters of `text`, on one line, with `***` for what they quote from `sources`.

    That is every run of 24 characters or more, and all of a source that has 8 to 23. A quote that is
    escaped or reworded stays.
    """
    line = _one_line(text)[:_LONGEST_LOOK]
    for source in sources:
        line = _hide(_one_line(source), line)
    return line


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _hide(source: str, line: str) -> str:
    """Tries one block in every `step` characters: a run of `shortest` always holds a whole one."""
    shortest = min(_LONGEST_OVERLAP, len(source))
    if shortest < _SHORTEST_SOURCE:
        return line
    step = shortest // 2
    kept, done, at = [], 0, 0
    while at + step <= len(line):
        start, end = _quote_around(line, at, at + step, done, source)
        if end - start >= shortest:
            kept += [line[done:start], _HIDDEN]
            done = end
        at = max(end, at + step)
    return "".join([*kept, line[done:]])


def _quote_around(line: str, start: int, end: int, first: int, source: str) -> tuple[int, int]:
    """The longest part of `source` that `line` holds around `start:end`; empty if it does not hold that.

    Bisects, since each look through a prompt of megabytes takes a millisecond or more.
    """
    if line[start:end] not in source:
        return start, start
    before = range(start - 1, first - 1, -1)
    start -= bisect_left(before, True, key=lambda place: line[place:end] not in source)
    after = range(end + 1, len(line) + 1)
    end += bisect_left(after, True, key=lambda place: line[start:place] not in source)
    return start, end
