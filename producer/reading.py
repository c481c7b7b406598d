"""From what stands in Redis about a job to what a reader gets.

One transaction a read, so that nothing is seen half-written.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pydantic_core
from redis.asyncio import Redis

from promptq.producer import codec, keys
from promptq.producer.errors import ErrorCode, JobNotFound
from promptq.producer.models import Attempt, Band, JobResult, JobStatus, LaneStats, QueueStats, from_ms

_ATTEMPT = b"attempt:"
_RUNNABLE = [(band << 38, f"({(band + 1) << 38}") for band in Band]
_NOT_BEFORE = 1 << 40


async def read_status(redis: Redis, job_id: str) -> JobStatus:
    """Raises JobNotFound."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hget(keys.ledger(job_id), "state")
        pipe.exists(keys.payload(job_id))
        state, has_payload = await pipe.execute()
    if state:
        return JobStatus(state.decode())
    if has_payload:
        return JobStatus.QUEUED  # a plain arq client's, and no worker has seen it yet
    raise JobNotFound(job_id)


async def read_results(redis: Redis, ids: Sequence[str]) -> dict[str, JobResult | None]:
    """Results by id; None for a job that has not ended; ids that nobody knows are left out."""
    async with redis.pipeline(transaction=True) as pipe:
        for job_id in ids:
            pipe.get(keys.result(job_id))
            pipe.hgetall(keys.ledger(job_id))
            pipe.exists(keys.payload(job_id))
        replies = await pipe.execute()
    found: dict[str, JobResult | None] = {}
    for index, job_id in enumerate(ids):
        record, ledger, has_payload = replies[3 * index : 3 * index + 3]
        if record:
            found[job_id] = result_of(job_id, record, ledger)
        elif ledger or has_payload:
            found[job_id] = None
    return found


def result_of(job_id: str, record: bytes, ledger: Mapping[bytes, bytes]) -> JobResult:
    """The whole result: what the run left, and what the ledger knows. Raises InvalidPayload."""
    known: dict[str, Any] = {"id": job_id}
    attempts = [value for field, value in ledger.items() if field.startswith(_ATTEMPT)]
    if attempts:
        known["attempts"] = tuple(
            sorted(map(Attempt.model_validate_json, attempts), key=lambda attempt: attempt.started_at)
        )
    if b"metadata" in ledger:
        known["metadata"] = pydantic_core.from_json(ledger[b"metadata"])
    for field, name in ((b"enqueued", "enqueued_at"), (b"finished", "finished_at")):
        if field in ledger:
            known[name] = from_ms(float(ledger[field]))
    return codec.result_of(codec.decode(record), **known)


async def read_stats(redis: Redis) -> QueueStats:
    """Counts by lane, without touching a job."""
    lanes = sorted(lane.decode() for lane in await redis.zrange(keys.LANES, 0, -1))
    async with redis.pipeline(transaction=True) as pipe:
        pipe.zcard(keys.FAILED)
        for lane in lanes:
            for low, high in _RUNNABLE:
                pipe.zcount(keys.lane(lane), low, high)
            pipe.zcount(keys.lane(lane), _NOT_BEFORE, "+inf")
            pipe.zcard(keys.running(lane))
            pipe.hmget(keys.meter(lane), ["until", "reason"])
        failed, *replies = await pipe.execute()
    rows = [replies[start : start + 6] for start in range(0, len(replies), 6)]
    return QueueStats(lanes=tuple(_lane_stats(lane, row) for lane, row in zip(lanes, rows, strict=True)), failed=failed)


def _lane_stats(lane: str, row: Sequence[Any]) -> LaneStats:
    high, normal, low, later, running, (until, reason) = row
    return LaneStats(
        lane=lane,
        high=high,
        normal=normal,
        low=low,
        delayed=max(0, later - running),
        running=running,
        paused_until=from_ms(float(until)) if until else None,
        pause_reason=ErrorCode(reason.decode()) if reason else None,
    )
