"""What an orchestrator asks a worker over HTTP: `/livez` (its loop turns) and `/readyz` (it would take a job)."""

import asyncio
from typing import Protocol


class Asked(Protocol):
    """The worker, as far as this page is concerned."""

    @property
    def is_claiming(self) -> bool:
        """Whether it would take a job now."""
        ...


async def serve_health(worker: Asked, host: str, port: int) -> asyncio.Server:
    """Answer there until the server is closed. Raises OSError if the port is taken."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                request = await reader.readline()
                path = request.split(b" ")[1:2]
                writer.write(_response(worker, path[0] if path else b""))
                await writer.drain()
        except (TimeoutError, OSError, ValueError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(answer, host, port)


def _response(worker: Asked, path: bytes) -> bytes:
    if path == b"/livez":
        status, body = "200 OK", "alive"
    elif path == b"/readyz":
        status, body = ("200 OK", "ready") if worker.is_claiming else ("503 Service Unavailable", "not claiming")
    else:
        status, body = "404 Not Found", "ask for /livez or /readyz"
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return (head + body).encode()
