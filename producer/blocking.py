"""`PromptQueue` for code without an event loop: Django, Flask, scripts.

The same methods as `promptq.producer.PromptQueue`, which does the work on one background thread a process; here a call
blocks until it has. Share a queue between threads. One that was made before a fork (a preloading server, a pool of
processes) works in the parent and in the child, which connects anew. Inside a running event loop a call raises
RuntimeError: there use the async one.
"""

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

from promptq.producer import loop_thread, queue
from promptq.producer.bridge import Bridge
from promptq.producer.entries import Prompt, chunks_of
from promptq.producer.errors import ErrorCode, PromptqError
from promptq.producer.events import JobEvent
from promptq.producer.models import GroupCounts, JobStatus, ModelLimits, PromptJob, QueueStats, TenantStats
from promptq.producer.records import Entry
from promptq.producer.results import JobResult
from promptq.producer.settings import ProducerSettings


@dataclass(frozen=True, slots=True)
class JobHandle:
    """An accepted job. `created` False: the same request stood under this id already, in state `status`."""

    id: str
    created: bool
    status: JobStatus
    queue_name: str
    """The arq queue it stands in, for `arq.jobs.Job`."""
    _queue: "PromptQueue"

    def wait(self, timeout: float | None = None) -> JobResult:
        """As `PromptQueue.wait`."""
        return self._queue.wait(self.id, timeout)

    def events(self, after: str | None = None, timeout: float | None = None) -> Generator[JobEvent, None, None]:
        """As `PromptQueue.events`."""
        return self._queue.events(self.id, after, timeout)

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r}, created={self.created}, status={self.status.value!r})"


class Group:
    """A name under which jobs were enqueued. Kept as long as the last of its results."""

    def __init__(self, name: str, bridge: Bridge) -> None:
        self.name = name
        self._bridge = bridge

    def counts(self) -> GroupCounts:
        """How many of its jobs are where. Raises GroupNotFound."""
        return self._bridge.call(lambda client: client.group(self.name).counts())

    def results(self, timeout: float | None = None) -> Generator[JobResult, None, None]:
        """Results in the order in which its jobs ended, until all have; those of jobs that ended before come first.

        Results whose time is over are left out. `timeout` in seconds for all of them.
        Raises GroupNotFound, WaitTimeout (the jobs go on), or QueueUnavailable if Redis is away when it begins.
        """
        return self._bridge.iterate(lambda client: client.group(self.name).results(timeout))

    def cancel(self) -> int:
        """Cancel all that has not ended; returns how many jobs that were. Raises GroupNotFound."""
        return self._bridge.call(lambda client: client.group(self.name).cancel())

    def __repr__(self) -> str:
        return f"Group({self.name!r})"


class PromptQueue:
    """A connection to the queue, for all threads of this process and of those that fork from it; from `connect()`."""

    def __init__(self, settings: ProducerSettings | None = None) -> None:
        self._bridge = Bridge(settings or ProducerSettings())

    @classmethod
    def connect(cls, url: str | None = None, *, settings: ProducerSettings | None = None) -> Self:
        """Connect to `url`, or to PROMPTQ_REDIS_URL, REDIS_URL or redis://localhost:6379.

        `with PromptQueue.connect() as queue` or `queue = PromptQueue.connect()` and `queue.close()`.
        Raises QueueUnavailable if no Redis answers.
        """
        opened = cls((settings or ProducerSettings()).at(url))
        try:
            opened._bridge.call(lambda client: client._ping())  # noqa: SLF001 - the same client, seen from a thread
        except BaseException:
            opened._bridge.close()
            raise
        return opened

    def close(self) -> None:
        """Close all connections; whoever waits gets QueueUnavailable. Jobs go on."""
        loop_thread.refuse_inside_a_loop()
        self._bridge.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def enqueue(
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
        return self._own(
            self._bridge.call(
                lambda client: client.enqueue(
                    prompt,
                    id=id,
                    priority=priority,
                    tenant=tenant,
                    delay=delay,
                    deadline=deadline,
                    result_ttl=result_ttl,
                    metadata=metadata,
                    group=group,
                    **params,
                )
            )
        )

    def enqueue_many(self, jobs: Iterable[str | Mapping[str, Any] | PromptJob], **options: Any) -> list[JobHandle]:
        """Accept many jobs, in their order; a dict holds the fields of PromptJob. `options` go to all of them.

        A list is validated whole before anything is written; other iterables chunk by chunk (150 jobs or 1 MiB), and
        they are iterated here, in the caller's thread: a generator may read from a database.
        Raises as `enqueue`; then `error.accepted` has the ids that earlier chunks had written.
        """
        handles: list[queue.JobHandle] = []
        try:
            for chunk in chunks_of(jobs, options, self._bridge.settings):
                handles += self._send(chunk)
        except PromptqError as error:
            error.accepted = (*(handle.id for handle in handles), *error.accepted)
            raise
        return [self._own(handle) for handle in handles]

    def _send(self, chunk: list[Entry]) -> list[queue.JobHandle]:
        return self._bridge.call(lambda client: client._send(chunk))  # noqa: SLF001 - as above

    def status(self, id: str) -> JobStatus:  # noqa: A002 - as in enqueue
        """Where the job is. Raises JobNotFound."""
        return self._bridge.call(lambda client: client.status(id))

    def result(self, id: str) -> JobResult | None:  # noqa: A002
        """The result, or None while the job has not ended. Raises JobNotFound."""
        return self._bridge.call(lambda client: client.result(id))

    def results(self, ids: Iterable[str]) -> dict[str, JobResult | None]:
        """Results by id; None for jobs that have not ended; unknown ids are left out."""
        listed = list(ids)  # iterated here, not on the loop
        return self._bridge.call(lambda client: client.results(listed))

    def wait(self, id: str, timeout: float | None = None) -> JobResult:  # noqa: A002
        """The result, as soon as there is one, a failure too. `timeout` in seconds; None: for ever.

        Raises WaitTimeout (the job goes on), JobNotFound, or QueueUnavailable if Redis is away when it begins.
        """
        return self._bridge.call(lambda client: client.wait(id, timeout))

    def as_completed(self, ids: Iterable[str], timeout: float | None = None) -> Generator[JobResult, None, None]:
        """Results in the order in which jobs end. `timeout` in seconds for all of them.

        A Redis that goes away meanwhile is waited for. Raises as `wait`.
        """
        listed = list(ids)
        return self._bridge.iterate(lambda client: client.as_completed(listed, timeout))

    def events(
        self,
        id: str,  # noqa: A002
        after: str | None = None,
        timeout: float | None = None,
    ) -> Generator[JobEvent, None, None]:
        """The answer while it is written, if the job was enqueued with `stream`: Deltas, and Restarted; at last Ended.

        Put together, the contents of the Deltas since the last Restarted are the content of the result, of each output
        its own, if the job succeeds: also if you come late, or when the stream is no longer kept
        (`PROMPTQ_EVENTS_TTL`), or if the job was not streamed at all; then one Delta for each output brings the whole.
        Restarted comes before an answer that begins anew, if you may have something of another.

        `after`: the `id` of the last event that you have; what comes is what follows it, nothing twice and nothing left
        out. `timeout` in seconds for all of it. A Redis that goes away meanwhile is waited for.
        Raises ValueError at the first for an `after` that is no event's id; otherwise as `wait`.
        """
        return self._bridge.iterate(lambda client: client.events(id, after, timeout))

    def group(self, name: str) -> Group:
        """The jobs that were enqueued with `group=name`; asks nothing yet."""
        return Group(name, self._bridge)

    def cancel(self, id: str) -> bool:  # noqa: A002
        """Cancel a job: queued, it ends at once; running, its call to the provider is cancelled within seconds.

        Returns False if it had already ended. Raises JobNotFound.
        """
        return self._bridge.call(lambda client: client.cancel(id))

    def stats(self) -> QueueStats:
        """What waits and runs, by lane."""
        return self._bridge.call(lambda client: client.stats())

    def failed(
        self, *, code: ErrorCode | str | None = None, model: str | None = None
    ) -> Generator[JobResult, None, None]:
        """Results of the jobs that have failed and are still kept, oldest first; with that error, of that model.

        They may be requeued meanwhile: none is left out, and none comes twice. Raises ValueError for an unknown code.
        """
        return self._bridge.iterate(lambda client: client.failed(code=code, model=model))

    def requeue(self, *ids: str) -> tuple[str, ...]:
        """Run failed jobs again, with all their attempts anew; those that were made stay on their results.

        Returns the ids of those that run again: none of a job that has not failed, or whose prompt is gone.
        Raises JobNotFound for an unknown id when all others are requeued; `error.accepted` has these.
        """
        return self._bridge.call(lambda client: client.requeue(*ids))

    def set_limits(
        self, model: str, *, rpm: int | None = None, tpm: int | None = None, in_flight: int | None = None
    ) -> None:
        """Limit a model for all workers: requests and tokens a minute, calls at once. What is left out has no limit.

        It counts from now on, for what waits already, too. Raises InvalidSetting.
        """
        self._bridge.call(lambda client: client.set_limits(model, rpm=rpm, tpm=tpm, in_flight=in_flight))

    def limits(self) -> tuple[ModelLimits, ...]:
        """The models that have limits or jobs, or were used in the last day: what they may use, and what they do."""
        return self._bridge.call(lambda client: client.limits())

    def pause(self, model: str) -> None:
        """Start no job of a model until `resume`; calls under way go on. Raises InvalidSetting."""
        self._bridge.call(lambda client: client.pause(model))

    def resume(self, model: str) -> None:
        """End the pause of a model: that of `pause`, and one that the provider caused. Raises InvalidSetting."""
        self._bridge.call(lambda client: client.resume(model))

    def set_tenant(self, name: str, *, weight: int | None = None, max_queued: int | None = None) -> None:
        """Give a tenant `weight` turns, 1 to 100, for one of others, and let so many of its jobs wait at most.

        What is left out is as for any tenant: one turn, and any number. Both count for jobs that are enqueued from now
        on; one too many raises QueueFull. Raises InvalidSetting.
        """
        self._bridge.call(lambda client: client.set_tenant(name, weight=weight, max_queued=max_queued))

    def tenants(self) -> tuple[TenantStats, ...]:
        """The tenants whose jobs wait, and those that have a weight or a cap."""
        return self._bridge.call(lambda client: client.tenants())

    def _own(self, handle: queue.JobHandle) -> JobHandle:
        return JobHandle(handle.id, handle.created, handle.status, handle.queue_name, self)
