"""From a failed call to a ProviderError: what the details say comes first, then the gRPC code.

The words are read in wording.py; here is what gRPC adds to them.
"""

import re
from collections.abc import Iterable

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from promptq.producer.errors import ErrorCode
from promptq.worker.providers.base import ProviderError
from promptq.worker.providers.wording import longest_of, meaning_of, presentable, retry_after

_UNPAID = frozenset(
    {
        StatusCode.RESOURCE_EXHAUSTED,
        StatusCode.PERMISSION_DENIED,
        StatusCode.FAILED_PRECONDITION,
    }
)
_CODES = {
    StatusCode.UNAUTHENTICATED: ErrorCode.BAD_KEY,
    StatusCode.RESOURCE_EXHAUSTED: ErrorCode.RATE_LIMITED,
    StatusCode.NOT_FOUND: ErrorCode.MODEL_NOT_FOUND,
    StatusCode.INVALID_ARGUMENT: ErrorCode.INVALID_REQUEST,
    StatusCode.OUT_OF_RANGE: ErrorCode.INVALID_REQUEST,
    StatusCode.UNIMPLEMENTED: ErrorCode.INVALID_REQUEST,
    StatusCode.FAILED_PRECONDITION: ErrorCode.INVALID_REQUEST,
    StatusCode.PERMISSION_DENIED: ErrorCode.INVALID_REQUEST,
    StatusCode.UNAVAILABLE: ErrorCode.UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED: ErrorCode.TIMEOUT,
}
"""All others are a provider_error: INTERNAL, UNKNOWN, ABORTED, DATA_LOSS, and CANCELLED by the server."""

# What gRPC makes of a plain HTTP answer: that comes not from the API but from something in front of it.
_PLAIN_HTTP = re.compile(r"http2 header with status: (\d+)", re.IGNORECASE)
_HTTP_STATUSES = {"401": ErrorCode.BAD_KEY, "413": ErrorCode.TOO_LARGE, "429": ErrorCode.RATE_LIMITED}

_NEVER_SENT = re.compile(r"failed to connect to all addresses|DNS resolution failed|name resolution", re.IGNORECASE)

Trailers = Iterable[tuple[str, str | bytes]]


def error_of(code: StatusCode, details: str, trailing_metadata: Trailers | None) -> ProviderError:
    """What a call meant that ended with this status. Pure.

    `retry_after` is the longest of what the trailers ask for, 600 s at most.
    """
    meaning = meaning_of(details, may_be_unpaid=code in _UNPAID) or _by_code(code, details)
    message = f"{code.name}: {details}" if details else code.name
    was_sent = not (code is StatusCode.UNAVAILABLE and _NEVER_SENT.search(details))
    wait = _retry_after(trailing_metadata or ())
    return ProviderError(meaning, presentable(message), retry_after=wait, was_sent=was_sent)


def _by_code(code: StatusCode, details: str) -> ErrorCode:
    if plain := _PLAIN_HTTP.search(details):
        return _HTTP_STATUSES.get(plain[1], ErrorCode.UNAVAILABLE)
    return _CODES.get(code, ErrorCode.PROVIDER_ERROR)


def _retry_after(trailers: Trailers) -> float | None:
    waits, texts = [], {}
    for name, value in trailers:
        if isinstance(value, str):
            texts[name] = value
        elif name == "grpc-status-details-bin":
            waits += _retry_infos(value)
    asked = retry_after(texts)
    return longest_of(waits if asked is None else [*waits, asked])


def _retry_infos(status: bytes) -> list[float]:
    """The seconds of each RetryInfo; none if it is nonsense."""
    waits = []
    try:
        for detail in Status.FromString(status).details:
            info = RetryInfo()
            if detail.Unpack(info):
                waits.append(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    except DecodeError:
        return []
    return waits
