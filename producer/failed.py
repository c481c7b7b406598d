"""Failed jobs: read oldest first, and run again. Used by `PromptQueue`.

A failed job keeps its prompt as long as its result, so it can be run again until then.
"""

import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial

from redis.asyncio import Redis

from promptq.producer import keys, scripts
from promptq.producer.errors import ErrorCode, InvalidPayload, JobNotFound, PromptqError
from promptq.producer.link import READ_AT_ONCE, Link
from promptq.producer.models import JobStatus, from_ms
from promptq.producer.reading import read_clock
from promptq.producer.results import JobResult

_REQUEUED_AT_ONCE = 100

Change = Callable[[Callable[[], Awaitable[list[str]]]], Awaitable[list[str]]]
"""`PromptQueue._change`."""


async def read(link: Link, code: ErrorCode | None, model: str | None) -> AsyncGenerator[JobResult, None]:
    """As `PromptQueue.failed`. What is requeued meanwhile and fails again is left out: else it might never end."""
    began = from_ms(await link.call(partial(read_clock, link.redis)))
    async for ids in _pages(link):
        found = await _readable(link, ids)
        for result in filter(None, (found.get(job_id) for job_id in ids)):
            if _is_meant(result, code, model) and (result.finished_at or began) <= began:
                yield result


async def _readable(link: Link, ids: Sequence[str]) -> dict[str, JobResult | None]:
    """Results by id. One that cannot be read must not hide the others: it is left out."""
    with contextlib.suppress(InvalidPayload):
        return await link.results(ids)
    found: dict[str, JobResult | None] = {}
    for job_id in ids:
        with contextlib.suppress(InvalidPayload):
            found |= await link.results([job_id])
    return found


def _is_meant(result: JobResult, code: ErrorCode | None, model: str | None) -> bool:
    is_of_code = code is None or (result.error is not None and result.error.code is code)
    return result.status is JobStatus.FAILED and is_of_code and model in (None, result.model)


async def _pages(link: Link) -> AsyncGenerator[list[str], None]:
    """Ids by the time at which their results go. The place is a score: those that leave meanwhile move nothing."""
    place, there = float("-inf"), set[str]()
    while True:
        page = await link.call(partial(_page, link.redis, place, READ_AT_ONCE + len(there)))
        fresh = [job_id for job_id, _ in page if job_id not in there]
        if not fresh:
            return
        yield fresh
        last = page[-1][1]
        there = {job_id for job_id, score in page if score == last} | (there if last == place else set())
        place = last


async def _page(redis: Redis, place: float, most: int) -> list[tuple[str, float]]:
    found = await redis.zrangebyscore(keys.FAILED, place, "+inf", start=0, num=most, withscores=True)
    return [(job_id.decode(errors="replace"), score) for job_id, score in found]


async def requeue(redis: Redis, ids: Sequence[str], change: Change) -> tuple[str, ...]:
    """As `PromptQueue.requeue`."""
    nonce, requeued, unknown = os.urandom(16).hex(), list[str](), list[str]()
    try:
        for start in range(0, len(ids), _REQUEUED_AT_ONCE):
            some = ids[start : start + _REQUEUED_AT_ONCE]
            words = await change(partial(scripts.requeue, redis, some, nonce=nonce))
            requeued += [job_id for job_id, word in zip(some, words, strict=True) if word == "requeued"]
            unknown += [job_id for job_id, word in zip(some, words, strict=True) if word == "unknown"]
        if unknown:
            raise JobNotFound(unknown[0])
    except PromptqError as error:
        error.accepted = tuple(requeued)
        raise
    return tuple(requeued)
