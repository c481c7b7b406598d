"""What xAI and gRPC say, and what it means. Wording marked *seen* was captured from live replies."""

import math

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from promptq.producer.errors import ErrorCode
from promptq.worker.providers.wording import LONGEST_MESSAGE, without_quotes
from promptq.worker.providers.xai_errors import error_of

TEAM = "c732a16f-e8ae-4fba-8e05-eb8a8f6aba39"

SEEN = [
    (
        StatusCode.RESOURCE_EXHAUSTED,
        (
            f"Too many requests for team {TEAM} and model grok-4.3. Your team's rate limit is — Requests per Second"
            " (actual/limit): 2/2, Requests per Minute (actual/limit): 73/60."
        ),
        ErrorCode.RATE_LIMITED,
    ),
    (
        StatusCode.RESOURCE_EXHAUSTED,
        (
            f"Too many tokens for team {TEAM} and model grok-4-0709. Your team's rate limit is — Tokens per Minute"
            " (actual/limit): 65605/16000. You can view your team rate limits at https://console.x.ai."
        ),
        ErrorCode.RATE_LIMITED,
    ),
    (
        StatusCode.RESOURCE_EXHAUSTED,
        (
            "The model is currently at capacity due to high demand. Please try again in a few minutes, or use a higher"
            " service tier for priority processing"
        ),
        ErrorCode.RATE_LIMITED,
    ),
    (StatusCode.UNAVAILABLE, "The service is temporarily at capacity", ErrorCode.RATE_LIMITED),
    (
        StatusCode.RESOURCE_EXHAUSTED,
        (
            f"Your team {TEAM} has either used all available credits or reached its monthly spending limit. To continue"
            " making API requests, please purchase more credits or raise your spending limit."
        ),
        ErrorCode.NO_CREDIT,
    ),
    (
        StatusCode.PERMISSION_DENIED,
        (
            "Your newly created team doesn't have any credits or licenses yet. You can purchase those on"
            f" https://console.x.ai/team/{TEAM}."
        ),
        ErrorCode.NO_CREDIT,
    ),
    (
        StatusCode.PERMISSION_DENIED,
        "You have run out of credits or need a Grok subscription.",
        ErrorCode.NO_CREDIT,
    ),
    (
        StatusCode.INVALID_ARGUMENT,
        "Incorrect API key provided: na***ys. You can obtain an API key from https://console.x.ai.",
        ErrorCode.BAD_KEY,
    ),
    (
        StatusCode.PERMISSION_DENIED,
        (
            "Access to the chat endpoint is denied. Please ensure you're using the correct credentials."
            " If you believe this is a mistake, please log into console.x.ai and update the"
            " permissions, or contact support."
        ),
        ErrorCode.BAD_KEY,
    ),
    (
        StatusCode.NOT_FOUND,
        (
            f"The model grok-beta does not exist or your team {TEAM} does not have access to it."
            " Please ensure you're using the correct API key. If you believe this is a mistake, please"
            " contact support and quote your team ID and the model name."
        ),
        ErrorCode.MODEL_NOT_FOUND,
    ),
    (
        StatusCode.PERMISSION_DENIED,
        "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_CSAM",
        ErrorCode.MODERATED,
    ),
    (
        StatusCode.INVALID_ARGUMENT,
        "This model's maximum prompt length is 500000 but the request contains 637815 tokens.",
        ErrorCode.CONTEXT_LENGTH,
    ),
    (
        StatusCode.INVALID_ARGUMENT,
        "Argument not supported on this model: reasoningEffort",
        ErrorCode.INVALID_REQUEST,
    ),
    (
        StatusCode.INVALID_ARGUMENT,
        "Each message must have at least one content element.",
        ErrorCode.INVALID_REQUEST,
    ),
    (
        StatusCode.RESOURCE_EXHAUSTED,
        "CLIENT: Sent message larger than max (22020120 vs. 20971520)",
        ErrorCode.TOO_LARGE,
    ),
    (
        StatusCode.RESOURCE_EXHAUSTED,
        "SERVER: Received message larger than max (22020120 vs. 20971520)",
        ErrorCode.TOO_LARGE,
    ),
    (
        StatusCode.OUT_OF_RANGE,
        "Error, decoded message length too large: found 6607756 bytes, the limit is: 4194304 bytes",
        ErrorCode.TOO_LARGE,
    ),
    (
        StatusCode.UNAVAILABLE,
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused",
        ErrorCode.UNAVAILABLE,
    ),
    # What gRPC makes of a plain HTTP answer, from a proxy or a firewall.
    (StatusCode.INTERNAL, "Received http2 header with status: 400", ErrorCode.UNAVAILABLE),
    (StatusCode.UNAUTHENTICATED, "Received http2 header with status: 401", ErrorCode.BAD_KEY),
    (StatusCode.PERMISSION_DENIED, "Received http2 header with status: 403", ErrorCode.UNAVAILABLE),
    (StatusCode.UNIMPLEMENTED, "Received http2 header with status: 404", ErrorCode.UNAVAILABLE),
    (StatusCode.UNKNOWN, "Received http2 header with status: 413", ErrorCode.TOO_LARGE),
    (StatusCode.UNAVAILABLE, "Received http2 header with status: 429", ErrorCode.RATE_LIMITED),
    (StatusCode.UNAVAILABLE, "Received http2 header with status: 503", ErrorCode.UNAVAILABLE),
]

LIKELY = [
    *[
        (code, f"The API key is {state}.", ErrorCode.BAD_KEY)
        for state in ("blocked", "disabled", "invalid")
        for code in (StatusCode.PERMISSION_DENIED, StatusCode.UNAUTHENTICATED, StatusCode.INTERNAL)
    ],
    (StatusCode.UNKNOWN, "api_key not found", ErrorCode.BAD_KEY),
    (StatusCode.FAILED_PRECONDITION, "No credits left.", ErrorCode.NO_CREDIT),
    (StatusCode.RESOURCE_EXHAUSTED, "Request too large: the rate limit is 10 tokens", ErrorCode.TOO_LARGE),
    # A key may have a limit of its own: that is no reason to stop the fleet.
    (StatusCode.RESOURCE_EXHAUSTED, "This API key exceeded its rate limit.", ErrorCode.RATE_LIMITED),
    (StatusCode.INVALID_ARGUMENT, "prompt exceeds the context window", ErrorCode.CONTEXT_LENGTH),
    # A refusal of one job stays one, whatever else it mentions.
    (StatusCode.PERMISSION_DENIED, "Content violates usage guidelines: API key, credits", ErrorCode.MODERATED),
    # "credits" means nothing under a code that is not about paying.
    (StatusCode.INTERNAL, "cannot count credits", ErrorCode.PROVIDER_ERROR),
]

BY_CODE = {
    StatusCode.OK: ErrorCode.PROVIDER_ERROR,
    StatusCode.CANCELLED: ErrorCode.PROVIDER_ERROR,
    StatusCode.UNKNOWN: ErrorCode.PROVIDER_ERROR,
    StatusCode.INVALID_ARGUMENT: ErrorCode.INVALID_REQUEST,
    StatusCode.DEADLINE_EXCEEDED: ErrorCode.TIMEOUT,
    StatusCode.NOT_FOUND: ErrorCode.MODEL_NOT_FOUND,
    StatusCode.ALREADY_EXISTS: ErrorCode.PROVIDER_ERROR,
    StatusCode.PERMISSION_DENIED: ErrorCode.INVALID_REQUEST,
    StatusCode.UNAUTHENTICATED: ErrorCode.BAD_KEY,
    StatusCode.RESOURCE_EXHAUSTED: ErrorCode.RATE_LIMITED,
    StatusCode.FAILED_PRECONDITION: ErrorCode.INVALID_REQUEST,
    StatusCode.ABORTED: ErrorCode.PROVIDER_ERROR,
    StatusCode.UNIMPLEMENTED: ErrorCode.INVALID_REQUEST,
    StatusCode.INTERNAL: ErrorCode.PROVIDER_ERROR,
    StatusCode.UNAVAILABLE: ErrorCode.UNAVAILABLE,
    StatusCode.DATA_LOSS: ErrorCode.PROVIDER_ERROR,
    StatusCode.OUT_OF_RANGE: ErrorCode.INVALID_REQUEST,
}


def _details(*details: RetryInfo | ErrorInfo) -> bytes:
    packed = []
    for detail in details:
        packed.append(Any())
        packed[-1].Pack(detail)
    status: bytes = Status(code=8, details=packed).SerializeToString()
    return status


def _retry_info(seconds: int, nanos: int = 0) -> bytes:
    return _details(ErrorInfo(reason="X"), RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos)))


@pytest.mark.parametrize(("code", "details", "means"), [*SEEN, *LIKELY])
def test_details_decide_before_the_code(code: StatusCode, details: str, means: ErrorCode) -> None:
    """Known wording decides, under whichever code it comes; capital letters do not matter."""
    error = error_of(code, details, None)
    assert error.code is means
    assert error.message == f"{code.name}: {details}"
    assert error_of(code, details.upper(), None).code is means


@pytest.mark.parametrize("code", StatusCode)
def test_every_code_means_something(code: StatusCode) -> None:
    """Without known wording the code decides, for every code that gRPC has."""
    assert error_of(code, "", None).code is BY_CODE[code]
    assert error_of(code, "something new", ()).code is BY_CODE[code]
    assert error_of(code, "", None).message == code.name


@pytest.mark.parametrize(
    ("trailers", "seconds"),
    [
        ([], None),
        ([("retry-after", "7")], 7.0),
        ([("retry-after", "0.25")], 0.25),
        ([("retry-after-ms", "1500")], 1.5),
        ([("grpc-status-details-bin", _retry_info(12, 500_000_000))], 12.5),
        ([("retry-after", "7"), ("grpc-status-details-bin", _retry_info(12))], 12.0),
        ([("retry-after", "9"), ("retry-after-ms", "1500")], 9.0),
        ([("retry-after", "100000")], 600.0),
        ([("grpc-status-details-bin", _retry_info(10**11))], 600.0),
        # nonsense, and what asks for nothing
        ([("retry-after", "soon")], None),
        ([("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT")], None),
        ([("retry-after", "")], None),
        ([("retry-after", "0")], None),
        ([("retry-after", "-3")], None),
        ([("retry-after", "nan")], None),
        ([("retry-after", "inf")], None),
        ([("retry-after", "1e999")], None),
        ([("retry-after-ms", "-inf")], None),
        ([("grpc-status-details-bin", b"\xff\xff\xff")], None),
        ([("grpc-status-details-bin", "text")], None),
        ([("grpc-status-details-bin", _details(ErrorInfo(reason="X")))], None),
        ([("grpc-status-details-bin", _retry_info(-5))], None),
        ([("retry-after", "soon"), ("retry-after-ms", "250")], 0.25),
        ([("x-other", "7")], None),
    ],
)
def test_retry_after(trailers: list[tuple[str, str | bytes]], seconds: float | None) -> None:
    """The longest wait that the trailers ask for, at most 600 s; nonsense is passed over."""
    error = error_of(StatusCode.RESOURCE_EXHAUSTED, "", trailers)
    assert error.retry_after == seconds
    assert error.retry_after is None or math.isfinite(error.retry_after)


@pytest.mark.parametrize(
    ("details", "shown"),
    [
        ("got xai-AbCdEf0123456789_-x, sorry", "got ***, sorry"),
        ("header 'authorization: Bearer secret.token/=' refused", "header 'authorization: *** refused"),
        ("BEARER  abc", "***"),
        ("two\n  lines\tof\r\ntext", "two lines of text"),
    ],
)
def test_messages_hide_keys(details: str, shown: str) -> None:
    """What looks like a key is hidden, and a message is one line."""
    assert error_of(StatusCode.INTERNAL, details, None).message == f"INTERNAL: {shown}"


def test_messages_are_cut() -> None:
    """A message has 500 characters at most; a key at the cut is hidden before it is cut in two."""
    error = error_of(StatusCode.INTERNAL, "x" * 480 + " xai-" + "k" * 80 + "y" * 5000, None)
    assert len(error.message) <= LONGEST_MESSAGE
    assert "xai-" not in error.message
    assert "kkk" not in error.message
    assert error_of(StatusCode.INTERNAL, "x" * 5000, None).message.endswith("…")


SOURCE = "It was a bright cold day in April,\n\nand the clocks were striking thirteen."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"cannot read '{SOURCE}'", "cannot read '***'"),
        ("near 'the clocks were striking thirteen.' at 9", "near '***' at 9"),
        ("near 'cold day in April, and the clocks' at 9", "near '***' at 9"),
        (f"{SOURCE[:30]} or {SOURCE[-29:]}", "*** or ***"),
        ("the clocks were fine", "the clocks were fine"),
        ("", ""),
    ],
)
def test_quotes_are_hidden(text: str, shown: str) -> None:
    """Every run of 24 characters or more that a text shares with a source is hidden, wherever it stands."""
    assert without_quotes(text, [SOURCE]) == shown


def test_every_place_of_a_quote_is_found() -> None:
    """A run of 24 characters is hidden at whatever place in the text, from whatever place in the source."""
    for start in range(len(SOURCE) - 24):
        for lead in range(24):
            quote = " ".join(SOURCE.split())[start : start + 24]
            if quote != quote.strip() or len(quote) < 24:
                continue
            assert without_quotes("#" * lead + quote + "#" * 9, [SOURCE]) == "#" * lead + "***" + "#" * 9


def test_long_texts_are_cut_before_they_are_searched() -> None:
    """Of a text, the first 1,000 characters are searched and kept: the search holds up the event loop."""
    source = "".join(f"line {number} of a long prompt; " for number in range(1_000)).strip()
    text = "cannot read: " + source[-900:] + "!" * 100_000
    assert without_quotes(text, [source]) == "cannot read: ***" + "!" * (1_000 - 13 - 900)


def test_short_sources_are_hidden_whole() -> None:
    """A source of 8 to 23 characters is hidden where it stands whole; a shorter one is as good as any word."""
    assert without_quotes("bad text 'Tell me a joke'!", ["Tell me a joke"]) == "bad text '***'!"
    assert without_quotes("bad text 'Tell me'!", ["Tell me a joke"]) == "bad text 'Tell me'!"
    assert without_quotes("bad key", ["key"]) == "bad key"
    assert without_quotes("bad keys abcdefgh and hgfedcba", ["abcdefgh", "", "hgfedcba"]) == "bad keys *** and ***"
