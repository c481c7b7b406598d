"""One job, from its claim to its settlement: admit -> call -> judge -> settlement.

Called by the engine as one task per job. Touches no Redis: what it returns is written by the engine, and what a
streamed answer becomes meanwhile by telling.py.
"""

import asyncio
import random
import time
import traceback
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import structlog

from promptq.producer import codec
from promptq.producer.entries import job_in
from promptq.producer.errors import ErrorCode, InvalidJob, InvalidPayload
from promptq.producer.models import PromptJob
from promptq.producer.records import ClaimedJob, Settlement
from promptq.producer.results import JobError
from promptq.worker.outcome import Cancelled, Expired, Failed, Outcome, Released, Retry, Succeeded, Throttled, judge
from promptq.worker.providers.base import Answer, Delta, Hear, ProviderError
from promptq.worker.providers.routes import Routes
from promptq.worker.settings import Settings
from promptq.worker.settlement import Call, Clerk
from promptq.worker.telling import Teller

log = structlog.get_logger("promptq.run")

_EVENTS: dict[type[Outcome], str] = {
    Retry: "job.retry",
    Throttled: "job.throttled",
    Released: "job.released",
    Failed: "job.failed",
    Cancelled: "job.cancelled",
    Expired: "job.expired",
}

_QUIET = frozenset({"warning", "error"})
"""Levels at which nothing is put together to tell of a success."""

StopReason = Literal["cancelled", "over", "shutdown"]


@dataclass(eq=False, slots=True)
class Run:
    """A leased job in this process. `clock_ahead`: how far this machine's clock is ahead of Redis', in ms."""

    job: ClaimedJob
    token: str
    clock_ahead: int
    task: "asyncio.Task[None] | None" = None
    stopped: StopReason | None = None
    calling_since: int | None = field(default=None, init=False)
    heard_at: int | None = field(default=None, init=False)
    """When the first piece of a streamed answer came, in ms since 1970."""

    def stop(self, reason: StopReason) -> None:
        """Cancel the call to the provider; the first reason stays."""
        if self.stopped is None:
            self.stopped = reason
            if self.task is not None:
                self.task.cancel()

    def reclaim(self, job: ClaimedJob, token: str) -> None:
        """Go on under a new claim of the same job."""
        self.job, self.token = job, token

    @property
    def seconds_left(self) -> float | None:
        """Until the job's deadline; None if it has none."""
        if self.job.deadline is None:
            return None
        return (self.job.deadline + self.clock_ahead - _now()) / 1000


@dataclass(frozen=True, slots=True)
class Runner:
    """What every run of a process shares."""

    routes: Routes
    settings: Settings
    clerk: Clerk
    teller: Teller

    async def run(self, run: Run) -> Settlement:
        """Run one job. Never raises: whatever happens is an outcome."""
        outcome: Outcome
        call: Call | None = None
        admitted = self._admit(run)
        if isinstance(admitted, PromptJob):
            said = await self._call(run, admitted)
            outcome, call = self._judge(run, admitted, said)
        else:
            outcome = admitted
        self._log(run, outcome, call)
        try:
            return self.clerk.settlement(run.job, run.token, outcome, call)
        except InvalidPayload as unwritable:  # a provider's bug: half a character, which no result can hold
            log.error("provider.bug", job_id=run.job.id, error=type(unwritable).__name__)  # noqa: TRY400 - its text may quote the answer
            error = JobError(code=ErrorCode.PROVIDER_ERROR, message="the answer cannot be written as JSON")
            return self.clerk.settlement(run.job, run.token, Failed(error), call)

    def _admit(self, run: Run) -> PromptJob | Outcome:
        """Decode and check again: Redis is a border, and time has passed."""
        left = run.seconds_left
        if left is not None and left <= 0:
            return Expired()
        try:
            return job_in(codec.decode(run.job.payload))
        except (InvalidPayload, InvalidJob) as error:
            return Failed(JobError(code=ErrorCode.INVALID_REQUEST, message=f"the payload {error}"))

    async def _call(self, run: Run, prompt: PromptJob) -> Answer | ProviderError | Outcome:
        """One call to the provider, within the attempt's timeout and the job's deadline."""
        timeout, left = prompt.timeout or self.settings.job_timeout, run.seconds_left
        limit = timeout if left is None else min(timeout, left)
        run.calling_since = _now()
        clock = asyncio.timeout(limit)
        provider, model = self.routes.way(run.job.model)
        named = prompt if prompt.model == model else prompt.model_copy(update={"model": model})
        try:
            async with clock:
                return await provider.sample(named, timeout, self._listener(run) if prompt.stream else None)
        except ProviderError as error:
            return error
        except TimeoutError:
            if clock.expired() and limit < timeout:
                return Expired()
            return ProviderError(ErrorCode.TIMEOUT, f"no answer within {timeout:g} s")
        except asyncio.CancelledError:
            return _stopped(run)
        except Exception as error:  # noqa: BLE001 - a provider's bug must not end the worker
            where = traceback.format_tb(error.__traceback__)  # without the message: it may quote the prompt
            log.error("provider.bug", job_id=run.job.id, error=type(error).__name__, where="".join(where))  # noqa: TRY400
            return ProviderError(ErrorCode.PROVIDER_ERROR, f"{type(error).__name__} in the provider")

    def _listener(self, run: Run) -> Hear:
        """What hears the pieces of a streamed answer."""
        if run.job.stalls:
            self.teller.restart(run)
        return partial(self._hear, run)

    def _hear(self, run: Run, delta: Delta) -> None:
        if run.heard_at is None:
            run.heard_at = _now()
        self.teller.hear(run, delta)

    def _judge(
        self, run: Run, prompt: PromptJob, said: Answer | ProviderError | Outcome
    ) -> tuple[Outcome, Call | None]:
        started, finished = run.calling_since or 0, _now()
        if not isinstance(said, Answer | ProviderError):
            return said, Call(started, finished, _reason(said))
        outcome = judge(
            said,
            spent=run.job.spent,
            timeouts=run.job.timeouts,
            max_attempts=prompt.max_attempts or self.settings.max_attempts,
            luck=random.random(),
        )
        if isinstance(said, Answer):
            return outcome, Call(
                started, finished, None, said.usage, run.heard_at, self.teller.end(run) if prompt.stream else None
            )
        if not said.was_sent:
            return outcome, None
        return outcome, Call(started, finished, JobError(code=said.code, message=said.message), said.usage)

    def _log(self, run: Run, outcome: Outcome, call: Call | None) -> None:
        if isinstance(outcome, Succeeded) and self.settings.log_level in _QUIET:
            return
        job = run.job
        bound = {"job_id": job.id, "attempt": job.spent + 1, "lane": job.lane}
        if call:
            bound["seconds"] = (call.finished - call.started) / 1000
            if call.heard_at is not None:
                bound["first_token"] = (call.heard_at - call.started) / 1000
        if isinstance(outcome, Succeeded):
            log.info("job.succeeded", **bound, tokens=outcome.answer.usage.total_tokens, **self._content(outcome))
            return
        error = _reason(outcome)
        say = log.info if isinstance(outcome, Throttled) else log.warning  # the pause itself is told once (exchange.py)
        say(_EVENTS[type(outcome)], **bound, code=error.code.value, reason=error.message)

    def _content(self, outcome: Succeeded) -> dict[str, str]:
        return {"content": outcome.answer.content} if self.settings.log_content else {}


def _stopped(run: Run) -> ProviderError | Outcome:
    """Who cancelled the call: we did for a reason, or the vendor's library did, which is its failure."""
    match run.stopped:
        case None:
            return ProviderError(ErrorCode.PROVIDER_ERROR, "the provider's client cancelled the call")
        case "cancelled":
            return Cancelled()
        case "over" | "shutdown":
            return Released()


def _reason(outcome: Outcome) -> JobError:
    match outcome:
        case Succeeded():
            raise AssertionError("a success has no reason")
        case Released():
            why = "the worker stopped, another run was first, or the key was replaced"
            return JobError(code=ErrorCode.CANCELLED, message=f"given back: {why}")
        case _:
            return outcome.error


def _now() -> int:
    return time.time_ns() // 1_000_000
