"""`streams`: what lies between a token's leaving the simulator and its reaching a reader, of many answers at once."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from xai_sdk import AsyncClient
from xai_sdk.chat import user

from contenders import MODEL, PROMPTQ, producer_settings, prompts
from figures import Figure, Target, alone, compared, percentile
from promptq.producer import Delta, Ended, PromptQueue
from rig import Child, Rig

SCRIPT = "a script with the SDK"
PATIENCE = 120.0
"""Seconds; answers that take longer will never come."""
MOST_LAG = 150
"""Milliseconds, p99."""

Lags = list[float]
"""In ms, of each token."""


def streams(rig: Rig) -> list[Figure]:
    """Beside it, the same answers straight to a script that holds the calls itself."""
    ours: list[Lags] = []
    theirs: list[Lags] = []
    paces: list[float] = []
    workers: list[float] = []
    plan = rig.plan
    for _ in range(plan.rounds):
        with _simulator(rig) as host:
            theirs.append(asyncio.run(_read_from_the_api(rig, host)))
        with _simulator(rig) as host, rig.server() as server:
            settings = {"provider": "xai", "xai_host": host, "xai_insecure": True, "xai_api_key": "simulated"}
            with rig.worker(PROMPTQ.name, server.url, max_jobs=plan.streams, settings=settings) as worker:
                worker.go()
                lags, pace = asyncio.run(_read_from_the_queue(rig, server.url))
                workers.append(worker.finish()["cpu"])
        ours.append(lags)
        paces.append(pace)
    tokens = plan.streams * plan.stream_tokens
    what = f"{plan.streams} answers at {plan.stream_pace:g} tokens/s each, token by token"
    return [
        *(
            compared(
                "streams",
                f"{what}: simulator to reader, p{percent}",
                "ms",
                ours=[percentile(lags, percent) for lags in ours],
                contender=SCRIPT,
                theirs=[percentile(lags, percent) for lags in theirs],
                target=Target(MOST_LAG, "value", "at most") if percent == 99 else None,
            )
            for percent in (50, 99)
        ),
        alone(
            "streams",
            f"{what}: time they took, by the time that they were to take",
            "x",
            ours=paces,
            target=Target(1.05, "value", "at most"),
        ),
        alone("streams", f"{what}: worker", "us/token", ours=[cpu / tokens * 1e6 for cpu in workers]),
    ]


@contextmanager
def _simulator(rig: Rig) -> Iterator[str]:
    """Its host."""
    tokens = rig.plan.stream_tokens
    knobs = {"answer_tokens": tokens, "tokens_per_second": rig.plan.stream_pace, "tokens_per_chunk": 1}
    with Child("child_simulator", knobs=knobs) as simulator:
        yield simulator.hear()["host"]
        simulator.finish()


async def _read_from_the_api(rig: Rig, host: str) -> Lags:
    client = AsyncClient(api_key="simulated", api_host=host, use_insecure_channel=True)
    lags: Lags = []

    async def read(prompt: str) -> None:
        chat = client.chat.create(MODEL, max_tokens=rig.plan.stream_tokens, messages=[user(prompt)])
        async for _, chunk in chat.stream():
            _note(lags, chunk.content)

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*map(read, prompts(rig.plan.streams)))
    await client.close()
    return lags


async def _read_from_the_queue(rig: Rig, url: str) -> tuple[Lags, float]:
    """The lags, and how much longer than the model the slowest answer took to reach its reader."""
    lags: Lags = []
    spans: list[float] = []

    async def read(queue: PromptQueue, job_id: str) -> None:
        began, contents = 0.0, []
        async for event in queue.events(job_id):
            began = began or time.perf_counter()
            if isinstance(event, Delta):
                contents.append(event.content)
                _note(lags, event.content)
            elif isinstance(event, Ended):
                spans.append(time.perf_counter() - began)
                if "".join(contents) != event.result.raise_for_status().content:
                    raise RuntimeError("the deltas are not the answer")

    async with PromptQueue.connect(settings=producer_settings(url)) as queue:
        texts = prompts(rig.plan.streams)
        jobs = await queue.enqueue_many(texts, model=MODEL, max_tokens=rig.plan.stream_tokens, stream=True)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(read(queue, job.id) for job in jobs))
    return lags, max(spans) / (rig.plan.stream_tokens / rig.plan.stream_pace)


def _note(lags: Lags, content: str) -> None:
    now = time.time_ns()
    lags += ((now - int(stamp)) / 1e6 for stamp in content.split())
