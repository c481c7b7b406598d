"""Reading the event streams of many jobs in one call to Redis, however many readers this process has.

Those that are asked for in one turn of the loop, or while a call is under way, are read together.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from promptq.producer import keys
from promptq.producer.errors import PromptqError, QueueUnavailable
from promptq.producer.events import Entry, Place
from promptq.producer.wire import wire_of

AT_ONCE: Final = 100
"""Entries of one stream."""

_Call = Callable[[Callable[[], Awaitable[list[Any]]]], Awaitable[list[Any]]]


class _Wish(NamedTuple):
    key: str
    after: str
    reply: "asyncio.Future[list[Entry]]"


_Together = dict[str, list[_Wish]]
"""By key: what one XREAD reads, in which a stream stands once."""


class Streams:
    """Reads for all readers of a link; `call` is Link.call."""

    def __init__(self, redis: Redis, call: _Call) -> None:
        self._redis, self._call = redis, call
        self._wishes: list[_Wish] = []
        self._reading: asyncio.Task[None] | None = None

    async def read(self, job_id: str, place: Place) -> list[Entry]:
        """What stands behind a place, `AT_ONCE` entries at most; none if nothing does yet. Raises QueueUnavailable."""
        reply: asyncio.Future[list[Entry]] = asyncio.get_running_loop().create_future()
        self._wishes.append(_Wish(keys.events(job_id), place.read_from, reply))
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_all(), name="promptq streams")
        return await reply

    async def aclose(self) -> None:
        """Stop reading; whoever waits gets QueueUnavailable."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
            self._stop()  # a task that is cancelled before its first step does nothing

    async def _read_all(self) -> None:
        wishes: list[_Wish] = []
        try:
            while self._wishes:
                wishes, self._wishes = self._wishes, []
                await self._read(wishes)
        finally:
            self._stop(wishes)

    def _stop(self, unanswered: Iterable[_Wish] = ()) -> None:
        self._reading = None
        _refuse((*unanswered, *self._wishes), QueueUnavailable("this PromptQueue was closed; the jobs go on"))
        self._wishes = []

    async def _read(self, wishes: Iterable[_Wish]) -> None:
        calls = _in_calls(wishes)
        commands = [_command(call) for call in calls]
        try:
            replies = await self._call(lambda: wire_of(self._redis).call(commands))
        except PromptqError as error:
            _refuse(wishes, error)
            return
        for call, reply in zip(calls, replies, strict=True):
            if not isinstance(reply, ResponseError):
                _answer(call, reply)
            elif len(call) == 1:
                [alone] = call.values()
                _refuse(alone, QueueUnavailable(f"Redis refused the call: {reply}"))
            else:
                for alone in call.values():  # one that is no stream must not stop the others
                    await self._read(alone)


def _in_calls(wishes: Iterable[_Wish]) -> list[_Together]:
    """Nearly always one: a stream that is read from several places stands in several."""
    calls: list[_Together] = []
    same: defaultdict[tuple[str, str], list[_Wish]] = defaultdict(list)
    for wish in wishes:
        same[wish.key, wish.after].append(wish)
    for (key, _), alike in same.items():
        call = next((call for call in calls if key not in call), None)
        if call is None:
            calls.append(call := {})
        call[key] = alike
    return calls


def _command(call: _Together) -> Sequence[Any]:
    return ("XREAD", "COUNT", AT_ONCE, "STREAMS", *call, *(alike[0].after for alike in call.values()))


def _answer(call: _Together, reply: Sequence[Any] | dict[bytes, Any] | None) -> None:
    by_stream = reply.items() if isinstance(reply, dict) else reply or ()  # as fakeredis answers a new redis-py
    found = {key.decode(): entries for key, entries in by_stream}
    for key, alike in call.items():
        entries = [
            Entry(Place.of(entry_id), dict(zip(fields[::2], fields[1::2], strict=True)))
            for entry_id, fields in found.get(key, ())
        ]
        for wish in alike:
            if not wish.reply.done():
                wish.reply.set_result(entries)


def _refuse(wishes: Iterable[_Wish], error: PromptqError) -> None:
    for wish in wishes:
        if not wish.reply.done():
            wish.reply.set_exception(error)
