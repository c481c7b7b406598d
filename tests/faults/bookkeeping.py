"""What stands on the books: ledgers, attempts, usage, and how often each job has ended."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self, cast

from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from promptq.producer import PromptQueue, Usage, codec, keys
from promptq.producer.models import JobStatus
from promptq.producer.results import Attempt, JobResult
from promptq.worker.simulator.control import SimulatorControl
from waiting import wait_until

_ATTEMPT = "attempt:"


@dataclass(frozen=True)
class Ledger:
    """The truth about one job, as it stood when it was read."""

    fields: Mapping[str, str]

    @classmethod
    async def of(cls, redis: Redis, job_id: str) -> Self:
        """Read it now."""
        found = await cast(Awaitable[dict[bytes, bytes]], redis.hgetall(keys.ledger(job_id)))
        return cls({name.decode(): value.decode() for name, value in found.items()})

    def number(self, name: str) -> int:
        """A counter; 0 if it was never counted."""
        return int(self.fields.get(name, 0))

    @property
    def state(self) -> str:
        """Where the job is."""
        return self.fields["state"]

    @property
    def token(self) -> str:
        """Who holds it."""
        return self.fields.get("token", "")

    @property
    def spent(self) -> int:
        """Attempts that count against the job."""
        return self.number("spent")

    @property
    def stalls(self) -> int:
        """Leases that ran out."""
        return self.number("stalls")

    @property
    def releases(self) -> int:
        """How often a worker gave it back."""
        return self.number("releases")

    @property
    def attempts(self) -> list[Attempt]:
        """Every call that was recorded."""
        return [
            codec.attempt_of(name.removeprefix(_ATTEMPT), value.encode())
            for name, value in self.fields.items()
            if name.startswith(_ATTEMPT)
        ]


class Endings:
    """Counts how often each job ends, by the word that readers are woken with."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()
        self.is_listening = False

    @classmethod
    @contextlib.asynccontextmanager
    async def listening(cls, redis: Redis) -> AsyncIterator[Self]:
        """Hear every ending inside the block."""
        endings, pubsub = cls(), redis.pubsub()
        await pubsub.psubscribe(keys.done("*"))
        endings.is_listening = True
        ear = asyncio.create_task(endings._hear(pubsub))
        try:
            yield endings
        finally:
            ear.cancel()
            await asyncio.gather(ear, return_exceptions=True)
            await pubsub.aclose()  # type: ignore[no-untyped-call]

    async def assert_one_each(self, ids: Iterable[str]) -> None:
        """Each of these has ended once, as far as we were listening."""
        ids = set(ids)
        if self.is_listening:
            await wait_until(lambda: ids <= self.of.keys(), message="every ending is heard of")
            assert {job_id: self.of[job_id] for job_id in ids} == dict.fromkeys(ids, 1)

    async def _hear(self, pubsub: PubSub) -> None:
        async for message in pubsub.listen():
            if message["type"] == "pmessage":
                self.of[message["channel"].decode().removeprefix(keys.done(""))] += 1


async def results_of(queue: PromptQueue, ids: Iterable[str], timeout: float = 15.0) -> dict[str, JobResult]:
    """The results of all of them, once they have ended."""
    return {result.id: result async for result in queue.as_completed(ids, timeout)}


async def ledgers_of(redis: Redis, ids: Iterable[str]) -> list[Ledger]:
    """The ledgers of all of them."""
    return [await Ledger.of(redis, job_id) for job_id in ids]


async def until_running(redis: Redis, ids: Iterable[str], timeout: float = 10.0) -> list[Ledger]:
    """Wait until all of them run; their ledgers then."""
    ids = list(ids)

    async def are_running() -> bool:
        return all(ledger.fields.get("state") == "running" for ledger in await ledgers_of(redis, ids))

    await wait_until(are_running, timeout, message=f"all {len(ids)} jobs run")
    return await ledgers_of(redis, ids)


async def usage_of_the_day(redis: Redis, model: str) -> dict[str, int]:
    """What the books of today say about a model."""
    found = await cast(Awaitable[dict[bytes, bytes]], redis.hgetall(keys.usage(datetime.now(UTC).date())))
    fields = {name.decode(): int(value) for name, value in found.items()}
    return {name.removeprefix(f"{model}:"): value for name, value in fields.items() if name.startswith(f"{model}:")}


async def audit(redis: Redis, ids: Iterable[str], *, model: str) -> int:
    """Check the books of all jobs of a model: usage is the sum over the attempts, each counted once.

    Returns how many generations the ledgers account for beyond one a job: retries, stalls and releases.
    """
    ledgers = await ledgers_of(redis, ids)
    attempts = [attempt for ledger in ledgers for attempt in ledger.attempts]
    booked = await usage_of_the_day(redis, model)
    total = sum((attempt.usage or Usage() for attempt in attempts), Usage())
    assert booked.get("attempts", 0) == len(attempts)
    sums: dict[str, Any] = vars(total)
    assert {name: booked.get(name, 0) for name in sums} == {name: value or 0 for name, value in sums.items()}
    return sum(ledger.spent + ledger.stalls + ledger.releases for ledger in ledgers)


@dataclass(frozen=True)
class Scene:
    """All that a test of real workers looks at, beside the workers."""

    queue: PromptQueue
    redis: Redis
    simulator: SimulatorControl
    endings: Endings
    model: str = "m"

    async def enqueue(self, *prompts: str, **options: Any) -> list[str]:
        """Enqueue one job a prompt; their ids."""
        return [handle.id for handle in await self.queue.enqueue_many(prompts, model=self.model, **options)]

    async def until_running(self, ids: Iterable[str]) -> list[Ledger]:
        """Wait until all of them run; their ledgers then."""
        return await until_running(self.redis, ids)

    async def ledgers(self, ids: Iterable[str]) -> list[Ledger]:
        """Their ledgers now."""
        return await ledgers_of(self.redis, ids)

    async def results(self, ids: Iterable[str]) -> dict[str, JobResult]:
        """Their results, once they have ended."""
        return await results_of(self.queue, ids)

    async def generations(self) -> int:
        """How many the simulator has started."""
        return (await self.simulator.totals()).generations

    async def assert_each_has_one_answer(self, ids: Iterable[str]) -> Mapping[str, JobResult]:
        """All succeed and have ended once; no generation is unaccounted for; the books agree with the attempts."""
        ids = list(ids)
        results = await self.results(ids)
        assert {result.status for result in results.values()} == {JobStatus.SUCCEEDED}
        assert results.keys() == set(ids)
        again = await audit(self.redis, ids, model=self.model)
        assert len(ids) <= await self.generations() <= len(ids) + again
        await self.endings.assert_one_each(ids)
        return results
