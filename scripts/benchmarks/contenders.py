"""How jobs get into the queue of each contender, and how its results are read back and checked."""

import asyncio
import itertools
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import pydantic_core
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.constants import default_queue_name, result_key_prefix

from promptq.producer import JobStatus, ProducerSettings, PromptQueue, keys

MODEL = "grok-4"
MAX_TOKENS = 100
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Contender:
    """`fill` enqueues prompts and returns ids; `read` returns the answers, and raises RuntimeError if one is none."""

    name: str
    lane: str
    """The ZSET that holds every job until its result stands."""
    fill: Callable[[str, Sequence[str]], Coroutine[Any, Any, list[str]]]
    read: Callable[[str, Sequence[str]], Coroutine[Any, Any, list[str]]]
    echoes: bool = True

    def check(self, url: str, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Read every answer. Raises RuntimeError if one is missing, empty or, where it is an echo, another job's."""
        answers = asyncio.run(self.read(url, ids))
        if (answers != list(texts)) if self.echoes else not all(answers):
            raise RuntimeError("an answer is not that of its prompt")


def prompts(count: int) -> list[str]:
    """Word problems as in GSM8K, about 250 characters each, over and over."""
    text = (files("promptq.worker") / "data" / "demo-prompts.jsonl").read_text()
    return list(itertools.islice(itertools.cycle(json.loads(line)["question"] for line in text.splitlines()), count))


def producer_settings(url: str) -> ProducerSettings:
    """Nothing from the environment but the defaults."""
    return ProducerSettings.model_validate({"redis_url": url})


async def arq_pool(url: str) -> ArqRedis:
    """Plain arq's client, with JSON instead of pickle."""
    return await create_pool(
        RedisSettings.from_dsn(url), job_serializer=pydantic_core.to_json, job_deserializer=pydantic_core.from_json
    )


async def fill_promptq(url: str, texts: Sequence[str]) -> list[str]:
    """By `enqueue_many`."""
    async with PromptQueue.connect(settings=producer_settings(url)) as queue:
        return [handle.id for handle in await queue.enqueue_many(texts, model=MODEL, max_tokens=MAX_TOKENS)]


async def read_promptq(url: str, ids: Sequence[str]) -> list[str]:
    """Raises RuntimeError if a job has not succeeded."""
    async with PromptQueue.connect(settings=producer_settings(url)) as queue:
        results = await queue.results(ids)
    found = [result for job_id in ids if (result := results[job_id]) and result.status is JobStatus.SUCCEEDED]
    if len(found) < len(ids):
        raise RuntimeError(f"{len(ids) - len(found)} of {len(ids)} jobs have not succeeded")
    return [result.content for result in found]


async def enqueue_arq(pool: ArqRedis, text: str) -> str:
    """One job, as plain arq's users do; returns its id."""
    job = await pool.enqueue_job("sample_prompt", text, model=MODEL, max_tokens=MAX_TOKENS)
    if job is None:
        raise RuntimeError("arq knows the id already")
    return job.job_id


async def fill_arq(url: str, texts: Sequence[str]) -> list[str]:
    """By `enqueue_job`, some at once."""
    pool = await arq_pool(url)
    ids: list[str] = []
    for start in range(0, len(texts), _AT_ONCE):
        ids += await asyncio.gather(*(enqueue_arq(pool, text) for text in texts[start : start + _AT_ONCE]))
    await pool.aclose()
    return ids


async def read_arq(url: str, ids: Sequence[str]) -> list[str]:
    """Raises RuntimeError if a job has not succeeded."""
    pool = await arq_pool(url)
    records: list[bytes | None] = await pool.mget([result_key_prefix + job_id for job_id in ids])
    await pool.aclose()
    found: list[dict[str, Any]] = [pydantic_core.from_json(record) for record in records if record]
    if len(found) < len(ids) or not all(record["s"] for record in found):
        raise RuntimeError(f"of {len(ids)} jobs {len(found)} have ended, or some failed")
    return [record["r"] for record in found]


PROMPTQ = Contender("promptq", keys.lane(MODEL), fill_promptq, read_promptq)
PROMPTQ_CALLS = replace(PROMPTQ, echoes=False)
ARQ = Contender("arq", default_queue_name, fill_arq, read_arq)
