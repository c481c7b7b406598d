"""What servers with Chat Completions say over REST, and what it means. The words as such: test_xai_errors.py."""

import json
from collections.abc import Mapping
from typing import Any

import openai
import pytest

from promptq.producer.errors import ErrorCode
from promptq.worker.providers.base import ProviderError
from promptq.worker.providers.openai import _http
from promptq.worker.providers.openai_errors import error_of

REQUEST = _http.Request("POST", "https://api.x.ai/v1/chat/completions")


def unchanged(text: str) -> str:
    """Hides nothing."""
    return text


def refused(status: int, body: bytes | Mapping[str, Any], **headers: str) -> ProviderError:
    """What such an answer means."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = _http.Response(status, content=content, headers=named, request=REQUEST)
    return error_of(openai.APIStatusError("", response=response, body=None), unchanged)


def by_xai(words: str, code: str = "x") -> dict[str, Any]:
    """XAI's envelope."""
    return {"code": code, "error": words}


def by_openai(words: str, code: str | None = None) -> dict[str, Any]:
    """OpenAI's."""
    return {"error": {"message": words, "type": "x", "param": None, "code": code}}


BY_STATUS = {
    400: ErrorCode.INVALID_REQUEST,
    401: ErrorCode.BAD_KEY,
    402: ErrorCode.NO_CREDIT,
    403: ErrorCode.INVALID_REQUEST,
    404: ErrorCode.MODEL_NOT_FOUND,
    405: ErrorCode.INVALID_REQUEST,
    408: ErrorCode.TIMEOUT,
    409: ErrorCode.PROVIDER_ERROR,
    410: ErrorCode.INVALID_REQUEST,
    413: ErrorCode.TOO_LARGE,
    422: ErrorCode.INVALID_REQUEST,
    429: ErrorCode.RATE_LIMITED,
    499: ErrorCode.PROVIDER_ERROR,
    500: ErrorCode.PROVIDER_ERROR,
    501: ErrorCode.INVALID_REQUEST,
    502: ErrorCode.UNAVAILABLE,
    503: ErrorCode.UNAVAILABLE,
    504: ErrorCode.TIMEOUT,
    520: ErrorCode.UNAVAILABLE,
}


@pytest.mark.parametrize("status", BY_STATUS)
def test_the_status_decides_over_new_words(status: int) -> None:
    """In whichever envelope; the words are told."""
    for body in (by_xai("something new"), by_openai("something new"), {"message": "something new"}):
        error = refused(status, body)
        assert (error.code, error.message) == (BY_STATUS[status], f"HTTP {status}: something new")
    assert refused(status, {}).message == f"HTTP {status}"


@pytest.mark.parametrize(
    ("status", "body", "means"),
    [
        (400, by_xai("Incorrect API key provided: na***ys."), ErrorCode.BAD_KEY),
        (403, by_xai("Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_X"), ErrorCode.MODERATED),
        (429, by_xai("Your team has either used all available credits or …"), ErrorCode.NO_CREDIT),
        (400, by_xai("No credits left.", "failed-precondition"), ErrorCode.NO_CREDIT),
        (400, by_xai("cannot count credits", "invalid-argument"), ErrorCode.INVALID_REQUEST),
        (429, by_openai("You exceeded your current quota", "insufficient_quota"), ErrorCode.NO_CREDIT),
        (400, by_openai("This model's maximum context length is 8192 tokens."), ErrorCode.CONTEXT_LENGTH),
        (400, by_openai("too long", "context_length_exceeded"), ErrorCode.CONTEXT_LENGTH),
        (400, by_openai("The response was filtered", "content_filter"), ErrorCode.MODERATED),
        (404, by_openai("The model `x` does not exist or you do not have access to it."), ErrorCode.MODEL_NOT_FOUND),
        (429, by_openai("Request too large for gpt-4 on tokens per min"), ErrorCode.TOO_LARGE),
        (422, {"detail": [{"loc": ["body"], "msg": "Field required"}]}, ErrorCode.INVALID_REQUEST),
        (404, {"detail": "Not Found"}, ErrorCode.MODEL_NOT_FOUND),
        (400, {"object": "error", "message": "context length", "code": 40303}, ErrorCode.CONTEXT_LENGTH),
        (400, {"error": None, "code": 7}, ErrorCode.INVALID_REQUEST),
    ],
)
def test_codes_and_words_decide_before_the_status(status: int, body: dict[str, Any], means: ErrorCode) -> None:
    """XAI's words, OpenAI's codes, and the shapes of other servers."""
    assert refused(status, body).code is means


@pytest.mark.parametrize("status", BY_STATUS)
def test_what_is_not_from_the_api(status: int) -> None:
    """A page of a proxy says nothing of the job: it is tried again, and told apart without being quoted."""
    error = refused(status, b"<html>secret: API key, credits</html>")
    is_said_by_anybody = status in {401, 402, 408, 413, 422, 429, 500, 504}
    assert error.code is (BY_STATUS[status] if is_said_by_anybody else ErrorCode.UNAVAILABLE)
    assert "secret" not in error.message
    assert "PROMPTQ_OPENAI_BASE_URL" in error.message


def test_retry_after() -> None:
    """In seconds, from either header, also from a proxy."""
    assert refused(429, by_xai("no"), retry_after="7").retry_after == 7.0
    assert refused(503, b"", retry_after_ms="1500", Retry_After="1").retry_after == 1.5
    assert refused(429, by_xai("no"), retry_after="Wed, 21 Oct 2026 07:28:00 GMT").retry_after is None


@pytest.mark.parametrize(
    ("cause", "means", "was_sent"),
    [
        (_http.ConnectError("Connection refused"), ErrorCode.UNAVAILABLE, False),
        (_http.ConnectTimeout("late"), ErrorCode.UNAVAILABLE, False),
        (_http.PoolTimeout("late"), ErrorCode.UNAVAILABLE, False),
        (_http.ProxyError("403"), ErrorCode.UNAVAILABLE, False),
        (_http.ReadTimeout("late"), ErrorCode.TIMEOUT, True),
        (_http.WriteTimeout("late"), ErrorCode.TIMEOUT, True),
        (_http.ReadError("reset"), ErrorCode.UNAVAILABLE, True),
        (_http.RemoteProtocolError("disconnected"), ErrorCode.UNAVAILABLE, True),
        (None, ErrorCode.UNAVAILABLE, True),
    ],
)
def test_a_connection_that_breaks(cause: Exception | None, means: ErrorCode, was_sent: bool) -> None:
    """What was surely not sent costs no attempt."""
    kind = openai.APITimeoutError if isinstance(cause, _http.TimeoutException) else openai.APIConnectionError
    error = kind(request=REQUEST)
    error.__cause__ = cause
    failure = error_of(error, unchanged)
    assert (failure.code, failure.was_sent) == (means, was_sent)
    assert failure.message == (f"{type(cause).__name__}: {cause}" if cause else "APIConnectionError")


def test_what_is_hidden_is_not_judged() -> None:
    """No prompt, quoted in an error, can pass for what the server says of the account."""
    response = _http.Response(400, json=by_xai("cannot read 'The API key is blocked'"), request=REQUEST)
    error = openai.APIStatusError("", response=response, body=None)
    failure = error_of(error, lambda text: text.replace("The API key is blocked", "***"))
    assert (failure.code, failure.message) == (ErrorCode.INVALID_REQUEST, "HTTP 400: cannot read '***'")


def test_an_unexpected_exception_is_named() -> None:
    """A bug of the client, for one; what looks like a key is hidden."""
    failure = error_of(RuntimeError("closed sk-abcdefgh"), unchanged)
    assert (failure.code, failure.message) == (ErrorCode.PROVIDER_ERROR, "RuntimeError: closed ***")
