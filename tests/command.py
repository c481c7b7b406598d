"""The command line from a test's side: files of prompts, what a command printed, and a worker that is none."""

import contextlib
import json
import sys
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Self, cast

import redis
import redis.asyncio

from promptq.producer import codec, keys, records, scripts
from promptq.producer.records import ClaimRequest, Settlement
from promptq.producer.results import Usage

COMMAND = (sys.executable, "-W", "error", "-m", "promptq.producer.cli")
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "cost_in_usd_ticks": 10_000_000}
AT = "2026-01-01T00:00:00Z"

Run = Callable[..., Awaitable[Any]]
"""The fixture `promptq`: `await promptq("status", "--json")`."""


async def settle_all(redis_url: str) -> int:
    """What a worker does until nothing waits; returns how many jobs it settled."""
    settled = 0
    async with FakeWorker(redis_url) as worker:
        while jobs := await worker.claim():
            await worker.settle(jobs)
            settled += len(jobs)
    return settled


class FakeWorker:
    """Answers in upper case, fails what begins with `fail`."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.asyncio.Redis.from_url(redis_url)
        self._name, self._seq = uuid.uuid4().hex, 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._redis.aclose()

    async def claim(self) -> tuple[records.ClaimedJob, ...]:
        """Up to a hundred jobs."""
        self._seq += 1
        request = ClaimRequest(
            self._name,
            self._seq,
            slots=100,
            lease=60_000,
            take_over_until=1 << 53,
            may_take_poison=True,
            failure_ttl=60_000,
            result_ttl=60_000,
        )
        return (await scripts.claim(self._redis, request)).jobs

    async def settle(self, jobs: Sequence[records.ClaimedJob]) -> None:
        """Write the outcomes of what was claimed last."""
        outcomes = [settlement(job, token=f"{self._name}:{self._seq}") for job in jobs]
        assert set(await scripts.settle(self._redis, outcomes, wake=False)) == {"done"}


def settlement(job: records.ClaimedJob, token: str) -> Settlement:
    """The outcome as the prompt says."""
    prompt = codec.decode(job.payload)["k"]["messages"][-1]["content"]
    result: dict[str, Any] = {"model": job.model, "usage": USAGE, "started_at": AT}
    if prompt.startswith("fail"):
        result |= {"status": "failed", "error": {"code": "moderated", "message": "no\nsuch   thing"}}
    else:
        result |= {"status": "succeeded", "content": prompt.upper(), "finish_reason": "stop"}
    record = {"t": 1, "f": codec.FUNCTION, "a": (), "k": {}, "et": 1, "s": True, "r": result, "st": 1, "ft": 2}
    return Settlement(
        id=job.id,
        token=token,
        epoch=job.epoch,
        kind=result["status"],
        ttl=60_000,
        attempt=codec.dump_attempt(1_767_225_600_000, 1_767_225_600_000, Usage.model_validate(USAGE).amounts(), None),
        usage=(3, 4, 0, 0, 7, 10_000_000),
        result=codec.dumps(record | {"q": job.lane, "id": job.id}),
    )


def write(name: str, *lines: str) -> str:
    """A file of prompts in the test's folder."""
    Path(name).write_text("".join(f"{line}\n" for line in lines))
    return name


def text(name: str) -> str:
    """What a file in the test's folder holds."""
    return Path(name).read_text()


def files() -> list[str]:
    """What the test's folder holds."""
    return sorted(path.name for path in Path().iterdir())


def one_line(stderr: str) -> str:
    """The only line on stderr, which is an error of ours."""
    [line] = stderr.splitlines()
    assert line.startswith("promptq: ")
    assert "Traceback" not in line
    return line


def queued(redis_url: str, model: str = "grok-4") -> int:
    """How many jobs wait."""
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        return cast(int, client.zcard(keys.lane(model)))


def json_lines(text: str) -> list[dict[str, Any]]:
    """Parsed JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


def subscribers(redis_url: str) -> int:
    """Connections that listen for the end of a job."""
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        return len(cast(list[Any], client.client_list(_type="pubsub")))
