"""How a run ends: a closed set of values, and `judge`, the pure function from what the provider said to one of them.

answer                                   -> Succeeded
rate_limited                             -> Throttled   its model pauses, nothing is spent
no_credit, bad_key                       -> Throttled   its account pauses; of a key that was replaced since: Released
a provider that was not reached at all   -> Throttled   nothing is spent
unavailable, provider_error              -> Retry       spent; exponential backoff with full jitter
timeout                                  -> Retry once, then Failed: the call may have been paid
every other code                         -> Failed
our own cancel, deadline, shutdown       -> Cancelled, Expired, Released   (run.py)
"""

from dataclasses import dataclass
from typing import NamedTuple

from promptq.producer.errors import ErrorCode
from promptq.producer.results import JobError
from promptq.worker.providers.base import Answer, ProviderError

BACKOFF_BASE = 1.0
BACKOFF_MOST = 60.0
LONGEST_RETRY_AFTER = 600.0
TIMEOUTS_ALLOWED = 1

CANCELLED = JobError(code=ErrorCode.CANCELLED, message="cancelled on request")
EXPIRED = JobError(code=ErrorCode.EXPIRED, message="the deadline passed before there was an answer")


class Succeeded(NamedTuple):
    """There is an answer."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Retry:
    """Spent; again after `delay` seconds."""

    error: JobError
    delay: float


@dataclass(frozen=True, slots=True)
class Throttled:
    """Unspent; its model or account pauses for the fleet, for `delay` seconds at least."""

    error: JobError
    delay: float


@dataclass(frozen=True, slots=True)
class Released:
    """Unspent; another worker runs it next."""


@dataclass(frozen=True, slots=True)
class Failed:
    """No further call would help, or none is left."""

    error: JobError


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody asked for it."""

    error: JobError = CANCELLED


@dataclass(frozen=True, slots=True)
class Expired:
    """The job's deadline passed."""

    error: JobError = EXPIRED


Outcome = Succeeded | Retry | Throttled | Released | Failed | Cancelled | Expired

THROTTLES = frozenset({ErrorCode.RATE_LIMITED, ErrorCode.NO_CREDIT, ErrorCode.BAD_KEY})
RETRIED = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.PROVIDER_ERROR, ErrorCode.TIMEOUT})


def judge(said: Answer | ProviderError, *, spent: int, timeouts: int, max_attempts: int, luck: float) -> Outcome:
    """What becomes of a job after one call.

    `spent` and `timeouts` count the attempts before this one; `luck`, from 0 to 1, is the jitter's share.
    """
    if isinstance(said, Answer):
        return Succeeded(said)
    error = JobError(code=said.code, message=said.message)
    asked = min(said.retry_after or 0.0, LONGEST_RETRY_AFTER)
    if said.is_stale:
        return Released()
    if said.code in THROTTLES or not said.was_sent:
        return Throttled(error, asked if said.was_sent else asked + luck * BACKOFF_BASE)
    if said.code not in RETRIED or spent + 1 >= max_attempts:
        return Failed(error)
    if said.code is ErrorCode.TIMEOUT and timeouts >= TIMEOUTS_ALLOWED:
        return Failed(error)
    return Retry(error, asked + luck * min(BACKOFF_MOST, BACKOFF_BASE * 2**spent))
