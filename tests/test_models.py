from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from promptq.producer import (
    Attempt,
    ErrorCode,
    JobCancelled,
    JobError,
    JobExpired,
    JobFailed,
    JobResult,
    JobStatus,
    LaneStats,
    Message,
    PromptJob,
    PromptqError,
    Usage,
)
from promptq.producer.models import DELIVERY_FIELDS, PAYLOAD_FIELDS, REQUEST_FIELDS, Band, from_ms
from promptq.producer.results import TICKS_PER_USD

pytestmark = pytest.mark.producer

counts = st.integers(0, 2**53)
usages = st.builds(
    Usage,
    prompt_tokens=counts,
    completion_tokens=counts,
    reasoning_tokens=counts,
    cached_prompt_tokens=counts,
    total_tokens=counts,
    cost_in_usd_ticks=st.none() | counts,
)


def job(**fields: Any) -> PromptJob:
    """A job that says Hello."""
    return PromptJob.model_validate({"prompt": "Hello"} | fields)


def test_a_prompt_is_one_user_message() -> None:
    """`prompt` is short for messages, and not kept beside them."""
    assert job().messages == (Message(role="user", content="Hello"),)
    assert job() == PromptJob(messages=(Message(role="user", content="Hello"),))
    with pytest.raises(ValidationError, match="not both"):
        job(messages=[])


def test_every_field_is_asked_run_or_delivered() -> None:
    """A new field has to be sorted: the request is part of the payload, delivery is not, and nothing is both."""
    assert set(PromptJob.model_fields) == PAYLOAD_FIELDS | DELIVERY_FIELDS
    assert not PAYLOAD_FIELDS & DELIVERY_FIELDS
    assert {"timeout", "max_attempts", "stream", "conversation"} == PAYLOAD_FIELDS - REQUEST_FIELDS


def test_one_stop_is_a_list_of_one() -> None:
    """As OpenAI takes it: the same request, however it is said."""
    assert job(stop="END") == job(stop=["END"])


def test_what_was_left_out_does_not_travel() -> None:
    """The payload holds what was said, JSON-ready."""
    made = job(stop=["a"], timeout=5, id="x", deadline=60, metadata={"a": "b"})
    messages = [{"role": "user", "content": "Hello"}]
    assert made.payload() == {"messages": messages, "stop": ["a"], "timeout": 5.0}


@pytest.mark.parametrize(
    "value", [job(), Message(role="user", content="x"), Usage(), JobResult(id="a", status=JobStatus.FAILED)]
)
def test_models_are_frozen(value: Any) -> None:
    """What crosses Redis is a value."""
    with pytest.raises(ValidationError, match="frozen"):
        setattr(value, next(iter(type(value).model_fields)), None)


def test_a_job_has_no_unknown_fields_and_a_reader_passes_over_them() -> None:
    """A typing error in a job is an error; what a newer worker wrote into a result is no reason not to read it."""
    with pytest.raises(ValidationError, match="max_token"):
        job(max_token=5)
    result = JobResult.model_validate({"id": "a", "status": "succeeded", "mood": "good", "usage": {"smiles": 3}})
    assert result.status is JobStatus.SUCCEEDED


@pytest.mark.parametrize(("priority", "band"), [("high", Band.HIGH), ("normal", Band.NORMAL), ("low", Band.LOW)])
def test_bands(priority: str, band: Band) -> None:
    """Three priorities, three bands; the lowest number goes first."""
    assert job(priority=priority).band is band
    assert sorted(Band) == [Band.HIGH, Band.NORMAL, Band.LOW]


@pytest.mark.parametrize("seconds", [60, 60.0, timedelta(minutes=1), "PT60S", "00:01:00"])
def test_a_deadline_in_seconds_counts_from_now(seconds: Any) -> None:
    """A number is a duration, never a time since 1970."""
    assert job(deadline=seconds).deadline == timedelta(seconds=60)


@pytest.mark.parametrize("deadline", [True, "60", "1893456000", Decimal(60)], ids=repr)
def test_what_might_be_a_time_since_1970_is_refused(deadline: Any) -> None:
    """Such a job would expire at once, in silence."""
    with pytest.raises(ValidationError, match="deadline"):
        job(deadline=deadline)


def test_a_deadline_at_a_point_in_time() -> None:
    """Datetimes, aware or naive, and their ISO text are taken as they are."""
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    assert job(deadline=moment).deadline == moment
    assert job(deadline="2030-01-01T00:00:00Z").deadline == moment
    naive = datetime(2030, 1, 1)  # noqa: DTZ001 - local time is meant
    assert job(deadline=naive).deadline == naive


@pytest.mark.parametrize(
    ("ticks", "dollars"),
    [
        (None, None),
        (0, Decimal(0)),
        (1, Decimal("1e-10")),
        (TICKS_PER_USD, Decimal(1)),
        (2**53 + 1, Decimal("900719.9254740993")),
    ],
)
def test_dollars_are_exact(ticks: int | None, dollars: Decimal | None) -> None:
    """No tick is lost to floats; an unknown cost is None, which is not 0."""
    assert Usage(cost_in_usd_ticks=ticks).cost_usd == dollars


@given(usages, usages, usages)
def test_usage_adds_up(one: Usage, two: Usage, three: Usage) -> None:
    """Sums in any order are the same; an unknown cost adds nothing, and only unknown ones make an unknown one."""
    assert one + two + three == three + (two + one)
    assert one + Usage() == one
    assert (one + two).total_tokens == one.total_tokens + two.total_tokens
    known = [usage.cost_in_usd_ticks for usage in (one, two) if usage.cost_in_usd_ticks is not None]
    assert (one + two).cost_in_usd_ticks == (sum(known) if known else None)


@pytest.mark.parametrize("status", JobStatus)
def test_final_states_are_those_with_a_result(status: JobStatus) -> None:
    """Four of seven."""
    assert status.is_final == (status.value in {"succeeded", "failed", "cancelled", "expired"})


@pytest.mark.parametrize(
    ("status", "kind"), [("failed", JobFailed), ("cancelled", JobCancelled), ("expired", JobExpired)]
)
def test_raise_for_status(status: str, kind: type[JobFailed]) -> None:
    """One exception for each way not to succeed, all JobFailed and PromptqError, all with the result."""
    error = JobError(code=ErrorCode.TIMEOUT, message="no answer")
    result = JobResult(id="a", status=JobStatus(status), error=error)
    with pytest.raises(JobFailed, match=f"job a {status}: timeout: no answer") as caught:
        result.raise_for_status()
    assert type(caught.value) is kind
    assert isinstance(caught.value, PromptqError)
    assert caught.value.result is result


def test_a_failure_without_reason_can_be_raised() -> None:
    """A result that a stranger wrote has perhaps no error in it."""
    with pytest.raises(JobFailed, match=r"^job a failed$"):
        JobResult(id="a", status=JobStatus.FAILED).raise_for_status()


def test_a_result_survives_json() -> None:
    """What a gateway sends as JSON reads back as the same result."""
    now = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    result = JobResult(
        id="a",
        status=JobStatus.SUCCEEDED,
        content="ünï\0",
        usage=Usage(total_tokens=5, cost_in_usd_ticks=2**60),
        attempts=(Attempt(worker="w", started_at=now, finished_at=now, code=ErrorCode.UNAVAILABLE, message="gone"),),
        metadata={"a": "b"},
        enqueued_at=now,
    )
    assert JobResult.model_validate_json(result.model_dump_json()) == result


def test_moments_keep_their_milliseconds() -> None:
    """Redis' milliseconds come back as aware UTC."""
    assert from_ms(1767323045678) == datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


def test_a_lanes_queue_is_its_bands() -> None:
    """`queued` does not count what is delayed or running."""
    assert LaneStats(lane="a", high=1, normal=2, low=4, delayed=8, running=16).queued == 7
