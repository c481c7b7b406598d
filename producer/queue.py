"""`PromptQueue`: what a backend holds. Enqueue prompts, read their results by id, wait without polling.

Every call talks to Redis for `PROMPTQ_REDIS_TIMEOUT` seconds at most, through an outage too, and may be repeated:
with the same id nothing runs twice.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from redis.asyncio import Redis

from promptq.producer import failed, keys, limits, reading, records, scripts
from promptq.producer.entries import Prompt, chunks_of, entry_of, job_of
from promptq.producer.errors import ErrorCode, IdConflict, JobNotFound, PromptqError, QueueFull, WaitTimeout
from promptq.producer.events import JobEvent
from promptq.producer.groups import Group
from promptq.producer.link import Link
from promptq.producer.listening import Listener
from promptq.producer.models import JobStatus, Limits, ModelLimits, PromptJob, QueueStats, Tenant, TenantStats
from promptq.producer.results import JobResult
from promptq.producer.settings import ProducerSettings

_LONG_AGO = datetime.min.replace(tzinfo=UTC)

T = TypeVar("T")
QueueT = TypeVar("QueueT", bound="PromptQueue")


@dataclass(frozen=True, slots=True)
class JobHandle:
    """An accepted job. `created` False: the same request stood under this id already, in state `status`."""

    id: str
    created: bool
    status: JobStatus
    queue_name: str
    """The arq queue it stands in, for `arq.jobs.Job`."""
    _queue: "PromptQueue"

    async def wait(self, timeout: float | None = None) -> JobResult:
        """As `PromptQueue.wait`."""
        return await self._queue.wait(self.id, timeout)

    def events(self, after: str | None = None, timeout: float | None = None) -> AsyncGenerator[JobEvent, None]:
        """As `PromptQueue.events`."""
        return self._queue.events(self.id, after, timeout)

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r}, created={self.created}, status={self.status.value!r})"


class Connecting(Generic[QueueT]):
    """What `connect()` returns: await it, or enter it with `async with`."""

    def __init__(self, open_queue: Callable[[], Awaitable[QueueT]]) -> None:
        self._open_queue = open_queue
        self._queue: QueueT | None = None

    def __await__(self) -> Generator[Any, None, QueueT]:
        return self._open_queue().__await__()

    async def __aenter__(self) -> QueueT:
        self._queue = await self._open_queue()
        return self._queue

    async def __aexit__(self, *_: object) -> None:
        if self._queue is not None:
            await self._queue.aclose()


class PromptQueue:
    """A connection to the queue. Make one per process and event loop with `connect()`; share it between tasks."""

    def __init__(self, redis: Redis, settings: ProducerSettings | None = None) -> None:
        self._link = Link(redis, settings or ProducerSettings())

    @classmethod
    def connect(cls, url: str | None = None, *, settings: ProducerSettings | None = None) -> Connecting[Self]:
        """Connect to `url`, or to PROMPTQ_REDIS_URL, REDIS_URL or redis://localhost:6379.

        `async with PromptQueue.connect() as queue` or `queue = await PromptQueue.connect()` and `queue.aclose()`.
        Raises QueueUnavailable if no Redis answers.
        """

        async def open_queue() -> Self:
            chosen = (settings or ProducerSettings()).at(url)
            queue = cls(chosen.open_redis(), chosen)
            try:
                await queue._ping()
            except BaseException:
                await queue.aclose()
                raise
            return queue

        return Connecting(open_queue)

    async def _ping(self) -> None:
        await self._link.call(self._link.redis.ping)

    async def aclose(self) -> None:
        """Close all connections. Jobs go on."""
        await self._link.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def enqueue(
        self,
        prompt: Prompt | PromptJob,
        *,
        id: str | None = None,  # noqa: A002 - the field's own name
        priority: str | None = None,
        tenant: str | None = None,
        delay: float | timedelta | None = None,
        deadline: float | timedelta | datetime | None = None,
        result_ttl: float | timedelta | None = None,
        metadata: Mapping[str, str] | None = None,
        group: str | None = None,
        **params: Any,
    ) -> JobHandle:
        """Accept one job: a prompt, messages, or a PromptJob. Durations are seconds or timedeltas.

        `params` are the other fields of PromptJob: `model`, `max_tokens`, `temperature`, `timeout`, ...
        The same id with the same request gives `created=False` and the state that job is in; it never runs twice.

        Raises InvalidJob (PayloadTooLarge), IdConflict, QueueUnavailable; QueueFull if its lane is, or its tenant has
        as many jobs waiting as it may; TypeError for a job with params.
        """
        if isinstance(prompt, PromptJob) and params:
            raise TypeError(f"a PromptJob carries its own parameters; leave out {', '.join(params)}")
        delivery = {
            "id": id,
            "priority": priority,
            "tenant": tenant,
            "delay": delay,
            "deadline": deadline,
            "result_ttl": result_ttl,
            "metadata": metadata,
            "group": group,
        }
        entry = entry_of(job_of(prompt, params | delivery), self._link.settings)
        [handle] = await self._send([entry])
        return handle

    async def enqueue_many(
        self, jobs: Iterable[str | Mapping[str, Any] | PromptJob], **options: Any
    ) -> list[JobHandle]:
        """Accept many jobs, in their order; a dict holds the fields of PromptJob. `options` go to all of them.

        A list is validated whole before anything is written; other iterables chunk by chunk (150 jobs or 1 MiB).
        Raises as `enqueue`; then `error.accepted` has the ids that earlier chunks had written.
        """
        return await self._send_all(chunks_of(jobs, options, self._link.settings))

    async def _send_all(self, chunks: Iterable[list[records.Entry]]) -> list[JobHandle]:
        """Each chunk is prepared while Redis takes the one before it."""
        handles: list[JobHandle] = []
        sending: asyncio.Task[list[JobHandle]] | None = None

        async def finish_sending() -> None:
            nonlocal sending
            if sending:
                last, sending = sending, None
                handles.extend(await last)

        try:
            for chunk in chunks:
                await finish_sending()
                sending = asyncio.create_task(self._send(chunk))
                await asyncio.sleep(0)  # by which it is written
            await finish_sending()
        except Exception as error:
            others: tuple[str, ...] = ()
            try:
                await finish_sending()
            except PromptqError as earlier:
                others = earlier.accepted  # of a chunk in which only some ids were in conflict
            if isinstance(error, PromptqError):
                error.accepted = (*(handle.id for handle in handles), *others, *error.accepted)
            raise
        finally:
            if sending:
                sending.cancel()
        return handles

    async def _send(self, entries: Sequence[records.Entry]) -> list[JobHandle]:
        reply = await self._accept(entries)
        if isinstance(reply, records.LaneFull):
            raise QueueFull(
                f"lane {reply.lane!r} holds {reply.queued} of {reply.most} jobs; enqueue when some have run"
            )
        if isinstance(reply, records.TenantFull):
            more = sum(entry.tenant == reply.tenant for entry in entries)
            what = (
                f"{reply.waiting} jobs of tenant {reply.tenant!r} wait, {more} more would pass its cap of {reply.most}"
            )
            raise QueueFull(f"{what}; enqueue fewer, or when some have run, or raise its max_queued")
        handles = [
            JobHandle(entry.id, said.disposition == "created", said.status, keys.lane(said.lane), self)
            for entry, said in zip(entries, reply, strict=True)
        ]
        conflicts = [entry.id for entry, said in zip(entries, reply, strict=True) if said.disposition == "conflict"]
        if conflicts:
            conflict = IdConflict(conflicts[0])
            conflict.accepted = tuple(handle.id for handle in handles if handle.id not in set(conflicts))
            raise conflict
        return handles

    async def _accept(
        self, entries: Sequence[records.Entry]
    ) -> list[records.Enqueued] | records.LaneFull | records.TenantFull:
        settings, nonce = self._link.settings, os.urandom(16).hex()
        wait = (settings.enqueue_replicas, round(settings.redis_timeout * 400))  # shorter than the socket's
        return await self._link.call(
            lambda: scripts.enqueue(self._link.redis, entries, nonce=nonce, max_queued=settings.max_queued, wait=wait)
        )

    async def status(self, id: str) -> JobStatus:  # noqa: A002 - as in enqueue
        """Where the job is. Raises JobNotFound."""
        return await self._link.call(lambda: reading.read_status(self._link.redis, id))

    async def result(self, id: str) -> JobResult | None:  # noqa: A002
        """The result, or None while the job has not ended. Raises JobNotFound."""
        found = await self.results([id])
        if id not in found:
            raise JobNotFound(id)
        return found[id]

    async def results(self, ids: Iterable[str]) -> dict[str, JobResult | None]:
        """Results by id; None for jobs that have not ended; unknown ids are left out."""
        return await self._link.results(ids)

    async def wait(self, id: str, timeout: float | None = None) -> JobResult:  # noqa: A002
        """The result, as soon as there is one, a failure too. `timeout` in seconds; None: for ever.

        Raises WaitTimeout (the job goes on), JobNotFound, or QueueUnavailable if Redis is away when it begins.
        """
        async with contextlib.aclosing(self.as_completed([id], timeout)) as results:
            async for result in results:
                return result
        raise JobNotFound(id)

    async def as_completed(self, ids: Iterable[str], timeout: float | None = None) -> AsyncGenerator[JobResult, None]:
        """Results in the order in which jobs end. `timeout` in seconds for all of them.

        A Redis that goes away meanwhile is waited for. Raises as `wait`.
        """
        async with contextlib.aclosing(self._link.follow(_Jobs(ids, self._link), timeout)) as results:
            async for result in results:
                yield result

    def events(
        self,
        id: str,  # noqa: A002
        after: str | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[JobEvent, None]:
        """The answer while it is written, if the job was enqueued with `stream`: Deltas, and Restarted; at last Ended.

        Put together, the contents of the Deltas since the last Restarted are the content of the result, of each output
        its own, if the job succeeds: also if you come late, or when the stream is no longer kept
        (`PROMPTQ_EVENTS_TTL`), or if the job was not streamed at all; then one Delta for each output brings the whole.
        Restarted comes before an answer that begins anew, if you may have something of another.

        `after`: the `id` of the last event that you have; what comes is what follows it, nothing twice and nothing left
        out. `timeout` in seconds for all of it. A Redis that goes away meanwhile is waited for.
        Raises ValueError at once for an `after` that is no event's id; otherwise as `wait`.
        """
        return self._link.follow(Listener(id, after, self._link), timeout)

    def group(self, name: str) -> Group:
        """The jobs that were enqueued with `group=name`; asks nothing yet."""
        return Group(name, self._link)

    async def cancel(self, id: str) -> bool:  # noqa: A002
        """Cancel a job: queued, it ends at once; running, its call to the provider is cancelled within seconds.

        Returns False if it had already ended. Raises JobNotFound.
        """
        ttl = self._link.settings.result_ttl_ms
        [said] = await self._link.call(lambda: scripts.cancel(self._link.redis, [id], ttl=ttl))
        if said == "unknown":
            raise JobNotFound(id)
        return said != "over"

    async def stats(self) -> QueueStats:
        """What waits and runs, by lane."""
        return await self._link.call(lambda: reading.read_stats(self._link.redis))

    async def failed(
        self, *, code: ErrorCode | str | None = None, model: str | None = None
    ) -> AsyncGenerator[JobResult, None]:
        """Results of the jobs that have failed and are still kept, oldest first; with that error, of that model.

        They may be requeued meanwhile: none is left out, and none comes twice. Raises ValueError for an unknown code.
        """
        results = failed.read(self._link, None if code is None else ErrorCode(code), model)
        async with contextlib.aclosing(results):
            async for result in results:
                yield result

    async def requeue(self, *ids: str) -> tuple[str, ...]:
        """Run failed jobs again, with all their attempts anew; those that were made stay on their results.

        Returns the ids of those that run again: none of a job that has not failed, or whose prompt is gone.
        Raises JobNotFound for an unknown id when all others are requeued; `error.accepted` has these.
        """
        return await failed.requeue(self._link.redis, list(dict.fromkeys(ids)), self._change)

    async def set_limits(
        self, model: str, *, rpm: int | None = None, tpm: int | None = None, in_flight: int | None = None
    ) -> None:
        """Limit a model for all workers: requests and tokens a minute, calls at once. What is left out has no limit.

        It counts from now on, for what waits already, too. Raises InvalidSetting.
        """
        name, chosen = limits.checked_model(model), limits.checked(Limits, rpm=rpm, tpm=tpm, in_flight=in_flight)
        await self._change(lambda: scripts.set_limits(self._link.redis, name, chosen))

    async def limits(self) -> tuple[ModelLimits, ...]:
        """The models that have limits or jobs, or were used in the last day: what they may use, and what they do."""
        return await self._link.call(lambda: limits.read_limits(self._link.redis))

    async def pause(self, model: str) -> None:
        """Start no job of a model until `resume`; calls under way go on. Raises InvalidSetting."""
        name = limits.checked_model(model)
        await self._link.call(lambda: scripts.pause(self._link.redis, name))

    async def resume(self, model: str) -> None:
        """End the pause of a model: that of `pause`, and one that the provider caused. Raises InvalidSetting."""
        name = limits.checked_model(model)
        await self._change(lambda: scripts.resume(self._link.redis, name))

    async def set_tenant(self, name: str, *, weight: int | None = None, max_queued: int | None = None) -> None:
        """Give a tenant `weight` turns, 1 to 100, for one of others, and let so many of its jobs wait at most.

        What is left out is as for any tenant: one turn, and any number. Both count for jobs that are enqueued from now
        on; one too many raises QueueFull. Raises InvalidSetting.
        """
        said = {"weight": weight, "max_queued": max_queued}
        tenant = limits.checked(
            Tenant, name=name, **{field: value for field, value in said.items() if value is not None}
        )
        await self._link.call(
            lambda: scripts.set_tenant(self._link.redis, tenant.name, weight=weight, max_queued=max_queued)
        )

    async def tenants(self) -> tuple[TenantStats, ...]:
        """The tenants whose jobs wait, and those that have a weight or a cap."""
        return await self._link.call(lambda: limits.read_tenants(self._link.redis))

    async def _change(self, call: Callable[[], Awaitable[T]]) -> T:
        """A call after which jobs may run that could not before."""
        return await self._link.call(call)


class _Jobs:
    """Jobs whose results are waited for, by their ids."""

    has_more = False

    def __init__(self, ids: Iterable[str], link: Link) -> None:
        self._open = {keys.done(job_id): job_id for job_id in ids}
        self._link = link
        self.channels = tuple(self._open)

    @property
    def is_over(self) -> bool:
        """As Awaited.is_over."""
        return not self._open

    async def look(self, heard: frozenset[str], within: float) -> list[JobResult]:
        """Those that have ended, in the order of their ends. Raises JobNotFound."""
        ids = [job_id for channel in heard if (job_id := self._open.get(channel))]
        found = await self._link.results(ids, within)
        for job_id in ids:
            if job_id not in found:
                raise JobNotFound(job_id)
        ended = [result for result in found.values() if result is not None]
        for result in ended:
            del self._open[keys.done(result.id)]
        return sorted(ended, key=lambda result: result.finished_at or _LONG_AGO)

    def too_late(self, timeout: float) -> WaitTimeout:
        """As Awaited.too_late."""
        ids = list(self._open.values())
        which = f"job {ids[0]!r} has" if len(ids) == 1 else f"{len(ids)} of the jobs have"
        return WaitTimeout(f"{which} no result after {timeout} s; wait again or cancel")
