import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from promptq.worker.health import serve_health


class Worker:
    """What the page asks."""

    is_claiming = True


@pytest.fixture
def worker() -> Worker:
    """A worker that would take a job."""
    return Worker()


@pytest.fixture
async def port(worker: Worker) -> AsyncIterator[int]:
    """Where it answers."""
    server = await serve_health(worker, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def say(port: int, request: bytes) -> str:
    """What is answered to these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    if len(request) < 1000:
        writer.write_eof()
    try:
        answer = await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        answer = b""  # hung up on before it had said all
    writer.close()
    with contextlib.suppress(ConnectionResetError):
        await writer.wait_closed()
    return answer.decode()


async def test_a_worker_that_claims_is_ready(port: int) -> None:
    """Both pages say 200, with a length, so that any probe is content."""
    for path, body in (("/livez", "alive"), ("/readyz", "ready")):
        answer = await say(port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, said = answer.partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 200 OK\r\n")
        assert f"Content-Length: {len(body)}\r\n" in head
        assert said == body


async def test_a_worker_that_does_not_claim_is_alive_and_not_ready(worker: Worker, port: int) -> None:
    """Draining, or without Redis: no new work, and no reason to kill it."""
    worker.is_claiming = False
    assert (await say(port, b"GET /readyz HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 503 ")
    assert (await say(port, b"GET /livez HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 200 ")


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1\r\n\r\n", b"\r\n", b"", b"\x00\xff\r\n", b"GET\r\n"])
async def test_whatever_else_is_asked_gets_a_404(request_line: bytes, port: int) -> None:
    """Nonsense ends nothing."""
    assert (await say(port, request_line)).startswith("HTTP/1.1 404 ")
    assert (await say(port, b"GET /livez HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 200 ")


async def test_an_endless_line_is_hung_up_on(port: int) -> None:
    """More than a line's worth of bytes without an end: no answer, and the next one is answered."""
    assert await say(port, b"x" * 200_000) == ""
    assert (await say(port, b"GET /livez HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 200 ")
