"""How blocking calls reach the async client: `Bridge`, which `blocking.py` shares between a queue and its groups.

A process has a session of its own, which is an async client on the loop of that process.
"""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any, TypeVar

from promptq.producer import loop_thread
from promptq.producer.errors import QueueUnavailable
from promptq.producer.loop_thread import LoopEnded, LoopThread
from promptq.producer.queue import PromptQueue
from promptq.producer.settings import ProducerSettings

T = TypeVar("T")


class Bridge:
    """Runs calls of the async client, and blocks until they have. For all threads, before and after forks."""

    def __init__(self, settings: ProducerSettings) -> None:
        self.settings = settings
        self._is_closed = False
        self._session: _Session | None = None

    def call(self, call: Callable[[PromptQueue], Awaitable[T]]) -> T:
        """Returns or raises as it does. Raises QueueUnavailable when closed, RuntimeError where a loop is running."""
        session = self._here()
        return session.run(lambda: call(session.client))

    def iterate(self, begin: Callable[[PromptQueue], AsyncGenerator[T, None]]) -> Generator[T, None, None]:
        """Yields what it yields. Raises as `call`."""
        session = self._here()
        items = session.begin(begin(session.client))
        try:
            while (item := session.run(lambda: anext(items, None))) is not None:
                yield item
        finally:
            session.end(items)

    def close(self) -> None:
        """Cancel what is under way, and close the connections of this process."""
        with loop_thread.lock():
            self._is_closed, session, self._session = True, self._session, None
        if session is not None:
            session.close()

    def _here(self) -> "_Session":
        """The session of this process: a forked child has one of its own."""
        with loop_thread.lock():
            if self._is_closed:
                raise QueueUnavailable("this PromptQueue was closed; connect again")
            if self._session is None or not self._session.is_of_this_process:
                self._session = _Session(self)
            return self._session


class _Session:
    """A queue in one process: the async client, and its calls that are under way.

    It outlives its bridge by the time that it takes to close: connections must end on their loop.
    """

    def __init__(self, owner: Bridge) -> None:
        self.client = PromptQueue(owner.settings.open_redis(), owner.settings)
        self._calls: set[asyncio.Task[Any]] = set()
        self._iterated: set[AsyncGenerator[Any, None]] = set()
        self._is_closing = False
        self._loop = LoopThread.enter(self)
        self._finalizer = weakref.finalize(owner, self._drop)
        self._finalizer.atexit = False  # the end of the process closes its sockets

    @property
    def is_of_this_process(self) -> bool:
        """False in a forked child, and when it is closed."""
        return self._loop.is_open

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """Block until it has run. Raises as it does; QueueUnavailable if the session is closed meanwhile."""
        try:
            return self._loop.run(lambda: self._noted(call))
        except LoopEnded:
            raise QueueUnavailable(
                "this PromptQueue was closed, or its process forked, meanwhile; the jobs go on"
            ) from None

    async def _noted(self, call: Callable[[], Awaitable[T]]) -> T:
        if self._is_closing:
            raise LoopEnded
        task = asyncio.ensure_future(call())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return await task

    def begin(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Note that somebody iterates: at the end it must be closed before the loop closes all at once."""
        self._iterated.add(items)
        return items

    def end(self, items: AsyncGenerator[Any, None]) -> None:
        """Nobody iterates any more. Waits for nothing, since the garbage collector may be who says so."""

        async def end() -> None:
            self._iterated.discard(items)
            await items.aclose()

        with suppress(LoopEnded):
            self._loop.start(lambda: self._noted(end))

    def close(self) -> None:
        """Cancel the calls, close the connections."""
        self._finalizer.detach()
        try:
            with suppress(LoopEnded):
                self._loop.run(self._aclose)
        finally:
            self._loop.leave(self)

    def _drop(self) -> None:
        """As `close`, from the garbage collector, who may be anywhere: waits for nothing."""

        async def close_and_leave() -> None:
            await self._aclose()
            self._loop.leave(self)

        with suppress(LoopEnded):
            self._loop.start(close_and_leave)

    async def _aclose(self) -> None:
        self._is_closing = True
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        for items in list(self._iterated):
            await items.aclose()
        await self.client.aclose()
