"""What people write with plain arq: a coroutine that calls the API, and a `Retry` with backoff where it says 429."""

import random
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
from arq.worker import Retry
from xai_sdk import AsyncClient
from xai_sdk.chat import user

BACKOFF_BASE = 1.0
BACKOFF_MOST = 60.0


def caller(host: str) -> Callable[..., Coroutine[Any, Any, str]]:
    """The coroutine, with one client for the process."""
    client = AsyncClient(api_key="simulated", api_host=host, timeout=3600, use_insecure_channel=True)

    async def sample_prompt(ctx: dict[Any, Any], prompt: str, *, model: str, max_tokens: int) -> str:
        try:
            response = await client.chat.create(model, messages=[user(prompt)], max_tokens=max_tokens).sample()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            backoff = min(BACKOFF_MOST, BACKOFF_BASE * 2.0 ** (ctx["job_try"] - 1))
            raise Retry(defer=backoff * random.uniform(0.5, 1)) from None
        return str(response.content)

    return sample_prompt
