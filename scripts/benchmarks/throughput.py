"""How fast one process empties a queue: `drain`, `million`, `latency`."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from redis import Redis

from contenders import ARQ, PROMPTQ, Contender, prompts
from figures import Figure, Target, alone, compared
from rig import Child, Rig, Server

DELAYS: dict[str, float | None] = {"no proxy": None, "no delay": 0.0, "0.5 ms": 0.0005, "1 ms": 0.001}
"""Of the proxy, each way, in seconds."""
PINGS = 50


@dataclass(frozen=True, slots=True)
class Drained:
    """One emptied queue. Rate in jobs a second, processor time in microseconds a job, memory in bytes a job."""

    rate: float
    worker_cpu: float
    redis_cpu: float
    result_memory: float


def drain_once(rig: Rig, contender: Contender, count: int, *, delay: float | None = None, **options: object) -> Drained:
    """Fill a fresh Redis, then let one worker empty it. `delay` as in DELAYS; `options` go to the worker.

    The clock runs from the worker's start to the last result; then every answer is read and checked.
    """
    texts = prompts(count)
    with rig.server() as server, ExitStack() as stack:
        memory = server.memory()
        ids = asyncio.run(contender.fill(server.url, texts))
        url = server.url if delay is None else stack.enter_context(_delayed(server, delay))
        worker = stack.enter_context(rig.worker(contender.name, url, **options))
        cpu = server.cpu()
        began = time.perf_counter()
        worker.go()
        ended, _ = server.wait_until_at_most(0, contender.lane)
        worker_cpu = worker.finish()["cpu"]
        cpu, memory = server.cpu() - cpu, server.memory() - memory
        contender.check(server.url, ids, texts)
    return Drained(count / (ended - began), worker_cpu / count * 1e6, cpu / count * 1e6, memory / count)


@contextmanager
def _delayed(server: Server, delay: float) -> Iterator[str]:
    """The URL of a proxy in a process of its own."""
    with Child("child_proxy", url=server.url, delay=delay) as proxy:
        yield proxy.hear()["url"]


def drain(rig: Rig) -> list[Figure]:
    """No-op jobs through one process."""
    ours, theirs = [], []
    for _ in range(rig.plan.rounds):
        ours.append(drain_once(rig, PROMPTQ, rig.plan.drain_jobs))
        theirs.append(drain_once(rig, ARQ, rig.plan.drain_jobs))
    target = Target(10, "ratio", "at least", aim="11,800 jobs/s with 86 us of the worker")

    def figure(what: str, unit: str, name: str, target: Target | None = None) -> Figure:
        return compared(
            "drain", what, unit, ours=_all(name, ours), contender=rig.plan.arq, theirs=_all(name, theirs), target=target
        )

    return [
        figure("no-op jobs, one process", "jobs/s", "rate", target),
        figure("processor time of the worker", "us/job", "worker_cpu"),
        figure("processor time of Redis", "us/job", "redis_cpu"),
    ]


def million(rig: Rig) -> list[Figure]:
    """The first jobs out of a very long queue."""
    plan = rig.plan
    short, rates, memories = [], [], []
    for _ in range(plan.rounds):
        short.append(drain_once(rig, PROMPTQ, plan.drain_jobs))
        rate, memory = _drain_some_of_many(rig)
        rates.append(rate)
        memories.append(memory)
    return [
        compared(
            "million",
            f"the first {plan.drain_jobs:,} of {plan.million_jobs:,} jobs",
            "jobs/s",
            ours=rates,
            contender=f"of {plan.drain_jobs:,}",
            theirs=_all("rate", short),
            target=Target(0.8, "ratio", "at least"),
        ),
        alone("million", "Redis' memory of a queued job", "bytes", ours=memories),
        alone("million", "Redis' memory of a stored result", "bytes", ours=_all("result_memory", short)),
    ]


def _drain_some_of_many(rig: Rig) -> tuple[float, float]:
    """Jobs a second, and bytes a queued job."""
    count, some = rig.plan.million_jobs, min(rig.plan.drain_jobs, rig.plan.million_jobs)
    with rig.server() as server:
        empty = server.memory()
        ids = asyncio.run(PROMPTQ.fill(server.url, prompts(count)))
        memory = (server.memory() - empty) / count
        with rig.worker(PROMPTQ.name, server.url) as worker:
            began = time.perf_counter()
            worker.go()
            ended, left = server.wait_until_at_most(count - some, PROMPTQ.lane)
            worker.finish()
        PROMPTQ.check(server.url, ids[:some], prompts(some))
    return (count - left) / (ended - began), memory


def latency(rig: Rig) -> list[Figure]:
    """The same drain with a network between worker and Redis."""
    rates: dict[str, list[float]] = {name: [] for name in DELAYS}
    for _ in range(rig.plan.rounds):
        for name, delay in DELAYS.items():
            rates[name].append(drain_once(rig, PROMPTQ, rig.plan.drain_jobs, delay=delay).rate)
    figures = [
        compared(
            "latency",
            f"{name} each way between worker and Redis",
            "jobs/s",
            ours=rates[name],
            contender=contender,
            theirs=rates[beside],
            target=Target(0.7, "ratio", "at least") if name == "0.5 ms" else None,
        )
        for name in ("0.5 ms", "1 ms")
        for beside, contender in (("no delay", "the proxy without delay"), ("no proxy", "no proxy"))
    ]
    return figures + [
        alone("latency", f"round trip, {name} each way", "ms", ours=_round_trips(rig, delay))
        for name, delay in DELAYS.items()
        if delay is not None
    ]


def _round_trips(rig: Rig, delay: float) -> list[float]:
    """What a proxy really takes, in ms."""
    took = []
    with rig.server() as server, _delayed(server, delay) as url, closing(Redis.from_url(url)) as client:
        for _ in range(PINGS):
            began = time.perf_counter()
            client.ping()
            took.append((time.perf_counter() - began) * 1000)
    return took


def _all(name: str, drained: Sequence[Drained]) -> list[float]:
    return [getattr(each, name) for each in drained]
