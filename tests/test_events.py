"""Readers of streamed jobs: whatever happens to the stream, what they are told put together is the answer."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

from contract import Contract, Run, batch, entry
from promptq.producer import (
    Delta,
    Ended,
    ErrorCode,
    JobEvent,
    JobNotFound,
    JobStatus,
    ProducerSettings,
    PromptJob,
    PromptQueue,
    QueueUnavailable,
    WaitTimeout,
    codec,
    keys,
    listening,
    records,
    scripts,
    streams,
)
from promptq.producer.events import Place
from promptq.worker import outcome, telling
from promptq.worker.providers.base import Answer, Hear, ProviderError
from promptq.worker.providers.base import Delta as Piece
from promptq.worker.providers.echo import EchoProvider
from waiting import wait_until
from workers import running_worker

SOON = 5.0


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[PromptQueue]:
    """The reader's side."""
    async with PromptQueue.connect(redis_url, settings=ProducerSettings(redis_timeout=2)) as queue:
        yield queue


@pytest.fixture
def contract(redis_client: Redis) -> Contract:
    """The worker's side, played by hand."""
    return Contract(redis_client)


@pytest.fixture
async def run(contract: Contract) -> Run:
    """The job `a`, which runs."""
    return await take(contract)


@pytest.fixture
def short_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream has five batches at most, and three more for a while."""
    script = scripts.Script("tell")
    short = script.text.replace("MOST = 1000", "MOST = 5").replace("GRACE = 100", "GRACE = 3")
    assert len(short) == len(script.text) - 5
    script.text, script.sha = short, hashlib.sha1(short.encode(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(scripts, "TELL", script)


async def take(contract: Contract, job_id: str = "a") -> Run:
    """A job that runs."""
    await contract.accept(entry(job_id))
    return await contract.take_one()


async def end(
    contract: Contract, run: Run, content: str, told: int | None = None, edition: int = 1, **result: Any
) -> None:
    """The job succeeds; so many batches of that edition were told, None: it was not streamed."""
    of_the_stream = {} if told is None else {"told": (f"{run.token}/{edition}", told)}
    record = {"status": "succeeded", "content": content, **of_the_stream, **result}
    await settle(contract, run, "succeeded", record)


async def settle(contract: Contract, run: Run, kind: records.Kind, result: dict[str, Any] | None = None) -> None:
    """The job ends, with no attempt on its books."""
    record = codec.dumps({"id": run.id, "s": kind == "succeeded", "r": result or {"status": kind}})
    assert await contract.settle(run, kind, attempt=b"", result=record) == "done"


async def read(queue: PromptQueue, after: str | None = None, job_id: str = "a") -> list[JobEvent]:
    """All events from there on."""
    return [event async for event in queue.events(job_id, after, timeout=SOON)]


def said(events: list[JobEvent]) -> list[str]:
    """Each event in a word: the content of a delta, or its type; `1:content` of another output."""
    return [
        (f"{event.output}:" if event.output else "") + event.content if isinstance(event, Delta) else event.type
        for event in events
    ]


class Reader:
    """Reads in a task of its own; `events` are those that came."""

    def __init__(self, queue: PromptQueue, after: str | None = None, job_id: str = "a") -> None:
        self.events: list[JobEvent] = []
        self._task = asyncio.create_task(self._read(queue, after, job_id))

    async def _read(self, queue: PromptQueue, after: str | None, job_id: str) -> None:
        async for event in queue.events(job_id, after):
            self.events.append(event)

    async def has(self, *words: str) -> None:
        """Wait until just these have come."""
        await wait_until(
            lambda: len(self.events) >= len(words) or self._task.done(), timeout=SOON, message=f"{words} have come"
        )
        assert said(self.events) == list(words)

    async def ended(self) -> list[str]:
        """All that it was told."""
        async with asyncio.timeout(SOON):
            await self._task
        return said(self.events)


@contextlib.asynccontextmanager
async def reading(queue: PromptQueue, redis: Redis, job_id: str = "a") -> AsyncIterator[Reader]:
    """A reader that has subscribed; it must have ended at the end."""
    reader = Reader(queue, job_id=job_id)
    await wait_until(lambda: is_heard(redis, job_id), message="subscribed")
    yield reader
    await reader.ended()


async def is_heard(redis: Redis, job_id: str) -> bool:
    """Whether somebody listens to both channels."""
    counts = await redis.pubsub_numsub(keys.told(job_id), keys.done(job_id))
    return all(count for _, count in counts)


async def test_pieces_come_while_they_are_written(queue: PromptQueue, contract: Contract, run: Run) -> None:
    """Each at once, with all that is in it; at last the result; whoever comes late is told the same."""
    call = {"id": "c", "name": "weather", "arguments": "{}"}
    async with reading(queue, contract.redis) as reader:
        await contract.tell(run, "one ")
        await reader.has("one ")
        await contract.tell(run, codec.dumps([{"reasoning_content": "hm"}]), "two", first=2)
        await reader.has("one ", "", "two")
        await contract.tell(run, codec.dumps([{"tool_calls": [call]}]), first=4)
        await end(contract, run, "one two", told=4)
        assert await reader.ended() == ["one ", "", "two", "", "ended"]
    _, thought, _, called, ended = reader.events
    assert isinstance(thought, Delta)
    assert isinstance(called, Delta)
    assert isinstance(ended, Ended)
    assert (thought.reasoning_content, [call.name for call in called.tool_calls]) == ("hm", ["weather"])
    assert ended.result == await queue.result("a")
    assert await read(queue) == reader.events


async def test_a_reader_goes_on_where_it_was(queue: PromptQueue, contract: Contract, run: Run) -> None:
    """Behind any event comes what follows it, within a batch of several outputs, too; behind the end the end."""
    await contract.tell(run, batch("a", "x"), batch("b", "y", "z"))
    outputs = [{"index": index, "role": "assistant", "content": text} for index, text in enumerate(["ab", "xy", "z"])]
    await end(contract, run, "ab", told=2, outputs=outputs)
    events = await read(queue)
    assert said(events) == ["a", "1:x", "b", "1:y", "2:z", "ended"]
    for number, event in enumerate(events[:-1], 1):
        assert await read(queue, event.id) == events[number:]
    assert await read(queue, events[-1].id) == events[-1:]


@pytest.mark.parametrize("why", ["not streamed", "its time is over", "a batch is missing", "another run has won"])
async def test_the_result_makes_up_for_the_stream(queue: PromptQueue, contract: Contract, run: Run, why: str) -> None:
    """The whole answer in one piece; who may have something else hears first that it is void."""
    if why != "not streamed":
        await contract.tell(run, "one ", "two")
    else:
        await contract.tell(run)
    if why == "another run has won":
        await contract.run_out(run)
        await contract.tell(await contract.take_one("w2"), "eins ")
    before = await contract.redis.xrange(keys.events("a"))
    await end(contract, run, "one two!", told={"not streamed": None, "a batch is missing": 3}.get(why, 2))
    if why == "its time is over":
        await contract.redis.delete(keys.events("a"))
    events = await read(queue)
    assert said(events) == ["one two!", "ended"]
    assert await read(queue, events[0].id) == await read(queue, events[1].id) == events[1:]
    if before:
        late = await read(queue, before[0][0].decode())
        assert said(late) == ["restarted", "one two!", "ended"]
        assert said(await read(queue, late[0].id)) == said(late)


async def test_several_outputs_are_made_up_for(queue: PromptQueue, contract: Contract, run: Run) -> None:
    """One delta for each that says something; a reader that breaks off between them gets them all again."""
    outputs = [{"index": index, "role": "assistant", "content": text} for index, text in enumerate(["x", "", "z"])]
    await end(contract, run, "x", outputs=outputs)
    events = await read(queue)
    assert said(events) == ["x", "2:z", "ended"]
    assert said(await read(queue, events[0].id)) == ["restarted", "x", "2:z", "ended"]
    assert await read(queue, events[1].id) == events[2:]


async def test_what_was_shown_before_is_void(queue: PromptQueue, contract: Contract, run: Run) -> None:
    """A live reader whose job another worker takes over, or whose stream proves to be of no use, is told so once."""
    async with reading(queue, contract.redis) as reader:
        await contract.tell(run, "one ")
        await reader.has("one ")
        await contract.run_out(run)
        second = await contract.take_one("w2")
        await contract.tell(second, "eins ")
        await reader.has("one ", "restarted", "eins ")
        await contract.tell(second)
        await reader.has("one ", "restarted", "eins ", "restarted")
        await end(contract, second, "done")
        assert await reader.ended() == ["one ", "restarted", "eins ", "restarted", "done", "ended"]
    assert said(await read(queue)) == ["done", "ended"]
    assert said(await read(queue, reader.events[0].id)) == ["restarted", "done", "ended"]


@pytest.mark.usefixtures("short_streams")
async def test_a_stream_that_is_written_anew(queue: PromptQueue, contract: Contract, run: Run) -> None:
    """Who has read it sees nothing twice, who comes late sees it whole, who is much behind begins anew."""
    async with reading(queue, contract.redis) as reader:
        assert await contract.tell(run, *"12345") == "again"
        await reader.has(*"12345")
        await contract.tell(run, "12345", "6", edition=2, again=5)
        await reader.has(*"123456")
        assert said(await read_some(queue, 6)) == [*"123456"]
        assert said(await read_some(queue, 2, reader.events[3].id)) == ["5", "6"]
        await contract.tell(run, "7", edition=2, again=5, first=3)
        assert said(await read_some(queue, 3)) == ["12345", "6", "7"]
        assert said(await read_some(queue, 2, reader.events[4].id)) == ["6", "7"]
        assert said(await read_some(queue, 4, reader.events[3].id)) == ["restarted", "12345", "6", "7"]
        await end(contract, run, "1234567", told=3, edition=2)
        assert await reader.ended() == [*"1234567", "ended"]


async def read_some(queue: PromptQueue, count: int, after: str | None = None) -> list[JobEvent]:
    """The first events from there on."""
    events: list[JobEvent] = []
    async with contextlib.aclosing(queue.events("a", after, timeout=SOON)) as told:
        async for event in told:
            events.append(event)
            if len(events) == count:
                break
    return events


async def test_a_stream_that_begins_after_another_has_expired(queue: PromptQueue, contract: Contract, run: Run) -> None:
    """A reader of the one before, who never saw that it was taken back, is told that it begins anew."""
    await contract.tell(run, "one ")
    [first] = await read_some(queue, 1)
    await contract.tell(run)
    await contract.redis.delete(keys.events("a"))
    await contract.tell(run, "eins")
    await end(contract, run, "eins", told=1)
    assert said(await read(queue, first.id)) == ["restarted", "eins", "ended"]
    assert said(await read(queue)) == ["eins", "ended"]


@pytest.mark.parametrize("kind", ["failed", "cancelled", "expired"])
async def test_other_ends(queue: PromptQueue, contract: Contract, run: Run, kind: records.Kind) -> None:
    """What was told stays, and the end comes once, behind it."""
    await contract.tell(run, "one ")
    await settle(contract, run, kind)
    events = await read(queue)
    assert said(events) == ["one ", "ended"]
    assert isinstance(events[-1], Ended)
    assert events[-1].result.status is JobStatus(kind)
    assert await read(queue, events[0].id) == await read(queue, events[1].id) == events[1:]


@pytest.mark.parametrize("streams_again", [True, False])
async def test_a_requeued_job_goes_on(queue: PromptQueue, contract: Contract, run: Run, streams_again: bool) -> None:
    """The end of its first life is none of the second: what was told is void, and another end comes."""
    await contract.tell(run, "one ")
    await settle(contract, run, "failed")
    events = await read(queue)
    assert await queue.requeue("a") == ("a",)
    second = await contract.take_one("w2")
    if streams_again:
        await contract.tell(second, "eins")
    await end(contract, second, "eins", told=1 if streams_again else None)
    for event in events:
        assert said(await read(queue, event.id)) == ["restarted", "eins", "ended"]
    assert said(await read(queue)) == ["eins", "ended"]


async def test_an_end_is_told_without_what_came_after_it(
    queue: PromptQueue, contract: Contract, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow reader of a job that is requeued meanwhile has the end that it was about to see."""
    monkeypatch.setattr(listening, "AT_ONCE", 2)
    monkeypatch.setattr(streams, "AT_ONCE", 2)
    await contract.tell(run, *"123")
    await settle(contract, run, "failed")
    async with contextlib.aclosing(queue.events("a", timeout=SOON)) as events:
        assert said([await anext(events)]) == ["1"]
        await queue.requeue("a")
        second = await contract.take_one("w2")
        await contract.tell(second, "eins")
        assert said([event async for event in events]) == ["2", "ended"]
    await end(contract, second, "eins", told=1)


async def test_a_reader_outlives_its_connections(queue: PromptQueue, contract: Contract, run: Run) -> None:
    """What is told while nobody listens comes when the subscription stands again."""
    async with reading(queue, contract.redis) as reader:
        await contract.tell(run, "one ")
        await reader.has("one ")
        await contract.redis.client_kill_filter(_type="pubsub")
        await contract.redis.client_kill_filter(_type="normal", skipme=True)
        await contract.tell(run, "two", first=2)
        await reader.has("one ", "two")
        await end(contract, run, "one two", told=2)
        assert await reader.ended() == ["one ", "two", "ended"]


async def test_a_slow_reader_leaves_the_rest_in_redis(
    queue: PromptQueue, contract: Contract, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is told meanwhile, it holds one read's worth of it."""
    monkeypatch.setattr(streams, "AT_ONCE", 2)
    monkeypatch.setattr(listening, "AT_ONCE", 2)
    async with contextlib.aclosing(queue.events("a", timeout=SOON)) as events:
        await contract.tell(run, *"1234567")
        assert said([await anext(events)]) == ["1"]
        await contract.redis.config_resetstat()
        await contract.tell(run, *"890", first=8)
        assert said([await anext(events)]) == ["2"]
        assert await calls_of(contract.redis, "xread") == 0
        await end(contract, run, "1234567890", told=10)
        assert said([event async for event in events]) == [*"34567890", "ended"]
        assert await calls_of(contract.redis, "xread") == 4


async def calls_of(redis: Redis, command: str) -> int:
    """How often it came since the statistics began."""
    stats = await redis.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def test_many_streams_are_read_in_one_call(queue: PromptQueue, contract: Contract) -> None:
    """Those of different jobs, and one from several places; one that is none stops nobody."""
    jobs = [str(number) for number in range(20)]
    for job_id in jobs:
        await contract.tell(await take(contract, job_id), f"one of {job_id}", "two")
    link = queue._link
    start = Place(0, 0)
    await contract.redis.config_resetstat()
    found = await asyncio.gather(*(link.streams.read(job_id, start) for job_id in [*jobs, "0"]))
    assert await calls_of(contract.redis, "xread") == 1
    assert [len(entries) for entries in found] == [2] * 21
    assert [next(entries[0].deltas()).content for entries in found] == [f"one of {job_id}" for job_id in [*jobs, "0"]]
    await contract.redis.set(keys.events("3"), "no stream", px=60_000)
    behind = found[0][0].place
    reads = [link.streams.read(job_id, place) for job_id, place in (("0", start), ("0", behind), ("3", start))]
    first, second, third = await asyncio.gather(*reads, return_exceptions=True)
    assert (first, second) == (found[0], found[0][1:])
    assert isinstance(third, QueueUnavailable)
    await contract.drain()


@pytest.mark.parametrize("after", ["", "x", "1-", "1-2.", "1-2.end", "1-2 ", "-1-2", "\u0661-1", "1-2\n"])
async def test_an_id_that_is_none_is_refused(queue: PromptQueue, after: str) -> None:
    """ValueError says what to give, before anything is read."""
    with pytest.raises(ValueError, match="give the `id` of the last"):
        queue.events("a", after)


async def test_streams_that_close_before_they_read(queue: PromptQueue) -> None:
    """Whoever asked in the same turn of the loop is refused, and so is whoever asks later: nobody waits for ever."""
    link = queue._link
    asked = asyncio.create_task(link.streams.read("a", Place(0, 0)))
    await asyncio.sleep(0)  # it has asked, and nobody has begun to read
    await queue.aclose()
    for reading in (asked, link.streams.read("a", Place(0, 0))):
        with pytest.raises(QueueUnavailable, match="was closed"):
            await asyncio.wait_for(reading, SOON)


async def test_what_cannot_be_followed(queue: PromptQueue, contract: Contract, run: Run) -> None:
    """An unknown job is JobNotFound, one that takes too long WaitTimeout, a queue that is closed QueueUnavailable."""
    with pytest.raises(JobNotFound, match="'nobody'"):
        await read(queue, job_id="nobody")
    with pytest.raises(WaitTimeout, match=r"'a' has not ended after 0.01 s"):
        [_ async for _ in queue.events("a", timeout=0.01)]
    waiting = Reader(queue)
    await wait_until(lambda: is_heard(contract.redis, "a"), message="subscribed")
    await queue.aclose()
    with pytest.raises(QueueUnavailable, match="was closed"):
        await waiting.ended()
    await contract.settle(run)


async def test_a_queue_that_is_closed_says_so_in_the_middle(
    queue: PromptQueue, contract: Contract, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a reader, too, that had more to read."""
    monkeypatch.setattr(listening, "AT_ONCE", 2)
    monkeypatch.setattr(streams, "AT_ONCE", 2)
    await contract.tell(run, *"1234")
    events = queue.events("a")
    assert said([await anext(events), await anext(events)]) == ["1", "2"]
    await queue.aclose()
    with pytest.raises(QueueUnavailable, match="was closed"):
        async with asyncio.timeout(SOON):
            await anext(events)
    await settle(contract, run, "failed")


class Dictation(EchoProvider):
    """Tells a letter when the reader has the one before; if told so it breaks off once, behind the third."""

    def __init__(self, reader: Reader, *, breaks: bool) -> None:
        super().__init__()
        self._reader, self._breaks = reader, breaks

    async def sample(self, job: PromptJob, timeout: float, hear: Hear | None = None) -> Answer:
        """The prompt."""
        assert hear
        for letter in job.messages[-1].text:
            if self._breaks and letter == "d":
                self._breaks = False
                raise ProviderError(ErrorCode.PROVIDER_ERROR, "broke off")
            hear(Piece(letter))
            await wait_until(partial(self._is_read, letter), interval=0)
        return await super().sample(job, timeout)

    def _is_read(self, letter: str) -> bool:
        return said(self._reader.events)[-1:] == [letter]


@pytest.mark.usefixtures("short_streams")
@pytest.mark.parametrize("breaks", [False, True])
async def test_a_worker_is_followed(
    queue: PromptQueue, redis_client: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    """From the first letter on, over streams that are written anew and a call that is made again."""
    monkeypatch.setattr(telling, "BATCH", 0.0)
    monkeypatch.setattr(outcome, "BACKOFF_BASE", 0.0)
    job = await queue.enqueue("abcdefghijklmnopq", id="a", stream=True)
    async with reading(queue, redis_client) as reader:
        async with running_worker(redis_url, Dictation(reader, breaks=breaks)):
            words = await reader.ended()
        assert words == [*([*"abc", "restarted"] if breaks else []), *"abcdefghijklmnopq", "ended"]
    result = await job.wait(timeout=SOON)
    assert (result.content, len(result.attempts)) == ("abcdefghijklmnopq", 1 + breaks)
    assert result.time_to_first_token is not None
