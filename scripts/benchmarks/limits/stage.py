"""What every part stands on: a private Redis, a simulator in a process of its own, and workers between them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from contenders import MAX_TOKENS, MODEL, PROMPTQ, producer_settings, prompts
from promptq.producer import JobHandle, PromptQueue
from promptq.worker.simulator.books import JournalEntry
from promptq.worker.simulator.control import SimulatorControl
from promptq.worker.simulator.process import running_simulator
from rig import Rig, Server

LOOK = 0.05
PATIENCE = 120.0
"""Seconds; a fleet that has not come so far by then is broken."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One Redis and one simulator; workers come with `fleet`."""

    rig: Rig
    server: Server
    host: str
    """Of the simulator."""
    simulator: SimulatorControl
    queue: PromptQueue

    @contextlib.contextmanager
    def fleet(
        self, contender: str = PROMPTQ.name, *, workers: int | None = None, slots: int | None = None
    ) -> Iterator[None]:
        """Worker processes at work; what they have in hand when the block ends is given back."""
        plan = self.rig.plan
        settings = {"provider": "xai", "xai_host": self.host, "xai_insecure": True, "xai_api_key": "simulated"}
        settings["log_level"] = "error"  # what fails here does so on purpose
        told = {"max_jobs": slots or plan.limits_slots, "settings": settings, "host": self.host}
        with contextlib.ExitStack() as stack:
            fleet = [
                stack.enter_context(self.rig.new_worker(contender, self.server.url, **told))
                for _ in range(workers or plan.limits_workers)
            ]
            for worker in fleet:
                worker.hear()
            for worker in fleet:
                worker.go()
            yield

    async def enqueue(self, texts: Sequence[str], **options: Any) -> list[JobHandle]:
        """By `enqueue_many`, with the same model and `max_tokens` for all unless the options say otherwise."""
        return await self.queue.enqueue_many(texts, **{"model": MODEL, "max_tokens": MAX_TOKENS} | options)

    async def until_calls(self, count: int) -> None:
        """Until the simulator has seen so many calls."""
        await self.simulator.until(lambda totals: totals.calls >= count, timeout=PATIENCE, period=LOOK)

    async def calls_of(self, name: str) -> Sequence[JournalEntry]:
        """The calls so far for the prompts `numbered` by that name, in the order of their starts."""
        return await self.simulator.journal(match=f"#{name} ")

    async def until_called(self, name: str, count: int) -> Sequence[JournalEntry]:
        """As `calls_of`, once there are so many."""
        gives_up = time.monotonic() + PATIENCE
        while len(calls := await self.calls_of(name)) < count:
            if time.monotonic() > gives_up:
                raise RuntimeError(f"{len(calls)} of {count} calls after {PATIENCE:g} s")
            await asyncio.sleep(LOOK)
        return calls


@contextlib.asynccontextmanager
async def stage(rig: Rig, **knobs: Any) -> AsyncIterator[Stage]:
    """A fresh one; `knobs` are the simulator's."""
    with rig.server() as server:
        async with (
            running_simulator(**knobs) as simulator,
            PromptQueue.connect(settings=producer_settings(server.url)) as queue,
        ):
            yield Stage(rig, server, simulator.host, simulator.control, queue)


def numbered(count: int, name: str) -> list[str]:
    """Prompts of which none is twice, so that a call can be told by its prompt: `#name 17: ...`."""
    return [f"#{name} {number}: {text}" for number, text in enumerate(prompts(count))]


def number_of(call: JournalEntry) -> int:
    """Of the prompt, among those of its name."""
    return int(call.prompt.partition(":")[0].rpartition(" ")[2])


def is_of(name: str, call: JournalEntry) -> bool:
    """Whether its prompt is `numbered` by that name."""
    return call.prompt.startswith(f"#{name} ")


def by_number(calls: Sequence[JournalEntry], name: str) -> dict[int, JournalEntry]:
    """The last call for each prompt of that name."""
    return {number_of(call): call for call in calls if is_of(name, call)}


async def sleep_until(moment: float) -> None:
    """Seconds since the epoch."""
    await asyncio.sleep(max(0.0, moment - time.time()))
