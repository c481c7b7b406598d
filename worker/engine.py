"""`PromptWorker`: the loop of one worker process. Each step settles what has ended and claims what there is room for.

Nothing ends the loop but a drain: not a job, not a Redis error. Running a job is run.py; leases are leases.py;
waiting for work is waiter.py; providers that cannot be reached are reach.py.
"""

import asyncio
import contextlib
import os
import random
import socket
import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

import structlog
from arq.connections import ArqRedis
from arq.typing import StartupShutdown
from arq.worker import Worker, func
from redis.asyncio import Redis
from redis.exceptions import RedisError

from promptq.producer import codec, keys, scripts
from promptq.producer.connection import OUTAGE, close_redis, open_redis
from promptq.producer.records import Claimed, Settlement
from promptq.worker.adoption import adopt
from promptq.worker.exchange import Exchange
from promptq.worker.health import Condition
from promptq.worker.leases import Leases
from promptq.worker.outcome import Released
from promptq.worker.probing import tell_whether_it_works
from promptq.worker.providers.base import Provider
from promptq.worker.providers.routes import Routes
from promptq.worker.reach import Reach
from promptq.worker.run import Run, Runner
from promptq.worker.settings import Settings
from promptq.worker.settlement import Clerk
from promptq.worker.telling import Teller
from promptq.worker.waiter import BLOCK_SECONDS, Waiter

POLL_IDLE = 5.0
POLL_BACKLOG = 1.0
GATHER = 0.01
"""Seconds from one step to the next while more than half of the slots are busy: a round trip for several outcomes."""

log = structlog.get_logger("promptq.worker")


class PromptWorker(Worker):
    """arq's worker with promptq's loop: leases, fences and wake-ups instead of polling and claim TTLs.

    It keeps the names of arq's settings (`max_jobs`, `burst`, `ctx`, `on_startup`, ...). `provider`: one for all
    models, or routes to several; closed by `close`. `serves`: the models to claim for; none: all, and plain arq
    clients' jobs too. Make it inside the event loop that runs it.
    """

    def __init__(
        self,
        settings: Settings,
        provider: Provider | Routes,
        *,
        serves: Sequence[str] = (),
        burst: bool = False,
        ctx: dict[Any, Any] | None = None,
        on_startup: StartupShutdown | None = None,
        on_shutdown: StartupShutdown | None = None,
        on_job_start: StartupShutdown | None = None,
        on_job_end: StartupShutdown | None = None,
    ) -> None:
        url = settings.redis_url.get_secret_value()
        redis = open_redis(url, timeout=settings.redis_timeout, client=ArqRedis)
        super().__init__(
            functions=[func(self._sample_prompt, name=codec.FUNCTION)],
            queue_name=keys.lane(keys.INTAKE), redis_pool=redis, burst=burst, ctx=ctx, handle_signals=False,
            on_startup=on_startup, on_shutdown=on_shutdown, on_job_start=on_job_start, on_job_end=on_job_end,
            max_jobs=settings.max_jobs, job_timeout=settings.job_timeout, max_tries=settings.max_attempts,
            keep_result=settings.result_ttl, job_completion_wait=round(settings.drain_timeout),
            job_serializer=codec.dumps, job_deserializer=codec.loads, log_results=False,
        )  # fmt: skip
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.leases = Leases(redis, settings)
        self._settings, self._serves = settings, tuple(serves)
        self._routes = provider if isinstance(provider, Routes) else Routes.to(provider)
        self._teller = Teller(redis, round(settings.events_ttl * 1000), self._lost_redis)
        clerk = Clerk.of(settings, self.name, self._routes.name_of)
        self._runner = Runner(self._routes, settings, clerk, self._teller)
        self._waiting_redis: Redis = open_redis(url, timeout=settings.redis_timeout + BLOCK_SECONDS, max_connections=2)
        self._waiter = Waiter(
            self._waiting_redis,
            self.name,
            on_work=self._want,
            on_word=self._ask_to_renew,
            on_error=self._lost_redis,
            calls=redis,
        )
        self._reach = Reach(self._routes, self.leases, self._want)
        self._exchange = Exchange(
            redis, settings, self.name, self._serves, payers=self._reach.payers, teller=self._teller
        )
        self._unfilled = dict(settings.limits)
        self._hungry = True
        self._exhausted = False
        self._bell, self._renew_now = asyncio.Event(), asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._stepped_at = 0.0
        self._gathering: asyncio.TimerHandle | None = None
        self._end_of_drain: asyncio.TimerHandle | None = None
        self._helpers: list[asyncio.Task[None]] = []
        self._gave_back_at: float | None = None
        self._probes: set[asyncio.Task[None]] = set()

    async def _sample_prompt(self, ctx: dict[Any, Any]) -> None:
        """Registers the function's name with arq; jobs run in run.py."""

    @property
    def is_claiming(self) -> bool:
        """Whether new jobs would be taken: Redis answers and no drain has begun."""
        return self.allow_pick_jobs and self.leases.may_claim

    @property
    def condition(self) -> Condition:
        """How it stands, for the health pages."""
        if any(helper.done() for helper in self._helpers):
            return Condition.BROKEN
        if not self.allow_pick_jobs:
            return Condition.DRAINING
        if self.leases.is_broken:
            return Condition.AWAY
        if not self._helpers:
            return Condition.STARTING
        return Condition.CLAIMING if self.is_claiming else Condition.SETTLING

    @property
    def models(self) -> dict[str, str]:
        """Those with jobs, as of the last claim, and who pays for their calls."""
        return {lane: self._routes.account_of(lane) for lane in self._exchange.lanes if lane != keys.INTAKE}

    @property
    def account(self) -> str:
        """Who pays for the calls of models that no route names."""
        return self._routes.default.account

    async def main(self) -> None:
        """Run until drained, or in burst mode until the queue is empty."""
        structlog.contextvars.bind_contextvars(worker=self.name)
        log.info("worker.started", worker=self.name, provider=self._routes.default.name, max_jobs=self.max_jobs)
        self.ctx["redis"] = self.pool
        if self.on_startup:
            await self.on_startup(self.ctx)
        self._helpers = [
            asyncio.create_task(self._waiter.run(), name="promptq waiter"),
            asyncio.create_task(self._keep_leases(), name="promptq leases"),
        ]
        for helper in self._helpers:
            helper.add_done_callback(lambda _: self._bell.set())
        self._bell.set()
        while not self._is_done():
            await self._bell.wait()
            self._bell.clear()
            self._check_helpers()
            if self._is_gathering():
                continue
            try:
                await self._step()
            except OUTAGE as error:
                self._lost_redis(error)
                await asyncio.sleep(random.uniform(0.1, 0.5))
            except RedisError as error:
                self._lost_redis(error)  # one that refuses to write is away, too
                await asyncio.sleep(1)
        log.info("worker.stopped", worker=self.name, **self._exchange.counts)

    async def _step(self) -> None:
        """Settle what has ended, claim for the free slots: together one round trip."""
        if self.leases.is_broken or self.leases.is_late:
            await self.leases.renew()
        while self._unfilled:
            model, limits = next(iter(self._unfilled.items()))
            await scripts.set_limits(self.pool, model, limits, only_if_none=True)
            del self._unfilled[model]
        if self._hungry and self._free_slots and self.is_claiming and not self._exchange.is_full:
            self._waiter.hand_over()
            was_answered, self._hungry = False, False  # what is heard while the claim is under way counts
            try:
                token, claimed = await self._exchange.settle_and_claim(self._free_slots, self.leases)
                was_answered = True
            finally:
                self._hungry = self._hungry or not was_answered
            self._hungry = self._hungry or claimed.has_more or bool(claimed.foreign)
            self._exhausted = not (claimed.jobs or self._hungry) and claimed.due_in is None
            self._start(token, claimed)
            if self._exchange.has_met_new:
                await self._waiter.pass_on_new()
            if claimed.to_probe:
                probe = asyncio.create_task(self._probe(claimed.to_probe), name="promptq probe")
                self._probes.add(probe)
                probe.add_done_callback(self._probes.discard)
            for foreign in claimed.foreign:
                await adopt(self.pool, foreign, self._settings, self.name)
            self._set_timer(claimed.due_in)
        else:
            await self._exchange.settle()
        await self._look_out()

    def _is_gathering(self) -> bool:
        """Whether to let more outcomes come together: then the bell rings again when that has been long enough."""
        now = self.loop.time()
        if self._gathering:
            self._gathering.cancel()
            self._gathering = None
        wait = self._stepped_at + GATHER - now
        if wait > 0 and 2 * len(self.leases.runs) > self.max_jobs and self.allow_pick_jobs:
            self._gathering = self.loop.call_later(wait, self._bell.set)
            return True
        self._stepped_at = now
        return False

    def _check_helpers(self) -> None:
        """Without renewals or wake-ups the worker must end, to be started anew. Raises what ended a helper."""
        for helper in self._helpers:
            if helper.done():
                helper.result()

    @property
    def _free_slots(self) -> int:
        free = max(0, self.max_jobs - len(self.leases.runs))
        return self._reach.slots(free, self._accounts)

    def _accounts(self) -> set[str]:
        return {self.account, *self.models.values()}

    async def _probe(self, account: str) -> None:
        """Find out whether the account works again, for the whole fleet."""
        try:
            await tell_whether_it_works(self.pool, account, self._routes.paid_by(account))
        except (RedisError, OSError) as error:
            self._lost_redis(error)
        self._want()

    def _start(self, token: str, claimed: Claimed) -> None:
        ahead = time.time_ns() // 1_000_000 - claimed.now
        fresh: list[Run] = []
        answered = {settlement.id for settlement in self._exchange.unsettled if settlement.kind == "succeeded"}
        for job in claimed.jobs:
            if job.id in answered:  # its lease had run out and came back to us, and meanwhile its call was answered
                continue
            if job.id in self.leases.runs:  # its lease had run out, and it has come back to us: the call goes on
                self.leases.runs[job.id].reclaim(job, token)
                continue
            run = self.leases.runs[job.id] = Run(job, token, ahead)
            fresh.append(run)
            if self._gave_back_at is not None:
                run.stop("shutdown")  # the claim was under way when everything was given back
        self.loop.call_soon(self._begin, fresh)  # behind the next call to Redis: it works meanwhile

    def _begin(self, fresh: Sequence[Run]) -> None:
        for run in fresh:
            run.task = self.tasks[run.job.id] = asyncio.create_task(self._run(run), name=f"promptq job {run.job.id}")
            run.task.add_done_callback(partial(self._ended, run))
            if run.stopped:
                run.task.cancel()

    async def _run(self, run: Run) -> None:
        ctx = {**self.ctx, "job_id": run.job.id, "job_try": run.job.spent + 1}
        await self._hook(self.on_job_start, ctx)
        self._finish(run, await self._runner.run(run))
        await self._hook(self.on_job_end, ctx)

    def _finish(self, run: Run, settlement: Settlement) -> None:
        if self.leases.runs.get(run.job.id) is run:
            del self.leases.runs[run.job.id]
            self._exchange.unsettled.append(settlement)
            self._reach.note(run.job.model, settlement)
            self._bell.set()

    def _ended(self, run: Run, task: "asyncio.Task[None]") -> None:
        """The task is over, perhaps cancelled before its first step."""
        if self.tasks.get(run.job.id) is task:
            del self.tasks[run.job.id]
        if self.leases.runs.get(run.job.id) is run:
            self._finish(run, self._runner.clerk.settlement(run.job, run.token, Released(), None))

    def _want(self) -> None:
        """There may be something to claim."""
        self._hungry = True
        self._bell.set()

    def _set_timer(self, due_in: int | None) -> None:
        """Come back when something comes due; at the latest when it is time to poll."""
        has_backlog = any(lane != keys.INTAKE for lane in self._exchange.lanes)
        wait = min(POLL_BACKLOG if has_backlog else POLL_IDLE, self._settings.renew_period)
        soon = wait if due_in is None else min(wait, due_in / 1000)
        self._call_later(soon * random.uniform(1, 1.05))  # not all at once for the same few jobs

    def _call_later(self, wait: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(wait, self._want)

    async def _look_out(self) -> None:
        """Step again if there is something to do; else wait for markers, while there is room."""
        if self._exchange.unsettled:
            self._bell.set()
        if self._hungry and self._free_slots:
            if self.is_claiming:
                self._bell.set()
            elif self.allow_pick_jobs:
                self._call_later(self._settings.renew_period / 2)
        has_room = self.allow_pick_jobs and not self._hungry and self._free_slots > 0
        lanes = tuple(filter(self._reach.has_room_for, self._exchange.known)) if has_room else ()
        if self._waiter.wait_for(lanes, new_ones=has_room and not self._serves):
            await self._waiter.look_anew()
        if not (self.allow_pick_jobs and self._free_slots):
            await self._waiter.put_back()  # now that the waiter would not pop it again

    async def _keep_leases(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):  # not wait_for: in Python 3.11 it may swallow the cancel of close()
                # However long the leases: who is not heard of for a while counts as gone (`reading.py`).
                async with asyncio.timeout(min(self._settings.renew_period, POLL_IDLE)):
                    await self._renew_now.wait()
            self._renew_now.clear()
            if not self.leases.runs and not self.leases.is_broken:
                continue
            try:
                await self.leases.renew()
            except (RedisError, OSError) as error:
                self._lost_redis(error)

    def _ask_to_renew(self) -> None:
        self._renew_now.set()

    def _lost_redis(self, error: BaseException) -> None:
        self._unfilled = dict(self._settings.limits)  # it may come back empty
        self.leases.broke(error)
        self._bell.set()

    def drain(self) -> None:
        """Stop claiming and let the calls finish; the second time, or when time is up, give the rest back unspent."""
        if not self.allow_pick_jobs:
            self._give_back()
            return
        self.allow_pick_jobs = False
        log.info(
            "worker.draining", worker=self.name, running=len(self.leases.runs), seconds=self._settings.drain_timeout
        )
        self._end_of_drain = self.loop.call_later(self._settings.drain_timeout, self._give_back)
        self._bell.set()

    def _give_back(self) -> None:
        if self._gave_back_at is None:
            self._gave_back_at = time.monotonic()
            self.loop.call_later(2 * self._settings.redis_timeout, self._bell.set)
        self._stop_runs()
        self._bell.set()

    def _stop_runs(self) -> None:
        for run in list(self.leases.runs.values()):
            run.stop("shutdown")

    def _is_done(self) -> bool:
        is_empty = not self.leases.runs and not self._exchange.unsettled
        if self.allow_pick_jobs:
            return self.burst and self._exhausted and is_empty
        return is_empty or self.is_lost

    @property
    def is_lost(self) -> bool:
        """Whether a drain ended without Redis: what was not settled will run again elsewhere."""
        since = self._gave_back_at
        has_work = bool(self.leases.runs or self._exchange.unsettled)
        return has_work and since is not None and time.monotonic() - since > 2 * self._settings.redis_timeout

    async def _hook(self, hook: StartupShutdown | None, ctx: dict[Any, Any]) -> None:
        """A user's hook, whose errors are logged and end nothing."""
        if hook is None:
            return
        try:
            await hook(ctx)
        except Exception:
            log.exception("hook.failed", hook=getattr(hook, "__name__", "?"))

    async def close(self) -> None:
        """Release everything; what still runs is given back first."""
        for timer in (self._timer, self._gathering, self._end_of_drain):
            if timer:
                timer.cancel()
        self._stop_runs()
        await asyncio.sleep(0)  # what was claimed last has its task now
        if self.tasks:
            await asyncio.wait(self.tasks.values(), timeout=self._settings.redis_timeout)  # a hook may hang
        with contextlib.suppress(RedisError, OSError):
            while self._exchange.unsettled:
                await self._exchange.settle()
        for settlement in self._exchange.unsettled:
            log.error("settle.lost", job_id=settlement.id, kind=settlement.kind)
        if self._helpers and not self.leases.is_broken:
            with contextlib.suppress(RedisError, OSError):  # TimeoutError is one
                async with asyncio.timeout(self._settings.redis_timeout):
                    await self.pool.zrem(keys.WORKERS, self.name)
                    await self._waiter.end()
                    await self._helpers[0]  # cancelled, it might eat the marker that it has just popped
        await self._teller.aclose()
        helpers = [*self._helpers, *self._probes]
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        await self._hook(self.on_shutdown, self.ctx)
        await self._routes.aclose()
        await close_redis(self._waiting_redis)
        await close_redis(self.pool)
