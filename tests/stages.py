"""A queue and somebody who runs its jobs when the test says so: on a real Redis with a real worker, and in memory."""

import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

from promptq.producer import ErrorCode, JobError, ProducerSettings, PromptJob, PromptQueue
from promptq.producer.testing import NO_ANSWER, MemoryQueue, OneAnswer, echo
from workers import ScriptedProvider, running_worker


class Stage(Protocol):
    """Prompts are answered as by ScriptedProvider: `hang`, `fail CODE`, everything else is echoed."""

    @property
    def queue(self) -> PromptQueue:
        """The one that is tested."""
        ...

    @property
    def started(self) -> list[str]:
        """The prompts that were run, in the order of their beginning."""
        ...

    def working(self, slots: int = 10) -> contextlib.AbstractAsyncContextManager[None]:
        """For the block, jobs are run, so many at once."""
        ...

    async def finish(self) -> None:
        """Answer those that hang."""
        ...


class RealStage:
    """A Redis and, while the stage is working, a worker."""

    def __init__(self, queue: PromptQueue, url: str) -> None:
        self.queue, self._url = queue, url
        self._provider = ScriptedProvider()

    @property
    def started(self) -> list[str]:
        """As Stage."""
        return self._provider.started

    @contextlib.asynccontextmanager
    async def working(self, slots: int = 10) -> AsyncIterator[None]:
        """As Stage."""
        async with running_worker(self._url, self._provider, max_jobs=slots):
            yield

    async def finish(self) -> None:
        """As Stage."""
        self._provider.release.set()


class MemoryStage:
    """A MemoryQueue whose jobs are held while the stage is not working."""

    def __init__(self, settings: ProducerSettings) -> None:
        self.queue = MemoryQueue(self._answer, settings=settings)
        self.queue.hold()
        self.started: list[str] = []
        self._hanging: list[PromptJob] = []

    @contextlib.asynccontextmanager
    async def working(self, slots: int = 10) -> AsyncIterator[None]:
        """As Stage; one runs after the other, and those that hang hold up nobody."""
        await self.queue.release()
        yield
        self.queue.hold()

    async def finish(self) -> None:
        """As Stage."""
        while self._hanging:
            job = self._hanging.pop()
            with contextlib.suppress(LookupError):  # it was cancelled
                await self.queue.answer(str(job.id), echo(job))

    def _answer(self, job: PromptJob) -> OneAnswer:
        prompt = echo(job)
        self.started.append(prompt)
        if prompt.startswith("hang"):
            self._hanging.append(job)
            return NO_ANSWER
        if prompt.startswith("fail "):
            return JobError(code=ErrorCode(prompt.removeprefix("fail ")), message="as the prompt said")
        return prompt
