"""From what stands in Redis about a job to what a reader gets.

One transaction a read, so that nothing is seen half-written.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pydantic_core
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from promptq.producer import codec, keys, meters
from promptq.producer.errors import ErrorCode, GroupNotFound, InvalidPayload, JobNotFound
from promptq.producer.models import AccountPause, Band, GroupCounts, JobStatus, LaneStats, QueueStats, from_ms
from promptq.producer.results import JobResult

_ATTEMPT = b"attempt:"
_RUNNABLE = [(band << 38, f"({(band + 1) << 38}") for band in Band]
_NOT_BEFORE = 1 << 40
_ROW = 9
_SEEN_WITHIN = 15_000
"""In ms: a worker claims or renews every five seconds at least."""


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
    """The whole result: what the run left, and what the ledger knows. Raises InvalidPayload, which names the job."""
    try:
        return codec.result_of(codec.decode(record), **_known(job_id, ledger))
    except InvalidPayload as error:
        raise InvalidPayload(f"the result of job {job_id!r} {error}") from None
    except (ValueError, OverflowError) as error:  # whose text may quote the answer
        raise InvalidPayload(f"the ledger of job {job_id!r} cannot be read: {type(error).__name__}") from None


def _known(job_id: str, ledger: Mapping[bytes, bytes]) -> dict[str, Any]:
    known: dict[str, Any] = {"id": job_id}
    attempts = [
        codec.attempt_of(field.removeprefix(_ATTEMPT).decode(), value)
        for field, value in ledger.items()
        if field.startswith(_ATTEMPT)
    ]
    if attempts:
        known["attempts"] = tuple(sorted(attempts, key=lambda attempt: attempt.started_at))
    if b"metadata" in ledger:
        known["metadata"] = pydantic_core.from_json(ledger[b"metadata"])
    if b"group" in ledger:
        known["group"] = ledger[b"group"].decode()
    for field, name in ((b"enqueued", "enqueued_at"), (b"finished", "finished_at")):
        if field in ledger:
            known[name] = from_ms(float(ledger[field]))
    return known


async def read_group(redis: Redis, name: str) -> GroupCounts:
    """Raises GroupNotFound."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hgetall(keys.group(name))
        [counters] = await pipe.execute()
    return _group_counts(name, counters)


async def read_ended(redis: Redis, name: str, place: int, most: int) -> tuple[GroupCounts, list[str], int]:
    """Counts, the next ids after `place` in the order of their ends, and the last one's place. Raises GroupNotFound."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hgetall(keys.group(name))
        pipe.zrangebyscore(keys.members(name), f"({place}", "+inf", start=0, num=most, withscores=True)
        counts, ended = await pipe.execute()
    ids = [job_id.decode() for job_id, _ in ended]
    return _group_counts(name, counts), ids, int(ended[-1][1]) if ended else place


async def read_open(redis: Redis, name: str, cursor: int, about: int) -> tuple[int, list[str]]:
    """The next cursor, 0 at the end, and which of about so many jobs of the group have not ended.

    However the group changes meanwhile: what is open from the first call to the last is seen, perhaps twice.
    """
    cursor, found = await redis.zscan(keys.members(name), cursor, count=about)
    return cursor, [job_id.decode() for job_id, place in found if not place]


def _group_counts(name: str, counters: Mapping[bytes, bytes]) -> GroupCounts:
    if not counters:
        raise GroupNotFound(name)
    return GroupCounts.model_validate({"name": name} | {field.decode(): value for field, value in counters.items()})


async def read_clock(redis: Redis) -> int:
    """The time of the scripts, in ms since 1970."""
    seconds, microseconds = await redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def ask_meter(pipe: Pipeline, model: str) -> None:
    """Three replies, as `meters.Meter` takes them."""
    pipe.hmget(keys.meter(model), meters.FIELDS)
    pipe.hmget(keys.LIMITS, [f"{model}:{name}" for name in meters.LIMITS])
    pipe.zcard(keys.running(model))


async def read_stats(redis: Redis) -> QueueStats:
    """Counts by lane; of the jobs only those that are next are looked at."""
    now = await read_clock(redis)
    lanes = sorted(name.decode() for name in await redis.zrange(keys.LANES, 0, -1))
    async with redis.pipeline(transaction=True) as pipe:
        pipe.zcount(keys.FAILED, now, "+inf")
        for lane in lanes:
            for low, high in _RUNNABLE:
                pipe.zcount(keys.lane(lane), low, high)
            pipe.zcount(keys.lane(lane), _NOT_BEFORE, "+inf")
            pipe.zcount(keys.running(lane), "-inf", now)
            ask_meter(pipe, lane)
            pipe.zinter([keys.lane(keys.INTAKE), keys.running(lane)])
        pipe.zcount(keys.WORKERS, now - _SEEN_WITHIN, "+inf")
        pipe.zrange(keys.WORKERS, 0, 0, desc=True, withscores=True)
        failed, *replies, workers, last = await pipe.execute()
    rows = [replies[start : start + _ROW] for start in range(0, len(replies), _ROW)]
    adopted = {lane: len(row[-1]) for lane, row in zip(lanes, rows, strict=True)}
    since = await _waiting_since(redis, lanes)
    stats = (_lane_stats(lane, row, adopted, since[lane], now) for lane, row in zip(lanes, rows, strict=True))
    return QueueStats(
        lanes=tuple(stats),
        paused_accounts=await read_accounts(redis),
        failed=failed,
        workers=workers,
        worker_seen_at=from_ms(last[0][1]) if last else None,
    )


async def read_accounts(redis: Redis) -> tuple[AccountPause, ...]:
    """The accounts that are paused."""
    names = [name.decode() for name in await redis.zrange(keys.ACCOUNTS, 0, -1)]
    async with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hmget(keys.account(name), ["reason", "until", "state"])
        replies = await pipe.execute()
    return tuple(
        AccountPause(
            account=name, reason=ErrorCode(reason.decode()), until=from_ms(float(until)), is_open=state == b"open"
        )
        for name, (reason, until, state) in zip(names, replies, strict=True)
        if reason and until
    )


async def _waiting_since(redis: Redis, lanes: Sequence[str]) -> dict[str, datetime | None]:
    """By lane, when the jobs that are next in their bands were enqueued: the earliest."""
    async with redis.pipeline(transaction=False) as pipe:
        for lane in lanes:
            for low, high in _RUNNABLE:
                pipe.zrangebyscore(keys.lane(lane), low, high, start=0, num=1)
        heads = await pipe.execute()
    async with redis.pipeline(transaction=False) as pipe:
        for head in heads:
            pipe.hget(keys.ledger(head[0].decode(errors="replace") if head else ""), "enqueued")
        moments = [moment and from_ms(float(moment)) for moment in await pipe.execute()]
    bands = len(_RUNNABLE)
    return {
        lane: min(filter(None, moments[place * bands : (place + 1) * bands]), default=None)
        for place, lane in enumerate(lanes)
    }


def _lane_stats(
    lane: str, row: Sequence[Any], adopted: Mapping[str, int], since: datetime | None, now: int
) -> LaneStats:
    """`adopted`: by model, the plain arq jobs that run; their leases stand in the intake lane."""
    high, normal, low, later, stalled, *meter, _ = row
    told = meters.Meter(now, *meter)
    leased = sum(adopted.values()) if lane == keys.INTAKE else told.in_flight - adopted[lane]
    until, reason = told.pause
    held = told.held
    return LaneStats(
        lane=lane,
        high=high,
        normal=normal,
        low=low,
        delayed=later - leased,
        running=told.in_flight,
        stalled=stalled,
        waiting_since=since,
        paused_by_operator=told.is_paused_by_operator,
        paused_until=from_ms(until) if until else None,
        pause_reason=reason,
        limited_by=held and held.by,
        limited_to=held and held.at,
    )
