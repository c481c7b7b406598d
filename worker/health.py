"""What an orchestrator asks a worker over HTTP: `/livez` (would a restart help?) and `/readyz` (would it take a job?).

The pages are answered by a thread of their own, so that a worker whose event loop is busy, or stands still, is told
from one that is gone: the loop leaves a pulse, and the thread looks how old it is. Redis is read only when `/readyz`
is asked, at most once a second.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, Self

from redis.asyncio import Redis

from promptq.producer.connection import close_redis, open_redis, public_url, try_until
from promptq.producer.errors import QueueUnavailable
from promptq.worker.pauses import read_pauses, standstill
from promptq.worker.settings import Settings

BEAT = 0.25
"""Seconds from one pulse to the next."""
READ_TIMEOUT = 0.7
"""Of `/readyz`: under the second that an orchestrator's probe waits by default."""
READ_EVERY = 1.0
_ASKED_WITHIN = 5.0
_JOINED_WITHIN = 5.0

Answer = tuple[bool, str]
"""Whether all is well, and the page's text."""


class Condition(StrEnum):
    """How a worker stands, in the words of the page."""

    CLAIMING = "ready"
    STARTING = "starting"
    DRAINING = "draining"
    AWAY = "Redis is away"
    SETTLING = "Redis has just come back; the leases are renewed first"
    BROKEN = "broken: the task that renews the leases, or the one that waits for jobs, has ended"


class Asked(Protocol):
    """The worker, as far as the pages are concerned."""

    @property
    def condition(self) -> Condition:
        """How it stands now."""
        ...

    @property
    def models(self) -> Mapping[str, str]:
        """Those with jobs, as of its last claim, and the accounts that pay for them."""
        ...

    @property
    def account(self) -> str:
        """Who pays for all others."""
        ...


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the worker's event loop said of itself when it last turned."""

    at: float
    """time.monotonic()"""
    condition: Condition
    models: Mapping[str, str]
    account: str

    @classmethod
    def of(cls, worker: Asked) -> Self:
        """As of now; to be called by the worker's own loop."""
        return cls(time.monotonic(), worker.condition, worker.models, worker.account)


@contextlib.asynccontextmanager
async def serving_health(worker: Asked, settings: Settings, host: str, port: int) -> AsyncIterator[int]:
    """Answer there inside the block; yields the port, which matters if it was 0. Raises OSError if it is taken."""
    pages = _Pages(settings, Pulse.of(worker))
    listening: Future[int] = Future()
    thread = threading.Thread(target=pages.run, args=(host, port, listening), name="promptq health", daemon=True)
    thread.start()
    beating = asyncio.create_task(_beat(worker, pages), name="promptq pulse")
    try:
        yield await asyncio.wrap_future(listening)
    finally:
        beating.cancel()
        pages.stop()
        await asyncio.to_thread(thread.join, _JOINED_WITHIN)


async def _beat(worker: Asked, pages: "_Pages") -> None:
    while True:
        pages.pulse = Pulse.of(worker)
        await asyncio.sleep(BEAT)


class _Pages:
    """Runs in the thread, but for `pulse` and `stop`."""

    def __init__(self, settings: Settings, pulse: Pulse) -> None:
        self.pulse = pulse
        self._url = settings.redis_url.get_secret_value()
        self._longest_pause = settings.lease
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._read_at = float("-inf")
        self._read: Answer = (True, "")

    def run(self, host: str, port: int, listening: "Future[int]") -> None:
        """Serve until `stop`; `listening` gets the port, or the OSError."""
        asyncio.run(self._serve(host, port, listening))

    def stop(self) -> None:
        """Let `run` return."""
        if self._loop is not None and self._ending is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed already
                self._loop.call_soon_threadsafe(self._ending.set)

    async def _serve(self, host: str, port: int, listening: "Future[int]") -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        self._reading = asyncio.Lock()
        self._redis: Redis = open_redis(self._url, timeout=READ_TIMEOUT, max_connections=1)
        try:
            server = await asyncio.start_server(self._answer, host, port)
        except (OSError, ValueError) as error:  # a host may be no name at all
            listening.set_exception(error)
            return
        listening.set_result(server.sockets[0].getsockname()[1])
        await self._ending.wait()
        server.close()
        await close_redis(self._redis)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_ASKED_WITHIN):
                request = await reader.readline()
                path = request.split(b" ")[1:2]
                while (await reader.readline()).strip():  # to close with a header unread would cut the answer off
                    pass
                writer.write(await self._response(path[0] if path else b""))
                await writer.drain()
        except (TimeoutError, OSError, ValueError):
            pass
        finally:
            writer.close()

    async def _response(self, path: bytes) -> bytes:
        if path == b"/livez":
            is_well, text = self._is_live()
        elif path == b"/readyz":
            is_well, text = await self._is_ready()
        else:
            return _page("404 Not Found", "ask for /livez or /readyz")
        return _page("200 OK" if is_well else "503 Service Unavailable", text)

    def _is_live(self) -> Answer:
        """Whether a restart would not help: an outage, or a drain, is no reason for one."""
        pulse = self.pulse
        age = time.monotonic() - pulse.at
        if age > self._longest_pause:  # its leases have run out: others do its jobs
            return False, f"the event loop has stood still for {age:.0f} s"
        if pulse.condition is Condition.BROKEN:
            return False, pulse.condition
        return True, "alive"

    async def _is_ready(self) -> Answer:
        is_live, why_not = self._is_live()
        pulse = self.pulse
        if not is_live:
            return False, why_not
        if pulse.condition is not Condition.CLAIMING:
            return False, pulse.condition
        async with self._reading:
            if time.monotonic() - self._read_at >= READ_EVERY:
                self._read = await self._look(pulse.models, pulse.account)
                self._read_at = time.monotonic()
            return self._read

    async def _look(self, models: Mapping[str, str], account: str) -> Answer:
        """Ask Redis whether it answers, and what is paused."""
        try:
            pauses = await try_until(READ_TIMEOUT, lambda: read_pauses(self._redis, models), public_url(self._url))
        except QueueUnavailable as error:
            return False, f"{Condition.AWAY}: {error}"
        pause = standstill(pauses, models, account)
        return (True, Condition.CLAIMING) if pause is None else (False, f"paused: {pause}")


def _page(status: str, text: str) -> bytes:
    body = text.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
