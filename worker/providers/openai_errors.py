"""From a failed call to a ProviderError: a server's own error code comes first, then its words, then the HTTP status.

The words are read in wording.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import openai
from pydantic_core import from_json

from promptq.producer.errors import ErrorCode
from promptq.worker.providers.base import ProviderError
from promptq.worker.providers.openai_stream import ErrorEvent
from promptq.worker.providers.wording import meaning_of, presentable, retry_after

_CODES: Final = {
    "insufficient_quota": ErrorCode.NO_CREDIT,
    "invalid_api_key": ErrorCode.BAD_KEY,
    "context_length_exceeded": ErrorCode.CONTEXT_LENGTH,
    "content_filter": ErrorCode.MODERATED,
    "content_policy_violation": ErrorCode.MODERATED,
}
"""OpenAI's; xAI's say no more than the status."""

_STATUSES: Final = {
    401: ErrorCode.BAD_KEY,
    402: ErrorCode.NO_CREDIT,
    404: ErrorCode.MODEL_NOT_FOUND,
    408: ErrorCode.TIMEOUT,
    409: ErrorCode.PROVIDER_ERROR,
    413: ErrorCode.TOO_LARGE,
    429: ErrorCode.RATE_LIMITED,
    499: ErrorCode.PROVIDER_ERROR,  # cancelled, but not by us
    500: ErrorCode.PROVIDER_ERROR,
    501: ErrorCode.INVALID_REQUEST,
    504: ErrorCode.TIMEOUT,
}
"""All others: `invalid_request` under 500, `unavailable` from 500."""
_BY_ANYBODY: Final = frozenset({401, 402, 408, 413, 422, 429, 500, 504})
"""These mean the same when they come from something in front of the API."""

_UNPAID: Final = frozenset({402, 403, 429})
_UNPAID_CODE: Final = "failed-precondition"
"""XAI's, which REST has under 400 as everything that is wrong with a request."""

_NEVER_SENT: Final = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"})
"""By name, since httpx has another one with each major version of the client."""

_BY_NAME: Final = {
    "invalid-argument": 400,
    "failed-precondition": 400,
    "out-of-range": 400,
    "invalid-request-error": 400,
    "unauthenticated": 401,
    "authentication-error": 401,
    "permission-denied": 403,
    "permission-error": 403,
    "not-found": 404,
    "not-found-error": 404,
    "already-exists": 409,
    "aborted": 409,
    "resource-exhausted": 429,
    "rate-limit-exceeded": 429,
    "rate-limit-error": 429,
    "cancelled": 499,
    "unimplemented": 501,
    "unavailable": 503,
    "overloaded-error": 503,
    "deadline-exceeded": 504,
}
"""The status that a server's code stands for, where it cannot send one: its stream has begun, with 200. Else 500."""

Hide = Callable[[str], str]


def error_of(error: Exception, hide: Hide) -> ProviderError:
    """What a call meant that ended so. `hide` takes out what nobody may read, before the words are looked at."""
    match error:
        case openai.APIStatusError():
            return _refusal(error, hide)
        case openai.APIConnectionError():
            return _broken(error, hide)
        case ErrorEvent():
            body = _object_in(error.body) or {}
            return _told_error(_status_in(body), body, "in the stream", hide)
        case _:
            return ProviderError(ErrorCode.PROVIDER_ERROR, presentable(hide(f"{type(error).__name__}: {error}")))


def _refusal(error: openai.APIStatusError, hide: Hide) -> ProviderError:
    status = error.status_code
    body = _object_in(error.response.content)
    wait = retry_after({name.lower(): value for name, value in error.response.headers.items()})
    if body is None:
        meaning = _by_status(status) if status in _BY_ANYBODY else ErrorCode.UNAVAILABLE
        said = f"HTTP {status}, and not from the API; see PROMPTQ_OPENAI_BASE_URL"
        return ProviderError(meaning, said, retry_after=wait)
    failure = _told_error(status, body, f"HTTP {status}", hide)
    failure.retry_after = wait
    return failure


def _told_error(status: int, body: Mapping[str, Any], where: str, hide: Hide) -> ProviderError:
    code, words = _told(body)
    said = hide(words)
    may_be_unpaid = status in _UNPAID or code == _UNPAID_CODE
    meaning = _CODES.get(code) or meaning_of(said, may_be_unpaid=may_be_unpaid) or _by_status(status)
    return ProviderError(meaning, presentable(f"{where}: {said}" if said else where))


def _broken(error: openai.APIConnectionError, hide: Hide) -> ProviderError:
    """No answer: was the request on its way?"""
    cause = error.__cause__
    name = type(cause or error).__name__
    said = presentable(hide(f"{name}: {cause}" if str(cause or "") else name))
    if name in _NEVER_SENT:
        return ProviderError(ErrorCode.UNAVAILABLE, said, was_sent=False)
    meaning = ErrorCode.TIMEOUT if isinstance(error, openai.APITimeoutError) else ErrorCode.UNAVAILABLE
    return ProviderError(meaning, said)


def _by_status(status: int) -> ErrorCode:
    return _STATUSES.get(status, ErrorCode.UNAVAILABLE if status >= 500 else ErrorCode.INVALID_REQUEST)


def _status_in(body: Mapping[str, Any]) -> int:
    """As a number, or by name; servers differ in where they have it."""
    inner = body.get("error")
    told = inner if isinstance(inner, dict) else body
    for name in ("code", "status", "type"):
        value = told.get(name)
        if isinstance(value, str) and (status := _BY_NAME.get(value.lower().replace("_", "-"))):
            return status
        if str(value).isdecimal() and 400 <= int(str(value)) < 600:
            return int(str(value))
    return 500


def _object_in(body: bytes) -> Mapping[str, Any] | None:
    try:
        read = from_json(body)
    except ValueError:
        return None
    return read if isinstance(read, dict) else None


def _told(body: Mapping[str, Any]) -> tuple[str, str]:
    """The server's code and its words: `{"code", "error"}` by xAI, `{"error": {"code", "message"}}` by OpenAI.

    Others have one of these without its envelope, or words under `detail`.
    """
    inner = body.get("error", body)
    if isinstance(inner, str):
        return _text(body.get("code")), inner
    told = inner if isinstance(inner, dict) else body
    return _text(told.get("code")) or _text(told.get("type")), _text(told.get("message") or told.get("detail"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
