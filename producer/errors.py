"""What can go wrong, in two forms: `ErrorCode` travels through Redis inside a result, the exceptions are raised.

PromptqError
├── InvalidJob (ValueError)         the job itself is wrong; `.field` names what
│   └── PayloadTooLarge             more bytes than PROMPTQ_MAX_PAYLOAD
├── IdConflict                      the id belongs to another request
├── QueueFull                       PROMPTQ_MAX_QUEUED jobs in the lane, a tenant at its cap, or Redis out of memory
├── InvalidSetting (ValueError)     a limit, a weight or a cap that cannot be; `.field` names it
├── QueueUnavailable                no answer from Redis within PROMPTQ_REDIS_TIMEOUT
├── JobNotFound (LookupError)       unknown id, or its result's time is over
├── GroupNotFound (LookupError)     nobody enqueued into it, or its results' time is over
├── WaitTimeout (TimeoutError)      `wait` gave up; the job goes on
├── InvalidAnswer (ValueError)      an answer that is not what `parse` or `to_message` was to make of it
├── InvalidPayload (ValueError)     bytes in Redis that are not a job of ours; never unpickled
└── JobFailed                       `raise_for_status` of a failed result; `.result` is that result
    ├── JobExpired                  its deadline passed first
    └── JobCancelled                it was cancelled
"""

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promptq.producer.results import JobResult


class ErrorCode(StrEnum):
    """Why a job, or one attempt at it, did not succeed."""

    RATE_LIMITED = "rate_limited"
    TOO_LARGE = "too_large"
    NO_CREDIT = "no_credit"
    BAD_KEY = "bad_key"
    INVALID_REQUEST = "invalid_request"
    MODEL_NOT_FOUND = "model_not_found"
    MODERATED = "moderated"
    CONTEXT_LENGTH = "context_length"
    UNAVAILABLE = "unavailable"
    PROVIDER_ERROR = "provider_error"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    STALLED = "stalled"


class PromptqError(Exception):
    """Base of everything that promptq raises on purpose.

    `accepted` holds the ids that the same call had already written when it was refused (`enqueue_many`).
    """

    accepted: tuple[str, ...] = ()


class InvalidJob(PromptqError, ValueError):
    """The job cannot be enqueued as it is; nothing of it was written."""

    def __init__(self, field: str, reason: str, position: int | None = None) -> None:
        where = "" if position is None else f"job {position}: "
        super().__init__(f"{where}{field}: {reason}")
        self.field, self.reason, self.position = field, reason, position


class PayloadTooLarge(InvalidJob):
    """The encoded request has more bytes than `PROMPTQ_MAX_PAYLOAD`."""


class IdConflict(PromptqError):
    """The id is taken by a job that asks something else. Choose another id, or repeat the first request."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"id {job_id!r} belongs to a job with another request; choose another id, or repeat that one")
        self.id = job_id


class QueueFull(PromptqError):
    """No room for the call's new jobs; enqueue them again when some have run.

    Their lane is full (`PROMPTQ_MAX_QUEUED`), so many jobs of their tenant wait as may (`max_queued` of
    `PromptQueue.set_tenant`), or Redis is out of memory. Nothing of the call was written.
    """


class InvalidSetting(PromptqError, ValueError):
    """A model's limit, or a tenant's weight or cap, that cannot be. Nothing was changed."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


class QueueUnavailable(PromptqError):
    """Redis did not answer in time. The call may be repeated: with the same id nothing runs twice."""


class JobNotFound(PromptqError, LookupError):
    """No job has this id: it was never accepted, or the time of its result is over."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id!r}: never enqueued here, or its result's time is over")
        self.id = job_id


class GroupNotFound(PromptqError, LookupError):
    """No group has this name: nothing was enqueued into it, or the time of its results is over."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no group {name!r}: nothing was enqueued into it here, or its results' time is over")
        self.name = name


class WaitTimeout(PromptqError, TimeoutError):
    """The result was not there in time. The job goes on; wait again, or cancel it."""


class InvalidPayload(PromptqError, ValueError):
    """Bytes that are not JSON in arq's wire shape. They are refused, never unpickled."""


class InvalidAnswer(PromptqError, ValueError):
    """The answer is there, but cannot be read as asked. Ask again, or read `JobResult.content`."""


class JobFailed(PromptqError):
    """The job ended without an answer; `result.error` says why."""

    def __init__(self, result: "JobResult") -> None:
        error = result.error
        super().__init__(
            f"job {result.id} {result.status}: {error.code}: {error.message}"
            if error
            else f"job {result.id} {result.status}"
        )
        self.result = result


class JobExpired(JobFailed):
    """The job's deadline passed before it had an answer."""


class JobCancelled(JobFailed):
    """The job was cancelled."""
