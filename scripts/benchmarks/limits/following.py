"""How soon a fleet at work does what it is told: `changes`.

Measured on the start of every call, as the simulator's journal has it: a change is followed from the moment on at
which every second, wherever it begins, holds as many starts as it should.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from contenders import MODEL
from figures import Figure, Target
from limits.stage import Stage, numbered, sleep_until, stage
from rig import Rig

LATENCY = "lognormal:0.3,0.5"
SLOTS = 50
RATES = {"at first": 50, "halved": 25, "raised": 100}
"""Calls a second."""
SECOND = 1.0
STEP = 0.02
SHARE, CALLS = 0.1, 2
"""A second holds as many starts as it should, give or take this share and these calls."""
TARGET = Target(2, "value", "at most")


@dataclass(frozen=True, slots=True)
class Phase:
    """From a change to the next; `told` and `ends` in seconds since the epoch, `rate` in calls a second."""

    name: str
    rate: int
    told: float
    ends: float


def changes(rig: Rig) -> list[Figure]:
    """A limit is halved, raised, paused and resumed under load."""
    phases, starts = asyncio.run(_play(rig))
    rig.raw[f"{rig.measure}: starts of calls, seconds from the first change"] = [at - phases[0].told for at in starts]
    return [
        Figure(
            rig.measure, f"followed: {phase.name}", seconds := followed_after(phase, starts), "s",
            target=TARGET, samples={"promptq": [seconds]},
        )
        for phase in phases
    ]  # fmt: skip


def followed_after(phase: Phase, starts: Sequence[float]) -> float:
    """Seconds from the change; the whole phase if it never was. `starts` in their order."""
    if not phase.rate:
        last = bisect_left(starts, phase.ends) - 1
        return max(0.0, starts[last] - phase.told) if last >= 0 else 0.0
    followed = phase.ends
    begins = phase.ends - SECOND
    while begins >= phase.told and _holds_its_starts(begins, phase, starts):
        followed = begins
        begins -= STEP
    return followed - phase.told


def _holds_its_starts(begins: float, phase: Phase, starts: Sequence[float]) -> bool:
    """Of the second that begins then."""
    held = bisect_left(starts, begins + SECOND) - bisect_left(starts, begins)
    return abs(held - phase.rate * SECOND) <= phase.rate * SHARE + CALLS


async def _play(rig: Rig) -> tuple[list[Phase], list[float]]:
    """The phases, and when calls started, in their order."""
    seconds = rig.plan.limits_phase
    count = round(seconds * (sum(RATES.values()) + RATES["raised"] * 1.5))
    async with stage(rig, latency=LATENCY) as on:
        await _allow(on, "at first")
        await on.enqueue(numbered(count, "job"))
        with on.fleet(slots=SLOTS):
            await on.until_calls(RATES["at first"])
            phases = [
                await _phase("halved", RATES["halved"], seconds, lambda: _allow(on, "halved")),
                await _phase("raised", RATES["raised"], seconds, lambda: _allow(on, "raised")),
                await _phase("paused", 0, seconds, lambda: on.queue.pause(MODEL)),
                await _phase("resumed", RATES["raised"], seconds, lambda: on.queue.resume(MODEL)),
            ]
        return phases, sorted(call.started_at for call in await on.calls_of("job"))


async def _phase(name: str, rate: int, seconds: float, change: Callable[[], Awaitable[object]]) -> Phase:
    told = time.time()
    await change()
    await sleep_until(told + seconds)
    return Phase(name, rate, told, time.time())


async def _allow(on: Stage, name: str) -> None:
    await on.queue.set_limits(MODEL, rpm=RATES[name] * 60)
