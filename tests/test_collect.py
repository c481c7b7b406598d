import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import pytest

from command import FakeWorker, settle_all
from promptq.producer import ProducerSettings, PromptQueue, collect
from promptq.producer.batch import Tally, Tickets
from promptq.producer.console import stderr
from promptq.producer.progress import showing
from waiting import wait_until

pytestmark = pytest.mark.producer


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[PromptQueue]:
    """A queue of which a worker is missing; what a test leaves in it is settled."""
    async with PromptQueue.connect(redis_url, settings=ProducerSettings()) as queue:
        yield queue
    await settle_all(redis_url)


async def tickets_of(queue: PromptQueue, prompts: list[str]) -> Tickets:
    """What `enqueue` leaves behind."""
    tickets = Tickets()
    for number, handle in enumerate(await queue.enqueue_many(prompts), 1):
        tickets.add(number, handle)
    return tickets


async def test_input_order(queue: PromptQueue, redis_url: str) -> None:
    """A result is handed on as soon as those before it have been, and never before."""
    tickets = await tickets_of(queue, ["one", "two", "three"])
    taken: list[tuple[int | None, str]] = []
    with showing(stderr()) as progress:
        collecting = asyncio.create_task(
            collect.collect(queue, tickets, lambda n, r: taken.append((n, r.content)), Tally(), progress, in_order=True)
        )
        async with FakeWorker(redis_url) as worker:
            jobs = {job.id: job for job in await worker.claim()}
            first, second, third = (jobs[job_id] for job_id, _ in tickets)
            await worker.settle([third])
            await worker.settle([first])
            await wait_until(lambda: taken == [(1, "ONE")])
            await worker.settle([second])
        await collecting
    assert taken == [(1, "ONE"), (2, "TWO"), (3, "THREE")]


async def test_a_gone_result_holds_up_nothing(queue: PromptQueue, redis_url: str) -> None:
    """Whose result is no longer kept is counted in its place, and the ones behind it come."""
    tickets = Tickets()
    [gone] = await queue.enqueue_many([{"prompt": "one", "result_ttl": 0.001}])
    await settle_all(redis_url)
    await wait_until(lambda: _is_gone(queue, gone.id))
    tickets.add(1, gone)
    [kept] = await queue.enqueue_many(["two"])
    tickets.add(2, kept)
    await settle_all(redis_url)
    tally = Tally()
    taken: list[int | None] = []
    with showing(stderr()) as progress:
        await collect.collect(queue, tickets, lambda number, _: taken.append(number), tally, progress, in_order=True)
    assert (taken, tally.gone) == ([2], 1)


async def _is_gone(queue: PromptQueue, job_id: str) -> bool:
    return not await queue.results([job_id])


async def test_input_order_does_not_hold_the_answers(
    queue: PromptQueue, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty megabytes of answers are waiting in Redis; a window of one megabyte is read at a time."""
    monkeypatch.setattr(collect, "IN_ORDER", 50)
    tickets = await tickets_of(queue, [f"{number} {'x' * 20_000}" for number in range(1000)])
    await settle_all(redis_url)
    taken: list[int | None] = []
    tracemalloc.start()
    with showing(stderr()) as progress:
        await collect.collect(queue, tickets, lambda n, _: taken.append(n), Tally(), progress, in_order=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken == list(range(1, 1001))
    assert peak < 8_000_000
