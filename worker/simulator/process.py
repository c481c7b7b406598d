"""A simulator in a process of its own, for as long as a block runs."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from promptq.worker.simulator.control import SimulatorControl
from promptq.worker.simulator.knobs import Knobs

START_TIMEOUT = 30.0
STOP_TIMEOUT = 5.0


class Ready(BaseModel):
    """What a simulator prints once it answers, if told `--ready-json`; `host` is `address:port`."""

    model_config = ConfigDict(frozen=True)

    host: str
    port: int
    rest_url: str


class SimulatorDidNotStart(RuntimeError):
    """The process ended, or said nothing, before it was ready. Its standard error says why."""


@dataclass(frozen=True, slots=True)
class SimulatorProcess:
    """A simulator's process; `host` is `address:port`, for the SDK's `api_host`, `rest_url` a base URL."""

    host: str
    rest_url: str
    pid: int


@dataclass(frozen=True, slots=True)
class RunningSimulator:
    """A simulator and its remote control; `host` is `address:port`, for the SDK's `api_host`, `rest_url` a base URL."""

    host: str
    rest_url: str
    pid: int
    control: SimulatorControl


@asynccontextmanager
async def running_simulator(*, port: int = 0, **knobs: Any) -> AsyncIterator[RunningSimulator]:
    """Runs a simulator on loopback with these knobs (see `Knobs`) and ends it with the block.

    `port` is that of gRPC; the REST API takes a free one.

    It also ends when this process dies, however it dies.

    Raises:
        pydantic.ValidationError: a knob is bad.
        SimulatorDidNotStart: as it says; the port may be taken.
    """
    stack = ExitStack()
    try:
        process = await asyncio.to_thread(stack.enter_context, simulator_process(port=port, **knobs))
        async with SimulatorControl(process.host) as control:
            yield RunningSimulator(process.host, process.rest_url, process.pid, control)
    finally:
        await asyncio.to_thread(stack.close)


@contextmanager
def simulator_process(*, port: int = 0, **knobs: Any) -> Iterator[SimulatorProcess]:
    """As `running_simulator`, without an event loop: for fixtures that several loops share."""
    process = _start(Knobs.model_validate(knobs), port)
    try:
        ready = _wait_until_ready(process)
        yield SimulatorProcess(ready.host, ready.rest_url, process.pid)
    finally:
        _end(process)


def _start(knobs: Knobs, port: int) -> subprocess.Popen[bytes]:
    command = (sys.executable, "-m", "promptq.worker.simulator")
    options = (
        "--port",
        str(port),
        "--rest-port",
        "0",
        "--knobs",
        knobs.model_dump_json(),
        "--ready-json",
        "--die-with-stdin",
    )
    return subprocess.Popen(
        command + options,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Ctrl-C in the terminal is for this process, which then ends the block.
        process_group=0,
    )


def _wait_until_ready(process: subprocess.Popen[bytes]) -> Ready:
    if process.stdout is None:
        raise ValueError("stdout must be a pipe")
    timer = threading.Timer(START_TIMEOUT, process.kill)
    timer.start()
    try:
        return Ready.model_validate_json(process.stdout.readline())
    except ValidationError:
        raise SimulatorDidNotStart("the simulator ended before it was ready") from None
    finally:
        timer.cancel()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks it to end, and kills it if it does not; once this returns it is gone."""
    process.terminate()
    try:
        process.communicate(timeout=STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
