"""The engine in the test's own event loop: what needs no process of its own. Races with real processes: faults/."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from faults.bookkeeping import Ledger, audit, ledgers_of, results_of, until_running
from promptq.producer import ErrorCode, JobStatus, PromptJob, PromptQueue, codec, keys, scripts
from promptq.producer.records import Claimed, ClaimedJob, Kind, Settlement
from promptq.producer.wire import Wire
from promptq.worker import engine
from promptq.worker.engine import PromptWorker
from promptq.worker.providers.base import Answer
from promptq.worker.providers.echo import EchoProvider
from promptq.worker.settings import Settings
from waiting import wait_until
from workers import ScriptedProvider, running_worker

IN_NO_TIME = 0.8
"""Seconds within which a marker wakes a worker on a busy machine; the slow poll of these workers takes longer."""
SLOW_POLL = {"lease": 10.0, "redis_timeout": 5.0}


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[PromptQueue]:
    """What a backend holds."""
    async with PromptQueue.connect(redis_url) as queue:
        yield queue


async def test_hooks_see_the_job_and_their_errors_end_nothing(redis_url: str, queue: PromptQueue) -> None:
    """All four hooks are called, with the job's id and try; those of jobs and of the end raise, which ends nothing."""
    seen: list[tuple[str, Any, Any]] = []

    def hook(name: str) -> Any:
        async def run(ctx: dict[Any, Any]) -> None:
            seen.append((name, ctx.get("job_id"), ctx.get("job_try")))
            if name != "on_startup":
                raise RuntimeError(name)

        return run

    names = ("on_startup", "on_job_start", "on_job_end", "on_shutdown")
    settings = Settings(redis_url=redis_url, provider="echo", drain_timeout=0)  # type: ignore[arg-type]
    worker = PromptWorker(settings, EchoProvider(), **{name: hook(name) for name in names})
    main = asyncio.create_task(worker.main())
    handle = await queue.enqueue("hi", id="a", model="m")
    assert (await handle.wait(5)).status is JobStatus.SUCCEEDED
    worker.drain()
    await main
    await worker.close()
    assert [name for name, *_ in seen] == list(names)
    assert [job for _, *job in seen] == [[None, None], ["a", 1], ["a", 1], [None, None]]


async def test_a_job_stopped_inside_a_hook_is_given_back(
    redis_url: str, queue: PromptQueue, redis_client: Redis
) -> None:
    """The worker gives everything back while a hook of the user's still runs before the call: no attempt was made."""
    entered = asyncio.Event()

    async def wait_for_ever(ctx: dict[Any, Any]) -> None:
        entered.set()
        await asyncio.get_running_loop().create_future()

    settings = Settings(redis_url=redis_url, provider="echo", drain_timeout=0)  # type: ignore[arg-type]
    worker = PromptWorker(settings, EchoProvider(), on_job_start=wait_for_ever)
    main = asyncio.create_task(worker.main())
    handle = await queue.enqueue("hi", model="m")
    await entered.wait()
    worker.drain()
    await asyncio.wait_for(main, 5)
    await worker.close()
    ledger = await Ledger.of(redis_client, handle.id)
    assert (ledger.state, ledger.releases, ledger.spent, ledger.attempts) == ("queued", 1, 0, [])
    await queue.cancel(handle.id)


async def test_a_job_that_comes_back_to_its_first_worker_keeps_its_call(
    redis_url: str, queue: PromptQueue, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease is lost, the other worker gives the job back, the first claims it again while its call still runs.

    That call goes on, its answer is the result, and every call that was made is on the books.
    """
    first, second = ScriptedProvider(), ScriptedProvider()
    quick = {"lease": 1.0, "redis_timeout": 0.5}
    async with running_worker(redis_url, first, max_jobs=1, **quick) as worker:
        handle = await queue.enqueue("hang", model="m")
        await wait_until(lambda: first.started == ["hang"])
        before = (await Ledger.of(redis_client, handle.id)).token
        with monkeypatch.context() as cut_off:
            cut_off.setattr(worker.leases, "renew", silence)
            async with running_worker(redis_url, second, **quick):
                await wait_until(lambda: second.started == ["hang"])
            worker.max_jobs = 2
            worker._want()
            await until_claimed_by(worker, redis_client, handle.id, after=before)
        first.release.set()
        result = await handle.wait(5)
    assert (result.status, result.worker) == (JobStatus.SUCCEEDED, worker.name)
    assert first.started == second.started == second.cancelled == ["hang"]
    assert len(result.attempts) == 2
    assert await audit(redis_client, [handle.id], model="m") == 2


async def silence() -> None:
    """A renewal that reaches nobody."""


async def until_claimed_by(worker: PromptWorker, client: Redis, job_id: str, *, after: str) -> None:
    """Wait until the job runs under a later claim of this worker than `after`."""

    async def claimed() -> bool:
        ledger = await Ledger.of(client, job_id)
        return ledger.state == "running" and ledger.token != after and ledger.token.startswith(f"{worker.name}:")

    await wait_until(claimed)


def refuse(monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """Let Redis answer every settle call that holds this job with an error."""
    settle, settle_and_claim = scripts.settle, scripts.settle_and_claim

    async def picky(redis: Redis, settlements: Sequence[Settlement], **options: Any) -> list[str]:
        if any(settlement.id == refused for settlement in settlements):
            raise ResponseError("not this one")
        return await settle(redis, settlements, **options)

    async def picky_too(redis: Redis, settlements: Sequence[Settlement], *rest: Any, **options: Any) -> Any:
        if any(settlement.id == refused for settlement in settlements):
            raise ResponseError("not these")
        return await settle_and_claim(redis, settlements, *rest, **options)

    monkeypatch.setattr(scripts, "settle", picky)
    monkeypatch.setattr(scripts, "settle_and_claim", picky_too)


async def test_an_outcome_that_redis_refuses_is_kept_and_holds_up_no_other(
    redis_url: str, queue: PromptQueue, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three end together, and the call that settles them errors: it is sent again job by job.

    The one that is refused is written when Redis takes it.
    """
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider):
        ids = [(await queue.enqueue("hang", id=job_id, model="m")).id for job_id in ("refused", "a", "b")]
        await until_running(redis_client, ids)
        with monkeypatch.context() as patched:
            refuse(patched, "refused")
            provider.release.set()
            await results_of(queue, ids[1:], timeout=IN_NO_TIME)
            assert await queue.result("refused") is None
        assert (await queue.wait("refused", 5)).status is JobStatus.SUCCEEDED
        assert provider.started == ["hang"] * 3, "it was called again"


async def test_an_outcome_that_redis_never_takes_does_not_stop_the_worker(
    redis_url: str, queue: PromptQueue, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up in the end, loudly, and the worker claims on."""
    refuse(monkeypatch, "refused")
    async with running_worker(redis_url, lease=1.5, redis_timeout=0.75):
        await queue.enqueue("hi", id="refused", model="m")
        after = await queue.enqueue("hi", id="after", model="m", delay=1.0)
        assert (await after.wait(15)).status is JobStatus.SUCCEEDED
        monkeypatch.undo()
        assert (await queue.wait("refused", 15)).status is JobStatus.SUCCEEDED, "it was not run again"


HOSTILE: dict[str, bytes] = {
    "pickle": b"\x80\x04\x95\x1e\x00\x00\x00cposix\nsystem\n(S'true'\ntR.",
    "empty": b"",
    "not JSON": b'{"f": "sample_prompt"',
    "a list": b"[1, 2]",
    "another function": codec.dumps({"f": "rm", "a": [], "k": {}, "et": 1}),
    "no prompt": codec.dumps({"f": "sample_prompt", "a": [], "k": {"model": "m"}, "et": 1}),
    "a number as prompt": codec.dumps({"f": "sample_prompt", "a": [7], "k": {}, "et": 1}),
    "an id of its own": codec.dumps({"f": "sample_prompt", "a": ["hi"], "k": {"id": "x"}, "et": 1}),
    "a deadline that is no date": codec.dumps({"f": "sample_prompt", "a": ["hi"], "k": {"deadline": "soon"}, "et": 1}),
    "deep": b'{"f":"sample_prompt","a":[' + b"[" * 5000 + b"]" * 5000 + b'],"k":{}}',
}
ODD: dict[str, bytes] = {
    "enqueued beyond time": b'{"f":"sample_prompt","a":["hi"],"k":{},"et":1' + b"0" * 30 + b"}",
    "enqueued beyond numbers": b'{"f":"sample_prompt","a":["hi"],"k":{},"et":1' + b"0" * 400 + b"}",
    "enqueued by halves": b'{"f":"sample_prompt","a":["hi"],"k":{},"et":1.5}',
    "enqueued never": b'{"f":"sample_prompt","a":["hi"],"k":{},"et":-5}',
    "enqueued truly": b'{"f":"sample_prompt","a":["hi"],"k":{},"et":true}',
}

BY_TIME_ZONE: dict[str, bytes] = {
    date: codec.dumps({"f": "sample_prompt", "a": ["hi"], "k": {"deadline": date}, "et": 1})
    for date in ("9999-12-31T23:59:59", "0001-01-01T00:00:00")
}
"""These are times in some time zones only."""


async def test_hostile_payloads_end_as_failed_jobs_and_odd_ones_run(
    redis_url: str, queue: PromptQueue, redis_client: Redis
) -> None:
    """Whatever stands in the intake lane ends in a result; the worker that met it all takes the next job."""
    for job_id, payload in (HOSTILE | ODD | BY_TIME_ZONE).items():
        await redis_client.set(keys.payload(job_id), payload)
        await redis_client.zadd(keys.lane(keys.INTAKE), {job_id: 1})
    async with running_worker(redis_url, default_model="m"):
        results = await results_of(queue, [*HOSTILE, *ODD, *BY_TIME_ZONE])
        after = await queue.enqueue("hi", model="m")
        assert (await after.wait(5)).status is JobStatus.SUCCEEDED
    for job_id in HOSTILE:
        error = results[job_id].error
        assert (results[job_id].status, error and error.code) == (JobStatus.FAILED, ErrorCode.INVALID_REQUEST), job_id
    assert {job_id: results[job_id].status for job_id in ODD} == dict.fromkeys(ODD, JobStatus.SUCCEEDED)


async def test_idle_workers_all_learn_of_a_new_lane(redis_url: str, queue: PromptQueue, redis_client: Redis) -> None:
    """Three idle workers, a lane that is new, and one job that one of them takes; then more than it has slots for.

    The others are woken at once, not by their slow poll.
    """
    provider = ScriptedProvider()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(running_worker(redis_url, provider, max_jobs=2, **SLOW_POLL))
        await until_blocked(redis_client, 3)
        ids = [(await queue.enqueue("hang", model="m")).id]
        await until_running(redis_client, ids)
        ids += [handle.id for handle in await queue.enqueue_many(["hang"] * 5, model="m")]
        await until_running(redis_client, ids, IN_NO_TIME)
        provider.release.set()
        await results_of(queue, ids)


async def test_a_worker_of_one_model_is_woken_for_its_first_job(
    redis_url: str, queue: PromptQueue, redis_client: Redis
) -> None:
    """`serves` names a lane that is empty, so that it does not exist: its first job is taken at once."""
    settings = Settings(redis_url=redis_url, provider="echo", drain_timeout=0, **SLOW_POLL)  # type: ignore[arg-type]
    worker = PromptWorker(settings, EchoProvider(), serves=["m"])
    main = asyncio.create_task(worker.main())
    try:
        await until_blocked(redis_client, 1)
        for _ in range(2):
            handle = await queue.enqueue("hi", model="m")
            assert (await handle.wait(IN_NO_TIME)).status is JobStatus.SUCCEEDED
            await until_blocked(redis_client, 1)
    finally:
        worker.drain()
        await main
        await worker.close()


@pytest.mark.parametrize(("kind", "is_run"), [("succeeded", False), ("retry", True)])
async def test_what_is_answered_when_its_lease_comes_back_is_not_run_again(
    redis_url: str, kind: Kind, is_run: bool
) -> None:
    """The claim was under way when the call ended: a success is taken from any run, so a second call would be waste."""
    job = ClaimedJob("a", "1", "m", "m", 0, None, 1, 1, 0, b"{}")
    claimed = Claimed(now=1, has_more=False, due_in=None, to_probe="", lanes=("m",), jobs=(job,), foreign=())
    async with running_worker(redis_url) as worker:
        worker._exchange.unsettled.append(Settlement("a", "w:1", "1", kind, 1000))
        worker._start("w:2", claimed)
        assert ("a" in worker.leases.runs) == is_run
        worker._exchange.unsettled.clear()
        worker.leases.runs.clear()


async def test_a_worker_that_stops_is_not_counted_any_more(redis_url: str, redis_client: Redis) -> None:
    """It shows that it lives with its first claim, and takes its name back when it ends."""
    async with running_worker(redis_url) as worker:
        await wait_until(lambda: redis_client.zscore(keys.WORKERS, worker.name))
    assert await redis_client.zscore(keys.WORKERS, worker.name) is None


async def test_redis_works_while_the_claimed_jobs_run(
    redis_url: str, queue: PromptQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second claim is in the socket before the first job of the first claim begins."""
    order: list[str] = []
    call = Wire.call

    async def noted(wire: Wire, commands: Sequence[Sequence[Any]]) -> list[Any]:
        connection = await wire._take()  # it connects, which takes turns of the loop
        await wire._give_back(connection)
        order.extend("claim" for command in commands if command[1] == scripts.CLAIM.sha)
        return await call(wire, commands)

    class Noting(EchoProvider):
        async def sample(self, job: PromptJob, timeout: float, hear: object = None) -> Answer:
            order.append("run")
            return await super().sample(job, timeout)

    ids = [handle.id for handle in await queue.enqueue_many(["hi"] * 8, model="m")]
    monkeypatch.setattr(Wire, "call", noted)
    async with running_worker(redis_url, Noting(), max_jobs=4, **SLOW_POLL):
        await results_of(queue, ids)
    assert order[:4] == ["claim", "claim", "run", "run"]


@pytest.mark.parametrize(("busy", "is_gathered"), [(12, True), (1, False)])
async def test_outcomes_gather_while_most_slots_are_busy(
    redis_url: str, queue: PromptQueue, monkeypatch: pytest.MonkeyPatch, busy: int, is_gathered: bool
) -> None:
    """Then jobs that end one after the other share a round trip; beside few others each is settled at once."""
    monkeypatch.setattr(engine, "GATHER", 0.3)
    calls: list[int] = []

    def noting(name: str) -> None:
        call = getattr(scripts, name)

        async def noted(redis: Redis, settlements: Sequence[Settlement], *rest: Any, **options: Any) -> Any:
            calls.append(len(settlements))
            return await call(redis, settlements, *rest, **options)

        monkeypatch.setattr(scripts, name, noted)

    class OneByOne(ScriptedProvider):
        async def sample(self, job: PromptJob, timeout: float, hear: object = None) -> Answer:
            if job.messages[-1].text.startswith("slow"):
                await asyncio.sleep(0.05 * int(job.messages[-1].text.removeprefix("slow")))
            return await super().sample(job, timeout)

    noting("settle")
    noting("settle_and_claim")
    provider = OneByOne()
    async with running_worker(redis_url, provider, max_jobs=20, **SLOW_POLL):
        hanging = [handle.id for handle in await queue.enqueue_many(["hang"] * busy, model="m")]
        await wait_until(lambda: len(provider.started) == busy)
        ended = [handle.id for handle in await queue.enqueue_many([f"slow{n}" for n in range(6)], model="m")]
        await results_of(queue, ended)
        assert (len(calls) <= 3) == is_gathered, calls
        provider.release.set()
        await results_of(queue, hanging)


async def until_blocked(client: Redis, workers: int) -> None:
    """Wait until so many workers wait for markers."""

    async def blocked() -> bool:
        return int((await client.info("clients"))["blocked_clients"]) == workers

    await wait_until(blocked)


async def test_a_waking_worker_takes_what_it_can_and_wakes_the_next(
    redis_url: str, queue: PromptQueue, redis_client: Redis
) -> None:
    """A chain, not a herd: a batch for all slots of three workers is running everywhere in no time."""
    provider = ScriptedProvider()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(running_worker(redis_url, provider, max_jobs=4, **SLOW_POLL))
        await until_blocked(redis_client, 3)
        ids = [handle.id for handle in await queue.enqueue_many(["hang"] * 12, model="m")]
        ledgers = await until_running(redis_client, ids, IN_NO_TIME)
        assert len({ledger.token.rpartition(":")[0] for ledger in ledgers}) == 3
        provider.release.set()
        await results_of(queue, ids)


async def test_a_marker_popped_while_the_last_slot_was_being_filled_is_put_back(
    redis_url: str, queue: PromptQueue, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that leaves something behind wakes another worker; its own waiter may pop that marker first.

    It does so before the reply to the claim is there. Then the marker is not eaten: another worker finds it.
    """
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider, max_jobs=1, **SLOW_POLL) as worker:
        later = await queue.enqueue("so that the lane is known", model="m", delay=60)
        await wait_until(lambda: keys.wake("m") in (worker._waiter._blocked_on or ()))
        claim = worker._exchange.settle_and_claim

        async def slow_reply(*arguments: Any) -> Any:
            reply = await claim(*arguments)
            await until_popped(redis_client, keys.wake("m"))
            return reply

        monkeypatch.setattr(worker._exchange, "settle_and_claim", slow_reply)
        ids = [handle.id for handle in await queue.enqueue_many(["hang"] * 2, model="m")]
        await wait_until(lambda: "hang" in provider.started)

        async def is_back() -> bool:
            return bool(await redis_client.exists(keys.wake("m")))

        await wait_until(is_back, IN_NO_TIME, message="the marker is back")
        async with running_worker(redis_url, provider, **SLOW_POLL):
            await until_running(redis_client, ids)
            monkeypatch.undo()
            await queue.cancel(later.id)
            provider.release.set()
            await results_of(queue, ids)


async def until_popped(client: Redis, key: str) -> None:
    """Wait until the marker is gone."""

    async def is_gone() -> bool:
        return not await client.exists(key)

    await wait_until(is_gone)


async def test_a_freed_slot_is_filled_at_once(redis_url: str, queue: PromptQueue, redis_client: Redis) -> None:
    """The end of a job is the beginning of the next: settle and claim are one round trip, without a poll between."""
    async with running_worker(redis_url, EchoProvider(0.01), max_jobs=1, **SLOW_POLL):
        ids = [handle.id for handle in await queue.enqueue_many(["hi"] * 30, model="m")]
        await results_of(queue, ids, timeout=30 * 0.01 + 2)
    assert await audit(redis_client, ids, model="m") == 0


class Counting(EchoProvider):
    """Notes how many calls run at once."""

    name = "counting"

    def __init__(self) -> None:
        super().__init__(0.02)
        self.running = self.peak = 0

    async def sample(self, job: PromptJob, timeout: float, hear: object = None) -> Answer:
        """As echo."""
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            return await super().sample(job, timeout)
        finally:
            self.running -= 1


async def test_max_jobs_is_the_limit(redis_url: str, queue: PromptQueue, redis_client: Redis) -> None:
    """Never more calls at once than slots, and all of them used."""
    provider = Counting()
    async with running_worker(redis_url, provider, max_jobs=7):
        ids = [handle.id for handle in await queue.enqueue_many(["hi"] * 60, model="m")]
        await results_of(queue, ids)
    assert provider.peak == 7
    assert all(len(ledger.attempts) == 1 for ledger in await ledgers_of(redis_client, ids))


async def test_a_full_worker_with_long_leases_is_seen(
    redis_url: str, redis_client: Redis, queue: PromptQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its leases need no renewal yet, and nobody must think that it is gone."""
    monkeypatch.setattr(engine, "POLL_IDLE", 0.1)
    provider = ScriptedProvider()
    async with running_worker(redis_url, provider, max_jobs=1, lease=60) as worker:
        job = await queue.enqueue("hang")
        await wait_until(lambda: provider.started)
        claimed_at = await redis_client.zscore(keys.WORKERS, worker.name)

        async def is_seen_again() -> bool:
            return float(await redis_client.zscore(keys.WORKERS, worker.name) or 0) > float(claimed_at or 0)

        await wait_until(is_seen_again)
        provider.release.set()
        await job.wait(timeout=5)
