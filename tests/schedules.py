"""Random lives of a queue: jobs come, workers run them, freeze and die, replies get lost, and the clock moves on.

Workers keep the engine's rules: outcomes and claims are sent again until they are answered, and who may have lost its
leases renews before it claims. What must be true meanwhile and at the end stands in books.py.
"""

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from books import Books
from contract import LEASE, Contract, Run, entry, runs_of
from promptq.producer import keys, scripts
from promptq.producer.records import Claimed, ClaimRequest, Kind, Settlement

SLOTS: Final = 4
LANES: Final = ("grok-3", "grok-4")
OUTCOMES: Final[dict[Kind, int]] = {"succeeded": 10, "retry": 4, "released": 2, "failed": 2, "throttled": 1}


@dataclass(slots=True)
class Call:
    """A run's call to the provider, which answers at `ends`."""

    run: Run
    ends: int
    stopped: Kind | None = None


@dataclass(slots=True)
class Worker:
    """One worker process, as far as Redis sees it."""

    name: str
    steady_since: int
    renewed_at: int
    answered_at: int = 0
    calls: dict[str, Call] = field(default_factory=dict)
    unsettled: list[Settlement] = field(default_factory=list)
    unanswered: ClaimRequest | None = None
    is_broken: bool = False
    frozen_until: int = 0

    def may_have_lost_leases(self, now: int) -> bool:
        """Whether it has to renew before it does anything else."""
        return self.is_broken or (bool(self.calls) and now - self.renewed_at > LEASE // 2)


class Schedule:
    """One random life. The same seed gives the same one, on any Redis."""

    def __init__(self, redis: Any, seed: int) -> None:
        self.luck = random.Random(seed)
        self.contract = Contract(redis)
        self.redis = redis
        self.books = Books(redis)
        self.workers: list[Worker] = []
        self.is_calm = False
        self._names = 0

    @property
    def now(self) -> int:
        """The one clock."""
        return self.contract.now

    async def live(self, steps: int) -> list[str]:
        """Run so many random steps, then let everything come to its end; returns what was wrong."""
        async with self.redis.pubsub() as listener:
            await listener.psubscribe(keys.done("*"))
            for _ in range(3):
                self._hire()
            for _ in range(steps):
                await self._step()
            await self._calm_down()
            return await self.books.close(await self._heard(listener))

    async def _heard(self, listener: Any) -> Counter[str]:
        """Final messages by job."""
        heard: Counter[str] = Counter()
        while message := await listener.get_message(timeout=0.05 if heard.total() >= len(self.books.jobs) else 1):
            if message["type"] == "pmessage":
                heard[message["channel"].decode().removeprefix(keys.done(""))] += 1
        return heard

    async def _calm_down(self) -> None:
        """No more trouble: all that was accepted ends."""
        self.is_calm = True
        for _ in range(500):
            await self._let_all_work()
            is_busy = any(worker.calls or worker.unsettled or worker.unanswered for worker in self.workers)
            if not is_busy and not await self.redis.exists(keys.LANES, keys.lane(keys.INTAKE), keys.ABORT):
                return
            self.contract.later(4000)
        self.books.complaints.append("never came to rest")

    async def _step(self) -> None:
        """Something happens; then the workers work."""
        happenings = {
            self._enqueue: 28, self._plain_enqueue: 4, self._cancel: 7, self._plain_abort: 5,
            self._kill: 4, self._freeze: 5, self._wait: 47,
        }  # fmt: skip
        [happening] = self.luck.choices(list(happenings), weights=list(happenings.values()))
        await happening()
        await self._let_all_work()

    async def _let_all_work(self) -> None:
        for worker in list(self.workers):
            if worker.frozen_until <= self.now:
                await self._work(worker)

    async def _enqueue(self) -> None:
        lane, band = self.luck.choice(LANES), self.luck.choice([0, 1, 1, 2])
        jobs = []
        for _ in range(self.luck.randint(1, 4)):
            self._names += 1
            name = f"{self.luck.randint(0, 9)}-{self._names}"  # no order by name
            jobs.append(
                entry(
                    name, lane=lane, band=band, tenant=self.luck.choice("xyz"),
                    delay=0 if self._chance(0.8) else self.luck.randint(100, 5000),
                    deadline="" if self._chance(0.85) else f"+{self.luck.randint(1000, 30_000)}",
                    payload=b"p" * self.luck.randint(1, 900), group=self._group(),
                )
            )  # fmt: skip
        nonce = f"nonce {self._names}"
        for _ in range(1 if self._chance(0.85) else 2):  # once more if the reply was lost, with workers that were quick
            said = await self.contract.dispositions(*jobs, nonce=nonce)
            for job, (disposition, _) in zip(jobs, said, strict=True):
                self.books.accepted(job, disposition)
            await self._let_all_work()

    async def _plain_enqueue(self) -> None:
        self._names += 1
        await self.contract.plain_enqueue(f"plain-{self._names}")
        self.books.accepted(entry(f"plain-{self._names}", lane=keys.INTAKE), "created")

    async def _cancel(self) -> None:
        if self.books.jobs:
            job_id = self.luck.choice(list(self.books.jobs))
            [said] = await self.contract.cancel(job_id)
            self.books.cancelled(job_id, said)

    async def _plain_abort(self) -> None:
        """As arq's `Job.abort`: score 1, perhaps just after the job has ended, and then an entry in its own list."""
        lane = self.luck.choice([*LANES, keys.INTAKE])
        later = await self.redis.zrangebyscore(keys.lane(lane), self.now, "+inf")
        if not later:
            return
        ended = [job_id for job_id, job in self.books.jobs.items() if job.is_over and job.entry.lane == lane]
        job_id = self.luck.choice([*later, *ended[-1:]])
        await self.redis.zadd(keys.lane(lane), {job_id: 1})
        if self._chance(0.7):
            await self._wait()
            await self.redis.zadd(keys.ABORT, {job_id: self.now})

    async def _kill(self) -> None:
        self.workers.remove(self.luck.choice(self.workers))
        self._hire()

    def _hire(self) -> None:
        self._names += 1
        self.workers.append(Worker(f"worker {self._names}", steady_since=self.now, renewed_at=self.now))

    async def _freeze(self) -> None:
        self.luck.choice(self.workers).frozen_until = self.now + self.luck.randint(3000, 20_000)

    async def _wait(self) -> None:
        self.contract.later(self.luck.choice([1, 10, 300, 1000, 3000]))

    def _group(self) -> str:
        return self.luck.choice(["", "", "one", "two"])

    def _chance(self, probability: float) -> bool:
        return self.luck.random() < probability

    def _loses(self, worker: Worker) -> bool:
        """Whether the worker hears no reply; then it does not trust its leases any more."""
        if self.is_calm or not self._chance(0.12):
            return False
        worker.is_broken = True
        return True

    async def _work(self, worker: Worker) -> None:
        """One turn of the engine."""
        self._end_calls(worker)
        if worker.may_have_lost_leases(self.now) or self._chance(0.5):
            await self._renew(worker)
            if worker.is_broken:
                return
        if len(worker.calls) < SLOTS and (self.is_calm or worker.unanswered or self._chance(0.7)):
            await self._settle_and_claim(worker)
        elif worker.unsettled:
            await self._settle(worker)

    def _end_calls(self, worker: Worker) -> None:
        for job_id, call in list(worker.calls.items()):
            if call.stopped or call.ends <= self.now:
                del worker.calls[job_id]
                worker.unsettled.append(self._outcome(call))

    def _outcome(self, call: Call) -> Settlement:
        kind = call.stopped or self.luck.choices(list(OUTCOMES), weights=list(OUTCOMES.values()))[0]
        tokens, ticks = self.luck.randint(1, 99), self.luck.choice([None, 0, 7])
        was_called = kind != "released" or self._chance(0.5)
        return call.run.outcome(
            kind,
            delay=self.luck.randint(1, 3000),
            usage=(1, 2, 3, 4, tokens, ticks),
            attempt=call.run.outcome().attempt if was_called else b"",
        )

    async def _renew(self, worker: Worker) -> None:
        if self._chance(0.5) and self._loses(worker):
            return  # the request was lost
        runs = [call.run for call in worker.calls.values()]
        said = await self.contract.renew(*runs)
        for run, word in zip(runs, said, strict=True):
            self.books.renewed(self.now, run.id, run.token, word)
        if self._loses(worker):
            return
        for run, word in zip(runs, said, strict=True):
            if word in ("cancel", "over"):
                worker.calls[run.id].stopped = "cancelled" if word == "cancel" else "released"
        worker.renewed_at = self.now
        if worker.is_broken:
            worker.is_broken, worker.steady_since = False, self.now

    async def _settle(self, worker: Worker) -> None:
        said = await scripts.settle(self.redis, worker.unsettled, wake=True, now=self.now)
        self._note(worker.unsettled, said)
        if not self._loses(worker):
            worker.unsettled.clear()

    async def _settle_and_claim(self, worker: Worker) -> None:
        """One round trip, of which Redis may have carried out the first half, all or nothing when the reply is lost."""
        request = worker.unanswered = worker.unanswered or self._request(worker)
        is_lost = self._loses(worker)
        if is_lost and self._chance(0.5):
            if self._chance(0.5):
                said = await scripts.settle(self.redis, worker.unsettled, wake=False, now=self.now)
                self._note(worker.unsettled, said)
            return
        said, claimed = await scripts.settle_and_claim(self.redis, worker.unsettled, request, now=self.now)
        self._note(worker.unsettled, said)
        await self.books.claimed(self.now, request, claimed)
        if not is_lost:
            worker.unanswered, worker.answered_at = None, self.now
            worker.unsettled.clear()
            await self._start(worker, request, claimed)

    def _request(self, worker: Worker) -> ClaimRequest:
        has_suspect = any(call.run.job.stalls >= 2 for call in worker.calls.values())
        return self.contract.request(
            worker.name,
            SLOTS - len(worker.calls),
            take_over_until=worker.answered_at + LEASE // 2 if self.now - worker.steady_since >= LEASE else 0,
            may_take_poison=not has_suspect,
            max_bytes=self.luck.choice([1000, 1_000_000]),
        )

    def _note(self, outcomes: list[Settlement], said: list[str]) -> None:
        for outcome, word in zip(outcomes, said, strict=True):
            self.books.settled(outcome, word)

    async def _start(self, worker: Worker, request: ClaimRequest, claimed: Claimed) -> None:
        for run in runs_of(claimed, request.token):
            if run.id in worker.calls:  # its lease ran out and came back to it: the call goes on
                worker.calls[run.id].run = run
                continue
            self.books.jobs[run.id].starts += 1
            worker.calls[run.id] = Call(run, self.now + self.luck.choice([50, 500, 4000, 12_000, 25_000]))
        for job_id in (foreign.id.decode() for foreign in claimed.foreign):
            tenant, band = self.luck.choice("xyz"), self.luck.choice([0, 1, 2])
            adopted = entry(job_id, tenant=tenant, band=band, group=self._group())
            said = await self.contract.adopt(adopted, model=self.luck.choice(LANES))
            if said == "adopted":
                self.books.jobs[job_id].entry = adopted._replace(lane=keys.INTAKE)
