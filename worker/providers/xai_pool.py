"""Clients of the xAI SDK, one TCP connection each, for more calls at once than one connection takes."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator

import grpc
import grpc.aio
from xai_sdk import AsyncClient

# A connection takes about 100 calls at once, and one that waits for its turn there is running out
# its time without a sign of it.
CALLS_PER_CONNECTION = 80
MOST_CONNECTIONS = 128
REST = 1.0
"""Seconds for which a connection that just failed comes last."""


def connections_for(max_jobs: int) -> int:
    """How many connections this many calls at once need; 128 at most, enough for 10,240."""
    return min(MOST_CONNECTIONS, math.ceil(max_jobs / CALLS_PER_CONNECTION))


class ClientPool:
    """Lends the client with the fewest calls in flight; opens each when it is first needed."""

    def __init__(
        self,
        open_client: Callable[[], AsyncClient],
        size: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_client = open_client
        self._clock = clock
        self._seats = [_Seat() for _ in range(size)]

    @contextlib.contextmanager
    def lend(self) -> Iterator[AsyncClient]:
        """A client for one call. What the call raises comes through."""
        seat = self._best_seat()
        if seat.client is None:
            seat.client = self._open_client()
        seat.in_flight += 1
        try:
            yield seat.client
        except grpc.aio.AioRpcError as error:
            is_alone = seat.in_flight == 1  # a connection that breaks leaves no other call alive
            if is_alone and error.code() is grpc.StatusCode.UNAVAILABLE:
                seat.rests_until = self._clock() + REST
            raise
        finally:
            seat.in_flight -= 1

    async def aclose(self) -> None:
        """Close all connections; calls still in flight are cancelled."""
        clients = [seat.client for seat in self._seats if seat.client is not None]
        await asyncio.gather(*(client.close() for client in clients))

    def _best_seat(self) -> "_Seat":
        """A broken connection fails its calls at once: without a rest it would draw all of them."""
        now = self._clock()
        return min(self._seats, key=lambda seat: (seat.rests_until > now, seat.in_flight))


class _Seat:
    __slots__ = ("client", "in_flight", "rests_until")

    def __init__(self) -> None:
        self.client: AsyncClient | None = None
        self.in_flight = 0
        self.rests_until = -math.inf
