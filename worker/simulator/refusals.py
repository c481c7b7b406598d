"""How a call ends without an answer."""

import asyncio
import math
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from promptq.worker.simulator.buckets import Shortage
from promptq.worker.simulator.context import CallContext
from promptq.worker.simulator.knobs import Fault, KeyState, RetryHint

TEAM_ID = "00000000-0000-4000-8000-000000000000"

_NANOS = 10**9


class Refusal(Exception):
    """The call ends with this status and these trailers."""

    def __init__(self, code: grpc.StatusCode, details: str, trailers: Mapping[str, str] | None = None) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.trailers = trailers or {}


class Dropped(Refusal):
    """The connection breaks; gRPC's client calls that UNAVAILABLE."""

    def __init__(self) -> None:
        super().__init__(grpc.StatusCode.UNAVAILABLE, "Connection dropped (simulated).")


def bad_request(details: str) -> Refusal:
    """Nobody could answer this request."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, details)


def not_found(what: str, name: str) -> Refusal:
    """There is none of this name, or no longer."""
    return Refusal(grpc.StatusCode.NOT_FOUND, f"{what} {name!r} not found.")


def no_key() -> Refusal:
    """The call has no API key."""
    details = "No API key: send the metadata 'authorization: Bearer KEY'."
    return Refusal(grpc.StatusCode.UNAUTHENTICATED, details)


def refuse_key(state: KeyState) -> None:
    """Raises what a generation meets whose key is of no use."""
    match state:
        case "good":
            return
        case "expired":
            raise expired_key()
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


def expired_key() -> Refusal:
    """Somebody had this API key."""
    return Refusal(grpc.StatusCode.UNAUTHENTICATED, "The API key has expired.")


def no_credit(code: str) -> Refusal:
    """The account has nothing left."""
    details = (
        f"Your team {TEAM_ID} has either used all available credits or reached its monthly spending limit. "
        "To continue making API requests, please purchase more credits or raise your spending limit."
    )
    return Refusal(grpc.StatusCode[code], details)


def throttled(shortage: Shortage, model: str, hint: RetryHint) -> Refusal:
    """A rate limit is used up."""
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    details = (
        f"Too many {shortage.unit.lower()} for team {TEAM_ID} and model {model}. "
        f"{shortage.unit} per Minute (actual/limit): {shortage.used}/{shortage.limit:.15g}"
    )
    match hint:
        case "retry_after":
            return Refusal(code, details, {"retry-after": str(math.ceil(shortage.wait))})
        case "retry_info":
            return Refusal(code, details, {"grpc-status-details-bin": _retry_info(code, details, shortage.wait)})
        case "none":
            return Refusal(code, details)


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
            raise Dropped
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


def _retry_info(code: grpc.StatusCode, details: str, wait: float) -> str:
    seconds, nanos = divmod(math.ceil(wait * _NANOS), _NANOS)
    info = Any()
    info.Pack(RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos)))
    return b64encode(Status(code=code.value[0], message=details, details=[info]).SerializeToString()).decode()


def _wire_value(key: str, text: str) -> str | bytes:
    return b64decode(text) if key.endswith("-bin") else text
