"""One worker process: build the provider and the worker from the settings, run it, and heed signals."""

import asyncio
import contextlib
import signal
from collections.abc import Sequence

import structlog

from promptq.producer.errors import QueueUnavailable
from promptq.producer.queue import PromptQueue
from promptq.worker import logs
from promptq.worker.engine import PromptWorker
from promptq.worker.health import serve_health
from promptq.worker.providers.base import Provider
from promptq.worker.settings import Settings

log = structlog.get_logger("promptq.process")

GIVE_UP_AFTER = 30.0


def build_provider(settings: Settings) -> Provider:
    """The provider that the settings name; only that one's library is imported."""
    if settings.provider == "echo":
        from promptq.worker.providers.echo import EchoProvider  # noqa: PLC0415 - loaded only if named

        return EchoProvider(settings.echo_latency)
    from promptq.worker.providers.xai import XaiProvider  # noqa: PLC0415 - loaded only if named

    return XaiProvider.from_settings(settings)


def run_process(settings: Settings, *, serves: Sequence[str], burst: bool, health: tuple[str, int] | None) -> int:
    """Run one worker until it is drained. `health`: host and port. Returns 1 if Redis was away at the end, else 0."""
    logs.set_up(settings)
    return asyncio.run(_serve(settings, serves, burst, health))


async def _serve(settings: Settings, serves: Sequence[str], burst: bool, health: tuple[str, int] | None) -> int:
    stop = _on_signals()
    await _await_redis(settings, stop)
    worker = PromptWorker(settings, build_provider(settings), serves=serves, burst=burst)
    if stop.is_set():
        worker.drain()
    async with contextlib.AsyncExitStack() as open_things:
        open_things.push_async_callback(worker.close)
        if health is not None:
            server = await serve_health(worker, *health)
            open_things.callback(server.close)
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, worker.drain)
        await worker.main()
    return 1 if worker.is_lost else 0


def _on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    return stop


async def _await_redis(settings: Settings, stop: asyncio.Event) -> None:
    """A worker may start before its Redis. Raises QueueUnavailable in the end."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + GIVE_UP_AFTER
    while not stop.is_set():
        try:
            await (await PromptQueue.connect(settings=settings)).aclose()
        except QueueUnavailable as error:
            if loop.time() > ends:
                raise
            log.warning("redis.awaited", reason=str(error))
        else:
            return
