"""`PROMPTQ_ENQUEUE_REPLICAS`: a job counts as accepted when a replica has it."""

import os
import signal

import pytest
import redis
from pydantic import SecretStr

from promptq.producer import JobStatus, ProducerSettings, PromptQueue, QueueUnavailable
from promptq.worker.embedded import PrivateRedis
from waiting import wait_until


async def test_a_job_that_no_replica_has_is_not_accepted() -> None:
    """With the only replica frozen the call is refused, however often it is sent; with it thawed the job is there."""
    at_once = ("--repl-diskless-sync-delay", "0")
    with PrivateRedis(args=at_once) as primary, PrivateRedis() as replica:
        with redis.Redis.from_url(replica.url) as client:
            client.replicaof("127.0.0.1", primary.port)
            await wait_until(lambda: client.info("replication")["master_link_status"] == "up")
        settings = ProducerSettings(redis_url=SecretStr(primary.url), redis_timeout=1, enqueue_replicas=1)
        async with PromptQueue.connect(settings=settings) as queue:
            assert (await queue.enqueue("Hello", id="there")).created
            os.kill(replica.pid, signal.SIGSTOP)
            try:
                with pytest.raises(QueueUnavailable, match="0 of 1 replicas"):
                    await queue.enqueue("Hello", id="not there")
            finally:
                os.kill(replica.pid, signal.SIGCONT)
            repeated = await queue.enqueue("Hello", id="not there")
            assert (repeated.created, repeated.status) == (False, JobStatus.QUEUED)
