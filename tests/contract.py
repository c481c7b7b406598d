"""The Lua scripts as a test wants them: short calls, and a clock that only the test moves."""

from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from promptq.producer import codec, keys, records, scripts
from promptq.producer.models import JobStatus
from promptq.producer.records import (
    Adoption,
    Claimed,
    ClaimedJob,
    ClaimRequest,
    Enqueued,
    Entry,
    LaneFull,
    Payer,
    Settlement,
    Telling,
    TenantFull,
)

NOW: Final = 1_800_000_000_000
LEASE: Final = 10_000
RESULT_TTL: Final = 600_000
FAILURE_TTL: Final = 1_200_000
EVENTS_TTL: Final = 300_000
LANE: Final = "grok-4"
HIGH, NORMAL, LOW = 0, 1, 2
DAY: Final = 86_400_000


def entry(job_id: str, **fields: Any) -> Entry:
    """A job as the enqueue script takes it; whatever a test does not name is ordinary."""
    ordinary = Entry(
        id=job_id, lane=LANE, band=NORMAL, tenant="anna", digest="digest", delay=0, deadline="", ttl=None,
        metadata=b"", payload=codec.dumps({"f": codec.FUNCTION, "a": [job_id], "k": {}, "t": None, "et": NOW}),
    )  # fmt: skip
    return ordinary._replace(**fields)


def entries(*ids: str, **fields: Any) -> list[Entry]:
    """Several jobs that differ in their ids alone."""
    return [entry(job_id, **fields) for job_id in ids]


def usage_key(now: int) -> str:
    """The books of the day at `now`."""
    return keys.usage(datetime.fromtimestamp(now / 1000, UTC).date())


def batch(*contents: str) -> bytes:
    """A batch of the tell script: one delta for each output."""
    return codec.dumps([{"content": content, "output": output} for output, content in enumerate(contents)])


@dataclass(frozen=True, slots=True)
class Run:
    """A job in the hands of a worker."""

    job: ClaimedJob
    token: str

    @property
    def id(self) -> str:
        """Of the job."""
        return self.job.id

    def outcome(self, kind: records.Kind = "succeeded", **fields: Any) -> Settlement:
        """The outcome of a run in which one call was made."""
        result = codec.dumps({"id": self.id, "s": kind == "succeeded", "r": {"status": kind, "content": self.token}})
        ordinary = Settlement(
            id=self.id, token=self.token, epoch=self.job.epoch, kind=kind,
            ttl=FAILURE_TTL if kind == "failed" else RESULT_TTL, attempt=codec.dumps({"worker": self.token}),
            result=result,
        )  # fmt: skip
        return ordinary._replace(**fields)


def runs_of(claimed: Claimed, token: str) -> list[Run]:
    """What a worker makes of an answer."""
    return [Run(job, token) for job in claimed.jobs]


class Contract:
    """One Redis, one clock, and workers that number their claims."""

    def __init__(self, redis: Any) -> None:
        self.redis = redis
        self.now = NOW
        self._seqs: Counter[str] = Counter()
        self._nonces: Counter[str] = Counter()

    def later(self, milliseconds: int) -> None:
        """Move the clock on."""
        self.now += milliseconds

    async def enqueue(
        self, *jobs: Entry, nonce: str = "", max_queued: int = 100_000
    ) -> list[Enqueued] | LaneFull | TenantFull:
        """One call of its own nonce, unless the test gives one."""
        self._nonces["calls"] += 1
        nonce = nonce or f"call {self._nonces['calls']}"
        return await scripts.enqueue(self.redis, jobs, nonce=nonce, max_queued=max_queued, now=self.now)

    async def accept(self, *jobs: Entry) -> None:
        """Enqueue jobs that are all new."""
        said = await self.enqueue(*jobs)
        assert isinstance(said, list)
        assert {each.disposition for each in said} <= {"created"}

    async def dispositions(self, *jobs: Entry, **options: Any) -> list[tuple[str, str]]:
        """Enqueue; per job what became of it, and its state."""
        said = await self.enqueue(*jobs, **options)
        assert isinstance(said, list)
        return [(each.disposition, each.status.value) for each in said]

    def request(self, worker: str = "w1", slots: int = 1, **options: Any) -> ClaimRequest:
        """The next claim of a worker that may do everything."""
        self._seqs[worker] += 1
        ordinary = ClaimRequest(
            worker=worker, seq=self._seqs[worker], slots=slots, lease=LEASE, take_over_until=1 << 53,
            may_take_poison=True, failure_ttl=FAILURE_TTL, result_ttl=RESULT_TTL,
        )  # fmt: skip
        return replace(ordinary, **options)

    async def send(self, request: ClaimRequest) -> Claimed:
        """A claim, for the first time or again."""
        return await scripts.claim(self.redis, request, now=self.now)

    async def claim(self, worker: str = "w1", slots: int = 1, **options: Any) -> Claimed:
        """A new claim, and the whole answer."""
        return await self.send(self.request(worker, slots, **options))

    async def take(self, worker: str = "w1", slots: int = 1, **options: Any) -> list[Run]:
        """A new claim, and the jobs that it leased."""
        request = self.request(worker, slots, **options)
        return runs_of(await self.send(request), request.token)

    async def take_one(self, worker: str = "w1", **options: Any) -> Run:
        """A claim that leases one job."""
        [run] = await self.take(worker, **options)
        return run

    async def taken(self, slots: int, worker: str = "w1", **options: Any) -> list[str]:
        """The ids that one claim leases, in its order."""
        return [run.id for run in await self.take(worker, slots, **options)]

    async def settle(
        self,
        run: Run,
        kind: records.Kind = "succeeded",
        *,
        wake: bool = False,
        account: str = "",
        payers: tuple[Payer, ...] = (),
        **fields: Any,
    ) -> str:
        """Write one outcome; the word that comes back."""
        outcome = run.outcome(kind, **fields)
        [said] = await scripts.settle(self.redis, [outcome], wake=wake, account=account, payers=payers, now=self.now)
        return said

    async def tell(self, run: Run, *batches: str | bytes, edition: int = 1, again: int = 0, first: int = 1) -> str:
        """Tell what a run's answer has become, a text as a batch of one delta; the word that comes back."""
        encoded = [each if isinstance(each, bytes) else batch(each) for each in batches]
        telling = Telling(run.id, run.token, edition, again, first, encoded)
        [said] = await scripts.tell(self.redis, [telling], ttl=EVENTS_TTL, now=self.now)
        return said

    async def renew(self, *runs: Run) -> list[str]:
        """Renew the leases of runs; a word for each."""
        asked = [(run.id, run.token, run.job.epoch) for run in runs]
        return await scripts.renew(self.redis, asked, lease=LEASE, result_ttl=RESULT_TTL, now=self.now)

    async def cancel(self, *ids: str) -> list[str]:
        """Cancel jobs; a word for each."""
        return await scripts.cancel(self.redis, ids, ttl=RESULT_TTL, now=self.now)

    async def adopt(self, job: Entry, model: str = LANE, refusal: bytes = b"") -> str:
        """Give a plain client's job a ledger in the intake lane, or refuse it."""
        adoption = Adoption(job._replace(lane=keys.INTAKE), model, self.now, refusal)
        return await scripts.adopt(self.redis, adoption, failure_ttl=FAILURE_TTL, now=self.now)

    async def plain_enqueue(self, job_id: str, payload: bytes = b"{}", lane: str = keys.INTAKE) -> None:
        """What arq's own `enqueue_job` does."""
        await self.redis.set(keys.payload(job_id), payload, px=DAY)
        await self.redis.zadd(keys.lane(lane), {job_id: self.now})

    async def run_out(self, run: Run) -> None:
        """Let the lease of a run end; the next claim takes note."""
        self.later(int(await self.field(run.id, "due")) - self.now + 1)

    async def stall(self, *ids: str, times: int) -> None:
        """Have the leases of these jobs run out so often, with nothing else in the queue."""
        for _ in range(times):
            runs = await self.take("dies", len(ids))
            assert {run.id for run in runs} == set(ids)
            self.later(LEASE + 1)
            await self.claim("looks", slots=0)

    async def ledger(self, job_id: str) -> dict[str, str]:
        """All of it."""
        found = await self.redis.hgetall(keys.ledger(job_id))
        return {name.decode(): value.decode() for name, value in found.items()}

    async def field(self, job_id: str, name: str) -> str:
        """One field of a ledger."""
        return (await self.ledger(job_id))[name]

    async def state(self, job_id: str) -> JobStatus:
        """Where a job is, as its ledger says."""
        return JobStatus(await self.field(job_id, "state"))

    async def score(self, job_id: str, lane: str = LANE) -> float | None:
        """Where a job stands in its lane."""
        score: float | None = await self.redis.zscore(keys.lane(lane), job_id)
        return score

    async def result(self, job_id: str) -> dict[str, Any]:
        """What stands under `r` in the result."""
        found: dict[str, Any] = codec.decode(await self.redis.get(keys.result(job_id)))["r"]
        return found

    async def usage(self) -> dict[str, int]:
        """Today's books."""
        found = await self.redis.hgetall(usage_key(self.now))
        return {name.decode(): int(value) for name, value in found.items()}

    async def pop_markers(self) -> set[str]:
        """The names of all markers, which are gone then; "" is the one for new lanes."""
        found = [key.decode() async for key in self.redis.scan_iter(keys.WAKE + "*")]
        if found:
            await self.redis.delete(*found)
        return {name.removeprefix(keys.WAKE).removeprefix(":") for name in found}

    async def drain(self) -> None:
        """Run what is left to its end, without limits."""
        await self.redis.delete(keys.LIMITS, *await self.redis.keys(keys.meter("*")))
        for _ in range(100):
            if not await self.redis.keys(keys.lane("*")) and not await self.redis.exists(keys.ABORT):
                return
            request = self.request("drains", 200)
            claimed = await self.send(request)
            outcomes = [run.outcome() for run in runs_of(claimed, request.token)]
            await scripts.settle(self.redis, outcomes, wake=False, now=self.now)
            for job_id in (foreign.id.decode() for foreign in claimed.foreign):
                await self.adopt(entry(job_id), refusal=b"refused")
            if not claimed.jobs:
                self.later(max(claimed.due_in or 0, 1000))
