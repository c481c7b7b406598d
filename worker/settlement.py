"""From an outcome to what the settle script writes: one clause per outcome, and the result in arq's wire shape."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple

from promptq.producer import codec, keys
from promptq.producer.errors import ErrorCode
from promptq.producer.records import ClaimedJob, Kind, Settlement
from promptq.producer.results import BOOKED, JobError, Usage
from promptq.worker.outcome import Cancelled, Expired, Failed, Outcome, Released, Retry, Succeeded, Throttled
from promptq.worker.providers.base import Answer
from promptq.worker.settings import Settings

_NO_USAGE = Usage().amounts()
_USAGE_IF_ANY = tuple(name for name in Usage.model_fields if name not in BOOKED)
_TOLD_ALWAYS = Answer._fields.index("finish_reason") + 1
_TOLD_IF_ANY = Answer._fields[_TOLD_ALWAYS:]


class Call(NamedTuple):
    """One call to the provider that was really made. Times in ms since 1970; `error` None: it was answered.

    Streamed, `heard_at` is when its first piece came, and `told` where its stream has all of it (telling.py).
    """

    started: int
    finished: int
    error: JobError | None = None
    usage: Usage | None = None
    heard_at: int | None = None
    told: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Clerk:
    """Who settles, and for how long results are kept: the same for every run of a process.

    `provider_of`: the name of the provider that answers a model.
    """

    worker: str
    provider_of: Callable[[str], str]
    result_ttl: int
    failure_ttl: int

    @classmethod
    def of(cls, settings: Settings, worker: str, provider_of: Callable[[str], str]) -> "Clerk":
        """The clerk of one process."""
        return cls(worker, provider_of, settings.result_ttl_ms, settings.failure_ttl_ms)

    def settlement(self, job: ClaimedJob, token: str, outcome: Outcome, call: Call | None) -> Settlement:
        """What to write. `call` None: the job ended before one was made."""
        kind, error, delay = _verdict(outcome)
        spent = call.usage.amounts() if call and call.usage else None
        is_final = kind in ("succeeded", "failed", "cancelled", "expired")
        return Settlement(
            id=job.id,
            token=token,
            epoch=job.epoch,
            kind=kind,
            ttl=self.failure_ttl if kind in ("failed", "throttled") else self.result_ttl,
            delay=delay,
            reason=error.code.value if error else "",
            attempt=codec.dump_attempt(call.started, call.finished, spent, call.error) if call else b"",
            usage=spent or _NO_USAGE,
            result=self._record(job, outcome, error, call) if is_final else b"",
        )

    def _record(self, job: ClaimedJob, outcome: Outcome, error: JobError | None, call: Call | None) -> bytes:
        result: dict[str, Any] = {"model": job.model, "provider": self.provider_of(job.model), "worker": self.worker}
        if call:
            result["started_at"] = call.started
            if call.heard_at is not None:
                result |= {"time_to_first_token": (call.heard_at - call.started) / 1000, "told": call.told}
        if isinstance(outcome, Succeeded):
            result |= _told(outcome)
        elif error:
            result |= {"status": _verdict(outcome)[0], "error": {"code": error.code.value, "message": error.message}}
        if call:
            started, finished = call.started, call.finished
        else:
            started = finished = time.time_ns() // 1_000_000
        return _envelope(job.id, job.lane, result, tries=job.spent + 1, times=(job.enqueued, started, finished))


def _verdict(outcome: Outcome) -> tuple[Kind, JobError | None, int]:  # noqa: PLR0911 - one clause per outcome
    """Kind, error and delay in ms."""
    match outcome:
        case Succeeded():
            return "succeeded", None, 0
        case Retry(error, delay):
            return "retry", error, round(delay * 1000)
        case Throttled(error, delay):
            return "throttled", error, round(delay * 1000)
        case Released():
            return "released", None, 0
        case Failed(error):
            return "failed", error, 0
        case Cancelled(error):
            return "cancelled", error, 0
        case Expired(error):
            return "expired", error, 0


def _told(outcome: Succeeded) -> dict[str, Any]:
    answer = outcome.answer
    told: dict[str, Any] = {
        "status": "succeeded",
        "content": answer.content,
        "model": answer.model,
        "usage": _usage(answer.usage),
        "finish_reason": answer.finish_reason,
    }
    others = answer[_TOLD_ALWAYS:]
    if any(others):
        told.update(compress(zip(_TOLD_IF_ANY, others, strict=True), others))
    return told


def _usage(usage: Usage) -> dict[str, Any]:
    told = vars(usage).copy()
    for name in _USAGE_IF_ANY:
        if not told[name]:
            del told[name]
    return told


def refusal(job_id: str, lane: str, reason: str, worker: str, enqueued: int) -> bytes:
    """The failed result of a plain arq client's job that cannot be run."""
    error = {"code": ErrorCode.INVALID_REQUEST.value, "message": reason}
    result = {"status": "failed", "error": error, "worker": worker}
    return _envelope(job_id, lane, result, tries=0, times=(enqueued, enqueued, enqueued))


def _envelope(job_id: str, lane: str, result: dict[str, Any], *, tries: int, times: tuple[int, int, int]) -> bytes:
    """A result as `arq.jobs.deserialize_result` reads it; `times` in ms: enqueued, started, finished."""
    enqueued, started, finished = times
    return codec.dumps(
        {
            "t": tries,
            "f": codec.FUNCTION,
            "a": (),
            "k": {},
            "et": enqueued,
            "s": result["status"] == "succeeded",
            "r": result,
            "st": started,
            "ft": finished,
            "q": keys.lane(lane),
            "id": job_id,
        }
    )
