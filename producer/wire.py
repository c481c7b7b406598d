"""redis-py's asyncio connection, without what it does for each command beside sending it.

redis-py polls the socket before each command and, on Python 3.11, writes in a task of its own: both give the event loop
a turn first, in which a worker runs the jobs that it has just claimed while Redis waits for the next call. And it puts
calls of a thousand arguments together in Python. `direct` is used by connection.py for every client; `Wire` by
scripts.py, whose calls are too many for the way through the client and its pool.
"""

import asyncio
import inspect
from collections.abc import Iterable, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

import hiredis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError

_KEPT: Final = 2
_PURPOSE: Final = inspect.signature(BlockingConnectionPool.get_connection).parameters["command_name"]
_ASKED_FOR: Final = ("EVALSHA",) if _PURPOSE.default is inspect.Parameter.empty else ()
"""An old redis-py's pool asks what a connection is for; a new one does not want to hear it."""


class _Direct(AbstractConnection):
    """What stands in front of a connection class of redis-py."""

    def pack_command(self, *args: Any) -> list[bytes]:
        """The command as Redis reads it. Its name may be several words: `SCRIPT LOAD`."""
        name, *rest = args
        try:
            return [hiredis.pack_command((*name.split(), *rest))]
        except TypeError:
            return list(super().pack_command(*args))  # who says what is wrong

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        """The commands of a pipeline."""
        return [packed for command in commands for packed in self.pack_command(*command)]

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """Write at once what the socket takes at once; wait only for the rest."""
        if self._writer is not None and not isinstance(command, bytes | str):
            if self._writer.is_closing():  # to which Python 3.12 writes with an AttributeError
                await self.disconnect(nowait=True)
                raise RedisConnectionError("the connection is lost")
            self._writer.writelines(command)
            if not self._writer.transport.get_write_buffer_size():
                return
            command, check_health = (), False  # a PING now would read the command's own reply
        await super().send_packed_command(command, check_health)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Leave a server that has become a replica: behind the same address there may be the new primary by now."""
        try:
            return await super().read_response(*args, **options)
        except ReadOnlyError:
            await self.disconnect(nowait=True)
            raise

    async def can_read(self) -> bool:
        """As redis-py's, which the pool asks."""
        return not _is_usable(self)

    can_read_destructive = can_read  # its name before redis-py 8


def direct(connection_class: type[AbstractConnection]) -> type[AbstractConnection]:
    """The same class, sending directly."""
    return type(f"Direct{connection_class.__name__}", (_Direct, connection_class), {})


def _is_usable(connection: AbstractConnection) -> bool:
    """Whether the server has neither closed nor reset the connection, nor said what nobody asked for."""
    reader: Any = connection._reader  # noqa: SLF001 - redis-py has no question for it that costs nothing
    if reader is None or reader.at_eof():
        return False
    if not isinstance(reader, asyncio.StreamReader):
        return True  # fakeredis', behind which there is no server
    return reader.exception() is None and not getattr(reader, "_buffer", b"")


class Wire:
    """Calls over connections of a client's pool, one or two of which are kept at hand."""

    def __init__(self, redis: Redis) -> None:
        self._pool = redis.connection_pool
        self._idle: list[AbstractConnection] = []
        self._kept = min(_KEPT, self._pool.max_connections // 4)  # a small pool has none to spare

    async def call(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands at once; their replies, a ResponseError in its own place. Raises what an outage looks like."""
        connection = await self._take()
        try:
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            return [await _reply(connection) for _ in commands]
        except BaseException:
            await connection.disconnect(nowait=True)  # what is still to come is no answer to another call
            raise
        finally:
            await self._give_back(connection)

    async def _take(self) -> AbstractConnection:
        while self._idle:
            connection = self._idle.pop()
            if _is_usable(connection):
                return connection
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)
        taken: AbstractConnection = await self._pool.get_connection(*_ASKED_FOR)
        return taken

    async def _give_back(self, connection: AbstractConnection) -> None:
        if connection.is_connected and len(self._idle) < self._kept:
            self._idle.append(connection)
        else:
            await self._pool.release(connection)


async def _reply(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


_WIRES: Final[WeakKeyDictionary[Redis, Wire]] = WeakKeyDictionary()


def wire_of(redis: Redis) -> Wire:
    """The one of this client. Closing the client closes its connections."""
    wire = _WIRES.get(redis)
    if wire is None:
        wire = _WIRES[redis] = Wire(redis)
    return wire


def use_wire(redis: Redis, wire: Wire) -> None:
    """From now on this is the one of this client."""
    _WIRES[redis] = wire
