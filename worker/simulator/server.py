"""The server: its options, its services, its start and its end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc.aio
from xai_sdk.proto import auth_pb2_grpc, chat_pb2_grpc

from promptq.worker.simulator.addresses import LOOPBACK, bound, joined
from promptq.worker.simulator.auth import AuthService
from promptq.worker.simulator.chat import ChatService
from promptq.worker.simulator.control import control_handler
from promptq.worker.simulator.generations import Generations
from promptq.worker.simulator.knobs import MIB, Knobs
from promptq.worker.simulator.rest import serving_rest
from promptq.worker.simulator.state import State

_OPTIONS: tuple[tuple[str, int], ...] = (
    # The client's limit of 20 MiB is the one to be met, in both directions.
    ("grpc.max_receive_message_length", 64 * MIB),
    ("grpc.max_send_message_length", -1),
    # The SDK pings every 30 s, calls or not; by default a server answers that with GOAWAY.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    # A server whose process is slower than its clients resets a random part of a burst over 1,000
    # calls (CANCELLED), and any call that it has not taken up after 30 s.
    ("grpc.server.max_pending_requests", 1 << 30),
    ("grpc.server.max_pending_requests_hard_limit", 1 << 30),
    ("grpc.server_max_unrequested_time_in_server", 3600),
    # Left on, gRPC refuses calls (UNAVAILABLE) while ended ones still count against the stream limit.
    ("grpc.http.overload_protection", 0),
    # Otherwise two servers share a port silently, and each gets some of the calls.
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True)
class Serving:
    """A running server: its state, the `address:port` for the SDK's `api_host`, and the port of its REST API."""

    host: str
    port: int
    rest_port: int
    state: State


@asynccontextmanager
async def serving(
    knobs: Knobs, *, address: str = LOOPBACK, port: int = 0, rest_port: int = 0, grace: float = 0.5
) -> AsyncIterator[Serving]:
    """Serves inside the block. At its end, calls in flight get `grace` seconds to finish.

    Args:
        knobs: How it answers, at first.
        address: Where it listens; anything but loopback lets other machines in.
        port: 0 picks a free one.
        rest_port: The same for the REST API.
        grace: Seconds.

    Raises:
        OSError: an address is taken, or not one of this machine's.
    """
    state = State(knobs)
    generations = Generations(state)
    server = _build(state, generations)
    bound_port = _bind(server, address, port)
    async with serving_rest(state, generations, address=address, port=rest_port, grace=grace) as bound_rest_port:
        await server.start()
        try:
            yield Serving(joined(address, bound_port), bound_port, bound_rest_port, state)
        finally:
            await server.stop(grace)
            await generations.aclose()


def _build(state: State, generations: Generations) -> grpc.aio.Server:
    options = list(_OPTIONS)
    if state.knobs.max_concurrent_streams is not None:
        options.append(("grpc.max_concurrent_streams", state.knobs.max_concurrent_streams))
    server = grpc.aio.server(options=options)
    chat_pb2_grpc.add_ChatServicer_to_server(ChatService(state, generations), server)  # type: ignore[no-untyped-call]
    auth_pb2_grpc.add_AuthServicer_to_server(AuthService(state), server)  # type: ignore[no-untyped-call]
    server.add_generic_rpc_handlers((control_handler(state),))
    return server


def _bind(server: grpc.aio.Server, address: str, port: int) -> int:
    # gRPC would say only that it cannot, on stderr.
    bound(address, port).close()
    try:
        return int(server.add_insecure_port(joined(address, port)))
    except RuntimeError as error:
        raise OSError(str(error)) from None
