"""`pytest_plugins = ["contract_fixture"]` gives a module the fixture `contract`, on the fake and on the real Redis."""

import contextlib
from collections.abc import AsyncIterator

import pytest
import redis.asyncio
from redis.exceptions import RedisError

from contract import Contract


@pytest.fixture
async def contract(request: pytest.FixtureRequest, any_redis: redis.asyncio.Redis) -> AsyncIterator[Contract]:
    """The scripts on a clean Redis. Behind the test the queue is drained: then nothing may be left."""
    contract = Contract(any_redis)
    yield contract
    if request.node.get_closest_marker("leaves_keys") is None:
        with contextlib.suppress(RedisError):  # of a test that failed; of others, the leftovers tell
            await contract.drain()
