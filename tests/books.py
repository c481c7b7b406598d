"""What must be true of a queue whatever happens to it: `Books` hears of every call that Redis carries out."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from contract import LEASE
from promptq.producer import keys
from promptq.producer.models import JobStatus
from promptq.producer.records import Claimed, ClaimRequest, Entry, Settlement

TOTAL_TOKENS: Final = 4
RETURNING: Final = ("retry", "throttled", "released")
Ledgers = dict[str, tuple[str, str, int]]
"""State, token and end of the lease by job id."""


@dataclass(slots=True)
class Job:
    """One accepted job, and what is known of it."""

    entry: Entry
    number: int
    holder: str = ""
    held_until: int = 0
    leases: int = 0
    starts: int = 0
    returns: int = 0
    ends: int = 0
    result: bytes | None = None
    is_over: bool = False

    @property
    def has_turn_by_number(self) -> bool:
        """Whether jobs of its tenant run in the order in which they were accepted."""
        return self.entry.delay == 0 and self.entry.lane != keys.INTAKE

    def release(self) -> None:
        """Nobody holds it any more."""
        self.holder, self.held_until = "", 0


@dataclass(slots=True)
class Books:
    """Every accepted job, every paid call, and what was found wrong."""

    redis: Any
    jobs: dict[str, Job] = field(default_factory=dict)
    paid: dict[tuple[str, str], int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    answers: dict[str, set[str]] = field(default_factory=dict)

    def accepted(self, entry: Entry, disposition: str) -> None:
        """A producer heard what became of a new job of its own."""
        if disposition != "created":
            self.complaints.append(f"own job reported as {disposition}: {entry.id}")
        self.jobs.setdefault(entry.id, Job(entry, len(self.jobs)))

    async def claimed(self, now: int, request: ClaimRequest, claimed: Claimed) -> None:
        """A claim was carried out, whether or not its worker hears of it."""
        ids = {job.id for job in claimed.jobs}
        is_repetition = request.token in self.answers
        if is_repetition and ids - self.answers[request.token]:
            self.complaints.append(f"another answer to the same claim: {sorted(ids)}")
        if ids:
            self.answers[request.token] = ids
        if len(ids) > request.slots:
            self.complaints.append(f"{len(ids)} jobs for {request.slots} slots")
        for job_id in ids:
            self._lease(now, job_id, request.token)
        ledgers = await self._open_ledgers()
        self._compare(now, request, ids, ledgers)
        if not is_repetition:
            self._check_order(ids, ledgers)

    def _lease(self, now: int, job_id: str, token: str) -> None:
        job = self.jobs[job_id]
        if job.held_until > now and job.holder != token:
            self.complaints.append(f"two live leases: {job_id} of {job.holder} and {token}")
        job.leases += job.holder != token
        job.holder, job.held_until = token, now + LEASE

    async def _open_ledgers(self) -> Ledgers:
        """What stands in the ledgers of all jobs that had not ended."""
        open_jobs = [job for job in self.jobs.values() if not job.is_over]
        async with self.redis.pipeline(transaction=False) as pipe:
            for job in open_jobs:
                pipe.hmget(keys.ledger(job.entry.id), "state", "token", "due")
            replies = await pipe.execute()
        ledgers: Ledgers = {}
        for job, (state, token, due) in zip(open_jobs, replies, strict=True):
            if state is not None:
                ledgers[job.entry.id] = state.decode(), (token or b"").decode(), int(due or 0)
                job.is_over = JobStatus(state.decode()).is_final
        return ledgers

    def _compare(self, now: int, request: ClaimRequest, ids: set[str], ledgers: Ledgers) -> None:
        """What a claim leased is in its answer, and nothing else is."""
        for job_id in ids:
            state, token, due = ledgers.get(job_id, ("over", "", 0))
            if (state, token) != ("running", request.token) or due <= now:
                self.complaints.append(f"handed over without a lease: {job_id}, {state}")
        for job_id, (state, token, _) in ledgers.items():
            if state == "running" and token == request.token and job_id not in ids:
                self.complaints.append(f"leased and not handed over: {job_id}")

    def _check_order(self, ids: set[str], ledgers: Ledgers) -> None:
        """No job is left queued that should have gone before one that was taken."""
        waiting = [self.jobs[job_id] for job_id, (state, _, _) in ledgers.items() if state == "queued"]
        for taken in (self.jobs[job_id] for job_id in ids):
            for left in waiting:
                if left.entry.lane != taken.entry.lane:
                    continue
                if left.entry.band < taken.entry.band:
                    self.complaints.append(f"band: {taken.entry.id} went before {left.entry.id}")
                if (left.entry.tenant, left.entry.band) == (taken.entry.tenant, taken.entry.band):
                    self._check_turns(taken, left)

    def _check_turns(self, taken: Job, left: Job) -> None:
        """Inside a tenant: the one accepted first goes first, and a job that was leased before is next."""
        if left.has_turn_by_number and taken.has_turn_by_number and left.number < taken.number:
            self.complaints.append(f"out of turn: {taken.entry.id} went before {left.entry.id}")
        if left.leases and taken.leases == 1 and taken.entry.lane != keys.INTAKE:
            self.complaints.append(f"not next: {left.entry.id} came back, and {taken.entry.id} went before it")

    def settled(self, outcome: Settlement, said: str) -> None:
        """An outcome was written, whether or not its worker hears of it."""
        job = self.jobs[outcome.id]
        if outcome.attempt:
            self.paid[outcome.id, outcome.token] = outcome.usage[TOTAL_TOKENS] or 0
        if said not in ("done", "back", "pausing", "over", "stale"):
            self.complaints.append(f"settle said {said}: {outcome.id}")
        if said in ("done", "back", "pausing"):
            if outcome.kind != "succeeded" and outcome.token != job.holder:
                self.complaints.append(f"fence: {outcome.token} {outcome.kind} what {job.holder} holds: {outcome.id}")
            job.release()
        if said in ("back", "pausing"):
            job.returns += 1
        elif said == "done":
            job.ends += 1
            job.result = outcome.result if outcome.kind not in RETURNING else None
        elif said == "stale" and outcome.kind == "succeeded":
            self.complaints.append(f"a paid answer was refused: {outcome.id}")

    def renewed(self, now: int, job_id: str, token: str, said: str) -> None:
        """A renewal was carried out."""
        job = self.jobs[job_id]
        if said in ("ours", "cancel"):
            self._lease(now, job_id, token)
        elif said == "taken" and job.holder == token:
            self.complaints.append(f"told that another holds what it holds itself: {job_id}")

    def cancelled(self, job_id: str, said: str) -> None:
        """A cancel was carried out."""
        job = self.jobs[job_id]
        if said == "unknown":
            self.complaints.append(f"an accepted job is unknown: {job_id}")
        if said == "cancelled":
            job.ends += 1
            job.release()

    async def close(self, heard: Counter[str]) -> None:
        """All has come to an end; `heard`: final messages by job."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for job_id in self.jobs:
                pipe.get(keys.result(job_id))
                pipe.hgetall(keys.ledger(job_id))
            replies = await pipe.execute()
        for index, (job_id, job) in enumerate(self.jobs.items()):
            self._check_end(job_id, job, replies[2 * index], replies[2 * index + 1], heard[job_id])
        await self._check_usage()
        await self._check_groups()
        await self._check_leftovers()

    def _check_end(self, job_id: str, job: Job, result: bytes | None, ledger: dict[bytes, bytes], heard: int) -> None:
        if result is None or not JobStatus(ledger.get(b"state", b"queued").decode()).is_final:
            self.complaints.append(f"lost: {job_id}, {ledger.get(b'state')!r}")
        elif job.result is not None and job.result != result:
            self.complaints.append(f"a second result over the first: {job_id}")
        if job.ends > 1 or heard != 1:
            self.complaints.append(f"ended {max(job.ends, heard)} times: {job_id}")
        stalls = int(ledger.get(b"stalls", 0))
        if job.starts > 1 + job.returns + stalls:
            self.complaints.append(f"started {job.starts} times, {job.returns} returns, {stalls} stalls: {job_id}")
        attempts = {name.removeprefix(b"attempt:").decode() for name in ledger if name.startswith(b"attempt:")}
        if attempts != {token for paid_id, token in self.paid if paid_id == job_id}:
            self.complaints.append(f"attempts are not what was called: {job_id}")

    async def _check_groups(self) -> None:
        """The counters of every group are what its jobs' ledgers say."""
        expected: dict[str, Counter[str]] = {}
        for job_id in self.jobs:
            state, group = await self.redis.hmget(keys.ledger(job_id), "state", "group")
            if group:
                counters = expected.setdefault(group.decode(), Counter())
                counters.update([state.decode(), "jobs", "ended"])
        for name, counters in expected.items():
            found = await self.redis.hgetall(keys.group(name))
            told = {field.decode(): int(value) for field, value in found.items() if field != b"ttl" and int(value)}
            if told != counters or await self.redis.zcard(keys.members(name)) != counters["jobs"]:
                self.complaints.append(f"group {name}: {told} instead of {dict(counters)}")

    async def _check_usage(self) -> None:
        total = 0
        async for day in self.redis.scan_iter("promptq:usage:*"):
            books = await self.redis.hgetall(day)
            total += sum(int(amount) for name, amount in books.items() if name.endswith(b":total_tokens"))
        if total != sum(self.paid.values()):
            self.complaints.append(f"usage: {total} on the books, {sum(self.paid.values())} paid")

    async def _check_leftovers(self) -> None:
        found = [key async for key in self.redis.scan_iter(count=1000)]
        async with self.redis.pipeline(transaction=False) as pipe:
            for key in found:
                pipe.pttl(key)
            ttls = await pipe.execute()
        for key, ttl in zip(found, ttls, strict=True):
            if ttl == -1 and not keys.is_permanent(key):
                self.complaints.append(f"left for ever: {key.decode()}")
