"""`MemoryQueue`: the real `PromptQueue` and the real scripts over a fake Redis in memory, with scripted answers.

After each call that wrote something it does what a worker would do then, before the call returns. Nothing runs beside
the test; only when a job is to come due a timer stands.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Self, TypeVar

from promptq.producer import codec
from promptq.producer.entries import Prompt, job_in, job_of
from promptq.producer.models import Band, PromptJob, from_ms
from promptq.producer.queue import Connecting, PromptQueue
from promptq.producer.records import Enqueued, Entry, LaneFull, TenantFull
from promptq.producer.settings import ProducerSettings, milliseconds
from promptq.producer.testing.answerer import Answerer
from promptq.producer.testing.answers import Answers, OneAnswer, chooser, echo
from promptq.producer.testing.assertions import description, listing, matching
from promptq.producer.testing.server import Clock, MemoryRedis, move_time

T = TypeVar("T")

_TURN: ContextVar[object] = ContextVar("_TURN", default=None)
"""Whose turn it is to answer, for the tasks of an answer, too."""


class MemoryQueue(PromptQueue):
    """A `PromptQueue` for tests. Every job is answered before the call that enqueued it returns, unless it is held.

    `answers`: what with, by default the prompt itself; an exception that a callable raises comes out of that call.
    A job that fails is not tried again. The events of one with `stream` have its answer word by word.
    Use it in one event loop, and close it: `async with MemoryQueue() as queue`.
    """

    enqueued: list[PromptJob]
    """The jobs that were accepted, as they were sent, with id and model; duplicates are not."""

    def __init__(self, answers: Answers = echo, *, settings: ProducerSettings | None = None) -> None:
        chosen = (settings or ProducerSettings()).model_copy(update={"enqueue_replicas": 0})
        self._clock = Clock()
        redis = MemoryRedis(self._clock)
        super().__init__(redis, chosen)
        self.enqueued = []
        self._jobs: dict[str, PromptJob] = {}
        self._answerer = Answerer(redis, self._clock, chosen, self._jobs, chooser(answers))
        redis.after_script = self._answerer.end_calls  # a job that runs ends with the call that cancels it
        self._is_held = False
        self._lock = asyncio.Lock()
        self._turn: object | None = None
        self._due_in: int | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._woken: asyncio.Task[Any] | None = None

    @classmethod
    def connect(
        cls,
        url: str | None = None,  # noqa: ARG003 - as in PromptQueue
        *,
        settings: ProducerSettings | None = None,
        answers: Answers = echo,
    ) -> Connecting[Self]:
        """To be put in the place of `PromptQueue.connect`: a new queue, whatever the `url`."""

        async def open_queue() -> Self:
            return cls(answers, settings=settings)

        return Connecting(open_queue)

    def answer_with(self, answers: Answers) -> None:
        """From now on, jobs are answered with these."""
        self._answerer.choose = chooser(answers)

    async def answer(self, id: str, answer: OneAnswer) -> None:  # noqa: A002 - as in enqueue
        """End a job that `NO_ANSWER` left running.

        Raises JobNotFound, or another LookupError if the job does not run.
        """
        if not await self._answerer.answer(id, answer):
            raise LookupError(f"job {id!r} is {await self.status(id)}: only a job that runs can be answered")
        await self._work()  # its model may have a limit of calls at once

    def hold(self) -> None:
        """From now on jobs stay in the queue, as if all workers were busy."""
        self._is_held = True

    async def release(self) -> None:
        """End `hold`, and answer what is in the queue."""
        self._is_held = False
        await self._work()

    async def run_next(self) -> PromptJob | None:
        """Answer the job whose turn it is, held or not; None if there is none."""
        return next(iter(await self._work(1)), None)

    async def run_all(self) -> list[PromptJob]:
        """Answer all that could run now, held or not; returns it in the order in which it ran."""
        return await self._work(math.inf)

    async def advance(self, seconds: float | timedelta) -> None:
        """Let time pass for the queue: delays, deadlines and the time of results. What comes due meanwhile runs then.

        The time that a `timeout` counts is the machine's own.
        """
        left = milliseconds(seconds)
        async with self._alone():
            await self._work()
            while self._due_in is not None and self._due_in <= left:
                step = self._due_in
                await move_time(self._link.redis, self._clock, step)
                left -= step
                await self._work()
            await move_time(self._link.redis, self._clock, left)
            await self._work()

    def assert_enqueued(self, prompt: Prompt | None = None, *, times: int | None = None, **fields: Any) -> None:
        """That jobs with this prompt (the last message's text, or all messages) and these fields were enqueued.

        `times`: exactly so many; None: at least one. `fields` are those of PromptJob. Raises AssertionError.
        """
        found = len(matching(self.enqueued, prompt, fields))
        if found != times and not (times is None and found):
            wanted = "a job" if times is None else f"{times} of them"
            what = description(prompt, fields) or "any"
            instead = listing(self.enqueued, fields)
            raise AssertionError(f"{wanted} should have been enqueued, {found} were: {what}\n{instead}")

    def assert_nothing_enqueued(self) -> None:
        """Raises AssertionError if a job was enqueued."""
        if self.enqueued:
            raise AssertionError(f"nothing should have been enqueued\n{listing(self.enqueued)}")

    async def aclose(self) -> None:
        """Close it; its jobs are gone. Raises what an answer raised that was due meanwhile."""
        if self._alarm is not None:
            self._alarm.cancel()
        if self._woken is not None:
            self._woken.cancel()
            await asyncio.wait([self._woken])
        await super().aclose()
        if self._woken is not None and not self._woken.cancelled():
            self._woken.result()

    async def _accept(self, entries: Sequence[Entry]) -> list[Enqueued] | LaneFull | TenantFull:
        async with self._alone():
            reply = await super()._accept(entries)
            if isinstance(reply, list):
                self._note(entry for entry, said in zip(entries, reply, strict=True) if said.disposition == "created")
                await self._work()
            return reply

    async def _change(self, call: Callable[[], Awaitable[T]]) -> T:
        async with self._alone():
            changed = await super()._change(call)
            await self._work()
            return changed

    def _note(self, created: Iterable[Entry]) -> None:
        for job in map(_job_of, created):
            self.enqueued.append(job)
            self._jobs[str(job.id)] = job

    async def _work(self, most: float | None = None) -> list[PromptJob]:
        """What a worker would do now. `most`: jobs; None: as many as are not held."""
        async with self._alone():
            if most is None:
                most = 0 if self._is_held else math.inf
            ran, self._due_in = await self._answerer.run(most)
            self._set_alarm()
            return ran

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """One answers at a time, so that a job is answered when its own call returns; an answer may enqueue, too."""
        if self._turn is not None and _TURN.get() is self._turn:
            yield
            return
        async with self._lock:
            self._turn = object()
            before = _TURN.set(self._turn)
            try:
                yield
            finally:
                _TURN.reset(before)
                self._turn = None

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        if self._due_in is not None:
            self._alarm = asyncio.get_running_loop().call_later(self._due_in / 1000, self._wake_up)

    def _wake_up(self) -> None:
        if self._woken is None or self._woken.done():
            self._woken = asyncio.create_task(self._work(), name="promptq memory queue")


def _job_of(entry: Entry) -> PromptJob:
    """The job as it went to Redis."""
    delivery = {
        "id": entry.id,
        "priority": Band(entry.band).name.lower(),
        "tenant": entry.tenant,
        "delay": timedelta(milliseconds=entry.delay) if entry.delay else None,
        "deadline": _deadline_of(entry.deadline),
        "result_ttl": None if entry.ttl is None else timedelta(milliseconds=entry.ttl),
        "metadata": codec.decode(entry.metadata) if entry.metadata else None,
        "group": entry.group or None,
    }
    return job_of(job_in(codec.decode(entry.payload)), delivery)


def _deadline_of(text: str) -> Any:
    if not text:
        return None
    return timedelta(milliseconds=int(text)) if text.startswith("+") else from_ms(int(text))
