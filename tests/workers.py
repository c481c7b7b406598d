"""A worker in the test's own event loop, and a provider that does what the prompt says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from promptq.producer import ErrorCode, PromptJob
from promptq.worker.engine import PromptWorker
from promptq.worker.providers.base import Answer, Hear, Provider, ProviderError
from promptq.worker.providers.echo import EchoProvider
from promptq.worker.providers.routes import Routes
from promptq.worker.settings import Settings

_SMALL: dict[str, Any] = {
    "provider": "echo",
    "redis_timeout": 1.0,
    "lease": 3.0,  # renewed every second, which is how soon arq's own abort is heard
    "drain_timeout": 0.0,
}


class ScriptedProvider(EchoProvider):
    """`hang` waits for `release`, `fail CODE` fails with that code, everything else is echoed."""

    name = "scripted"

    def __init__(self) -> None:
        super().__init__()
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.release = asyncio.Event()

    async def sample(self, job: PromptJob, timeout: float, hear: Hear | None = None) -> Answer:
        """As the prompt says; every call is noted."""
        prompt = job.messages[-1].text
        self.started.append(prompt)
        if prompt.startswith("fail "):
            raise ProviderError(ErrorCode(prompt.removeprefix("fail ")), "as the prompt said")
        if prompt.startswith("hang"):
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled.append(prompt)
                raise
        return await super().sample(job, timeout, hear)


@contextlib.asynccontextmanager
async def running_worker(
    url: str, provider: Provider | Routes | None = None, **settings: Any
) -> AsyncIterator[PromptWorker]:
    """A worker that is up for the block; at its end running calls are given back. Its errors are the test's."""
    worker = PromptWorker(Settings(redis_url=url, **_SMALL | settings), provider or EchoProvider())  # type: ignore[arg-type]
    main = asyncio.create_task(worker.main(), name="worker under test")
    try:
        yield worker
    finally:
        worker.drain()
        worker.drain()
        try:
            await main
        finally:
            await worker.close()
