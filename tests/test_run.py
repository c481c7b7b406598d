import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from promptq.producer import codec
from promptq.producer.errors import ErrorCode
from promptq.producer.models import PromptJob
from promptq.producer.records import ClaimedJob, Settlement
from promptq.producer.results import Attempt, Usage
from promptq.worker.providers.base import Answer, ProviderError
from promptq.worker.providers.echo import EchoProvider
from promptq.worker.providers.routes import Routes
from promptq.worker.run import Run, Runner, StopReason
from promptq.worker.settings import Settings
from promptq.worker.settlement import Clerk
from waiting import wait_until

PROMPT = "what nobody may read in a log"
ANSWER = Answer("the answer that nobody may read", "m", Usage(total_tokens=9))


class Scripted(EchoProvider):
    """A provider that does what it is told."""

    name = "scripted"

    def __init__(self, act: Callable[[], Awaitable[Answer]]) -> None:
        super().__init__()
        self._act = act
        self.asked: list[tuple[PromptJob, float]] = []

    async def sample(self, job: PromptJob, timeout: float, hear: object = None) -> Answer:
        """Note the call, and act."""
        self.asked.append((job, timeout))
        return await self._act()


async def answer() -> Answer:
    """A provider that answers."""
    return ANSWER


async def hang() -> Answer:
    """A provider that does not."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError


def fails(error: BaseException) -> Callable[[], Awaitable[Answer]]:
    """A provider that raises."""

    async def fail() -> Answer:
        raise error

    return fail


def claimed(*, deadline: int | None = None, payload: bytes | None = None, spent: int = 0, **options: Any) -> ClaimedJob:
    """A job as the claim script hands it over."""
    if payload is None:
        options = {"prompt": PROMPT, "model": "m"} | options
        payload = codec.dumps({"t": None, "f": "sample_prompt", "a": (), "k": options, "et": 1})
    return ClaimedJob("job-1", "1", "m", "m", spent, deadline, 1_000, 0, 0, payload)


NO_TELLER: Any = None
"""No job here is streamed."""


def runner(provider: Scripted, **settings: Any) -> Runner:
    """What runs it."""
    chosen = Settings(provider="echo", job_timeout=50, **settings)
    routes = Routes.to(provider)
    return Runner(routes, chosen, Clerk.of(chosen, "w", routes.name_of), NO_TELLER)


async def settled(act: Callable[[], Awaitable[Answer]], job: ClaimedJob | None = None, **settings: Any) -> Settlement:
    """What one run leaves to be written."""
    return await runner(Scripted(act), **settings).run(Run(job or claimed(), "w:1", 0))


def attempt_of(settlement: Settlement) -> Attempt:
    """The recorded call."""
    return codec.attempt_of(settlement.token, settlement.attempt)


@pytest.fixture
def log() -> Iterator[LogCapture]:
    """What is logged."""
    capture = LogCapture()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.processors.format_exc_info, capture])
    yield capture
    structlog.configure(processors=before)


async def test_an_answer_is_settled_with_its_usage() -> None:
    """Admit, call, judge: the result, and the attempt with its times and tokens."""
    before = time.time() * 1000 - 1
    settlement = await settled(answer)
    assert (settlement.kind, settlement.token, settlement.epoch) == ("succeeded", "w:1", "1")
    attempt = attempt_of(settlement)
    assert before <= attempt.started_at.timestamp() * 1000 <= attempt.finished_at.timestamp() * 1000
    assert attempt.usage is not None
    assert attempt.usage.total_tokens == settlement.usage[4] == 9
    assert codec.decode(settlement.result)["r"]["content"] == ANSWER.content


async def test_the_provider_gets_the_job_and_its_own_timeout() -> None:
    """The job's timeout if it has one, else the worker's."""
    provider = Scripted(answer)
    await runner(provider).run(Run(claimed(timeout=7), "w:1", 0))
    await runner(provider).run(Run(claimed(max_tokens=5), "w:1", 0))
    assert [timeout for _, timeout in provider.asked] == [7, 50]
    assert provider.asked[0][0].messages[0].content == PROMPT
    assert provider.asked[1][0].max_tokens == 5


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (ProviderError(ErrorCode.UNAVAILABLE, "why"), "retry", "unavailable"),
        (ProviderError(ErrorCode.RATE_LIMITED, "why", retry_after=3), "throttled", "rate_limited"),
        (ProviderError(ErrorCode.MODERATED, "why", usage=Usage(total_tokens=1)), "failed", "moderated"),
    ],
)
async def test_a_failed_call_is_judged_and_recorded(error: ProviderError, kind: str, code: str) -> None:
    """What the provider says decides; the attempt is recorded with code, message and what it cost."""
    settlement = await settled(fails(error))
    attempt = attempt_of(settlement)
    assert (settlement.kind, settlement.reason) == (kind, code)
    assert (attempt.code, attempt.message) == (code, "why")
    assert settlement.usage[4] == (error.usage.total_tokens if error.usage else 0)


async def test_the_jobs_own_limit_of_attempts_counts() -> None:
    """`max_attempts` of the job goes before the worker's."""
    error = ProviderError(ErrorCode.UNAVAILABLE, "why")
    assert (await settled(fails(error), claimed(spent=1, max_attempts=2))).kind == "failed"
    assert (await settled(fails(error), claimed(spent=1), max_attempts=2)).kind == "failed"
    assert (await settled(fails(error), claimed(spent=1))).kind == "retry"


async def test_no_answer_in_time_is_a_timeout() -> None:
    """The call is cancelled after the job's timeout, and recorded."""
    settlement = await settled(hang, claimed(timeout=0.02))
    assert (settlement.kind, settlement.reason) == ("retry", "timeout")
    assert attempt_of(settlement).message == "no answer within 0.02 s"


async def test_a_deadline_during_the_call_expires_the_job() -> None:
    """The deadline ends the call before its timeout does; a call was made, and is recorded."""
    settlement = await settled(hang, claimed(deadline=round(time.time() * 1000) + 30, timeout=30))
    assert settlement.kind == "expired"
    assert attempt_of(settlement).code == "expired"


async def test_a_passed_deadline_costs_no_call() -> None:
    """It passed between claim and run: nobody is called."""
    provider = Scripted(answer)
    settlement = await runner(provider).run(Run(claimed(deadline=1_000), "w:1", 0))
    assert (settlement.kind, settlement.attempt, provider.asked) == ("expired", b"", [])


async def test_deadlines_are_told_by_redis_clock() -> None:
    """This machine's clock is an hour ahead: a deadline in half an hour has not passed."""
    ahead = 3_600_000
    soon = round(time.time() * 1000) - ahead + 1_800_000
    settlement = await runner(Scripted(answer)).run(Run(claimed(deadline=soon), "w:1", ahead))
    assert settlement.kind == "succeeded"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x80\x04\x95cos\nsystem\n.",
        b"not json",
        b"[1]",
        b'{"f":"sample_prompt"}',
        b'{"a":[],"k":{"prompt":""}}',
        b'{"a":[1,2],"k":{}}',
        b'{"a":[],"k":{"prompt":"hi","model":"m","surprise":1}}',
        b'{"a":7,"k":[]}',
    ],
)
async def test_a_payload_that_is_no_job_fails_without_a_call(payload: bytes) -> None:
    """Redis is a border: garbage ends as a failed job, and is never executed."""
    provider = Scripted(answer)
    settlement = await runner(provider).run(Run(claimed(payload=payload), "w:1", 0))
    assert (settlement.kind, settlement.reason) == ("failed", "invalid_request")
    assert (settlement.attempt, provider.asked) == (b"", [])


async def stopped(reason: StopReason, act: Callable[[], Awaitable[Answer]] = hang) -> tuple[Settlement, Run]:
    """A run that is stopped while it calls."""
    provider, found = Scripted(act), asyncio.get_running_loop().create_future()
    run = Run(claimed(), "w:1", 0)

    async def go() -> None:
        found.set_result(await runner(provider).run(run))

    run.task = asyncio.create_task(go())
    await wait_until(lambda: provider.asked)
    run.stop(reason)
    return await found, run


@pytest.mark.parametrize(
    ("reason", "kind"), [("cancelled", "cancelled"), ("over", "released"), ("shutdown", "released")]
)
async def test_a_stopped_call_is_given_up_for_its_reason(reason: StopReason, kind: str) -> None:
    """Our own cancel, another run's result, a shutdown: unspent, and the call that was made is recorded."""
    settlement, _ = await stopped(reason)
    assert settlement.kind == kind
    assert attempt_of(settlement).code == "cancelled"


async def test_the_first_reason_to_stop_stays() -> None:
    """A cancelled job is not given back because the worker shuts down a moment later."""

    async def hang_on() -> Answer:
        try:
            return await hang()
        finally:
            run.stop("shutdown")

    provider = Scripted(hang_on)
    run = Run(claimed(), "w:1", 0)
    ended = asyncio.get_running_loop().create_future()

    async def go() -> None:
        ended.set_result(await runner(provider).run(run))

    run.task = asyncio.create_task(go())
    await wait_until(lambda: provider.asked)
    run.stop("cancelled")
    assert (await ended).kind == "cancelled"


async def test_a_cancel_that_nobody_asked_for_is_the_providers_failure() -> None:
    """The vendor's library lets a CancelledError out: the job is tried again, and the worker's task lives on."""
    settlement = await settled(fails(asyncio.CancelledError()))
    assert (settlement.kind, settlement.reason) == ("retry", "provider_error")
    assert attempt_of(settlement).message == "the provider's client cancelled the call"
    await asyncio.sleep(0)  # nothing is left that would cancel this


async def test_a_bug_in_a_provider_is_a_failed_attempt_and_tells_no_prompt(log: LogCapture) -> None:
    """Any exception becomes an outcome; neither result nor log quotes what it says, which may be the prompt."""
    settlement = await settled(fails(RuntimeError(f"cannot parse {PROMPT}")))
    assert (settlement.kind, settlement.reason) == ("retry", "provider_error")
    assert attempt_of(settlement).message == "RuntimeError in the provider"
    assert any(entry["event"] == "provider.bug" for entry in log.entries)
    assert PROMPT not in rendered(log)


async def test_an_answer_that_is_no_text_fails_and_is_paid() -> None:
    """Half a character, which JSON cannot hold: it must not run again for ever."""

    async def half() -> Answer:
        return ANSWER._replace(content="\ud83d")

    settlement = await settled(half)
    assert (settlement.kind, settlement.reason) == ("failed", "provider_error")
    assert attempt_of(settlement).usage == ANSWER.usage


async def test_content_is_logged_only_if_asked_for(log: LogCapture) -> None:
    """PROMPTQ_LOG_CONTENT=1 logs the answer; without it neither prompt nor answer is logged."""
    await settled(answer)
    assert ANSWER.content not in rendered(log)
    assert PROMPT not in rendered(log)
    await settled(answer, log_content=True)
    assert ANSWER.content in rendered(log)


async def test_each_run_is_logged_once_with_its_job(log: LogCapture) -> None:
    """One entry a run: which job, which attempt, which lane, how long; failures with code and reason."""
    await settled(answer, claimed(spent=2))
    await settled(fails(ProviderError(ErrorCode.UNAVAILABLE, "why")))
    [success, failure] = log.entries
    assert success["event"] == "job.succeeded"
    assert (success["job_id"], success["attempt"], success["lane"]) == ("job-1", 3, "m")
    assert (failure["event"], failure["code"], failure["reason"]) == ("job.retry", "unavailable", "why")
    assert success["seconds"] >= 0


def rendered(log: LogCapture) -> str:
    """Everything logged, tracebacks too."""
    return "".join(map(str, log.entries))
