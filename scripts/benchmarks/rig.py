"""What every measure stands on: a private Redis per sample, children, and a clock that ends when a queue is empty."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self, cast

import redis

from plan import Plan
from promptq.producer import scripts
from promptq.worker.embedded import PrivateRedis

HERE = Path(__file__).parent
SLOW_FROM = 1_000
"""Microseconds from which Redis logs a command."""
SLOW_KEPT = 100_000
POLL = 0.005
PATIENCE = 600.0
PATIENCE_AT_THE_END = 10.0

_NOT_OURS = ("PROMPTQ_", "REDIS_URL", "XAI_")
_CUT = re.compile(rb"\.\.\. \((\d+) more arguments\)")
_VERBS = {script.sha: verb.lower() for verb, script in vars(scripts).items() if isinstance(script, scripts.Script)}


@dataclass(frozen=True, slots=True)
class SlowCall:
    """A script of ours that Redis found slow: the whole of it, waits for the processor included."""

    milliseconds: float
    verb: str
    arguments: int
    measure: str


class Server:
    """A private Redis and what it says of itself."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client: redis.Redis = redis.Redis.from_url(url)

    @property
    def port(self) -> int:
        """On 127.0.0.1."""
        return int(self.client.get_connection_kwargs()["port"])

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        said = self._info("cpu")
        return float(said["used_cpu_user"]) + float(said["used_cpu_sys"])

    def memory(self) -> int:
        """Bytes in use."""
        return int(self._info("memory")["used_memory"])

    def version(self) -> str:
        """As it says itself."""
        return str(self._info("server")["redis_version"])

    def script_calls(self) -> int:
        """How often a script ran."""
        return self._of_scripts("calls")

    def microseconds_in_scripts(self) -> int:
        """That scripts ran, by Redis' own count."""
        return self._of_scripts("usec")

    def wait_until_at_most(self, most: int, lane: str) -> tuple[float, int]:
        """The moment (`perf_counter`) at which no more jobs than that are in the lane, and how many are."""
        gives_up = time.perf_counter() + PATIENCE
        while True:
            left, now = cast(int, self.client.zcard(lane)), time.perf_counter()
            if left <= most:
                return now, left
            if now > gives_up:
                raise RuntimeError(f"{left} jobs are left after {PATIENCE:g} s, not {most}")
            time.sleep(POLL)

    def slow_calls(self, measure: str) -> Iterator[SlowCall]:
        """Scripts of ours in the slow log, which keeps 31 words of a call and the number of the others."""
        for _, _, microseconds, words, *_ in cast(Any, self.client).execute_command("SLOWLOG", "GET", SLOW_KEPT):
            if words[0].upper() == b"EVALSHA" and (verb := _VERBS.get(words[1].decode())):
                cut = _CUT.fullmatch(words[-1])
                count = len(words) - 1 + int(cut[1]) if cut else len(words)
                yield SlowCall(microseconds / 1000, verb, count - 3, measure)

    def latencies(self) -> Iterator[tuple[str, int]]:
        """Each event of the latency monitor, and the longest of it in ms."""
        for event, _, _, longest, *_ in cast(Any, self.client).execute_command("LATENCY", "LATEST"):
            yield event.decode(), longest

    def _of_scripts(self, what: str) -> int:
        return int(self._info("commandstats").get("cmdstat_evalsha", {what: 0})[what])

    def _info(self, section: str) -> dict[str, Any]:
        return cast(dict[str, Any], self.client.info(section))


class Child:
    """A process of a contender's own; what it says and hears is child.py."""

    def __init__(self, program: str, **options: Any) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
        self._program = program
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / f"{program}.py"), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            process_group=0,  # Ctrl-C is for the measure, which then ends its children
        )
        self._stdin, self._stdout = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)

    def hear(self, within: float = 60.0) -> dict[str, Any]:
        """What it says next. Raises RuntimeError if it says nothing; why stands on standard error."""
        timer = threading.Timer(within, self._process.kill)
        timer.start()
        line = self._stdout.readline()
        timer.cancel()
        if not line:
            raise RuntimeError(f"{self._program} ended, or said nothing for {within:g} s")
        said: dict[str, Any] = json.loads(line)
        return said

    def go(self) -> None:
        """Tell it to start."""
        self._stdin.write("go\n")
        self._stdin.flush()

    def finish(self) -> dict[str, Any]:
        """Tell it to end; what it says last."""
        self._stdin.close()
        return self.hear()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(PATIENCE_AT_THE_END)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self._stdout.close()


@dataclass(slots=True)
class Rig:
    """One invocation: its sizes, and what Redis found slow."""

    plan: Plan
    slow: list[SlowCall] = field(default_factory=list)
    script_calls: int = 0
    latency: dict[str, int] = field(default_factory=dict)
    """The longest, in ms, of each event of Redis' latency monitor."""
    raw: dict[str, list[float]] = field(default_factory=dict)
    """What figures are made of where they are no medians of rounds."""
    measure: str = ""

    @contextlib.contextmanager
    def server(self) -> Iterator[Server]:
        """A fresh Redis, without persistence."""
        args = ["--slowlog-log-slower-than", str(SLOW_FROM), "--slowlog-max-len", str(SLOW_KEPT)]
        args += ["--latency-monitor-threshold", "1"]
        with PrivateRedis(args=args) as private:
            server = Server(private.url)
            with contextlib.closing(server.client):
                yield server
                self._note(server)

    def _note(self, server: Server) -> None:
        """What was slow; plain arq, which uses no scripts, is left out."""
        if calls := server.script_calls():
            self.script_calls += calls
            self.slow += server.slow_calls(self.measure)
            for event, longest in server.latencies():
                self.latency[event] = max(longest, self.latency.get(event, 0))

    def new_worker(self, contender: str, url: str, **options: Any) -> Child:
        """A worker process that is starting; it says when it is connected."""
        defaults = {"max_jobs": self.plan.max_jobs, "poll_delay": self.plan.arq_poll_delay}
        return Child("child_worker", contender=contender, url=url, **defaults | options)

    @contextlib.contextmanager
    def worker(self, contender: str, url: str, **options: Any) -> Iterator[Child]:
        """A worker process that is connected and waits for its `go`."""
        with self.new_worker(contender, url, **options) as child:
            child.hear()
            yield child
