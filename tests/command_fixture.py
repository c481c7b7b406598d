"""`pytest_plugins = ["command_fixture"]` gives a module the fixture `promptq`, the command line on the real Redis."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from command import Run, settle_all
from promptq.producer.cli import app


@pytest.fixture
async def promptq(redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Run]:
    """Runs a command in an empty folder; jobs that a test leaves queued are settled after it."""
    monkeypatch.setenv("PROMPTQ_REDIS_URL", redis_url)
    monkeypatch.setenv("PROMPTQ_REDIS_TIMEOUT", "2")
    monkeypatch.chdir(tmp_path)

    async def run(*args: str, stdin: str | None = None) -> Any:
        return await asyncio.to_thread(CliRunner().invoke, app, args, input=stdin, prog_name="promptq")

    yield run
    await settle_all(redis_url)
