"""One run of many jobs at once, at a simulator that fails each in its own way; the tests look at what came of it."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from redis.asyncio import Redis

from faults.bookkeeping import Ledger, audit, results_of
from faults.fleet import API_KEY, Fleet, WorkerProcess, xai_settings
from leftovers import assert_no_leftovers
from promptq.producer import ErrorCode, JobResult, JobStatus, PromptQueue
from promptq.producer.models import LaneStats
from promptq.worker.embedded import PrivateRedis
from promptq.worker.simulator.books import JournalEntry
from promptq.worker.simulator.control import SimulatorControl
from promptq.worker.simulator.process import SimulatorProcess
from waiting import wait_until

JOBS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "unavailable": {},
    "hopeless": {"max_attempts": 2},
    "invalid": {},
    "dropped": {},
    "severed": {},
    "huge": {},
    "slow": {"timeout": 0.3},
    "late": {"deadline": 0.6},
    "unwanted": {},
    "throttled": {},
}
SLOW_TO_RENEW: Mapping[str, object] = {"promptq_lease": 10, "promptq_redis_timeout": 5}
"""What a worker learns sooner than every three seconds, it has been told."""
FAULTS: Sequence[Mapping[str, Any]] = (
    {"match": "unavailable", "kind": "status", "code": "UNAVAILABLE", "times": 1},
    {"match": "hopeless", "kind": "status", "code": "INTERNAL"},
    {"match": "invalid", "kind": "status", "code": "INVALID_ARGUMENT", "details": "Invalid temperature."},
    {"match": "dropped", "kind": "drop_call", "times": 1},
    {"match": "severed", "kind": "status", "code": "CANCELLED", "times": 1},
    {"match": "huge", "kind": "oversized"},
    {"match": "slow", "kind": "hang"},
    {"match": "late", "kind": "hang"},
    {"match": "unwanted", "kind": "hang"},
    {
        "match": "throttled",
        "kind": "status",
        "code": "RESOURCE_EXHAUSTED",
        "details": "Too many requests for team.",
        "times": 1,
    },
)
WORDS = "a prompt that nobody may read in a log"


@dataclass(frozen=True)
class Case:
    """What became of one job."""

    result: JobResult
    ledger: Ledger
    calls: Sequence[JournalEntry]

    @property
    def codes(self) -> list[ErrorCode | None]:
        """How its attempts ended."""
        return [attempt.code for attempt in self.result.attempts]


@dataclass(frozen=True)
class Story:
    """What became of all of them."""

    cases: Mapping[str, Case]
    paused: LaneStats
    cancelled_after: float
    workers: Sequence[WorkerProcess]


@pytest.fixture(scope="module")
def story(simulator_server: SimulatorProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The run: a model of its own for each job, two workers, one of which logs JSON and the other for a console."""
    with PrivateRedis() as server:
        settings = xai_settings(simulator_server.host, server.url) | {"promptq_max_jobs": 6, **SLOW_TO_RENEW}
        with Fleet(tmp_path_factory.mktemp("workers"), **settings) as fleet:
            yield asyncio.run(run_all(server.url, simulator_server.host, fleet))
        with contextlib.closing(redis.Redis.from_url(server.url)) as client:
            assert_no_leftovers(client)


async def run_all(url: str, host: str, fleet: Fleet) -> Story:
    """Enqueue all, cancel one, see what pauses, and wait for all."""
    async with SimulatorControl(host) as simulator, PromptQueue.connect(url) as queue:
        client = Redis.from_url(url)
        await simulator.reset()
        await simulator.set(faults=list(FAULTS))
        workers = [fleet.launch(promptq_log_format=log_format) for log_format in ("json", "console")]
        for worker in workers:
            await worker.ready()
        jobs = [{"prompt": f"{name}: {WORDS}", "id": name, "model": name, **options} for name, options in JOBS.items()]
        await queue.enqueue_many(jobs)
        cancelled_after = await seconds_to_cancel(queue, simulator)

        paused: list[LaneStats] = []

        async def has_paused() -> bool:
            paused.extend(lane for lane in (await queue.stats()).lanes if lane.paused_until)
            return bool(paused)

        await wait_until(has_paused)
        results = await results_of(queue, JOBS)
        for name in JOBS:
            await audit(client, [name], model=name)
        cases = {
            name: Case(results[name], await Ledger.of(client, name), await simulator.journal(match=name))
            for name in JOBS
        }
        await client.aclose()
    return Story(cases, paused[0], cancelled_after, workers)


async def seconds_to_cancel(queue: PromptQueue, simulator: SimulatorControl) -> float:
    """From asking the queue until the call has ended at the simulator."""

    async def has_call() -> bool:
        return bool(await simulator.journal(match="unwanted"))

    async def has_ended() -> bool:
        [call] = await simulator.journal(match="unwanted")
        return call.ended is not None

    await wait_until(has_call)
    asked_at = time.monotonic()
    assert await queue.cancel("unwanted")
    await wait_until(has_ended)
    return time.monotonic() - asked_at


def test_a_cancelled_job_stops_its_call_at_once(story: Story) -> None:
    """`cancel` of a running job cancels the call at the provider in well under a second.

    The result is `cancelled`; the attempt stays on the books.
    """
    case = story.cases["unwanted"]
    assert case.result.status is JobStatus.CANCELLED
    assert [call.ended for call in case.calls] == ["CANCELLED"]
    assert case.codes == [ErrorCode.CANCELLED]
    assert story.cancelled_after < 0.5


def test_a_deadline_ends_a_running_call(story: Story) -> None:
    """The deadline passes during the call: it is cancelled, and the result is `expired`."""
    case = story.cases["late"]
    assert case.result.status is JobStatus.EXPIRED
    assert [call.ended for call in case.calls] == ["CANCELLED"]
    assert case.codes == [ErrorCode.EXPIRED]


def test_a_timeout_is_tried_once_more(story: Story) -> None:
    """No answer in time, twice: both calls are cancelled and recorded, and the job fails as `timeout`."""
    case = story.cases["slow"]
    assert (case.result.status, case.result.error and case.result.error.code) == (JobStatus.FAILED, ErrorCode.TIMEOUT)
    assert [call.ended for call in case.calls] == ["CANCELLED"] * 2
    assert case.codes == [ErrorCode.TIMEOUT] * 2


def test_a_pause_costs_nothing(story: Story) -> None:
    """A 429: the model pauses and says why; the job waits, spends no attempt, and runs later.

    The refused call is recorded.
    """
    case = story.cases["throttled"]
    assert (story.paused.lane, story.paused.pause_reason) == ("throttled", ErrorCode.RATE_LIMITED)
    assert case.result.status is JobStatus.SUCCEEDED
    assert (case.ledger.spent, case.ledger.stalls) == (0, 0)
    assert case.codes == [ErrorCode.RATE_LIMITED, None]
    assert [call.generation for call in case.calls] == [False, True]


def test_an_unavailable_provider_is_called_again(story: Story) -> None:
    """A failure, then an answer: two attempts are recorded, one of them spent."""
    case = story.cases["unavailable"]
    assert case.result.status is JobStatus.SUCCEEDED
    assert case.codes == [ErrorCode.UNAVAILABLE, None]
    assert case.ledger.spent == 1
    assert len(case.calls) == 2


def test_attempts_are_limited(story: Story) -> None:
    """`max_attempts` calls, and the last error is the result."""
    case = story.cases["hopeless"]
    assert case.result.status is JobStatus.FAILED
    assert case.result.error is not None
    assert case.result.error.code is ErrorCode.PROVIDER_ERROR
    assert case.codes == [ErrorCode.PROVIDER_ERROR] * 2
    assert len(case.calls) == 2


def test_a_wrong_request_fails_at_once(story: Story) -> None:
    """INVALID_ARGUMENT: one call, and what the provider said of it."""
    case = story.cases["invalid"]
    assert case.result.status is JobStatus.FAILED
    assert case.result.error is not None
    assert case.result.error.code is ErrorCode.INVALID_REQUEST
    assert "Invalid temperature." in case.result.error.message
    assert len(case.calls) == 1


def test_a_dropped_connection_is_a_paid_attempt(story: Story) -> None:
    """The provider worked and nobody heard the answer: generations started are attempts recorded."""
    case = story.cases["dropped"]
    assert case.result.status is JobStatus.SUCCEEDED
    assert sum(call.generation for call in case.calls) == len(case.codes) == 2
    assert case.codes == [ErrorCode.UNAVAILABLE, None]


def test_a_call_that_the_provider_cancels_is_not_ours_to_give_up(story: Story) -> None:
    """CANCELLED by the server is its failure, not a cancel of the job: it is tried again."""
    case = story.cases["severed"]
    assert case.result.status is JobStatus.SUCCEEDED
    assert case.codes == [ErrorCode.PROVIDER_ERROR, None]


def test_an_answer_too_large_is_not_paid_for_again(story: Story) -> None:
    """More than the client can receive: the job fails at once."""
    case = story.cases["huge"]
    assert case.result.status is JobStatus.FAILED
    assert case.codes == [ErrorCode.TOO_LARGE]
    assert len(case.calls) == 1


def test_logs_tell_who_did_what_and_nothing_of_what_was_said(story: Story) -> None:
    """Each job's log entries name job, attempt, lane and worker, in both formats; no prompt, answer or key."""
    for worker in story.workers:
        assert "job." in worker.log, "each worker has had jobs"
        for secret in (WORDS, "[simulated]", API_KEY, "Bearer"):
            assert secret not in worker.log
        for line in worker.log.splitlines():
            if "job.succeeded" in line or "job.failed" in line or "job.retry" in line or "job.throttled" in line:
                assert all(word in line for word in ("job_id", "attempt", "lane", "worker")), line
    entries = [entry for entry in story.workers[0].events if entry["event"].startswith("job.")]
    assert all(entry["lane"] == entry["job_id"] for entry in entries)
    assert {entry["worker"] for entry in entries} == {story.workers[0].name}
    assert all(entry["attempt"] >= 1 for entry in entries)
