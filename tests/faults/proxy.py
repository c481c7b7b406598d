"""A TCP proxy between a process and Redis: it loses replies, holds everything back, or slows it down."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

from promptq.producer.scripts import Script

_CHUNK = 65536


class RedisProxy:
    """Forwards bytes both ways, as it is told at the moment."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._path = parts.path
        self._open = asyncio.Event()
        self._open.set()
        self._losing: list[bytes] = []
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay = 0.0
        """Seconds that every reply takes longer."""
        self.port = 0
        self.lost = 0
        """Replies lost so far."""

    @property
    def url(self) -> str:
        """Where to connect instead."""
        return urlunsplit(("redis", f"127.0.0.1:{self.port}", self._path, "", ""))

    def lose_reply(self, script: Script, times: int = 1) -> None:
        """Cut the connection when Redis has run the next call of this script and before its reply goes back."""
        self._losing += [script.sha.encode()] * times

    def blackhole(self) -> None:
        """Hold everything back, both ways and new connections too, until `mend`: nobody gets an error."""
        self._open.clear()

    def mend(self) -> None:
        """Deliver what was held back, and everything from now on."""
        self._open.set()

    def cut(self) -> None:
        """End all connections."""
        for link in list(self._links):
            link.close()

    async def passage(self) -> None:
        """Returns when nothing is held back."""
        await self._open.wait()

    def takes_away_reply(self, request: bytes) -> bool:
        """Whether this request is one whose reply is to be lost."""
        for sha in self._losing:
            if sha in request:
                self._losing.remove(sha)
                self.lost += 1
                return True
        return False

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A new connection."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """End all connections, and return when they have ended."""
        self.mend()
        self.cut()
        await asyncio.gather(*self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.passage()
        try:
            upstream = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        link = _Link(self, (reader, writer), upstream)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)


class _Link:
    """One client's connection and the one to Redis behind it."""

    def __init__(
        self,
        proxy: RedisProxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._is_losing = False

    async def run(self) -> None:
        """Forward until one of the two ends, or a reply is lost; then end both."""
        ways = [asyncio.create_task(self._requests()), asyncio.create_task(self._replies())]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        self.close()
        for _, writer in (self._client, self._server):
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _requests(self) -> None:
        tail = b""
        while chunk := await self._client[0].read(_CHUNK):
            await self._proxy.passage()
            if self._proxy.takes_away_reply(tail + chunk):
                self._is_losing = True
            tail = chunk[-64:]
            self._server[1].write(chunk)
            await self._server[1].drain()

    async def _replies(self) -> None:
        while chunk := await self._server[0].read(_CHUNK):
            if self._is_losing:
                return
            if self._proxy.delay:
                await asyncio.sleep(self._proxy.delay)
            await self._proxy.passage()
            self._client[1].write(chunk)
            await self._client[1].drain()

    def close(self) -> None:
        """End both connections."""
        self._client[1].close()
        self._server[1].close()


@contextlib.asynccontextmanager
async def running_proxy(target: str) -> AsyncIterator[RedisProxy]:
    """A proxy in front of the Redis at `target`, for as long as the block runs."""
    proxy = RedisProxy(target)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.aclose()
