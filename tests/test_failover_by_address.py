"""A failover in which the address stays and what is behind it changes, as with a managed Redis or a floating IP."""

import asyncio
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import redis

from promptq.producer import PromptQueue
from promptq.worker.embedded import PrivateRedis
from promptq.worker.engine import PromptWorker
from promptq.worker.providers.echo import EchoProvider
from promptq.worker.settings import Settings
from proxy import proxied
from waiting import wait_until


@pytest.fixture
def heir() -> Iterator[PrivateRedis]:
    """The Redis that becomes the primary."""
    with PrivateRedis(args=("--repl-diskless-sync-delay", "0")) as server:  # a replica gets all at once
        yield server


async def test_connections_to_what_became_a_replica_are_left(redis_url: str, heir: PrivateRedis) -> None:
    """The old primary lives on as a replica, and nobody closes the connections to it: clients must."""
    async with proxied(redis_url) as proxy:
        settings = Settings(redis_url=proxy.url, provider="echo", redis_timeout=1)  # type: ignore[arg-type] # coerced
        worker = PromptWorker(settings, EchoProvider())
        working = asyncio.create_task(worker.main())
        with redis.Redis.from_url(redis_url) as old:
            try:
                async with PromptQueue.connect(proxy.url) as queue:
                    await queue.wait((await queue.enqueue("before")).id, timeout=10)
                    proxy._target = urlsplit(heir.url).port or 0
                    old.replicaof("127.0.0.1", heir.port)
                    await wait_until(lambda: old.info("replication")["master_link_status"] == "up")
                    result = await queue.wait((await queue.enqueue("after")).id, timeout=30)
                    assert result.content == "after"
            finally:
                old.replicaof("no", "one")
                worker.drain()
                await working
                await worker.close()
