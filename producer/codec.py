"""JSON in arq's own wire shape: what a plain arq client gives as `job_serializer` and `job_deserializer`.

Redis is a border: bytes that are not JSON, a pickle above all, are refused and never executed.
"""

import asyncio
from typing import Any, Final

import pydantic_core
from pydantic import ValidationError

from promptq.producer.errors import InvalidPayload
from promptq.producer.models import DELIVERY_FIELDS, JobStatus, PromptJob, from_ms
from promptq.producer.results import BOOKED, Attempt, JobError, JobResult

FUNCTION: Final = "sample_prompt"
"""The one function of the queue, under the name that plain arq clients enqueue."""

_PICKLE = b"\x80"


def dumps(value: Any) -> bytes:
    """JSON as compact UTF-8. Raises InvalidPayload for what JSON cannot hold."""
    try:
        return pydantic_core.to_json(value)
    except (pydantic_core.PydanticSerializationError, ValueError) as error:
        raise InvalidPayload(f"cannot be written as JSON: {error}") from None


def dump_payload(job: PromptJob) -> bytes:
    """The JSON of `job.payload()`, without a dict in between. Raises InvalidPayload for what JSON cannot hold."""
    try:
        return pydantic_core.to_json(job, exclude=DELIVERY_FIELDS, exclude_none=True)
    except (pydantic_core.PydanticSerializationError, ValueError) as error:
        raise InvalidPayload(f"cannot be written as JSON: {error}") from None


def decode(data: bytes) -> dict[str, Any]:
    """One JSON object. Raises InvalidPayload for anything else."""
    if not data:
        raise InvalidPayload("is gone: arq let it expire")
    if data[:1] == _PICKLE:
        raise InvalidPayload(
            "is a pickle, which is never loaded; give arq promptq.producer.codec.dumps as its serializer"
        )
    try:
        value = pydantic_core.from_json(data)
    except ValueError as error:
        raise InvalidPayload(f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidPayload("is not a JSON object")
    return value


def loads(data: bytes) -> dict[str, Any]:
    """A payload or a result for arq's `Job`: a result's `r` becomes a JobResult, or the exception to raise.

    Raises InvalidPayload.
    """
    value = decode(data)
    if "r" in value and "s" in value:
        value["r"] = _arq_result(value)
    return value


def _arq_result(record: dict[str, Any]) -> JobResult | BaseException:
    result = result_of(record)
    if result.status is JobStatus.SUCCEEDED:
        return result
    if result.status is JobStatus.CANCELLED:
        return asyncio.CancelledError(f"job {result.id} was cancelled")
    try:
        return result.raise_for_status()
    except Exception as error:  # noqa: BLE001 - arq raises the exception that stands in the record
        return error


def result_of(record: dict[str, Any], **known: Any) -> JobResult:
    """The JobResult inside a result record, completed by what the ledger knows. Raises InvalidPayload."""
    try:
        return JobResult.model_validate(record["r"] | {"id": record["id"]} | known)
    except (ValidationError, KeyError, TypeError) as error:
        raise InvalidPayload(f"is not a promptq result: {type(error).__name__}") from None


def dump_attempt(started: int, finished: int, spent: tuple[int | None, ...] | None, error: JobError | None) -> bytes:
    """An attempt as its job's ledger keeps it: `[started ms, duration ms, usage amounts or null, code, message]`.

    `spent`: `Usage.amounts()`, if the provider told of any.

    Short, because Redis keeps a hash small and quick while none of its values is longer than 64 bytes.
    """
    attempt: list[Any] = [started, finished - started, spent]
    if error:
        attempt += [error.code.value, error.message]
    return dumps(attempt)


def attempt_of(token: str, data: bytes) -> Attempt:
    """The attempt that stands in a ledger under the claim's token. Raises InvalidPayload."""
    try:
        started, duration, amounts, *failure = pydantic_core.from_json(data)
        usage = None if amounts is None else dict(zip(BOOKED, amounts, strict=True))
        return Attempt.model_validate(
            {
                "worker": token.rpartition(":")[0],
                "started_at": from_ms(started),
                "finished_at": from_ms(started + duration),
                "usage": usage,
                **dict(zip(("code", "message"), failure, strict=False)),
            }
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidPayload(f"holds an attempt that is none of ours: {type(error).__name__}") from None
