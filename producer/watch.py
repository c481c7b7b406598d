"""Hearing of jobs: one pub/sub connection for all that wait in this process.

A signal means "look now", never "it is done": it comes when the whole subscription is confirmed, when a job ends or its
stream has grown, after every reconnect, and every ten seconds in case a message was lost. The channels: keys.py.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from promptq.producer.errors import QueueUnavailable

PING_EVERY = 5.0
LOOK_AGAIN_EVERY = 10.0
_RECONNECT_PAUSE = 0.2
_LISTENED = ("subscribe", "message")

log = logging.getLogger("promptq.watch")


class Signals:
    """What one waiter hears: the channels on whose account it should look now."""

    def __init__(self, channels: Iterable[str]) -> None:
        self.channels = frozenset(channels)
        self._unconfirmed = set(self.channels)
        self._heard: set[str] = set()
        self._bell = asyncio.Event()
        self._is_closed = False

    def ring(self, channel: str) -> None:
        """Say that this one is worth a look."""
        self._heard.add(channel)
        if not self._unconfirmed:  # a look at some of them now would find a later end before an earlier one
            self._bell.set()

    def confirm(self, channel: str) -> None:
        """Say that from now on this one is heard, so that it is worth a look."""
        self._unconfirmed.discard(channel)
        self.ring(channel)

    def close(self) -> None:
        """Nothing will be heard any more."""
        self._is_closed = True
        self._bell.set()

    async def next(self, patience: float | None = None) -> frozenset[str]:
        """The channels heard since the last call; all of them when nothing was heard for `patience` (ten) seconds.

        Raises QueueUnavailable if the queue was closed.
        """
        try:
            async with asyncio.timeout(patience or LOOK_AGAIN_EVERY):
                await self._bell.wait()
        except TimeoutError:
            return self.channels
        if self._is_closed:
            raise QueueUnavailable("this PromptQueue was closed; the jobs go on")
        self._bell.clear()
        heard, self._heard = frozenset(self._heard), set()
        return heard


class Watcher:
    """The one subscription of a process. Starts with its first waiter."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiters: defaultdict[str, set[Signals]] = defaultdict(set)
        self._pubsub: PubSub | None = None
        self._listener: asyncio.Task[None] | None = None
        self._is_closed = False

    @contextlib.asynccontextmanager
    async def watching(self, channels: Iterable[str]) -> AsyncIterator[Signals]:
        """Signals of these channels. The first one comes when the subscription stands."""
        signals = Signals(channels)
        try:
            await self._remember(signals)
            yield signals
        finally:
            await self._forget(signals)

    async def _remember(self, signals: Signals) -> None:
        if self._is_closed:
            signals.close()
        fresh = [channel for channel in signals.channels if channel not in self._waiters]
        for channel in signals.channels:
            self._waiters[channel].add(signals)
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen(), name="promptq watcher")
        elif self._pubsub is not None:
            for channel in signals.channels.difference(fresh):
                signals.confirm(channel)
            await self._tell("subscribe", fresh)

    async def _forget(self, signals: Signals) -> None:
        for channel in signals.channels:
            self._waiters[channel].discard(signals)
        left = [channel for channel in signals.channels if not self._waiters[channel]]
        for channel in left:
            del self._waiters[channel]
        await self._tell("unsubscribe", left)

    async def _tell(self, verb: str, channels: list[str]) -> None:
        """Change the subscription; if that fails the listener reconnects and subscribes to all that is waited for."""
        if self._pubsub is None or not channels:
            return
        with contextlib.suppress(Exception):  # redis-py raises even AttributeError if it is closed meanwhile
            await getattr(self._pubsub, verb)(*channels)

    async def _listen(self) -> None:
        while self._waiters and not self._is_closed:
            try:
                await self._subscribe_and_hear()
            except (RedisError, OSError) as error:
                log.warning("subscription lost, reconnecting: %s: %s", type(error).__name__, error)
                await asyncio.sleep(_RECONNECT_PAUSE)

    async def _subscribe_and_hear(self) -> None:
        pubsub = self._redis.pubsub()
        subscribed: set[str] = set()
        try:
            while missing := [channel for channel in self._waiters if channel not in subscribed]:
                await pubsub.subscribe(*missing)
                subscribed.update(missing)
            self._pubsub = pubsub
            await self._hear(pubsub)
        finally:
            self._pubsub = None
            with contextlib.suppress(RedisError, OSError):
                await pubsub.aclose()  # type: ignore[no-untyped-call] # redis-py's own

    async def _hear(self, pubsub: PubSub) -> None:
        listener, unanswered = asyncio.current_task(), 0
        while unanswered < 2:
            message = await pubsub.get_message(ignore_subscribe_messages=False, timeout=PING_EVERY)
            if listener and listener.cancelling():
                raise asyncio.CancelledError  # Python 3.11's wait_for, inside redis-py, may have swallowed it
            if message is None:
                if not self._waiters:
                    return
                unanswered += 1
                await pubsub.ping()
                continue
            unanswered = 0
            if message["type"] in _LISTENED:
                self._tell_of(message["channel"].decode(), is_new=message["type"] == "subscribe")
        raise ConnectionError("no answer to a ping")

    def _tell_of(self, channel: str, *, is_new: bool) -> None:
        for signals in self._waiters.get(channel, ()):
            if is_new:
                signals.confirm(channel)
            else:
                signals.ring(channel)

    async def aclose(self) -> None:
        """Stop listening; whoever waits gets QueueUnavailable."""
        self._is_closed = True
        for waiters in self._waiters.values():
            for signals in waiters:
                signals.close()
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
