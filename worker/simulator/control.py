"""Remote control of a running simulator: a small gRPC service with JSON, and its client.

It is served on the same port as the API. Whoever can call the simulator can also turn its knobs.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic_core import from_json, to_json

from promptq.worker.simulator.books import JournalEntry, Second, Totals
from promptq.worker.simulator.context import CallContext
from promptq.worker.simulator.knobs import Knobs
from promptq.worker.simulator.state import State

SERVICE = "promptq.simulator.Control"
PAGE_LENGTH = 2_000
CALL_TIMEOUT = 30.0

_SECONDS = TypeAdapter(list[Second])


class JournalPage(BaseModel):
    """A part of the journal; `next_since` asks for the part behind it, None if there is none."""

    model_config = ConfigDict(frozen=True)

    entries: list[JournalEntry]
    next_since: int | None


def control_handler(state: State) -> grpc.GenericRpcHandler:
    """The service, to be added to the server."""
    methods: dict[str, Callable[..., object]] = {
        "GetTotals": state.totals,
        "GetSeconds": lambda: state.books.seconds(),  # noqa: PLW0108 - a reset opens new books
        "GetJournal": partial(read_page, state),
        "GetKnobs": lambda: state.knobs,
        "PatchKnobs": lambda **changes: state.patch(changes),
        "Reset": state.reset,
    }
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.unary_unary_rpc_method_handler(_json_method(method)) for name, method in methods.items()
    }
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def read_page(state: State, since: int = 0, match: str | None = None) -> JournalPage:
    """Looks at the next `PAGE_LENGTH` entries after number `since`, and keeps those that match."""
    calls = list(islice(state.books.calls_after(since), PAGE_LENGTH))
    entries = [call.to_entry() for call in calls if match is None or match in call.prompt]
    next_since = calls[-1].number if len(calls) == PAGE_LENGTH else None
    return JournalPage(entries=entries, next_since=next_since)


def _json_method(
    method: Callable[..., object],
) -> Callable[[bytes, CallContext], Awaitable[bytes]]:
    async def answer(request: bytes, context: CallContext) -> bytes:
        try:
            return to_json(method(**from_json(request)))
        except (TypeError, ValueError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    return answer


class SimulatorControl:
    """Asks a running simulator what was paid for, and turns its knobs. An async context manager.

    Every method raises `grpc.aio.AioRpcError` if the simulator cannot be reached.
    """

    def __init__(self, host: str) -> None:
        """`host` is `address:port`."""
        self._channel = grpc.aio.insecure_channel(
            host,
            options=(
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_http_proxy", 0),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connection; the simulator goes on."""
        await self._channel.close()

    async def totals(self) -> Totals:
        """The books in numbers."""
        return Totals.model_validate_json(await self._call("GetTotals"))

    async def journal(self, since: int = 0, match: str | None = None) -> Sequence[JournalEntry]:
        """The calls with numbers above `since`, oldest first, whose prompt contains `match`.

        The simulator keeps the last 200,000 calls and the first 1,000 characters of each prompt.
        """
        entries: list[JournalEntry] = []
        position: int | None = since
        while position is not None:
            answer = await self._call("GetJournal", {"since": position, "match": match})
            page = JournalPage.model_validate_json(answer)
            entries += page.entries
            position = page.next_since
        return entries

    async def seconds(self) -> Sequence[Second]:
        """What was called in each second, by model, oldest first; quiet seconds are left out.

        The simulator keeps the last 20,000.
        """
        return _SECONDS.validate_json(await self._call("GetSeconds"))

    async def knobs(self) -> Knobs:
        """The knobs as they are now."""
        return Knobs.model_validate_json(await self._call("GetKnobs"))

    async def set(self, **changes: Any) -> None:
        """Turns the named knobs (see `Knobs`), for calls from now on, and leaves the others.

        Raises:
            ValueError: as `Knobs.patched`; nothing is changed.
        """
        checked = Knobs().patched(changes)
        await self._call("PatchKnobs", checked.model_dump(mode="json", include=set(changes)))

    async def reset(self, *, keep_knobs: bool = False) -> None:
        """Empties the books and, unless told to keep them, sets the knobs as they were at start.

        With the knobs go limits and credit: kept as far as they are used up, or full as at the start.
        Calls in flight are not ended; they end in the old books.
        """
        await self._call("Reset", {"keep_knobs": keep_knobs})

    async def until(
        self, condition: Callable[[Totals], bool], *, timeout: float = 10.0, period: float = 0.005
    ) -> Totals:
        """Waits until the totals fulfil a condition, and returns them; all times in seconds.

        Raises:
            TimeoutError: they do not; the message has the last totals.
        """
        deadline = time.monotonic() + timeout
        while not condition(totals := await self.totals()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not fulfilled within {timeout} s: {totals}")
            await asyncio.sleep(period)
        return totals

    async def _call(self, method: str, request: Mapping[str, Any] | None = None) -> bytes:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(f"/{SERVICE}/{method}")
        return await call(to_json(request or {}), timeout=CALL_TIMEOUT)
