"""`pytest_plugins = ["simulator_fixture"]` gives a module a simulator, its control, and clients of the real SDK."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from xai_sdk import AsyncClient

from promptq.worker.simulator.control import SimulatorControl
from promptq.worker.simulator.process import RunningSimulator, SimulatorProcess, simulator_process
from simulator_calls import Connect

NO_RETRIES = [("grpc.enable_retries", 0)]


@pytest.fixture(scope="session")
def simulator() -> Iterator[SimulatorProcess]:
    """One simulator for all tests that do not need their own. Its knobs are the last test's; `control` resets them."""
    with simulator_process() as process:
        yield process


@pytest.fixture
async def control(simulator: SimulatorProcess) -> AsyncIterator[SimulatorControl]:
    """Its remote control; books and knobs are as at the start."""
    async with SimulatorControl(simulator.host) as control:
        await control.reset()
        yield control


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes SDK clients, without the SDK's own retries unless told otherwise."""
    clients: list[AsyncClient] = []

    def connect(host: str, *, key: str = "test", retries: bool = False, pool: bool = False) -> AsyncClient:
        options = [*([] if retries else NO_RETRIES), *([("grpc.use_local_subchannel_pool", 1)] if pool else [])]
        clients.append(AsyncClient(key, api_host=host, use_insecure_channel=True, channel_options=options))
        return clients[-1]

    yield connect
    for client in clients:
        await client.close()


@pytest.fixture
def client(simulator: SimulatorProcess, control: SimulatorControl, connect: Connect) -> AsyncClient:
    """A client of the shared simulator, whose books are empty."""
    return connect(simulator.host)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_simulator(simulator: SimulatorProcess) -> AsyncIterator[RunningSimulator]:
    """The simulator for a module whose tests share one loop."""
    async with SimulatorControl(simulator.host) as control:
        yield RunningSimulator(simulator.host, simulator.rest_url, simulator.pid, control)


@pytest_asyncio.fixture(loop_scope="module")
async def sim(shared_simulator: RunningSimulator) -> RunningSimulator:
    """The same, with empty books and knobs as at its start."""
    await shared_simulator.control.reset()
    return shared_simulator
