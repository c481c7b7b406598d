"""Who runs next where many wait: `neighbour`, `tenant`, `priority`, `retry`."""

import asyncio
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

from contenders import MODEL
from figures import Figure, Target, percentile
from limits.stage import PATIENCE, Stage, by_number, is_of, number_of, numbered, stage
from promptq.producer import keys
from promptq.worker.simulator.books import JournalEntry
from rig import Rig

LATENCY = "lognormal:0.3,0.5"
SHORT = 0.1
AROUND_SHORT = f"uniform:{SHORT / 2},{SHORT * 1.5}"
SLOTS = 10
"""Of the one worker for whose next free slot jobs compete."""

FREE_MODEL = "grok-3-mini"
SATURATED = {"rpm": 600}
BACKLOG = 2_000
SPACING = (0.02, 0.06)

FEW = 10
LOOK = 0.004


def neighbour(rig: Rig) -> list[Figure]:
    """A model with a deep backlog behind its limit, and single jobs of another one that has none."""
    delays = asyncio.run(_neighbour(rig))
    rig.raw[f"{rig.measure}: enqueue to start of the call, ms"] = delays
    return [
        Figure(
            rig.measure, f"another model behind its limit: enqueue to start of the call, p{percent}",
            percentile(delays, percent), "ms", target=target, samples={"promptq": [percentile(delays, percent)]},
        )
        for percent, target in ((50, None), (99, Target(50, "value", "at most")))
    ]  # fmt: skip


def tenant(rig: Rig) -> list[Figure]:
    """A tenant with a few jobs behind one with very many."""
    alone, crowded = asyncio.run(_tenant(rig, 0)), asyncio.run(_tenant(rig, rig.plan.limits_crowd))
    beside = statistics.median(alone)
    return [
        Figure(
            rig.measure, f"{FEW} jobs of 0.1 s behind {rig.plan.limits_crowd:,} of another tenant", max(crowded), "s",
            "into an empty queue", beside, samples={"promptq": crowded, "into an empty queue": alone},
        ),
        Figure(
            rig.measure, "longer than into an empty queue", extra := max(crowded) - beside, "s",
            target=Target(1, "value", "at most"), samples={"promptq": [extra]},
        ),
    ]  # fmt: skip


def priority(rig: Rig) -> list[Figure]:
    """A high one behind very many low ones, while every slot is taken."""
    return _next(rig, f"a high one behind {rig.plan.limits_low:,} low ones", *asyncio.run(_priority(rig)))


def retry(rig: Rig) -> list[Figure]:
    """Jobs whose backoff ends while very many of their own tenant wait."""
    return _next(rig, f"a retry behind {rig.plan.limits_own:,} of its own tenant", *asyncio.run(_retry(rig)))


def _next(rig: Rig, what: str, taken: Sequence[float], waited: Sequence[float]) -> list[Figure]:
    return [
        Figure(
            rig.measure, f"{what}: free slots that others took, most of {len(taken)}", max(taken), "slots",
            target=Target(0, "value", "at most"), samples={"promptq": taken},
        ),
        Figure(
            rig.measure, f"{what}: until its call started, median of {len(waited)}", statistics.median(waited), "ms",
            samples={"promptq": waited},
        ),
    ]  # fmt: skip


async def _neighbour(rig: Rig) -> list[float]:
    asked: dict[int, float] = {}
    async with stage(rig, latency=LATENCY) as on:
        await on.queue.set_limits(MODEL, **SATURATED)
        await on.enqueue(numbered(BACKLOG, "backlog"))
        with on.fleet():
            await on.until_calls(rig.plan.limits_workers)
            for number, text in enumerate(numbered(rig.plan.limits_singles, "single")):
                await asyncio.sleep(random.uniform(*SPACING))
                asked[number] = time.time()
                await on.enqueue([text], model=FREE_MODEL)
            calls = await on.until_called("single", len(asked))
    return [(call.started_at - asked[number_of(call)]) * 1000 for call in calls]


async def _tenant(rig: Rig, crowd: int) -> list[float]:
    """Seconds from before `enqueue_many` to the last result, each time of another tenant."""
    took = []
    async with stage(rig, latency=SHORT) as on:
        await on.enqueue(numbered(max(crowd, 1), "crowd"), tenant="crowd")
        with on.fleet(workers=1, slots=SLOTS):
            await on.until_calls(min(crowd, 2 * SLOTS) or 1)
            await asyncio.sleep(3 * SHORT)
            for number in range(rig.plan.limits_tries):
                name = f"tenant {number}"
                began = time.perf_counter()
                few = await on.enqueue(numbered(FEW, name), tenant=name)
                results = [result async for result in on.queue.as_completed([job.id for job in few], timeout=60)]
                took.append(time.perf_counter() - began)
                for result in results:
                    result.raise_for_status()
    return took


async def _priority(rig: Rig) -> tuple[list[float], list[float]]:
    """As `_taken`, of each high job since it was accepted."""
    accepted: dict[int, float] = {}
    async with stage(rig, latency=AROUND_SHORT) as on:
        await on.enqueue(numbered(rig.plan.limits_low, "low"), priority="low")
        with on.fleet(workers=1, slots=SLOTS):
            await on.until_calls(2 * SLOTS)
            for number, text in enumerate(numbered(rig.plan.limits_tries, "high")):
                [job] = await on.enqueue([text], priority="high")
                accepted[number] = time.time()
                (await job.wait(timeout=60)).raise_for_status()
            calls = await on.simulator.journal()
    return _taken(accepted, calls, "high")


async def _retry(rig: Rig) -> tuple[list[float], list[float]]:
    """As `_taken`, of each second call since the backoff was over."""
    count = SLOTS - 2
    refuse = {"kind": "status", "code": "UNAVAILABLE", "match": "#retry ", "times": count}
    async with stage(rig, latency=AROUND_SHORT, faults=[refuse]) as on:
        jobs = await on.enqueue(numbered(count, "retry") + numbered(rig.plan.limits_own, "other"))
        with on.fleet(workers=1, slots=SLOTS):
            async with asyncio.timeout(PATIENCE):
                due = await _backoffs(on, [job.id for job in jobs[:count]])
            calls = await on.simulator.journal()
    return _taken(due, calls, "retry")


async def _backoffs(on: Stage, ids: Sequence[str]) -> dict[int, float]:
    """By position: when the job's backoff is over, in seconds since the epoch. Very short ones are not seen."""
    due: dict[int, float] = {}
    client, ended = cast(Any, on.server.client), False
    while not ended:
        await asyncio.sleep(LOOK)
        ledgers = [client.hmget(keys.ledger(job_id), "state", "due") for job_id in ids]
        due |= {number: int(at) / 1000 for number, (state, at) in enumerate(ledgers) if state == b"delayed"}
        ended = all(state not in {b"queued", b"delayed", b"running"} for state, _ in ledgers)
    return due


def _taken(since: Mapping[int, float], calls: Sequence[JournalEntry], name: str) -> tuple[list[float], list[float]]:
    """For each job of that name: how many slots others took of those that became free since, and the ms it waited.

    `since`: by number. What was free before may have been claimed before: so many calls are expected to start yet.
    """
    awaited = by_number(calls, name)
    others = [call for call in calls if not is_of(name, call)]
    taken = []
    for number, at in since.items():
        running = sum(call.started_at <= at < (call.ended_at or math.inf) for call in calls)
        began = sum(at < call.started_at < awaited[number].started_at for call in others)
        taken.append(float(max(0, began - (SLOTS - running))))
    return taken, [(awaited[number].started_at - at) * 1000 for number, at in since.items()]
