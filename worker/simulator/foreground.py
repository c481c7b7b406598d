"""Serves in the foreground until a signal or the end of standard input, and says so on stdout."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable

import typer

from promptq.worker.simulator.addresses import callable_from_here, is_loopback, joined
from promptq.worker.simulator.books import Totals
from promptq.worker.simulator.knobs import Knobs
from promptq.worker.simulator.process import Ready
from promptq.worker.simulator.server import Serving, serving

TICKS_PER_USD = 10**10


def run(knobs: Knobs, *, address: str, ports: tuple[int, int], as_json: bool, die_with_stdin: bool) -> None:
    """Serves until SIGINT or SIGTERM, or until standard input ends if told so; `ports` are gRPC's and REST's.

    Prints one line when it is ready and one with the totals at the end.

    Raises:
        OSError: as `serving`.
    """
    asyncio.run(_run(knobs, address, ports, as_json=as_json, die_with_stdin=die_with_stdin))


async def _run(knobs: Knobs, address: str, ports: tuple[int, int], *, as_json: bool, die_with_stdin: bool) -> None:
    stop = asyncio.Event()
    _on_signals(stop.set)
    if die_with_stdin:
        _on_end_of_stdin(stop.set)
    async with serving(knobs, address=address, port=ports[0], rest_port=ports[1]) as server:
        ready = _ready(address, server)
        _say(ready.model_dump_json() if as_json else _ready_line(address, ready))
        await stop.wait()
    totals = server.state.totals()
    _say(totals.model_dump_json() if as_json else _totals_line(totals))


def _on_signals(callback: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, callback)


def _on_end_of_stdin(callback: Callable[[], None]) -> None:
    """Whoever holds the other end of the pipe may be killed: the kernel closes it all the same."""
    loop = asyncio.get_running_loop()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(callback)

    threading.Thread(target=watch, name="stdin", daemon=True).start()


def _ready(address: str, server: Serving) -> Ready:
    called = callable_from_here(address)
    rest_url = f"http://{joined(called, server.rest_port)}/v1"
    return Ready(host=joined(called, server.port), port=server.port, rest_url=rest_url)


def _ready_line(address: str, ready: Ready) -> str:
    reach = "" if is_loopback(address) else " (other machines can reach it)"
    return (
        f"Simulator on {joined(address, ready.port)}{reach}, REST on {ready.rest_url}. "
        f"For a worker: PROMPTQ_XAI_HOST={ready.host} PROMPTQ_XAI_INSECURE=1"
    )


def _totals_line(totals: Totals) -> str:
    charged = totals.charged
    return (
        f"Simulator stopped: {totals.calls:,} calls, {totals.generations:,} generations, "
        f"{charged.total_tokens:,} tokens, {charged.cost_in_usd_ticks / TICKS_PER_USD:.4f} USD"
    )


def _say(line: str) -> None:
    try:
        typer.echo(line)
    except BrokenPipeError:
        # Python flushes stdout once more at exit, and would complain about the same pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
