import pytest

from promptq.producer.errors import ErrorCode
from promptq.producer.results import JobError, Usage
from promptq.worker.outcome import Failed, Outcome, Retry, Succeeded, Throttled, judge
from promptq.worker.providers.base import Answer, ProviderError

ANSWER = Answer("42", "grok-4", Usage(total_tokens=2))


def judged(
    code: ErrorCode, *, spent: int = 0, timeouts: int = 0, luck: float = 1.0, asks: float | None = None
) -> Outcome:
    """What becomes of a job of at most five attempts after a call that failed so."""
    error = ProviderError(code, "why", retry_after=asks)
    return judge(error, spent=spent, timeouts=timeouts, max_attempts=5, luck=luck)


def failed(code: ErrorCode) -> Failed:
    """The end."""
    return Failed(JobError(code=code, message="why"))


def retry(code: ErrorCode, delay: float) -> Retry:
    """Again after `delay` seconds."""
    return Retry(JobError(code=code, message="why"), delay)


def throttled(code: ErrorCode, delay: float) -> Throttled:
    """The model pauses."""
    return Throttled(JobError(code=code, message="why"), delay)


def test_an_answer_is_a_success() -> None:
    """Whatever was before it."""
    assert judge(ANSWER, spent=4, timeouts=1, max_attempts=5, luck=0) == Succeeded(ANSWER)


@pytest.mark.parametrize("spent", [0, 4, 99])
@pytest.mark.parametrize("code", [ErrorCode.RATE_LIMITED, ErrorCode.NO_CREDIT, ErrorCode.BAD_KEY])
def test_a_refusal_to_all_pauses_the_model(code: ErrorCode, spent: int) -> None:
    """It is not the job's fault: however many attempts it has spent, it does not fail."""
    assert judged(code, spent=spent) == throttled(code, 0)
    assert judged(code, spent=spent, asks=7, luck=0) == throttled(code, 7)
    assert judged(code, spent=spent, asks=10_000) == throttled(code, 600)


@pytest.mark.parametrize(
    ("spent", "luck", "asks", "delay"),
    [
        (0, 1.0, None, 1),
        (1, 1.0, None, 2),
        (3, 1.0, None, 8),
        (3, 0.0, None, 0),
        (3, 0.5, None, 4),
        (0, 1.0, 5, 6),
        (0, 0.0, 5, 5),
        (0, 0.0, 10_000, 600),
    ],
)
@pytest.mark.parametrize("code", [ErrorCode.UNAVAILABLE, ErrorCode.PROVIDER_ERROR])
def test_a_failure_of_theirs_is_tried_again(
    code: ErrorCode, spent: int, luck: float, asks: float | None, delay: float
) -> None:
    """Exponential from 1 s with full jitter; behind what the provider asks for, 10 minutes at most."""
    assert judged(code, spent=spent, luck=luck, asks=asks) == retry(code, delay)


@pytest.mark.parametrize("spent", [6, 20, 98])
def test_the_backoff_ends_at_a_minute(spent: int) -> None:
    """Also for jobs with a hundred attempts."""
    error = ProviderError(ErrorCode.UNAVAILABLE, "why")
    outcome = judge(error, spent=spent, timeouts=0, max_attempts=100, luck=1)
    assert outcome == retry(ErrorCode.UNAVAILABLE, 60)


@pytest.mark.parametrize("code", [ErrorCode.UNAVAILABLE, ErrorCode.PROVIDER_ERROR, ErrorCode.TIMEOUT])
def test_attempts_run_out(code: ErrorCode) -> None:
    """The fifth of five is the last."""
    assert isinstance(judged(code, spent=3), Retry)
    assert judged(code, spent=4) == failed(code)


def test_a_timeout_is_tried_once_more() -> None:
    """Each may have been paid."""
    assert judged(ErrorCode.TIMEOUT, timeouts=0) == retry(ErrorCode.TIMEOUT, 1)
    assert judged(ErrorCode.TIMEOUT, spent=1, timeouts=1) == failed(ErrorCode.TIMEOUT)


@pytest.mark.parametrize(
    "code",
    [
        ErrorCode.TOO_LARGE,
        ErrorCode.INVALID_REQUEST,
        ErrorCode.MODEL_NOT_FOUND,
        ErrorCode.MODERATED,
        ErrorCode.CONTEXT_LENGTH,
        ErrorCode.CANCELLED,
        ErrorCode.EXPIRED,
        ErrorCode.STALLED,
    ],
)
def test_everything_else_fails_at_once(code: ErrorCode) -> None:
    """Asking the same again would bring the same; also for codes that no provider should send."""
    assert judged(code, asks=5) == failed(code)


def test_every_code_has_its_line_above() -> None:
    """A new ErrorCode is decided here, not by chance."""
    throttling = {ErrorCode.RATE_LIMITED, ErrorCode.NO_CREDIT, ErrorCode.BAD_KEY}
    retried = {ErrorCode.UNAVAILABLE, ErrorCode.PROVIDER_ERROR, ErrorCode.TIMEOUT}
    assert {code for code in ErrorCode if isinstance(judged(code), Throttled)} == throttling
    assert {code for code in ErrorCode if isinstance(judged(code), Retry)} == retried
