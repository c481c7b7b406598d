"""A worker played by hand, for tests that need no arq: it claims when told and settles as told."""

from collections.abc import Iterable

from redis.asyncio import Redis

from promptq.producer import ErrorCode, JobError, Usage, scripts
from promptq.producer.records import ClaimedJob, ClaimRequest
from promptq.worker.outcome import Failed, Outcome, Succeeded
from promptq.worker.providers.base import Answer
from promptq.worker.settlement import Call, Clerk

_LEASE = 30_000
_TTL = 60_000
_MADE = 1_750_000_000_000
_USAGE = Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5, cost_in_usd_ticks=7)


class Hand:
    """Every job that it runs is one call of 100 ms, made in 2025."""

    def __init__(self, redis: Redis, name: str = "hand") -> None:
        self._redis, self._name, self._seq = redis, name, 0
        self._books = Clerk(name, lambda _: "hand", _TTL, _TTL)
        self._tokens: dict[str, str] = {}

    async def claim(self, slots: int = 1000) -> list[ClaimedJob]:
        """Lease what there is."""
        self._seq += 1
        request = ClaimRequest(
            worker=self._name,
            seq=self._seq,
            slots=slots,
            lease=_LEASE,
            take_over_until=0,
            may_take_poison=False,
            failure_ttl=_TTL,
            result_ttl=_TTL,
        )
        claimed = await scripts.claim(self._redis, request)
        self._tokens |= {job.id: request.token for job in claimed.jobs}
        return list(claimed.jobs)

    async def settle(self, jobs: Iterable[ClaimedJob], outcome: Outcome | None = None) -> None:
        """End claimed jobs; None: with the answer "done"."""
        call = Call(_MADE, _MADE + 100, outcome.error if isinstance(outcome, Failed) else None, _USAGE)
        settlements = [
            self._books.settlement(job, self._tokens[job.id], outcome or answer("done", job.model), call)
            for job in jobs
        ]
        said = await scripts.settle(self._redis, settlements, wake=False)
        assert set(said) <= {"done"}, said

    async def answer_all(self) -> list[str]:
        """Run whatever is queued to its end; returns the ids."""
        ended: list[str] = []
        while jobs := await self.claim(200):
            await self.settle(jobs)
            ended += [job.id for job in jobs]
        return ended


def answer(content: str, model: str = "grok-4") -> Succeeded:
    """An answer of five tokens and seven ticks."""
    return Succeeded(Answer(content, model, _USAGE))


def failure(code: ErrorCode, message: str = "it broke") -> Failed:
    """A failure with this code."""
    return Failed(JobError(code=code, message=message))
