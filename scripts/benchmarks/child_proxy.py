"""A way to Redis that takes its time: every byte arrives `delay` seconds later, and none waits for another."""

import asyncio
import selectors
from collections import deque
from urllib.parse import urlsplit

import child


class Pipe(asyncio.Protocol):
    """One end of a connection; what comes in goes out at the other end, later and in order."""

    def __init__(self, delay: float, other: "Pipe | None" = None) -> None:
        self._delay = delay
        self._on_the_way: deque[bytes] = deque()
        self.other = other
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio calls it."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - as asyncio promises for a stream
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """As asyncio calls it."""
        if not self._delay:
            self._out(data)
            return
        self._on_the_way.append(data)
        asyncio.get_running_loop().call_later(self._delay, self._arrive)

    def _arrive(self) -> None:
        self._out(self._on_the_way.popleft())

    def _out(self, data: bytes) -> None:
        if self.other and self.other.transport:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the seam's signature
        """As asyncio calls it."""
        if self.other and self.other.transport:
            self.other.transport.close()


class Entrance(Pipe):
    """The client's end: opens the connection to Redis, and reads nothing before it stands."""

    def __init__(self, delay: float, port: int) -> None:
        super().__init__(delay)
        self._port = port
        self._opening: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio calls it."""
        super().connection_made(transport)
        if self.transport:
            # Not at once: before 3.11.4 asyncio begins to read behind this call, paused or not.
            asyncio.get_running_loop().call_soon(self.transport.pause_reading)
            self._opening = asyncio.create_task(self._open(self.transport))

    async def _open(self, near: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        _, self.other = await loop.create_connection(lambda: Pipe(self._delay, self), "127.0.0.1", self._port)
        near.resume_reading()


async def main() -> None:
    """Serve until the measure has seen enough."""
    told = child.options()
    parts = urlsplit(told["url"])
    server = await asyncio.get_running_loop().create_server(
        lambda: Entrance(told["delay"], parts.port or 6379), "127.0.0.1", 0
    )
    child.say(url=parts._replace(netloc=f"127.0.0.1:{server.sockets[0].getsockname()[1]}").geturl())
    await child.told_to_end()


def exact_loop() -> asyncio.AbstractEventLoop:
    """Whose timers are exact to microseconds: epoll, the default, counts in milliseconds and rounds up."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=exact_loop) as runner:
        runner.run(main())
