"""Fixtures for tests with real processes: a simulator for all of them, a fleet of workers for each."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from faults.bookkeeping import Endings, Scene
from faults.fleet import Fleet, xai_settings
from promptq.producer import PromptQueue
from promptq.worker.simulator.control import SimulatorControl
from promptq.worker.simulator.process import SimulatorProcess, simulator_process


@pytest.fixture(scope="session")
def simulator_server() -> Iterator[SimulatorProcess]:
    """The simulated api.x.ai of this run."""
    with simulator_process() as process:
        yield process


@pytest.fixture
async def simulator(simulator_server: SimulatorProcess) -> AsyncIterator[SimulatorControl]:
    """Its remote control; its books are empty and its knobs as at the start."""
    async with SimulatorControl(simulator_server.host) as control:
        await control.reset()
        yield control


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """Workers that answer by themselves (`echo`)."""
    with Fleet(tmp_path, promptq_redis_url=redis_url) as fleet:
        yield fleet


@pytest.fixture
def xai_fleet(redis_url: str, tmp_path: Path, simulator_server: SimulatorProcess) -> Iterator[Fleet]:
    """Workers that ask the simulator."""
    with Fleet(tmp_path, **xai_settings(simulator_server.host, redis_url)) as fleet:
        yield fleet


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[PromptQueue]:
    """What a backend holds."""
    async with PromptQueue.connect(redis_url) as queue:
        yield queue


@pytest.fixture
async def scene(queue: PromptQueue, redis_client: Redis, simulator: SimulatorControl) -> AsyncIterator[Scene]:
    """A producer, Redis and the simulator; every ending is heard."""
    async with Endings.listening(redis_client) as endings:
        yield Scene(queue, redis_client, simulator, endings)
