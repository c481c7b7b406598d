"""What must be true of a queue whatever happens to it: `Books` hears of every call that Redis carries out."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from contract import LEASE
from meters import Meter
from promptq.producer import keys
from promptq.producer.models import JobStatus
from promptq.producer.records import (
    Claimed,
    ClaimedJob,
    ClaimRequest,
    Enqueued,
    Entry,
    LaneFull,
    Settlement,
    TenantFull,
)

TOTAL_TOKENS: Final = 4
OVER_OTHERWISE: Final = ("succeeded", "cancelled", "expired")
WAITING: Final = ("queued", "delayed")
RETURNING: Final = ("retry", "throttled", "released")
OF_THE_ACCOUNT: Final = ("bad_key", "no_credit")

# One round trip for many keys.
LEDGERS: Final = """local found = {}
for i, key in ipairs(KEYS) do found[i] = redis.call('HMGET', key, 'state', 'token', 'due', 'model', 'charged') end
return found"""
HASHES: Final = """local found = {}
for i, key in ipairs(KEYS) do found[i] = redis.call('HGETALL', key) end
return found"""


class Ledger(NamedTuple):
    """What stands in the ledger of an accepted job."""

    state: str
    token: str
    due: int
    model: str
    charged: int | None


OVER: Final = Ledger("over", "", 0, "", None)
Ledgers = dict[str, Ledger]
"""By job id."""


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
    lives: int = 1
    ends: int = 0
    epoch: int = 1
    model: str = ""
    claimed: int = 0
    charged: int | None = None
    result: bytes | None = None
    is_over: bool = False

    @property
    def has_turn_by_number(self) -> bool:
        """Whether jobs of its tenant run in the order in which they were accepted; a conversation's get turns later."""
        return self.entry.delay == 0 and self.entry.lane != keys.INTAKE and not self.entry.conversation

    def release(self) -> None:
        """Nobody holds it any more."""
        self.holder, self.held_until = "", 0

    def begin_anew(self, number: int) -> None:
        """It was requeued: at the end of the turns, and runnable at once."""
        self.entry, self.number = self.entry._replace(delay=0), number
        self.leases = self.starts = self.returns = 0
        self.lives, self.epoch = self.lives + 1, self.epoch + 1
        self.result, self.is_over = None, False


@dataclass(slots=True)
class Books:
    """Every accepted job, every paid call, and what was found wrong."""

    redis: Any
    jobs: dict[str, Job] = field(default_factory=dict)
    paid: dict[tuple[str, str], int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    answers: dict[str, set[str]] = field(default_factory=dict)
    meters: defaultdict[str, Meter] = field(default_factory=lambda: defaultdict(Meter))
    caps: dict[str, int] = field(default_factory=dict)
    is_account_paused: bool = False
    numbers: int = 0

    def accepted(self, entry: Entry, disposition: str = "created") -> None:
        """A producer heard what became of a new job of its own."""
        if disposition != "created":
            self.complaints.append(f"own job reported as {disposition}: {entry.id}")
        self.jobs.setdefault(entry.id, Job(entry, self._next_number()))

    def enqueued(
        self, entries: Sequence[Entry], said: list[Enqueued] | LaneFull | TenantFull, before: Counter[str]
    ) -> None:
        """A producer's call was carried out; `before`: what waited of each tenant."""
        wanted = before + Counter(entry.tenant for entry in entries if entry.id not in self.jobs)
        is_over = any(wanted[tenant] > max(cap, before[tenant]) for tenant, cap in self.caps.items())
        if isinstance(said, list) == is_over:
            self.complaints.append(f"cap: {said} with {dict(wanted)} of {self.caps}")
        if isinstance(said, list):
            for entry, each in zip(entries, said, strict=True):
                self.accepted(entry, each.disposition)

    def requeued(self, job_id: str, said: str, state: str) -> None:
        """A failed job was to run again; `state` before that."""
        expected = {"failed": "requeued", "": "unknown"}.get(state) or ("over" if state in OVER_OTHERWISE else "open")
        if said != expected:
            self.complaints.append(f"requeue said {said} of a job that was {state}: {job_id}")
        if said == "requeued":
            self.jobs[job_id].begin_anew(self._next_number())

    def requeued_again(self, job_id: str, said: str) -> None:
        """A call that had requeued a job was sent again."""
        if said != "requeued":
            self.complaints.append(f"own requeue reported as {said}: {job_id}")

    def _next_number(self) -> int:
        self.numbers += 1
        return self.numbers

    async def waiting(self) -> Counter[str]:
        """How many jobs of each tenant wait."""
        ledgers = await self._open_ledgers()
        return Counter(self.jobs[job_id].entry.tenant for job_id, each in ledgers.items() if each.state in WAITING)

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
        await self._check_waiting(ledgers)
        if not is_repetition:
            self._check_order(ids, ledgers)
            self._check_conversations(ids, ledgers)
            for job in claimed.jobs:
                self._start(now, job, ledgers)

    def _start(self, now: int, claimed: ClaimedJob, ledgers: Ledgers) -> None:
        """A job was leased, and charged to its model."""
        job, meter = self.jobs[claimed.id], self.meters[claimed.model]
        job.model, job.claimed, job.charged = claimed.model, now, ledgers.get(claimed.id, OVER).charged
        wrongs = list(meter.start(now, job.charged or 0))
        running = sum(each.model == claimed.model and each.state == "running" for each in ledgers.values())
        if meter.limits.in_flight and running > meter.limits.in_flight:
            wrongs.append(f"over the limit: calls in flight, {running} of {meter.limits.in_flight}")
        if self.is_account_paused:
            wrongs.append("started under a pause of the account")
        self.complaints += [f"{wrong}: {claimed.model}, {claimed.id}" for wrong in wrongs]

    def _lease(self, now: int, job_id: str, token: str) -> None:
        job = self.jobs[job_id]
        if job.held_until > now and job.holder != token:
            self.complaints.append(f"two live leases: {job_id} of {job.holder} and {token}")
        job.leases += job.holder != token
        job.holder, job.held_until = token, now + LEASE

    async def _open_ledgers(self) -> Ledgers:
        """What stands in the ledgers of all jobs that had not ended."""
        open_jobs = [job for job in self.jobs.values() if not job.is_over]
        names = [keys.ledger(job.entry.id) for job in open_jobs]
        replies = await self.redis.eval(LEDGERS, len(names), *names)
        ledgers: Ledgers = {}
        for job, (state, token, due, model, charged) in zip(open_jobs, replies, strict=True):
            if state is not None:
                ledgers[job.entry.id] = Ledger(
                    state.decode(), (token or b"").decode(), int(due or 0), model.decode(), charged and int(charged)
                )
                job.is_over = JobStatus(state.decode()).is_final
        return ledgers

    def _compare(self, now: int, request: ClaimRequest, ids: set[str], ledgers: Ledgers) -> None:
        """What a claim leased is in its answer, and nothing else is."""
        for job_id in ids:
            ledger = ledgers.get(job_id, OVER)
            if (ledger.state, ledger.token) != ("running", request.token) or ledger.due <= now:
                self.complaints.append(f"handed over without a lease: {job_id}, {ledger.state}")
        for job_id, ledger in ledgers.items():
            if ledger.state == "running" and ledger.token == request.token and job_id not in ids:
                self.complaints.append(f"leased and not handed over: {job_id}")

    async def _check_waiting(self, ledgers: Ledgers) -> None:
        """The counts of what waits of each tenant are what the ledgers say."""
        expected: Counter[tuple[str, str]] = Counter()
        for entry in (self.jobs[job_id].entry for job_id, each in ledgers.items() if each.state in WAITING):
            expected[entry.lane, f"{entry.band}:{entry.tenant}"] += 1
        lanes = {job.entry.lane for job in self.jobs.values()}
        found: dict[tuple[str, str], int] = {}
        for lane, flat in zip(lanes, await self.redis.eval(HASHES, len(lanes), *map(keys.waiting, lanes)), strict=True):
            found |= {(lane, flat[i].decode()): int(flat[i + 1]) for i in range(0, len(flat), 2)}
        if found != expected:
            self.complaints.append(f"waiting: {found} instead of {dict(expected)}")

    def _check_order(self, ids: set[str], ledgers: Ledgers) -> None:
        """No job is left queued that should have gone before one that was taken."""
        waiting = [self.jobs[job_id] for job_id, each in ledgers.items() if each.state == "queued"]
        for taken in (self.jobs[job_id] for job_id in ids):
            for left in waiting:
                if left.entry.lane != taken.entry.lane:
                    continue
                if left.entry.band < taken.entry.band:
                    self.complaints.append(f"band: {taken.entry.id} went before {left.entry.id}")
                if (left.entry.tenant, left.entry.band) == (taken.entry.tenant, taken.entry.band):
                    self._check_turns(taken, left)

    def _check_conversations(self, ids: set[str], ledgers: Ledgers) -> None:
        """No job is taken before all those that came into its conversation earlier have ended."""
        for taken in (self.jobs[job_id] for job_id in ids if self.jobs[job_id].entry.conversation):
            for job_id in ledgers:
                other = self.jobs[job_id]
                is_of_it = other.entry.conversation == taken.entry.conversation
                if is_of_it and not other.is_over and other.number < taken.number:
                    self.complaints.append(f"conversation: {taken.entry.id} went before {job_id}")

    def _check_turns(self, taken: Job, left: Job) -> None:
        """Inside a tenant: the one accepted first goes first, and a job that was leased before is next."""
        if left.has_turn_by_number and taken.has_turn_by_number and left.number < taken.number:
            self.complaints.append(f"out of turn: {taken.entry.id} went before {left.entry.id}")
        if left.leases and taken.leases == 1 and taken.entry.lane != keys.INTAKE:
            self.complaints.append(f"not next: {left.entry.id} came back, and {taken.entry.id} went before it")

    def settled(self, now: int, outcome: Settlement, said: str) -> None:
        """An outcome was written, whether or not its worker hears of it."""
        job = self.jobs[outcome.id]
        if outcome.attempt:
            self.paid[outcome.id, outcome.token] = outcome.usage[TOTAL_TOKENS] or 0
        if said not in ("done", "back", "pausing", "over", "stale"):
            self.complaints.append(f"settle said {said}: {outcome.id}")
        self._meter(now, job, outcome, said)
        if said in ("done", "back", "pausing"):
            self._check_fence(job, outcome)
            job.release()
        if said in ("back", "pausing"):
            job.returns += 1
        elif said == "done":
            if job.ends == job.lives:
                self.complaints.append(f"a second result over the first: {outcome.id}")
            job.ends += 1
            job.result = outcome.result if outcome.kind not in RETURNING else None
        elif said == "stale" and outcome.kind == "succeeded" and outcome.epoch == str(job.epoch):
            self.complaints.append(f"a paid answer was refused: {outcome.id}")

    def _check_fence(self, job: Job, outcome: Settlement) -> None:
        if outcome.kind != "succeeded" and outcome.token != job.holder:
            self.complaints.append(f"fence: {outcome.token} {outcome.kind} what {job.holder} holds: {outcome.id}")
        if outcome.epoch != str(job.epoch):
            self.complaints.append(f"fence: an answer of another life: {outcome.id}")

    def _meter(self, now: int, job: Job, outcome: Settlement, said: str) -> None:
        """What an outcome says of its model and its account."""
        meter = self.meters[job.model]
        if outcome.token == job.holder:
            if not outcome.attempt:
                meter.refund(now)
            more = (outcome.usage[TOTAL_TOKENS] or 0) - (job.charged or 0)
            if job.charged is not None and (more < 0 or job.held_until > now):
                meter.charge(now, more)
            meter.was_throttled = meter.was_throttled or outcome.reason == "rate_limited"
            if outcome.kind in ("succeeded", "failed") and outcome.attempt:
                meter.answer(job.claimed)
            elif outcome.kind in ("released", "retry", "cancelled", "expired"):
                meter.pass_probe_on(now, job.claimed, outcome.kind)
        if said == "pausing" and outcome.reason in OF_THE_ACCOUNT:
            self.is_account_paused = True
        elif said == "pausing":
            meter.pause(now, outcome.delay if outcome.reason == "rate_limited" else 0, outcome.reason)

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
        if job.ends > job.lives or heard != job.lives:
            self.complaints.append(f"ended {max(job.ends, heard)} times in {job.lives} lives: {job_id}")
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
                counters.update({state.decode(): 1, "jobs": 1, "ended": self.jobs[job_id].lives})
                counters.update({"requeued": self.jobs[job_id].lives - 1} if self.jobs[job_id].lives > 1 else {})
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
