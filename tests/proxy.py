"""A way to Redis that can go silent: it takes connections and bytes, and nothing comes back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit


class Proxy:
    """Passes bytes on both ways, until frozen."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._frozen: set[asyncio.Task[None]] = set()
        self.freezes_new_ones = False
        self.url = ""

    def freeze(self, *, new_ones: bool = True) -> None:
        """Go silent on every connection there is, and unless told otherwise on those to come."""
        self.freezes_new_ones = new_ones
        self._frozen |= self._tasks

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        near = asyncio.current_task()
        assert near is not None
        self._tasks.add(near)
        if self.freezes_new_ones:
            self._frozen.add(near)
        with contextlib.closing(writer):
            try:
                back, onward = await asyncio.open_connection("127.0.0.1", self._target)
            except ConnectionError:
                return
            with contextlib.closing(onward):
                await asyncio.wait(
                    [
                        asyncio.create_task(self._pass_on(reader, onward, near)),
                        asyncio.create_task(self._pass_on(back, writer, near)),
                    ],
                    return_when=asyncio.FIRST_COMPLETED,
                )

    async def _pass_on(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, near: "asyncio.Task[None]"
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if near not in self._frozen:
                    sink.write(data)

    async def close(self) -> None:
        """End every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def proxied(redis_url: str) -> AsyncIterator[Proxy]:
    """A proxy before this Redis; its `url` is what clients take."""
    parts = urlsplit(redis_url)
    assert parts.port is not None
    proxy = Proxy(parts.port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = parts._replace(netloc=f"127.0.0.1:{server.sockets[0].getsockname()[1]}").geturl()
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
