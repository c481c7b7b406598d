"""The worker of a `MemoryQueue`: claims and settles with the real scripts, and asks the test for the answers."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any

from redis.asyncio import Redis

from promptq.producer import codec, scripts
from promptq.producer.errors import ErrorCode
from promptq.producer.models import PromptJob
from promptq.producer.records import Claimed, ClaimedJob, ClaimRequest, Kind, Settlement, Telling
from promptq.producer.results import JobError, Usage
from promptq.producer.settings import ProducerSettings
from promptq.producer.testing.answers import Answer, Choose, NoAnswer, OneAnswer, batches, completed
from promptq.producer.testing.server import Clock

NAME = "memory"
"""Of worker and provider in the results."""

_LEASE = 100 * 365 * 86_400_000  # never runs out: this worker does not die
_EVENTS_TTL = 3_600_000
_CANCELLED = JobError(code=ErrorCode.CANCELLED, message="cancelled on request")
_EXPIRED = JobError(code=ErrorCode.EXPIRED, message="the deadline passed before there was an answer")
_ENDS: dict[ErrorCode, Kind] = {ErrorCode.CANCELLED: "cancelled", ErrorCode.EXPIRED: "expired"}


@dataclass(frozen=True, slots=True)
class _Call:
    """A job that runs. `started` in ms since 1970."""

    job: ClaimedJob
    token: str
    asked: PromptJob
    started: int


class Answerer:
    """Runs one job after the other. `jobs`: all that were enqueued, by id; `choose`: what they are answered with."""

    def __init__(
        self, redis: Redis, clock: Clock, settings: ProducerSettings, jobs: Mapping[str, PromptJob], choose: Choose
    ) -> None:
        self._redis, self._clock, self._settings, self._jobs = redis, clock, settings, jobs
        self.choose = choose
        self._seqs = itertools.count(1)
        self._calls: dict[str, _Call] = {}

    async def run(self, most: float) -> tuple[list[PromptJob], int | None]:
        """Run at most so many jobs, in the queue's order.

        Returns the jobs, and the ms until something comes due.
        """
        await self.end_calls()
        ran: list[PromptJob] = []
        while True:
            token, claimed = await self._claim(slots=int(len(ran) < most))
            if not claimed.jobs:
                return ran, claimed.due_in
            [job] = claimed.jobs
            asked = self._jobs[job.id]
            self._calls[job.id] = _Call(job, token, asked, claimed.now)
            said = self.choose(asked)
            await self.answer(job.id, await said if isawaitable(said) else said)
            ran.append(asked)

    async def answer(self, job_id: str, said: OneAnswer) -> bool:
        """End the job's call so; False if it has none. `NO_ANSWER` leaves it open."""
        call = self._calls.get(job_id)
        if call is not None:
            ending = completed(said, call.asked)
            if not isinstance(ending, NoAnswer):
                await self._end(call, ending)
        return call is not None

    async def end_calls(self) -> None:
        """Those that were cancelled, and those whose deadline has passed."""
        calls, now = list(self._calls.values()), self._clock.now()
        if not calls:
            return
        leases = [(call.job.id, call.token, call.job.epoch) for call in calls]
        ttl = self._settings.result_ttl_ms
        words = await scripts.renew(self._redis, leases, lease=_LEASE, result_ttl=ttl, now=now)
        for call, word in zip(calls, words, strict=True):
            if word == "cancel":
                await self._end(call, _CANCELLED)
            elif call.job.deadline is not None and call.job.deadline <= now:
                await self._end(call, _EXPIRED)

    async def _end(self, call: _Call, said: Answer | JobError) -> None:
        self._calls.pop(call.job.id, None)
        settlement = self._settlement(call, said, await self._tell(call, said))
        await scripts.settle(self._redis, [settlement], wake=False, now=self._clock.now())

    async def _tell(self, call: _Call, said: Answer | JobError) -> dict[str, Any]:
        """The answer to a streamed job, in pieces. Returns what the result is to say of it."""
        told = batches(said) if call.asked.stream and isinstance(said, Answer) else []
        if not told:
            return {}
        telling = Telling(call.job.id, call.token, edition=1, again=0, first=1, batches=told)
        await scripts.tell(self._redis, [telling], ttl=_EVENTS_TTL, now=self._clock.now())
        waited = (self._clock.now() - call.started) / 1000
        return {"time_to_first_token": waited, "told": (f"{call.token}/{telling.edition}", len(told))}

    async def _claim(self, slots: int) -> tuple[str, Claimed]:
        """The token of the claim, and its answer."""
        request = ClaimRequest(
            worker=NAME,
            seq=next(self._seqs),
            slots=slots,
            lease=_LEASE,
            take_over_until=0,
            may_take_poison=False,
            failure_ttl=self._settings.failure_ttl_ms,
            result_ttl=self._settings.result_ttl_ms,
        )
        return request.token, await scripts.claim(self._redis, request, now=self._clock.now())

    def _settlement(self, call: _Call, said: Answer | JobError, of_the_stream: Mapping[str, Any]) -> Settlement:
        error = said if isinstance(said, JobError) else None
        usage = said.usage if isinstance(said, Answer) else None
        spent = usage.amounts() if usage else None
        kind: Kind = _ENDS.get(error.code, "failed") if error else "succeeded"
        told = {"error": said} if error else said.model_dump()
        result = {"model": call.job.model, "provider": NAME, "worker": NAME, "started_at": call.started}
        return Settlement(
            id=call.job.id,
            token=call.token,
            epoch=call.job.epoch,
            kind=kind,
            ttl=self._settings.failure_ttl_ms if kind == "failed" else self._settings.result_ttl_ms,
            attempt=codec.dump_attempt(call.started, self._clock.now(), spent, error),
            usage=spent or Usage().amounts(),
            result=_record(call.job.id, {**result, **of_the_stream, **told, "status": kind}),
        )


def _record(job_id: str, result: Mapping[str, Any]) -> bytes:
    """Of arq's shape, what our own reader needs: nobody else reads here."""
    return codec.dumps({"id": job_id, "s": result["status"] == "succeeded", "r": result})
