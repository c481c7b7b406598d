"""Worker processes of a test: started with settings of their own, ended by their own process ids."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from waiting import wait_until

API_KEY: Final = "xai-AKeyThatMustNeverBeSeen0123456789"
SETTINGS: Final = {
    # A lease must outlive a renewal that is a Redis timeout late.
    "PROMPTQ_LEASE": "1.5",
    "PROMPTQ_REDIS_TIMEOUT": "0.75",
    "PROMPTQ_PROVIDER": "echo",
    "PROMPTQ_LOG_FORMAT": "json",
    "XAI_API_KEY": API_KEY,
}
LEASE: Final = float(SETTINGS["PROMPTQ_LEASE"])

_NOT_OURS = ("PROMPTQ_", "REDIS_URL", "XAI_")
_START_TIMEOUT = 30.0
_NAME = re.compile(r"[\w.-]+-\d+-[0-9a-f]{6}\b")


def environment(**settings: object) -> dict[str, str]:
    """This process's environment without any of promptq's settings but these; None leaves one of ours out."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
    said = {**SETTINGS, **{name.upper(): value for name, value in settings.items()}}
    return clean | {name: str(value) for name, value in said.items() if value is not None}


def xai_settings(host: str, redis_url: str) -> dict[str, object]:
    """For workers that ask the simulator at `host`."""
    return {
        "promptq_redis_url": redis_url,
        "promptq_provider": "xai",
        "promptq_xai_host": host,
        "promptq_xai_insecure": 1,
    }


class WorkerProcess:
    """One `python -m promptq.worker`, or one supervisor of several; its log goes to a file."""

    def __init__(self, log: Path, *arguments: str, **settings: object) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "promptq.worker", *arguments],
                env=environment(**settings),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text(errors="replace")

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it has logged as JSON."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{") and line.endswith("}")]

    def said(self, event: str) -> list[dict[str, Any]]:
        """Its log entries of one event."""
        return [entry for entry in self.events if entry["event"] == event]

    @property
    def names(self) -> list[str]:
        """The names under which its worker processes have begun, in that order."""
        begun = [line for line in self.log.splitlines() if "worker.started" in line]
        return [match[0] for line in begun if (match := _NAME.search(line))]

    @property
    def name(self) -> str:
        """The name of the only one."""
        [name] = self.names
        return name

    async def ready(self, processes: int = 1) -> Self:
        """Wait until so many worker processes have begun."""
        await wait_until(lambda: len(self.names) >= processes or not self.is_alive, _START_TIMEOUT)
        assert self.is_alive, f"the worker ended at once: {self.log}"
        return self

    @property
    def is_alive(self) -> bool:
        """Whether the process runs, or is frozen."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: no chance to say anything."""
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """SIGTERM: drain."""
        self.signal(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP: it neither renews nor notices."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    async def wait(self, timeout: float = 10.0) -> int:
        """Its exit code, once it has ended."""
        try:
            await wait_until(lambda: not self.is_alive, timeout)
        except AssertionError:
            raise AssertionError(f"the worker has not ended within {timeout:g} s; it said:\n{self.log}") from None
        return int(self._process.returncode)

    def end(self) -> None:
        """End it, and a supervisor's children that are left, whatever they do."""
        if self.is_alive:
            self.kill()
        for name in self.names:
            pid = pid_of(name)
            if pid != self.pid and is_worker(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def kill_child(name: str) -> None:
    """SIGKILL a worker process that a supervisor has started."""
    assert is_worker(pid_of(name))
    os.kill(pid_of(name), signal.SIGKILL)


def is_worker(pid: int) -> bool:
    """Whether a process with this id is one of ours, alive."""
    listing = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, check=False, text=True)
    return "promptq.worker" in listing.stdout


def pid_of(name: str) -> int:
    """The process id in a worker's name."""
    return int(name.rsplit("-", 2)[1])


class Fleet:
    """The workers of one test; the block's end is theirs."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self._folder = folder
        self._settings = settings
        self.workers: list[WorkerProcess] = []

    def launch(self, *arguments: str, **settings: object) -> WorkerProcess:
        """A worker that has been started and may still be loading."""
        log = self._folder / f"worker-{len(self.workers)}.log"
        worker = WorkerProcess(log, *arguments, **self._settings | settings)
        self.workers.append(worker)
        return worker

    async def start(self, *arguments: str, **settings: object) -> WorkerProcess:
        """A worker that has begun."""
        return await self.launch(*arguments, **settings).ready()

    async def start_many(self, count: int, *arguments: str, **settings: object) -> Sequence[WorkerProcess]:
        """Workers that have begun."""
        started = [self.launch(*arguments, **settings) for _ in range(count)]
        return [await worker.ready() for worker in started]

    def holder(self, token: str) -> WorkerProcess:
        """The worker that a token names."""
        [found] = [worker for worker in self.workers if token.rpartition(":")[0] in worker.names]
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.end()
