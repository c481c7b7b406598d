"""What a check comes to, and how it is run: within a time of its own, and never the end of the others."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from redis.exceptions import NoPermissionError, RedisError, ResponseError

T = TypeVar("T")


class Verdict(StrEnum):
    """How a check came out. Only a problem makes the command fail."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Finding:
    """`found`: what is the case. `advice`: what to do about it; empty if nothing needs to be done."""

    verdict: Verdict
    found: str
    advice: str = ""


Check = Callable[[], Awaitable[Finding]]
Report = Mapping[str, Finding]
"""Findings by the names of their checks, in the order of the report."""


def ok(found: str) -> Finding:
    """As it should be."""
    return Finding(Verdict.OK, found)


def warning(found: str, advice: str) -> Finding:
    """It works, and may not for long."""
    return Finding(Verdict.WARNING, found, advice)


def problem(found: str, advice: str) -> Finding:
    """The queue does not work so, or may lose jobs."""
    return Finding(Verdict.PROBLEM, found, advice)


def not_checked(why: str) -> Finding:
    """Nobody knows."""
    return Finding(Verdict.NOT_CHECKED, why)


async def examined(check: Check, limit: float) -> Finding:
    """The check's finding, or what kept it from one. `limit` in seconds."""
    try:
        async with asyncio.timeout(limit):
            return await check()
    except TimeoutError:
        return problem(f"no answer within {limit:g} s", "see whether what is asked here is overloaded or unreachable")
    except (RedisError, OSError) as error:
        return _failure(error)
    except Exception as error:  # noqa: BLE001 - a strange answer to one check must not hide what the others found
        return not_checked(f"could not be checked: an answer that makes no sense ({type(error).__name__})")


def _failure(error: RedisError | OSError) -> Finding:
    said = str(error)
    if isinstance(error, NoPermissionError):
        return Finding(Verdict.NOT_CHECKED, f"could not be checked: {said}", "ask with --redis-url of a user who may")
    if not isinstance(error, ResponseError):
        return problem(f"{type(error).__name__}: {said}", "see whether it still runs")
    if "unknown command" in said.lower():  # a managed Redis hides some; the text may quote arguments
        return not_checked("could not be checked: this Redis does not offer the command")
    return problem(said, "see what Redis logs")


async def in_a_thread(call: Callable[[], T]) -> T:
    """What a blocking call returns or raises. Unlike asyncio.to_thread, a call that hangs does not hold up our end."""
    answer: Future[T] = Future()

    def run() -> None:
        if not answer.set_running_or_notify_cancel():
            return
        try:
            answer.set_result(call())
        except Exception as error:  # noqa: BLE001 - it is for whoever waits
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(answer)
