import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from promptq.worker.settings import Settings
from promptq.worker.supervise import supervise, worker_command


def noting(path: Path, then: str) -> list[str]:
    """A child that notes its process id, and goes on."""
    note = f"import os, signal, sys, time\nwith open({str(path)!r}, 'a') as file: print(os.getpid(), file=file)\n"
    return [sys.executable, "-S", "-c", note + then]


def patient(path: Path, ready: Path, code: int = 0, then: str = "while True: signal.pause()") -> list[str]:
    """A child that works until SIGTERM, and then ends with this exit code."""
    heed = f"signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))\n"
    say = f"with open({str(ready)!r}, 'a') as file: file.write('x')\n"
    return noting(path, heed + say + then)


def starts(path: Path) -> list[int]:
    """The process ids of the children that were started."""
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[LogCapture]:
    """What the supervisor logs."""
    capture = LogCapture()
    before = structlog.get_config()["processors"]
    monkeypatch.setattr("promptq.worker.supervise.logs.set_up", lambda _: None)
    structlog.configure(processors=[capture])
    yield capture
    structlog.configure(processors=before)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The supervisor takes over signals; afterwards they are as before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(commands: Sequence[Sequence[str]], *signals: tuple[Any, signal.Signals]) -> int:
    """Supervise these; each signal goes to this process as soon as its condition is true."""
    settings = Settings(provider="echo")

    def send() -> None:
        for condition, number in signals:
            ends = time.monotonic() + 20
            while not condition() and time.monotonic() < ends:
                time.sleep(0.01)
            os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return supervise(commands, settings)
    finally:
        sender.join()


def is_alive(pid: int) -> bool:
    """Whether the process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A file that grows with every child that is ready for signals."""
    return tmp_path / "ready"


def size(path: Path) -> int:
    """Bytes."""
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_children(number: signal.Signals, tmp_path: Path, ready: Path, log: LogCapture) -> None:
    """Each child is told by SIGTERM, whichever signal came; the supervisor returns when all have ended."""
    notes = tmp_path / "starts"
    code = run([patient(notes, ready)] * 3, (lambda: size(ready) == 3, number))
    assert code == 0
    assert len(starts(notes)) == 3
    assert not any(is_alive(pid) for pid in starts(notes))
    assert log.entries == []


def test_the_worst_exit_code_is_returned(tmp_path: Path, ready: Path, log: LogCapture) -> None:
    """One child lost something in its drain: the supervisor says so."""
    notes = tmp_path / "starts"
    commands = [patient(notes, ready), patient(notes, ready, code=1)]
    assert run(commands, (lambda: size(ready) == 2, signal.SIGTERM)) == 1


def test_children_that_end_well_are_not_started_again(tmp_path: Path, log: LogCapture) -> None:
    """`--burst`: the queue is empty, and the supervisor returns by itself."""
    notes = tmp_path / "starts"
    assert run([noting(notes, "pass")] * 2) == 0
    assert len(starts(notes)) == 2


def test_a_child_that_dies_is_started_again(
    tmp_path: Path, ready: Path, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL: another takes its place, after a pause that grows."""
    monkeypatch.setattr("promptq.worker.supervise.FIRST_PAUSE", 0.05)
    notes = tmp_path / "starts"
    deaths = 3

    def kill_the_last() -> bool:
        if size(ready) < len(killed) + 1:
            return False
        if len(killed) < deaths:
            killed.append(starts(notes)[-1])
            os.kill(killed[-1], signal.SIGKILL)
            return False
        return True

    killed: list[int] = []
    assert run([patient(notes, ready)], (kill_the_last, signal.SIGTERM)) == 0
    assert len(starts(notes)) == deaths + 1
    assert [entry["event"] for entry in log.entries] == ["worker.died"] * deaths
    assert [entry["restart_in"] for entry in log.entries] == [0.05, 0.1, 0.2]


def test_a_child_that_refuses_its_settings_is_not_started_again(tmp_path: Path, log: LogCapture) -> None:
    """Exit code 2: it was told something wrong, and said what. Another start would say the same for ever."""
    notes = tmp_path / "starts"
    assert run([noting(notes, "sys.exit(2)")] * 2) == 2
    assert len(starts(notes)) == 2


def test_a_signal_while_a_child_is_being_started_reaches_it(
    tmp_path: Path, ready: Path, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM comes between the fork and the note of the process id: that child must not be left running."""
    popen = subprocess.Popen

    def start_and_be_told(command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        process = popen(command, **options)
        while not size(ready):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr("promptq.worker.supervise.subprocess.Popen", start_and_be_told)
    notes = tmp_path / "starts"
    assert run([patient(notes, ready, then="time.sleep(5)\nsys.exit(9)")]) == 0
    assert len(starts(notes)) == 1


def test_a_child_killed_before_it_listens_counts_as_ended(tmp_path: Path, log: LogCapture) -> None:
    """SIGTERM meets a child that is still loading, which dies of it: that is an end as asked for."""
    notes = tmp_path / "starts"
    assert run([noting(notes, "signal.pause()")], (lambda: bool(starts(notes)), signal.SIGTERM)) == 0


def test_children_run_this_very_python() -> None:
    """Not whatever `promptq` stands on PATH; and they end with whoever started them."""
    assert worker_command(["--burst"]) == [sys.executable, "-m", "promptq.worker", "--ends-with-stdin", "--burst"]
