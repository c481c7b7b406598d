"""Milliseconds and seconds: `pickup`, `idle`, `recover`."""

import asyncio
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from contenders import ARQ, PROMPTQ, Contender, arq_pool, producer_settings
from figures import Figure, Target, compared, percentile
from plan import arq_polling
from promptq.producer import PromptQueue
from promptq.worker.settings import Settings
from rig import Child, Rig, Server

ARQ_DEFAULT_POLL_DELAY = 0.5
_SPACING = (0.02, 0.06)

BOUNDS = {("start of the call", 50): 2, ("start of the call", 99): 5, ("result", 50): 3, ("result", 99): 6}
"""Milliseconds from a single `enqueue`, by end and percentile."""

Times = dict[str, list[float]]
"""By end, in ms."""


def pickup(rig: Rig) -> list[Figure]:
    """From a single `enqueue` to the start of the call, and to the result in the hands of who waits."""
    plan = rig.plan
    rivals = {plan.arq_poll_delay: plan.pickups, ARQ_DEFAULT_POLL_DELAY: plan.slow_pickups}
    ours: list[Times] = []
    theirs: dict[float, list[Times]] = {poll_delay: [] for poll_delay in rivals}
    for _ in range(plan.rounds):
        ours.append(_pickups(rig, PROMPTQ, plan.pickups, 0))
        for poll_delay, count in rivals.items():
            theirs[poll_delay].append(_pickups(rig, ARQ, count, poll_delay))
    return [
        compared(
            "pickup",
            f"enqueue to {end}, p{percent}",
            "ms",
            ours=[percentile(times[end], percent) for times in ours],
            contender=arq_polling(poll_delay),
            theirs=[percentile(times[end], percent) for times in theirs[poll_delay]],
            target=Target(bound, "value", "at most") if poll_delay == plan.arq_poll_delay else None,
        )
        for (end, percent), bound in BOUNDS.items()
        for poll_delay in rivals
    ]


def _pickups(rig: Rig, contender: Contender, count: int, poll_delay: float) -> Times:
    """Of single jobs of one idle worker."""
    with rig.server() as server, rig.worker(contender.name, server.url, stamps=True, poll_delay=poll_delay) as worker:
        worker.go()
        told = server.url, count, poll_delay
        asked = asyncio.run(_promptq_pickups(*told) if contender is PROMPTQ else _arq_pickups(*told))
        calls = {said["prompt"]: said["at"] for said in (worker.hear() for _ in asked)}
        worker.finish()
    times = {
        "start of the call": [(calls[prompt] - began) / 1e6 for prompt, (began, _) in asked.items()],
        "result": [(ended - began) / 1e6 for began, ended in asked.values()],
    }
    for end, samples in times.items():
        del samples[0]  # the first one opens connections
        rig.raw.setdefault(f"{contender.name}, polling every {poll_delay} s: {end}, ms", []).extend(samples)
    return times


Asked = dict[str, tuple[int, int]]
"""By prompt: when it was enqueued and when its answer was there, in ns."""


async def _promptq_pickups(url: str, count: int, _: float) -> Asked:
    asked: Asked = {}
    async with PromptQueue.connect(settings=producer_settings(url)) as queue:
        for number in range(count + 1):
            await asyncio.sleep(random.uniform(*_SPACING))
            began = time.time_ns()
            job = await queue.enqueue(f"number {number}")
            await queue.wait(job.id, timeout=30)
            asked[f"number {number}"] = began, time.time_ns()
    return asked


async def _arq_pickups(url: str, count: int, poll_delay: float) -> Asked:
    asked: Asked = {}
    pool = await arq_pool(url)
    for number in range(count + 1):
        await asyncio.sleep(random.uniform(*_SPACING))
        began = time.time_ns()
        job = await pool.enqueue_job("sample_prompt", f"number {number}")
        if job is None:
            raise RuntimeError("arq knows the id already")
        await job.result(timeout=30, poll_delay=poll_delay)
        asked[f"number {number}"] = began, time.time_ns()
    await pool.aclose()
    return asked


def idle(rig: Rig) -> list[Figure]:
    """Commands that one idle worker sends, after it has had work."""
    poll_delays = (rig.plan.arq_poll_delay, ARQ_DEFAULT_POLL_DELAY)
    with ExitStack() as stack:
        servers = [_idle_worker(rig, stack, PROMPTQ, 0)]
        servers += [_idle_worker(rig, stack, ARQ, poll_delay) for poll_delay in poll_delays]
        time.sleep(rig.plan.idle_settle)
        rates = [asyncio.run(_commands(servers, rig.plan.idle_window)) for _ in range(rig.plan.rounds)]
    ours, *theirs = zip(*rates, strict=True)
    return [
        compared(
            "idle",
            f"commands of an idle worker in {rig.plan.idle_window:g} s",
            "commands/s",
            ours=ours,
            contender=arq_polling(poll_delay),
            theirs=beside,
            target=Target(0.5, "value", "at most") if poll_delay == rig.plan.arq_poll_delay else None,
        )
        for poll_delay, beside in zip(poll_delays, theirs, strict=True)
    ]


def _idle_worker(rig: Rig, stack: ExitStack, contender: Contender, poll_delay: float) -> Server:
    """The Redis of a worker that has had work."""
    server = stack.enter_context(rig.server())
    worker = stack.enter_context(rig.worker(contender.name, server.url, poll_delay=poll_delay))
    worker.go()
    asyncio.run(contender.fill(server.url, ["Hello"] * 10))
    server.wait_until_at_most(0, contender.lane)
    return server


async def _commands(servers: Sequence[Server], seconds: float) -> list[float]:
    """Commands a second that clients sent, by server, during the same seconds."""
    return list(await asyncio.gather(*(_overheard(server, seconds) for server in servers)))


async def _overheard(server: Server, seconds: float) -> float:
    """By MONITOR, which marks what scripts call: in commandstats and total_commands_processed that counts, too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"MONITOR\r\n")
    await reader.readline()
    heard = 0
    try:
        async with asyncio.timeout(seconds):
            while line := await reader.readline():
                heard += b" lua] " not in line.partition(b'"')[0]
    except TimeoutError:
        return heard / seconds
    finally:
        writer.close()
    raise RuntimeError("Redis ended")


def recover(rig: Rig) -> list[Figure]:
    """From the SIGKILL of a worker to the next start of the job that it ran."""
    with ThreadPoolExecutor(rig.plan.rounds) as together:
        seconds = list(together.map(lambda _: _recover_once(rig), range(rig.plan.rounds)))
    target = Target(12, "value", "at most")
    return [
        Figure(
            "recover", f"a killed worker's job runs again, the longest of {len(seconds)}", max(seconds), "s",
            target=target, samples={"promptq": seconds},
        )
    ]  # fmt: skip


def _recover_once(rig: Rig) -> float:
    lease = Settings.model_fields["lease"].default
    settings = {"job_timeout": rig.plan.job_timeout, "log_level": "error"}  # the second one gives its job back
    with rig.server() as server, ExitStack() as stack:

        def start() -> Child:
            worker = rig.worker(PROMPTQ.name, server.url, stamps=True, latency=600, settings=settings)
            return stack.enter_context(worker)

        first = start()
        first.go()
        asyncio.run(PROMPTQ.fill(server.url, ["Hello"]))
        first.hear()
        second = start()
        second.go()
        time.sleep(lease * random.uniform(1.1, 1.5))  # a new worker takes over nothing for one lease; any phase
        killed = time.time_ns()
        first.kill()
        started: int = second.hear(within=60)["at"]
        return (started - killed) / 1e9
