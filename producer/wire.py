"""redis-py's asyncio connection, without what it does for each command beside sending it.

redis-py polls the socket before each command and, on Python 3.11, writes in a task of its own: both give the event loop
a turn first, in which a worker runs the jobs that it has just claimed while Redis waits for the next call. And it puts
calls of a thousand arguments together in Python. Used by connection.py for every client.
"""

from collections.abc import Iterable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection


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
            self._writer.writelines(command)
            if not self._writer.transport.get_write_buffer_size():
                return
            command = ()
        await super().send_packed_command(command, check_health)

    async def can_read_destructive(self) -> bool:
        """Whether the server has closed the connection, or said what nobody asked for."""
        return self._reader is None or self._reader.at_eof() or bool(getattr(self._reader, "_buffer", b""))


def direct(connection_class: type[AbstractConnection]) -> type[AbstractConnection]:
    """The same class, sending directly."""
    return type(f"Direct{connection_class.__name__}", (_Direct, connection_class), {})
