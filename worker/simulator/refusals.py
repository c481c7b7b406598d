"""How a call ends without an answer."""

import asyncio
from base64 import b64decode
from collections.abc import Mapping
from typing import NoReturn

import grpc

from promptq.worker.simulator.context import CallContext
from promptq.worker.simulator.knobs import Fault, KeyState


class Refusal(Exception):
    """The call ends with this status and these trailers."""

    def __init__(self, code: grpc.StatusCode, details: str, trailers: Mapping[str, str] | None = None) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.trailers = trailers or {}


def no_key() -> Refusal:
    """The call has no API key."""
    details = "No API key: send the metadata 'authorization: Bearer KEY'."
    return Refusal(grpc.StatusCode.UNAUTHENTICATED, details)


def refuse_key(state: KeyState) -> None:
    """Raises what a generation meets whose key is of no use."""
    match state:
        case "good":
            return
        case "incorrect":
            raise incorrect_key()
        case "team_blocked":
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "The team of this API key is blocked.")
        case _:
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, f"This API key is {state}.")


def incorrect_key() -> Refusal:
    """Nobody has this API key."""
    details = "Incorrect API key provided. You can obtain an API key from https://console.x.ai."
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, details)


def refuse_before_start(fault: Fault) -> None:
    """Raises what the fault does before a generation starts, if it does anything then."""
    if fault.kind == "status" and not fault.after_start:
        raise _status(fault)


async def fail_after_start(fault: Fault) -> None:
    """Does what the fault does instead of an answer; an `oversized` answer is an answer."""
    match fault.kind:
        case "status":
            raise _status(fault)
        case "drop_call":
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "Connection dropped (simulated).")
        case "hang":
            await asyncio.get_running_loop().create_future()
        case "oversized":
            return


async def send(refusal: Refusal, context: CallContext) -> NoReturn:
    """Ends the call for the client."""
    trailers = tuple((key, _wire_value(key, text)) for key, text in refusal.trailers.items())
    await context.abort(refusal.code, refusal.details, trailers)


def _status(fault: Fault) -> Refusal:
    return Refusal(grpc.StatusCode[fault.code], fault.details, fault.trailers)


def _wire_value(key: str, text: str) -> str | bytes:
    return b64decode(text) if key.endswith("-bin") else text
