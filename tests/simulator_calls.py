"""Calls to a simulator by the real SDK: one question, or the error that it must end with."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
import pytest
from xai_sdk import AsyncClient
from xai_sdk.chat import Response, user

QUESTION = "How many clips did Natalia sell altogether in April and May?"

Connect = Callable[..., AsyncClient]


async def ask(client: AsyncClient, question: str = QUESTION, *, model: str = "grok-4", **params: Any) -> Response:
    """One question, one call."""
    return await client.chat.create(model, messages=[user(question)], **params).sample()


async def failure_of(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    """The error that a call must end with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value
