"""From a failed call to a ProviderError: what the details say comes first, then the gRPC code.

xAI documents its codes, not its wording, and has sent the same refusal under different codes. So the
rules read the text where its wording is known, and fall back to the code.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Iterable
from itertools import chain

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from promptq.producer.errors import ErrorCode
from promptq.worker.providers.base import ProviderError

LONGEST_MESSAGE = 500
LONGEST_RETRY_AFTER = 600.0

_ANY = frozenset(StatusCode)
_UNPAID = frozenset(
    {
        StatusCode.RESOURCE_EXHAUSTED,
        StatusCode.PERMISSION_DENIED,
        StatusCode.FAILED_PRECONDITION,
    }
)
_FAULT_OF_THE_REQUEST = frozenset(
    {
        StatusCode.INVALID_ARGUMENT,
        StatusCode.OUT_OF_RANGE,
        StatusCode.UNIMPLEMENTED,
        StatusCode.FAILED_PRECONDITION,
        StatusCode.PERMISSION_DENIED,
    }
)

# The first rule that fits decides. Those that fail one job stand before those that pause the fleet:
# a refusal that quotes a job, or only mentions API keys, must not stop everybody else's.
_RULES: tuple[tuple[str, frozenset[StatusCode], ErrorCode], ...] = (
    (r"violates usage guidelines|SAFETY_CHECK", _ANY, ErrorCode.MODERATED),
    (r"maximum prompt length|context (length|window)", _ANY, ErrorCode.CONTEXT_LENGTH),
    # By the C core (both directions) and Go; by Rust's tonic; by a proxy.
    (r"message larger than max|message length too large", _ANY, ErrorCode.TOO_LARGE),
    (r"request too large|http2 header with status: 413", _ANY, ErrorCode.TOO_LARGE),
    # Goes on with "Please ensure you're using the correct API key".
    (r"\bmodel\b.* does not exist", _ANY, ErrorCode.MODEL_NOT_FOUND),
    (r"too many (requests|tokens) for|rate limit", _ANY, ErrorCode.RATE_LIMITED),
    # A model that is full wants what a limit wants: fewer calls, and nobody's attempt spent.
    (r"at capacity|http2 header with status: 429", _ANY, ErrorCode.RATE_LIMITED),
    (r"\bcredits?\b|spending limit", _UNPAID, ErrorCode.NO_CREDIT),
    (r"\bAPI[ _-]?key|correct credentials", _ANY, ErrorCode.BAD_KEY),
    # An answer without a gRPC status: not from the API but from something in front of it.
    (r"http2 header with status: (?!401)", _ANY, ErrorCode.UNAVAILABLE),
    ("", frozenset({StatusCode.UNAUTHENTICATED}), ErrorCode.BAD_KEY),
    ("", frozenset({StatusCode.RESOURCE_EXHAUSTED}), ErrorCode.RATE_LIMITED),
    ("", frozenset({StatusCode.NOT_FOUND}), ErrorCode.MODEL_NOT_FOUND),
    ("", _FAULT_OF_THE_REQUEST, ErrorCode.INVALID_REQUEST),
    ("", frozenset({StatusCode.UNAVAILABLE}), ErrorCode.UNAVAILABLE),
    ("", frozenset({StatusCode.DEADLINE_EXCEEDED}), ErrorCode.TIMEOUT),
    # INTERNAL, UNKNOWN, ABORTED, DATA_LOSS, and CANCELLED by the server.
    ("", _ANY, ErrorCode.PROVIDER_ERROR),
)
_COMPILED = [(re.compile(says, re.IGNORECASE | re.DOTALL), under, code) for says, under, code in _RULES]

_NEVER_SENT = re.compile(r"failed to connect to all addresses|DNS resolution failed|name resolution", re.IGNORECASE)

Trailers = Iterable[tuple[str, str | bytes]]

_LOOKS_LIKE_A_KEY = re.compile(r"\bbearer\s+\S+|\bxai-[\w-]{6,}", re.IGNORECASE)
_HIDDEN = "***"
_SHORTEST_SOURCE = 8
_LONGEST_OVERLAP = 24
_LONGEST_LOOK = 1_000


def error_of(code: StatusCode, details: str, trailing_metadata: Trailers | None) -> ProviderError:
    """What a call meant that ended with this status. Pure.

    `retry_after` is the longest of what the trailers ask for, 600 s at most.
    """
    meaning = next(meaning for says, under, meaning in _COMPILED if code in under and says.search(details))
    message = f"{code.name}: {details}" if details else code.name
    was_sent = not (code is StatusCode.UNAVAILABLE and _NEVER_SENT.search(details))
    retry_after = _retry_after(trailing_metadata or ())
    return ProviderError(meaning, presentable(message), retry_after=retry_after, was_sent=was_sent)


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


def _retry_after(trailers: Trailers) -> float | None:
    waits = chain.from_iterable(_waits_in(name, value) for name, value in trailers)
    return max((min(wait, LONGEST_RETRY_AFTER) for wait in waits), default=None)


def _waits_in(name: str, value: str | bytes) -> list[float]:
    """The seconds that a trailer asks for; nothing if it is another one, or nonsense."""
    try:
        match name:
            case "retry-after":
                waits = [float(value)]
            case "retry-after-ms":
                waits = [float(value) / 1000]
            case "grpc-status-details-bin" if isinstance(value, bytes):
                waits = _retry_infos(value)
            case _:
                return []
    except (ValueError, DecodeError):
        return []
    return [wait for wait in waits if wait > 0 and math.isfinite(wait)]


def _retry_infos(status: bytes) -> list[float]:
    waits = []
    for detail in Status.FromString(status).details:
        info = RetryInfo()
        if detail.Unpack(info):
            waits.append(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    return waits
