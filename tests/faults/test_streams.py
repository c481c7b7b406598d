"""Streamed answers whose workers die, stop, stand still or lose Redis: readers are told, and each job ends once."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import pytest

from faults.bookkeeping import Scene
from faults.fleet import LEASE, Fleet
from promptq.producer import Delta, Ended, JobStatus, PromptQueue, Restarted
from promptq.producer.events import JobEvent
from waiting import wait_until

TOKENS: Final = 60
JOBS: Final = 4


class Reader:
    """Reads the events of one job, from the beginning or after one of them."""

    def __init__(self, queue: PromptQueue, job_id: str, after: str | None = None) -> None:
        self.events: list[JobEvent] = []
        self.shown = ""
        """What a page would show now."""
        self.task = asyncio.create_task(self._read(queue, job_id, after))

    async def _read(self, queue: PromptQueue, job_id: str, after: str | None) -> None:
        async for event in queue.events(job_id, after=after):
            self.events.append(event)
            if isinstance(event, Restarted):
                self.shown = ""
            elif isinstance(event, Delta):
                self.shown += event.content

    @property
    def restarts(self) -> int:
        """How often it was told to drop what it showed."""
        return sum(isinstance(event, Restarted) for event in self.events)

    async def end(self, within: float = 20.0) -> Ended:
        """The last event, which is the only one of its kind."""
        async with asyncio.timeout(within):
            await self.task
        last = self.events[-1]
        assert isinstance(last, Ended)
        assert [type(event) for event in self.events].count(Ended) == 1
        return last


async def streaming(scene: Scene, fleet: Fleet, workers: int = 2, **settings: Any) -> tuple[list[str], list[Reader]]:
    """Jobs whose answers take two seconds to write, spread over the workers, each with a reader that has seen some."""
    await scene.simulator.set(answer_tokens=TOKENS, tokens_per_second=TOKENS / 2, tokens_per_chunk=1)
    await fleet.start_many(workers, promptq_max_jobs=JOBS, **settings)
    ids = await scene.enqueue(*(f"question {number}" for number in range(JOBS)), stream=True)
    readers = [Reader(scene.queue, job_id) for job_id in ids]
    await wait_until(lambda: all(reader.shown for reader in readers))
    return ids, readers


async def show_their_answers(readers: Sequence[Reader]) -> None:
    """In the end."""
    for reader in readers:
        ended = await reader.end()
        assert ended.result.status is JobStatus.SUCCEEDED
        assert reader.shown == ended.result.content != ""
        assert ended.result.time_to_first_token is not None


async def all_is_told(scene: Scene, ids: Sequence[str], readers: Sequence[Reader]) -> None:
    """Each reader shows the answer that is the result, and so does one that comes now."""
    await show_their_answers(readers)
    late = [Reader(scene.queue, job_id) for job_id in ids]
    await show_their_answers(late)
    assert [reader.restarts for reader in late] == [0] * len(late)


async def test_readers_of_a_killed_worker_begin_anew(xai_fleet: Fleet, scene: Scene) -> None:
    """They are told to drop what they showed, and then see all of the other worker's answer. The others see nothing."""
    ids, readers = await streaming(scene, xai_fleet)
    ledgers = await scene.until_running(ids)
    victim = xai_fleet.holder(ledgers[0].token)
    orphans = [victim.name in ledger.token for ledger in ledgers]
    victim.kill()
    await all_is_told(scene, ids, readers)
    assert [reader.restarts for reader in readers] == [int(is_orphan) for is_orphan in orphans]
    await scene.assert_each_has_one_answer(ids)


async def test_readers_of_a_stopping_worker_are_told_at_once(xai_fleet: Fleet, scene: Scene) -> None:
    """What it gives back is void from that moment, though nobody is there yet to run it again."""
    ids, readers = await streaming(scene, xai_fleet, 1, promptq_drain_timeout=0)
    [worker] = xai_fleet.workers
    worker.terminate()
    await wait_until(lambda: all(reader.restarts for reader in readers))
    assert [reader.shown for reader in readers] == [""] * JOBS
    await xai_fleet.start_many(1)
    await all_is_told(scene, ids, readers)
    assert [reader.restarts for reader in readers] == [1] * JOBS


async def test_a_frozen_worker_tells_nobody_anything_more(xai_fleet: Fleet, scene: Scene) -> None:
    """It thaws while another writes the same answer: no reader sees the two of them mixed."""
    ids, readers = await streaming(scene, xai_fleet)
    ledgers = await scene.until_running(ids)
    frozen = xai_fleet.holder(ledgers[0].token)
    frozen.freeze()
    await wait_until(lambda: readers[0].restarts, LEASE + 10)
    frozen.thaw()
    await all_is_told(scene, ids, readers)


async def test_a_reader_that_comes_again_misses_nothing(xai_fleet: Fleet, scene: Scene) -> None:
    """It goes on after the last event that it saw, and its connection is cut, too."""
    ids, readers = await streaming(scene, xai_fleet, 1)
    again = []
    for job_id, reader in zip(ids, readers, strict=True):
        reader.task.cancel()
        resumed = Reader(scene.queue, job_id, reader.events[-1].id)
        resumed.shown = reader.shown
        again.append(resumed)
    for kind in ("pubsub", "normal"):
        await scene.redis.client_kill_filter(_type=kind, skipme=True)
    await all_is_told(scene, ids, again)
    assert [reader.restarts for reader in again] == [0] * JOBS


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_an_end_without_an_answer_is_an_end(xai_fleet: Fleet, scene: Scene, how: str) -> None:
    """Exactly one last event, after what was written until then."""
    await scene.simulator.set(answer_tokens=TOKENS, tokens_per_second=TOKENS / 4, tokens_per_chunk=1)
    await xai_fleet.start_many(1)
    [job_id] = await scene.enqueue("question", stream=True, deadline=1.5 if how == "expired" else None)
    reader = Reader(scene.queue, job_id)
    await wait_until(lambda: reader.shown)
    if how == "cancelled":
        assert await scene.queue.cancel(job_id)
    ended = await reader.end()
    assert ended.result.status == how
    assert reader.restarts == 0
    assert (await scene.results([job_id]))[job_id] == ended.result
