"""What README.md shows, run as it stands there."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from promptq.worker.engine import PromptWorker
from promptq.worker.providers.echo import EchoProvider
from promptq.worker.settings import Settings

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


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
    indented = "\n".join(f"    {line}" for line in example.splitlines())
    names: dict[str, Any] = {}
    exec(f"async def main():\n{indented}", names)  # noqa: S102 - the page's own words
    await names["main"]()
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
