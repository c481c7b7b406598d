"""Jobs of plain arq clients: each gets a ledger, so that it runs like any other, or is refused with a result."""

import time

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from promptq.producer import codec, scripts
from promptq.producer.connection import OUTAGE
from promptq.producer.entries import adoption_of
from promptq.producer.errors import InvalidJob, InvalidPayload
from promptq.producer.records import Adoption, Entry, Foreign
from promptq.worker.settings import Settings
from promptq.worker.settlement import refusal

log = structlog.get_logger("promptq.adoption")


async def adopt(redis: Redis, foreign: Foreign, settings: Settings, worker: str) -> None:
    """Adopt or refuse one job. Whoever dies in the middle leaves it to the next worker. Raises OUTAGE."""
    try:
        job_id = foreign.id.decode()
    except UnicodeDecodeError:
        log.warning("job.discarded", job_id=foreign.id, reason="the id is no text")
        await scripts.discard(redis, foreign)
        return
    adoption = _adoption(job_id, foreign, settings, worker)
    try:
        said = await scripts.adopt(redis, adoption, failure_ttl=settings.failure_ttl_ms)
    except OUTAGE:
        raise
    except RedisError as error:
        log.warning("job.not_adopted", job_id=job_id, reason=str(error))
    else:
        log.info("job.refused" if said == "refused" else "job.adopted", job_id=job_id)


def _adoption(job_id: str, foreign: Foreign, settings: Settings, worker: str) -> Adoption:
    try:
        return adoption_of(job_id, foreign.lane, codec.decode(foreign.payload), settings)
    except (InvalidPayload, InvalidJob) as error:
        now = time.time_ns() // 1_000_000
        entry = Entry(job_id, foreign.lane, 1, "default", "", 0, "", None, b"", b"")
        result = refusal(job_id, foreign.lane, f"the payload {error}", worker, now)
        return Adoption(entry, foreign.lane, now, result)
