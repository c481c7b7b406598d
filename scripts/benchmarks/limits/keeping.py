"""How much of a limit a fleet uses, and how often it is refused: `requests`, `tokens`, `learned`.

The simulator refuses what is over its limits, smoothly, with a burst of one second; so 100 % is all that can be had.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from contenders import ARQ, MAX_TOKENS, MODEL, PROMPTQ, Contender
from figures import Figure, Target
from limits.stage import Stage, numbered, sleep_until, stage
from promptq.worker.simulator.books import Second
from rig import Rig

LIMITS = {"rpm": 1_200, "tpm": 300_000}
LATENCY = "lognormal:1,0.5"
"""Seconds until an answer; so tokens are settled long after they were charged."""
SPARE = 1.3
"""Jobs that are queued for each that the limit lets through."""


@dataclass(frozen=True, slots=True)
class Load:
    """Prompts of about 65 tokens and answers so long that one of the limits is the tighter one."""

    tighter: Literal["rpm", "tpm"]
    answer_tokens: str
    max_tokens: int


BY_REQUESTS = Load("rpm", "uniform:40,100", max_tokens=MAX_TOKENS)
BY_TOKENS = Load("tpm", "uniform:200,600", max_tokens=1_000)


@dataclass(frozen=True, slots=True)
class Use:
    """Of the tighter limit, and the calls that were answered 429; both in per cent."""

    used: float
    refused: float


def requests(rig: Rig) -> list[Figure]:
    """Limits are configured; requests are the tighter one."""
    return _configured(rig, BY_REQUESTS)


def tokens(rig: Rig) -> list[Figure]:
    """Limits are configured; tokens are the tighter one, and answers much shorter than `max_tokens`."""
    return _configured(rig, BY_TOKENS)


def learned(rig: Rig) -> list[Figure]:
    """Nothing is configured: 429s teach the limit. Beside it arq, whose jobs retry with exponential backoff."""
    plan = rig.plan
    ours = asyncio.run(_use(rig, PROMPTQ, BY_REQUESTS, settle=plan.limits_learning))
    theirs = asyncio.run(_use(rig, ARQ, BY_REQUESTS, settle=plan.limits_learning))
    contender = "arq, Retry with backoff"
    what = f"limits not configured: %s in {plan.limits_window:g} s, after {plan.limits_learning:g} s"
    return [
        Figure(
            rig.measure, what % "use of requests/min", ours.used, "%", contender, theirs.used,
            target=Target(90, "value", "at least"), samples={"promptq": [ours.used], contender: [theirs.used]},
        ),
        Figure(
            rig.measure, what % "calls answered 429", ours.refused, "%", contender, theirs.refused,
            target=Target(2, "value", "at most"), samples={"promptq": [ours.refused], contender: [theirs.refused]},
        ),
    ]  # fmt: skip


def _configured(rig: Rig, load: Load) -> list[Figure]:
    use = asyncio.run(_use(rig, PROMPTQ, load, settle=rig.plan.limits_settle, limits=LIMITS))
    name = {"rpm": "requests", "tpm": "tokens"}[load.tighter]
    what = f"limits configured: %s in {rig.plan.limits_window:g} s"
    return [
        Figure(
            rig.measure, what % f"use of {name}/min", use.used, "%",
            target=Target(97, "value", "at least"), samples={"promptq": [use.used]},
        ),
        Figure(
            rig.measure, what % "calls answered 429", use.refused, "%",
            target=Target(0, "value", "at most"), samples={"promptq": [use.refused]},
        ),
    ]  # fmt: skip


async def _use(
    rig: Rig, contender: Contender, load: Load, *, settle: float, limits: dict[str, int] | None = None
) -> Use:
    """Of a deep backlog, once it has settled for so many seconds. `limits`: what promptq is told."""
    seconds = settle + rig.plan.limits_window
    texts = numbered(math.ceil(LIMITS["rpm"] / 60 * seconds * SPARE), "job")
    knobs = {"limits": {"*": LIMITS}, "latency": LATENCY, "answer_tokens": load.answer_tokens}
    async with stage(rig, **knobs) as on:
        if limits:
            await on.queue.set_limits(MODEL, **limits)
        if contender is PROMPTQ:
            await on.enqueue(texts, max_tokens=load.max_tokens)
        else:
            await contender.fill(on.server.url, texts)
        with on.fleet(contender.name):
            seen = await _seconds(on, settle, rig.plan.limits_window)
        await _none_failed(on)
    rig.raw[f"{rig.measure}, {contender.name}: generations started a second"] = [second.generations for second in seen]
    rig.raw[f"{rig.measure}, {contender.name}: calls refused a second"] = [second.throttled for second in seen]
    rig.raw[f"{rig.measure}, {contender.name}: tokens a second"] = [second.total_tokens for second in seen]
    return _in_percent(seen, load.tighter, rig.plan.limits_window)


async def _seconds(on: Stage, settle: float, window: float) -> Sequence[Second]:
    """The simulator's whole seconds of the window, which begins so many seconds after the one of the first call."""
    await on.until_calls(1)
    began = min(second.second for second in await on.simulator.seconds()) + 1 + settle
    await sleep_until(began + window)
    return [second for second in await on.simulator.seconds() if began <= second.second < began + window]


async def _none_failed(on: Stage) -> None:
    if failed := (await on.queue.stats()).failed:
        raise RuntimeError(f"{failed} jobs have failed, which no limit is a reason for")


def _in_percent(seen: Sequence[Second], tighter: Literal["rpm", "tpm"], window: float) -> Use:
    calls, refused = sum(second.calls for second in seen), sum(second.throttled for second in seen)
    had = sum(second.generations if tighter == "rpm" else second.total_tokens for second in seen)
    return Use(100 * had / (LIMITS[tighter] / 60 * window), 100 * refused / calls if calls else 0.0)
