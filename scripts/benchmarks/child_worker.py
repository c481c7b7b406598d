"""One worker process, promptq's or plain arq's, that starts when told and says what processor time it took."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pydantic_core
from arq.connections import RedisSettings, create_pool
from arq.worker import Worker, func

import child
from promptq.producer.models import PromptJob
from promptq.worker import logs
from promptq.worker.engine import PromptWorker
from promptq.worker.providers.base import Answer
from promptq.worker.providers.echo import EchoProvider
from promptq.worker.providers.routes import build_provider
from promptq.worker.settings import Settings

MOST_TRIES = 1_000
"""Of plain arq, whose jobs would otherwise fail for good at the fifth 429."""

Main = Callable[[], Awaitable[None]]


def stamp(prompt: str) -> None:
    """Say that the call for this prompt starts now."""
    os.write(1, json.dumps({"prompt": prompt, "at": time.time_ns()}).encode() + b"\n")


class StampingProvider(EchoProvider):
    """Echoes, and says when each call started."""

    async def sample(self, job: PromptJob, timeout: float, hear: object = None) -> Answer:  # noqa: ARG002 - the seam
        """As EchoProvider."""
        stamp(job.messages[-1].text)
        return await super().sample(job, timeout)


@contextlib.asynccontextmanager
async def promptq_worker(told: dict[str, Any]) -> AsyncIterator[Main]:
    """A worker as `promptq worker` builds it. At the end what runs is given back."""
    settings = Settings.model_validate(
        {
            "redis_url": told["url"],
            "max_jobs": told["max_jobs"],
            "provider": "echo",
            "echo_latency": told.get("latency", 0),
            "drain_timeout": 0,
            "log_level": "warning",
            **told.get("settings", {}),
        }
    )
    logs.set_up(settings)
    provider = StampingProvider(settings.echo_latency) if told.get("stamps") else build_provider(settings)
    worker = PromptWorker(settings, provider)
    await worker.pool.ping()

    async def main() -> None:
        try:
            await worker.main()
        except asyncio.CancelledError:
            worker.drain()
            worker.drain()
            raise

    yield main
    await worker.close()


@contextlib.asynccontextmanager
async def arq_worker(told: dict[str, Any]) -> AsyncIterator[Main]:
    """Plain arq as installed, with JSON instead of pickle; its coroutine returns its prompt, or calls the `host`."""

    async def echo(_: dict[Any, Any], prompt: str, **__: Any) -> str:
        if told.get("stamps"):
            stamp(prompt)
        if told.get("latency"):
            await asyncio.sleep(told["latency"])
        return prompt

    sample_prompt: Any = echo
    if "host" in told:
        import arq_calling  # noqa: PLC0415 - loads the SDK, which no other measure of arq needs

        sample_prompt = arq_calling.caller(told["host"])
    pool = await create_pool(RedisSettings.from_dsn(told["url"]))
    worker = Worker(
        functions=[func(sample_prompt, name="sample_prompt", max_tries=MOST_TRIES)],
        redis_pool=pool,
        max_jobs=told["max_jobs"],
        poll_delay=told["poll_delay"],
        job_serializer=pydantic_core.to_json,
        job_deserializer=pydantic_core.from_json,
        handle_signals=False,
    )

    async def main() -> None:
        try:
            await worker.main()
        except asyncio.CancelledError:
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # it complains of what it left open
            raise

    yield main
    await worker.close()


async def main() -> None:
    """Run until the measure has seen enough."""
    told = child.options()
    build = {"promptq": promptq_worker, "arq": arq_worker}[told["contender"]]
    async with build(told) as run:
        child.say(ready=True)
        await child.told_to_go()
        before = time.process_time()
        running = asyncio.ensure_future(run())
        end = asyncio.create_task(child.told_to_end())
        await asyncio.wait([running, end], return_when=asyncio.FIRST_COMPLETED)
        child.say(cpu=time.process_time() - before)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


if __name__ == "__main__":
    asyncio.run(main())
