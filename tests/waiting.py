"""Tests wait for a condition, never for a time: `await wait_until(lambda: ..., message="...")`."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable


async def wait_until(
    predicate: Callable[[], object | Awaitable[object]],
    timeout: float = 10.0,
    *,
    message: str = "",
    interval: float = 0.01,
) -> None:
    """Return once `predicate()`, sync or async, is true; fail after `timeout` seconds.

    What the predicate raises is raised at once.
    """
    deadline = time.monotonic() + timeout
    while True:
        outcome = predicate()
        if inspect.isawaitable(outcome):
            outcome = await outcome
        if outcome:
            return
        if time.monotonic() > deadline:
            what = message or getattr(predicate, "__name__", repr(predicate))
            raise AssertionError(f"not true within {timeout:g} s: {what} (last: {outcome!r})")
        await asyncio.sleep(interval)
