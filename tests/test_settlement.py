from datetime import UTC, datetime
from typing import Any

import pytest
from arq.jobs import deserialize_result

from promptq.producer import codec
from promptq.producer.errors import ErrorCode, JobExpired, JobFailed
from promptq.producer.models import JobStatus, from_ms
from promptq.producer.records import ClaimedJob
from promptq.producer.results import JobError, JobResult, ToolCall, Usage
from promptq.worker.outcome import Cancelled, Expired, Failed, Outcome, Released, Retry, Succeeded, Throttled
from promptq.worker.providers.base import Answer
from promptq.worker.settlement import Call, Clerk, refusal

JOB = ClaimedJob(
    id="job-1", epoch="1", lane="grok-4", model="grok-4", spent=2, deadline=None, enqueued=1_000, stalls=0, timeouts=0,
    payload=b"{}",
)  # fmt: skip
CLERK = Clerk(worker="w-1", provider_of=lambda _: "xai", result_ttl=111, failure_ttl=222)
USAGE = Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7, cost_in_usd_ticks=0)
ANSWER = Answer("forty-two", "grok-4-0709", USAGE, finish_reason="length", response_id="r-1")
CALL = Call(started=2_000, finished=3_500, usage=USAGE)
WHY = JobError(code=ErrorCode.UNAVAILABLE, message="why")


def arq_result(result: bytes) -> Any:
    """As arq's own `Job.result_info()` reads it."""
    return deserialize_result(result, deserializer=codec.loads)


# kind, delay, ttl, reason
CLAUSES: list[tuple[Outcome, tuple[str, int, int, str]]] = [
    (Succeeded(ANSWER), ("succeeded", 0, 111, "")),
    (Failed(WHY), ("failed", 0, 222, "unavailable")),
    (Retry(WHY, 1.2345), ("retry", 1234, 111, "unavailable")),
    (Throttled(WHY, 30), ("throttled", 30_000, 222, "unavailable")),
    (Released(), ("released", 0, 111, "")),
    (Cancelled(), ("cancelled", 0, 111, "cancelled")),
    (Expired(), ("expired", 0, 111, "expired")),
]


@pytest.mark.parametrize(("outcome", "clause"), CLAUSES)
def test_each_outcome_has_its_clause(outcome: Outcome, clause: tuple[str, int, int, str]) -> None:
    """What is written, how long it is kept; a result only where the job ends."""
    said = CLERK.settlement(JOB, "w-1:7", outcome, CALL)
    assert (said.id, said.token, said.epoch) == ("job-1", "w-1:7", "1")
    assert (said.kind, said.delay, said.ttl, said.reason) == clause
    assert bool(said.result) == (said.kind in {"succeeded", "failed", "cancelled", "expired"})
    assert said.usage == (3, 4, 0, 0, 7, 0)


def test_without_a_call_nothing_is_recorded() -> None:
    """A job that ends before it called anybody leaves no attempt on the books."""
    for outcome in (Failed(WHY), Released(), Expired()):
        said = CLERK.settlement(JOB, "w-1:7", outcome, None)
        assert (said.attempt, said.usage) == (b"", (0, 0, 0, 0, 0, None))


def test_an_attempt_tells_who_when_and_why() -> None:
    """JSON of the call: worker, times in ms, error, usage; a cost of None is not a cost of 0."""
    failed = CALL._replace(error=WHY, usage=Usage(total_tokens=1))
    attempt = codec.attempt_of("w-1:7", CLERK.settlement(JOB, "w-1:7", Retry(WHY, 1), failed).attempt)
    assert attempt.worker == "w-1"
    assert (attempt.started_at, attempt.finished_at) == (from_ms(2_000), from_ms(3_500))
    assert (attempt.code, attempt.message) == ("unavailable", "why")
    assert attempt.usage is not None
    assert attempt.usage.total_tokens == 1
    assert attempt.usage.cost_in_usd_ticks is None
    assert CLERK.settlement(JOB, "t", Retry(WHY, 1), failed).usage[5] is None


def test_arq_reads_a_success() -> None:
    """The reader of arq gets its fields and, as the result, everything that the provider told."""
    call = ToolCall(id="c", name="f", arguments="{}")
    usage = USAGE.model_copy(update={"prompt_text_tokens": 2, "server_side_tools_used": {"web_search": 1}})
    answer = ANSWER._replace(usage=usage, reasoning_content="hm", tool_calls=(call,), citations=("https://x.ai",))
    read = arq_result(CLERK.settlement(JOB, "t", Succeeded(answer), CALL).result)
    assert (read.function, read.args, read.kwargs, read.job_try) == ("sample_prompt", [], {}, 3)
    assert (read.success, read.queue_name, read.job_id) == (True, "arq:queue:grok-4", "job-1")
    assert read.enqueue_time == datetime.fromtimestamp(1, UTC)
    assert (read.start_time, read.finish_time) == (datetime.fromtimestamp(2, UTC), datetime.fromtimestamp(3.5, UTC))
    result = read.result
    assert isinstance(result, JobResult)
    assert (result.status, result.content, result.finish_reason) == (JobStatus.SUCCEEDED, "forty-two", "length")
    assert (result.model, result.provider, result.worker) == ("grok-4-0709", "xai", "w-1")
    assert (result.usage, result.response_id, result.reasoning_content) == (usage, "r-1", "hm")
    assert (result.tool_calls, result.citations) == ((call,), ("https://x.ai",))


@pytest.mark.parametrize(("outcome", "kind"), [(Failed(WHY), JobFailed), (Expired(), JobExpired)])
def test_arq_reads_a_failure_as_an_exception(outcome: Outcome, kind: type[JobFailed]) -> None:
    """What arq's `Job.result()` raises carries the code and the whole result."""
    read = arq_result(CLERK.settlement(JOB, "t", outcome, CALL).result)
    assert not read.success
    assert isinstance(read.result, kind)
    assert read.result.result.error is not None


def test_arq_reads_a_refused_job() -> None:
    """A plain arq client's job that cannot be run is a failure with its reason, in the lane that client used."""
    read = arq_result(refusal("theirs", "promptq", "the payload is a pickle", "w-1", 5_000))
    assert (read.success, read.job_id, read.queue_name) == (False, "theirs", "arq:queue:promptq")
    assert isinstance(read.result, JobFailed)
    assert read.result.result.error == JobError(code=ErrorCode.INVALID_REQUEST, message="the payload is a pickle")
