"""A fleet as Redis sees it: producers, plain arq clients, and workers that keep the engine's rules.

Outcomes and claims are sent again until they are answered, and who may have lost its leases renews before it claims.
Nothing here is random: schedules.py says what happens next. The books hear of every call that Redis carries out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from books import Books
from contract import LEASE, Contract, Run, entry, runs_of
from promptq.producer import keys, scripts
from promptq.producer.models import Limits
from promptq.producer.records import Claimed, ClaimRequest, Entry, Probed, Settlement

WORKERS: Final = 3
SLOTS: Final = 3
A_LOT: Final = 1_000_000
LANES: Final = ("grok-3", "grok-4")
ACCOUNT: Final = "xai:1"
UNUSED: Final = (0, 0, 0, 0, 0, None)

ENDINGS: Final[dict[str, dict[str, Any]]] = {
    "succeeded": {},
    "failed": {"kind": "failed", "reason": "invalid_request"},
    "cancelled": {"kind": "cancelled"},
    "retry": {"kind": "retry", "reason": "provider_error"},
    "unavailable": {"kind": "retry", "reason": "unavailable", "delay": 1},
    "released": {"kind": "released"},
    "unstarted": {"kind": "released", "attempt": b"", "usage": UNUSED},
    "unreached": {"kind": "throttled", "reason": "unavailable", "attempt": b"", "usage": UNUSED},
    "throttled": {"kind": "throttled", "reason": "rate_limited", "delay": 0, "usage": UNUSED},
    "throttled for 5 s": {"kind": "throttled", "reason": "rate_limited", "delay": 5000, "usage": UNUSED},
    "refused": {"kind": "throttled", "reason": "bad_key", "delay": 0, "usage": UNUSED},
}
"""How runs end: what is not ordinary in their outcomes. Unstarted: given back before the call was made."""

Trouble = Literal["", "unsent", "half", "unheard"]
"""What became of a round trip: all well, lost on its way, settled but not claimed, or carried out and not heard of."""

Picked = TypeVar("Picked")


@dataclass(slots=True)
class Worker:
    """One worker process, as far as Redis sees it."""

    name: str
    steady_since: int
    renewed_at: int
    answered_at: int = 0
    calls: dict[str, Run] = field(default_factory=dict)
    unsettled: list[Settlement] = field(default_factory=list)
    unanswered: ClaimRequest | None = None
    is_broken: bool = False

    @property
    def is_busy(self) -> bool:
        """Whether it owes Redis anything."""
        return bool(self.calls or self.unsettled or self.unanswered)

    def may_have_lost_leases(self, now: int) -> bool:
        """Whether it has to renew before it does anything else."""
        return self.is_broken or (bool(self.calls) and now - self.renewed_at > LEASE // 2)


class Fleet:
    """Everybody who calls the scripts of one Redis, on one clock."""

    def __init__(self, redis: Any) -> None:
        self.redis = redis
        self.contract = Contract(redis)
        self.books = Books(redis)
        self._enqueued: tuple[str, list[Entry]] = "", []
        self._aborted = ""
        self._is_asked = False
        self._names = 0
        self._calls = 0
        self.workers = [self._hire(steady_since=self.now - LEASE) for _ in range(WORKERS)]

    @property
    def now(self) -> int:
        """The one clock."""
        return self.contract.now

    async def enqueue(self, wishes: Sequence[dict[str, Any]]) -> None:
        """A producer's call; each wish names the fields in which its job is not ordinary."""
        self._enqueued = self._name("call"), [entry(self._name("job"), **wish) for wish in wishes]
        await self.enqueue_again()

    async def enqueue_again(self) -> None:
        """The last call once more, as if its reply had been lost."""
        nonce, jobs = self._enqueued
        before = await self.books.waiting()
        self.books.enqueued(jobs, await self.contract.enqueue(*jobs, nonce=nonce), before)

    async def plain_enqueue(self) -> None:
        """A plain arq client's call."""
        job_id = self._name("plain")
        await self.contract.plain_enqueue(job_id)
        self.books.accepted(entry(job_id, lane=keys.INTAKE))

    async def cancel(self, job: int) -> None:
        """A producer cancels one of all jobs."""
        job_id = _pick(list(self.books.jobs), job)
        [said] = await self.contract.cancel(job_id)
        self.books.cancelled(job_id, said)

    async def requeue(self, job: int, is_sent_again: bool) -> None:
        """An operator has a failed job run again; if none has failed, any other."""
        failed = [job_id.decode() for job_id in await self.redis.zrange(keys.FAILED, 0, -1)]
        nonce, job_id = self._name("call"), _pick(failed or list(self.books.jobs), job)
        state = (await self.redis.hget(keys.ledger(job_id), "state") or b"").decode()
        [said] = await scripts.requeue(self.redis, [job_id], nonce=nonce, now=self.now)
        self.books.requeued(job_id, said, state)
        if is_sent_again and said == "requeued":
            [said] = await scripts.requeue(self.redis, [job_id], nonce=nonce, now=self.now)
            self.books.requeued_again(job_id, said)

    async def set_limits(self, model: str, limits: dict[str, int]) -> None:
        """An operator limits a model; a limit that is not named is none."""
        await scripts.set_limits(self.redis, model, Limits(**limits), now=self.now)
        self.books.meters[model].limit(Limits(**limits))

    async def hold(self, model: str, is_held: bool) -> None:
        """An operator pauses a model, or ends all of its pauses."""
        if is_held:
            await scripts.pause(self.redis, model, now=self.now)
            self.books.meters[model].hold()
        else:
            await scripts.resume(self.redis, model, now=self.now)
            self.books.meters[model].resume()

    async def set_tenant(self, tenant: str, weight: int | None, max_queued: int | None) -> None:
        """An operator gives a tenant its weight and its cap."""
        await scripts.set_tenant(self.redis, tenant, weight=weight, max_queued=max_queued)
        self.books.caps.pop(tenant, None)
        if max_queued is not None:
            self.books.caps[tenant] = max_queued

    async def look_at_account(self, said: Probed) -> None:
        """A worker that was told to finds out whether a paused account works."""
        if self._is_asked:
            self._is_asked = False
            if await scripts.probed(self.redis, ACCOUNT, said, luck=self._luck, now=self.now) != "paused":
                self.books.is_account_paused = False

    async def break_down(self) -> None:
        """The provider takes no call for a moment, whoever makes it."""
        for _ in range(3):
            for index in range(WORKERS):
                await self._claim(self._end(index, ["unavailable"] * SLOTS))
            self.contract.later(10)

    async def plain_abort(self, job: int) -> None:
        """The first half of arq's `Job.abort`: score 1 for what is not runnable, or was so and has just ended."""
        found: list[tuple[str, str]] = []
        for lane in (*LANES, keys.INTAKE):
            if later := await self.redis.zrangebyscore(keys.lane(lane), self.now, "+inf"):
                just_ended = [known.entry for known in self.books.jobs.values() if known.is_over][-1:]
                found += [(lane, job_id.decode()) for job_id in later]
                found += [(lane, ended.id) for ended in just_ended if ended.lane == lane]
        if found:
            lane, self._aborted = _pick(found, job)
            await self.redis.zadd(keys.lane(lane), {self._aborted: 1})

    async def list_abort(self) -> None:
        """The second half: an entry in arq's own list."""
        if self._aborted:
            await self.redis.zadd(keys.ABORT, {self._aborted: self.now})

    async def step_clock(self, milliseconds: int) -> None:
        """Time passes, and nobody does anything."""
        self.contract.later(milliseconds)

    async def freeze(self, worker: int) -> None:
        """One worker stands still for longer than a lease; the others renew and claim."""
        for _ in range(4):
            self.contract.later(LEASE * 3 // 10)
            for other in self.workers:
                if other is not self.workers[worker]:
                    await self._renew(other)
                    await self._claim(other)

    async def kill(self, worker: int) -> None:
        """One worker is gone with all that it knew; a new one starts in its place."""
        self.workers[worker] = self._hire(steady_since=self.now)

    async def claim(self, worker: int, endings: Sequence[str], max_bytes: int) -> None:
        """Calls of a worker end, in the order in which they began; then it settles and claims in one round trip."""
        await self._claim(self._end(worker, endings), max_bytes=max_bytes)

    async def claim_in_vain(self, worker: int, endings: Sequence[str], trouble: Trouble) -> None:
        """The same, but the worker hears nothing."""
        await self._claim(self._end(worker, endings), trouble)

    async def settle(self, worker: int, endings: Sequence[str], trouble: Trouble) -> None:
        """Calls of a worker end; then it settles and claims nothing."""
        await self._settle(self._end(worker, endings), trouble)

    async def renew(self, worker: int, trouble: Trouble) -> None:
        """A worker renews all of its leases."""
        await self._renew(self.workers[worker], trouble)

    async def come_to_rest(self) -> None:
        """No more trouble: all that was accepted ends, however slowly its limits let it."""
        for model in LANES:
            if self.books.meters[model].is_held:
                await self.hold(model, is_held=False)
        idle_rounds = 0
        while idle_rounds < 50:
            idle_rounds = 0 if any(worker.is_busy for worker in self.workers) else idle_rounds + 1
            await self.look_at_account("works")
            for index in range(WORKERS):
                worker = self._end(index, ["succeeded"] * SLOTS)
                await self._renew(worker)
                await self._claim(worker)
            is_busy = any(worker.is_busy for worker in self.workers)
            if not is_busy and not await self.redis.exists(keys.LANES, keys.lane(keys.INTAKE), keys.ABORT):
                return
            self.contract.later(LEASE * 4 // 10)
        self.books.complaints.append("never came to rest")

    def _name(self, kind: str) -> str:
        """A new name; the order of names is not the order of their making."""
        self._names += 1
        return f"{self._names * 7 % 10}-{kind}-{self._names}"

    def _hire(self, steady_since: int) -> Worker:
        return Worker(self._name("worker"), steady_since, renewed_at=self.now)

    def _end(self, index: int, endings: Iterable[str]) -> Worker:
        worker = self.workers[index]
        for job_id, ending in zip(list(worker.calls), endings, strict=False):
            worker.unsettled.append(self._outcome(worker.calls.pop(job_id), ending))
        return worker

    def _outcome(self, run: Run, ending: str) -> Settlement:
        """The outcome of a run; its numbers differ from call to call."""
        self._calls += 1
        usage = (1, 2, 3, 4, self._calls * (1, 1, 200)[self._calls % 3], (None, 0, 7)[self._calls % 3])
        ordinary: dict[str, Any] = {"delay": self._calls * 700 % 3000 + 1, "usage": usage}
        return run.outcome(**ordinary | ENDINGS[ending])

    @property
    def _luck(self) -> float:
        return self._calls % 3 / 2

    async def _renew(self, worker: Worker, trouble: Trouble = "") -> None:
        if trouble == "unsent":
            worker.is_broken = True
            return
        runs = list(worker.calls.values())
        said = await self.contract.renew(*runs)
        for run, word in zip(runs, said, strict=True):
            self.books.renewed(self.now, run.id, run.token, word)
        if trouble:
            worker.is_broken = True
            return
        for run, word in zip(runs, said, strict=True):
            if word in ("cancel", "over"):  # the call is stopped
                worker.unsettled.append(
                    self._outcome(worker.calls.pop(run.id), "cancelled" if word == "cancel" else "released")
                )
        worker.renewed_at = self.now
        if worker.is_broken:
            worker.is_broken, worker.steady_since = False, self.now

    async def _settle(self, worker: Worker, trouble: Trouble) -> None:
        if trouble != "unsent":
            said = await scripts.settle(
                self.redis, worker.unsettled, wake=True, account=ACCOUNT, luck=self._luck, now=self.now
            )
            self._note(worker.unsettled, said)
        if trouble:
            worker.is_broken = True
        else:
            worker.unsettled.clear()

    async def _claim(self, worker: Worker, trouble: Trouble = "", max_bytes: int = A_LOT) -> None:
        """Settle and claim in one round trip, of which Redis may have carried out the first half."""
        if worker.may_have_lost_leases(self.now):
            await self._renew(worker)
        if len(worker.calls) == SLOTS:
            return
        request = worker.unanswered = worker.unanswered or self._request(worker, max_bytes)
        if trouble == "half":
            await self._settle(worker, trouble)
        if trouble in ("unsent", "half"):
            worker.is_broken = True
            return
        said, claimed = await scripts.settle_and_claim(
            self.redis, worker.unsettled, request, luck=self._luck, now=self.now
        )
        self._note(worker.unsettled, said)
        await self.books.claimed(self.now, request, claimed)
        if trouble:
            worker.is_broken = True
            return
        worker.unanswered, worker.answered_at = None, self.now
        self._is_asked = self._is_asked or bool(claimed.to_probe)
        worker.unsettled.clear()
        await self._start(worker, request, claimed)

    def _request(self, worker: Worker, max_bytes: int) -> ClaimRequest:
        has_suspect = any(run.job.stalls >= 2 for run in worker.calls.values())
        return self.contract.request(
            worker.name,
            SLOTS - len(worker.calls),
            take_over_until=worker.answered_at + LEASE // 2 if self.now - worker.steady_since >= LEASE else 0,
            may_take_poison=not has_suspect,
            max_bytes=max_bytes,
            account=ACCOUNT,
        )

    def _note(self, outcomes: list[Settlement], said: list[str]) -> None:
        for outcome, word in zip(outcomes, said, strict=True):
            self.books.settled(self.now, outcome, word)

    async def _start(self, worker: Worker, request: ClaimRequest, claimed: Claimed) -> None:
        for run in runs_of(claimed, request.token):
            if run.id not in worker.calls:  # else its lease ran out and came back to it: the call goes on
                self.books.jobs[run.id].starts += 1
            worker.calls[run.id] = run
        for job_id in (foreign.id.decode() for foreign in claimed.foreign):
            number = self.books.jobs[job_id].number
            adopted = entry(job_id, tenant="xyz"[number % 3], band=number % 3, group=("", "one")[number % 2])
            if await self.contract.adopt(adopted, model=LANES[number % 2]) == "adopted":
                self.books.jobs[job_id].entry = adopted._replace(lane=keys.INTAKE)


def _pick(choices: Sequence[Picked], which: int) -> Picked:
    return choices[which % len(choices)]
