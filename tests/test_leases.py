import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from promptq.producer import scripts
from promptq.producer.records import ClaimedJob
from promptq.worker.leases import RENEWED_AT_ONCE, Leases
from promptq.worker.run import Run
from promptq.worker.settings import Settings

LEASE = 9.0
RENEW = LEASE / 3


class Clock:
    """The monotonic clock of the lease keeper, turned by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time, for the leases alone."""
    clock = Clock()
    monkeypatch.setattr("promptq.worker.leases.time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


class Script:
    """What stands in for the renew script: it says the words that it is given, `ours` by default."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}
        self.calls: list[list[str]] = []
        self.error: Exception | None = None

    async def renew(self, redis: Redis, runs: Sequence[tuple[str, str, str]], **_: Any) -> list[str]:
        """As scripts.renew."""
        await asyncio.sleep(0)
        self.calls.append([job_id for job_id, _, _ in runs])
        if self.error is not None:
            raise self.error
        return [self.words.get(job_id, "ours") for job_id, _, _ in runs]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """The renew script."""
    script = Script()
    monkeypatch.setattr(scripts, "renew", script.renew)
    return script


@pytest.fixture
def leases(clock: Clock) -> Leases:
    """The leases of a process that has just begun."""
    return Leases(cast(Redis, None), Settings(provider="echo", lease=LEASE, redis_timeout=5))


class Task:
    """A run's task that only notes whether it was cancelled."""

    cancelled = False

    def cancel(self) -> None:
        """As asyncio's."""
        self.cancelled = True


def hold(leases: Leases, job_id: str, *, stalls: int = 0) -> Run:
    """Let this process run a job."""
    run = Run(ClaimedJob(job_id, "1", "m", "m", 0, None, 0, stalls, 0, b""), "w:1", 0)
    run.task = cast("asyncio.Task[None]", Task())
    leases.runs[job_id] = run
    return run


def is_stopped(run: Run) -> bool:
    """Whether its call was cancelled."""
    return cast(Task, run.task).cancelled


def rights(leases: Leases) -> str:
    """What the process may do now."""
    if leases.may_take_over:
        return "claim and take over"
    return "claim" if leases.may_claim else "nothing"


def lateness(leases: Leases) -> str:
    """Whether it has to renew first."""
    return "late" if leases.is_late else "in time"


def test_a_fresh_process_claims_at_once_and_takes_over_after_a_lease(leases: Leases, clock: Clock) -> None:
    """It knows nothing of the time before it began, so leases that ran out then may be a Redis that was away."""
    assert rights(leases) == "claim"
    clock.now += LEASE - 0.1
    assert rights(leases) == "claim"
    clock.now += 0.2
    assert rights(leases) == "claim and take over"


async def test_after_a_gap_it_renews_waits_and_only_then_claims(leases: Leases, clock: Clock, script: Script) -> None:
    """While broken: nothing. Mended by a renewal: no claim for one renew period, no take-over for a whole lease."""
    clock.now += 2 * LEASE
    leases.broke(RedisConnectionError("gone"))
    assert rights(leases) == "nothing"
    clock.now += LEASE
    assert rights(leases) == "nothing", "time alone mends nothing"
    await leases.renew()
    assert rights(leases) == "nothing"
    clock.now += RENEW + 0.1
    assert rights(leases) == "claim"
    clock.now += LEASE - RENEW
    assert rights(leases) == "claim and take over"


async def test_each_gap_starts_the_wait_anew(leases: Leases, clock: Clock, script: Script) -> None:
    """A connection that comes and goes never gets to take over."""
    for _ in range(3):
        clock.now += LEASE - 0.1
        assert not leases.may_take_over
        leases.broke(RedisConnectionError("gone"))
        await leases.renew()


async def test_a_failed_renewal_mends_nothing(leases: Leases, clock: Clock, script: Script) -> None:
    """The error is the caller's; leases stay as old as they were."""
    hold(leases, "a")
    leases.broke(RedisConnectionError("gone"))
    script.error = RedisConnectionError("still gone")
    clock.now += LEASE
    with pytest.raises(RedisConnectionError):
        await leases.renew()
    assert leases.is_broken
    assert leases.is_late


async def test_half_a_lease_without_renewal_is_late(leases: Leases, clock: Clock, script: Script) -> None:
    """Then it renews before it claims; without running jobs there is nothing to be late for."""
    clock.now += LEASE
    assert lateness(leases) == "in time"
    hold(leases, "a")
    assert lateness(leases) == "late"
    await leases.renew()
    assert lateness(leases) == "in time"
    clock.now += LEASE / 2 + 0.1
    assert lateness(leases) == "late"


async def test_a_renewal_counts_from_when_it_was_sent(
    leases: Leases, clock: Clock, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply that took long says nothing about the time in between."""
    hold(leases, "a")

    async def slow(*_: Any, **__: Any) -> list[str]:
        clock.now += LEASE / 2 + 0.1
        return ["ours"]

    monkeypatch.setattr(scripts, "renew", slow)
    await leases.renew()
    assert leases.is_late


async def test_each_word_is_heeded(leases: Leases, script: Script) -> None:
    """Ours and taken: the call goes on, since it is paid for. Cancel and over: it stops, for that reason."""
    words = {"a": "ours", "b": "taken", "c": "cancel", "d": "over"}
    runs = {job_id: hold(leases, job_id) for job_id in words}
    script.words = words
    await leases.renew()
    assert [run.stopped for run in runs.values()] == [None, None, "cancelled", "over"]
    assert [is_stopped(run) for run in runs.values()] == [False, False, True, True]


async def test_a_word_about_an_earlier_run_does_not_stop_the_next(leases: Leases, script: Script) -> None:
    """While the renewal was under way the run ended and the same job was claimed again."""
    hold(leases, "a")
    script.words = {"a": "over"}
    renewing = asyncio.create_task(leases.renew())
    await asyncio.sleep(0)
    fresh = hold(leases, "a")
    await renewing
    assert fresh.stopped is None


async def test_many_leases_are_renewed_in_parts(leases: Leases, script: Script) -> None:
    """No call holds Redis up for long; a run that ends between two parts is left out."""
    ids = [f"job-{number}" for number in range(RENEWED_AT_ONCE * 2 + 1)]
    for job_id in ids:
        hold(leases, job_id)
    renewing = asyncio.create_task(leases.renew())
    await asyncio.sleep(0)
    del leases.runs[ids[-1]]
    await renewing
    assert [len(call) for call in script.calls] == [RENEWED_AT_ONCE, RENEWED_AT_ONCE, 0]


async def test_without_jobs_a_renewal_still_asks(leases: Leases, script: Script) -> None:
    """It is how an idle worker learns that Redis is back."""
    leases.broke(RedisConnectionError("gone"))
    await leases.renew()
    assert script.calls == [[]]
    assert not leases.is_broken


def test_one_poison_job_at_a_time(leases: Leases) -> None:
    """A job that has stalled twice may be what kills its workers: no second one beside it."""
    assert leases.may_take_poison
    hold(leases, "a", stalls=1)
    assert leases.may_take_poison
    hold(leases, "b", stalls=2)
    assert not leases.may_take_poison


def test_a_lease_must_outlive_a_late_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    """`lease > renew period + Redis timeout`, checked at the start."""
    with pytest.raises(ValueError, match=r"PROMPTQ_LEASE must be more than 7\.5 s with PROMPTQ_REDIS_TIMEOUT=5"):
        Settings(provider="echo", lease=7.5, redis_timeout=5)
    assert Settings(provider="echo", lease=7.6, redis_timeout=5).renew_period < 7.6 - 5
