"""What README.md shows, run as it stands there."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from command import Run, settle_all
from hand import Hand, failure
from pages import Page, run_block
from promptq.producer import ErrorCode, JobStatus, PromptQueue
from promptq.worker.engine import PromptWorker
from promptq.worker.providers.echo import EchoProvider
from promptq.worker.settings import Settings

pytest_plugins = ["command_fixture"]

README = Page("README.md")
EXAMPLES = [example for heading in README.sections for example in README.shown(heading)]


@pytest.fixture
async def worker(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PromptWorker]:
    """A worker beside the example, which finds Redis by the environment."""
    monkeypatch.setenv("PROMPTQ_REDIS_URL", redis_url)
    running = PromptWorker(Settings(), EchoProvider())
    task = asyncio.create_task(running.main())
    yield running
    running.drain()
    await task
    await running.close()


async def test_the_five_lines(worker: PromptWorker, capsys: pytest.CaptureFixture[str]) -> None:
    """They print the answer and its tokens."""
    example = next(text for text in EXAMPLES if "Tell me a joke" in text)
    await run_block(example)
    assert capsys.readouterr().out.splitlines()[-1] == "Tell me a joke 6"


async def test_the_backend(worker: PromptWorker) -> None:
    """202 with an id; then 202 until there is a result, and 200 with it; 404 for an unknown id."""
    example = next(text for text in EXAMPLES if "FastAPI" in text)
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102 - the page's own words
    app = names["app"]
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        accepted = await client.post("/prompts", params={"prompt": "Hello there"})
        assert accepted.status_code == 202
        place = f"/prompts/{accepted.json()['id']}"
        await app.state.queue.wait(accepted.json()["id"], timeout=10)
        answered = await client.get(place)
        assert (answered.status_code, answered.json()["content"]) == (200, "Hello there")
        assert (await client.get("/prompts/unknown")).status_code == 404
        later = await app.state.queue.enqueue("Later", delay=0.3)
        assert (await client.get(f"/prompts/{later.id}")).status_code == 202
        await later.wait(timeout=10)


async def test_the_test_of_the_backend() -> None:
    """It passes, beside the backend that it tests."""
    names: dict[str, Any] = {}
    for words in ("FastAPI", "MemoryQueue"):
        exec(next(text for text in EXAMPLES if words in text), names)  # noqa: S102 - the page's own words
    await names["test_ask"]()
    names["app"].state.queue.assert_enqueued(times=1)


async def test_what_an_operator_types(promptq: Run, redis_url: str) -> None:
    """Every command of these sections does something; a number that is shown for a limit is the one that was set."""
    [job_id] = (await promptq("enqueue", "-", stdin="fail\n")).stdout.split()
    await settle_all(redis_url)
    consoles = (
        console for heading in ("Limits", "Tenants", "Failed jobs") for console in README.shown(heading, "console")
    )
    typed = re.findall(r"^\$ promptq (.*?) *(?:#.*)?$", "".join(consoles), re.MULTILINE)
    assert len(typed) == 9
    for line in typed:
        run = await promptq(*line.replace(" ...", "").replace("ID", job_id).split())
        assert run.exit_code == 0, run.stderr
        assert run.stdout or "no such failed job" in run.stderr
        assert line != "limits" or "of 480 " in run.stdout
    assert await settle_all(redis_url) == 1


async def test_what_an_operator_programs(redis_url: str, redis_client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """It limits, and requeues what has failed so."""
    monkeypatch.setenv("PROMPTQ_REDIS_URL", redis_url)
    hand = Hand(redis_client)
    async with PromptQueue.connect() as queue:
        job = await queue.enqueue("Hello")
        await hand.settle(await hand.claim(), failure(ErrorCode.UNAVAILABLE))
        await run_block(next(text for text in EXAMPLES if "queue.failed" in text))
        assert await queue.status(job.id) is JobStatus.QUEUED
        [model] = await queue.limits()
        acme, _ = await queue.tenants()
        assert (model.limits.tpm, acme.max_queued) == (2_000_000, 1000)
        await hand.answer_all()
