"""What the services need to know of gRPC's context of a call."""

from collections.abc import Iterable
from typing import NoReturn, Protocol

import grpc

Metadata = Iterable[tuple[str, str | bytes]]


class CallContext(Protocol):
    """The part of `grpc.aio.ServicerContext` that is used here."""

    def invocation_metadata(self) -> Metadata:
        """What the client sent beside the request."""
        ...

    def peer(self) -> str:
        """The client's end of the connection."""
        ...

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """Ends the call with this status."""
        ...


class StreamContext(CallContext, Protocol):
    """The context of a call that is answered with a stream."""

    async def write(self, message: object) -> None:
        """Sends one of the answers."""
        ...
