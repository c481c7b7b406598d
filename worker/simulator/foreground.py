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
from promptq.worker.simulator.server import serving

TICKS_PER_USD = 10**10


def run(knobs: Knobs, *, address: str, port: int, as_json: bool, die_with_stdin: bool) -> None:
    """Serves until SIGINT or SIGTERM, or until standard input ends if told so.

    Prints one line when it is ready and one with the totals at the end.

    Raises:
        OSError: as `serving`.
    """
    asyncio.run(_run(knobs, address, port, as_json=as_json, die_with_stdin=die_with_stdin))


async def _run(knobs: Knobs, address: str, port: int, *, as_json: bool, die_with_stdin: bool) -> None:
    stop = asyncio.Event()
    _on_signals(stop.set)
    if die_with_stdin:
        _on_end_of_stdin(stop.set)
    async with serving(knobs, address=address, port=port) as server:
        _say(_ready_json(address, server.port) if as_json else _ready_line(address, server.port))
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


def _ready_json(address: str, port: int) -> str:
    host = joined(callable_from_here(address), port)
    return Ready(host=host, port=port).model_dump_json()


def _ready_line(address: str, port: int) -> str:
    host = joined(callable_from_here(address), port)
    reach = "" if is_loopback(address) else " (other machines can reach it)"
    return f"Simulator on {joined(address, port)}{reach}. For a worker: PROMPTQ_XAI_HOST={host} PROMPTQ_XAI_INSECURE=1"


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
