"""One worker process: build the routes and the worker from the settings, run it, and heed signals."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence

import structlog

from promptq.producer.errors import QueueUnavailable
from promptq.producer.queue import PromptQueue
from promptq.worker import logs
from promptq.worker.engine import PromptWorker
from promptq.worker.health import serving_health
from promptq.worker.providers.routes import Routes
from promptq.worker.settings import Settings

log = structlog.get_logger("promptq.process")

GIVE_UP_AFTER = 30.0
AWAIT_PAUSE = 1.0


def run_process(
    settings: Settings, *, serves: Sequence[str], burst: bool, health: tuple[str, int] | None, ends_with_stdin: bool
) -> int:
    """Run one worker until it is drained. `health`: host and port. `ends_with_stdin`: so does whoever started it.

    Returns 1 if Redis was away at the end, else 0.
    """
    logs.set_up(settings)
    return asyncio.run(_serve(settings, serves, burst, health, ends_with_stdin))


async def _serve(
    settings: Settings, serves: Sequence[str], burst: bool, health: tuple[str, int] | None, ends_with_stdin: bool
) -> int:
    stop = _on_signals()
    async with contextlib.AsyncExitStack() as open_things:
        if ends_with_stdin:
            open_things.callback(asyncio.create_task(_set_when_stdin_ends(stop)).cancel)
        await _await_redis(settings, stop)
        worker = PromptWorker(settings, Routes.from_settings(settings), serves=serves, burst=burst)
        open_things.push_async_callback(worker.close)
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, worker.drain)
        open_things.callback(asyncio.create_task(_drain_when(stop, worker)).cancel)
        if health is not None:
            await open_things.enter_async_context(serving_health(worker, settings, *health))
        await worker.main()
    return 1 if worker.is_lost else 0


async def _set_when_stdin_ends(stop: asyncio.Event) -> None:
    """Then whoever started this process is gone, even by SIGKILL."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    stop.set()


async def _drain_when(stop: asyncio.Event, worker: PromptWorker) -> None:
    """A signal may have come before there was a worker to hear it."""
    await stop.wait()
    worker.drain()


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
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AWAIT_PAUSE):
                    await stop.wait()
        else:
            return
