"""`promptq worker --processes N`: starts N worker processes, restarts one that dies, passes signals on."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

import structlog

from promptq.producer.console import ExitCode
from promptq.worker import logs
from promptq.worker.settings import Settings

log = structlog.get_logger("promptq.supervise")

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
HEALTHY_AFTER = 30.0
"""Seconds after which a process counts as started well: the pause before its next restart is the first one again."""


class Child:
    """One worker process and the pause before it is started again."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._command, self._environment = command, environment
        self._pause = FIRST_PAUSE
        self._started_at = 0.0
        self.start_at = 0.0
        self.process: subprocess.Popen[bytes] | None = None
        self.exit_code: int | None = None
        self._is_told = False

    def start(self) -> None:
        """Start the process, in a session of its own so that a terminal's Ctrl-C reaches it once, through us."""
        self._started_at, self._is_told = time.monotonic(), False
        self.process = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.PIPE, start_new_session=True
        )

    def tell(self) -> None:
        """SIGTERM, if it runs: stop claiming; the second time, give everything back."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self._is_told = True

    def look(self, *, is_stopping: bool) -> None:
        """Take note of an end; plan a restart unless the end was asked for or clean."""
        if self.process is None:
            return
        if self.process.poll() is None:
            if is_stopping and not self._is_told:
                self.tell()  # the signal came while it was being started
            return
        if self.process.stdin:
            self.process.stdin.close()
        code, self.process = self.process.returncode, None
        if is_stopping or code in (0, ExitCode.USAGE):  # what it was told is wrong: again would be no better
            self.exit_code = 0 if code == -signal.SIGTERM else abs(code)  # it may not have had its handler yet
            return
        if time.monotonic() - self._started_at > HEALTHY_AFTER:
            self._pause = FIRST_PAUSE
        self.start_at = time.monotonic() + self._pause
        log.error("worker.died", exit_code=code, restart_in=self._pause)
        self._pause = min(LONGEST_PAUSE, self._pause * 2)


def supervise(
    commands: Sequence[Sequence[str]], settings: Settings, environment: Mapping[str, str] | None = None
) -> int:
    """Keep one child a command alive until a signal, or until all have ended well. Returns the worst exit code."""
    logs.set_up(settings)
    children = [Child(command, environment) for command in commands]
    stopping: list[int] = []

    def stop(signum: int, _frame: FrameType | None) -> None:
        stopping.append(signum)
        for child in children:
            child.tell()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)
    while any(child.exit_code is None for child in children):
        for child in children:
            child.look(is_stopping=bool(stopping))
            if child.process is None and child.exit_code is None:
                _start_or_drop(child, is_stopping=bool(stopping))
        time.sleep(0.1)
    return max(child.exit_code or 0 for child in children)


def _start_or_drop(child: Child, *, is_stopping: bool) -> None:
    if is_stopping:
        child.exit_code = 0
    elif time.monotonic() >= child.start_at:
        child.start()


def worker_command(arguments: Sequence[str]) -> list[str]:
    """This same Python with `-m promptq.worker`, which drains when its standard input ends."""
    return [sys.executable, "-m", "promptq.worker", "--ends-with-stdin", *arguments]
