"""One reader of one job's events: what it was shown, what comes next, and how it makes up for what the stream lacks.

Used by queue.py; link.py says how it waits. Reads the job's stream, and when the job has ended, its result.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

from redis.asyncio import Redis

from promptq.producer import codec, keys, reading
from promptq.producer.errors import JobNotFound, WaitTimeout
from promptq.producer.events import (
    BEGINNING,
    Delta,
    Ended,
    Entry,
    JobEvent,
    Place,
    Restarted,
    end_id,
    parse_id,
    pieces_of,
)
from promptq.producer.link import Link
from promptq.producer.models import JobStatus
from promptq.producer.results import JobResult
from promptq.producer.streams import AT_ONCE


class Listener:
    """Awaits the events of a job behind `after`; all of them if that is None. Raises ValueError if it is no event's id.

    The stream is read before the end is told, so the result is looked for first: nothing is written to it afterwards.
    """

    def __init__(self, job_id: str, after: str | None, link: Link) -> None:
        self._job_id, self._link = job_id, link
        self._place, self._ended_in = (BEGINNING, None) if after is None else parse_id(after)
        self._last_id = after or str(BEGINNING)
        self._has_shown = after is not None
        """Whether the reader may have something of an answer."""
        self._ending: _Record | None = None
        self._done = keys.done(job_id)
        self.channels = (self._done, keys.told(job_id))
        self.is_over = self.has_more = False

    async def look(self, heard: frozenset[str], within: float) -> list[JobEvent]:
        """As Awaited.look. Raises JobNotFound, InvalidPayload."""
        if self._ending is None and self._done in heard:
            await self._look_for_the_end(within)
        events = list(self._shown(await self._read_on()))
        if self._ending and self._ending.result and not self.has_more:
            events += self._end(self._ending, self._ending.result)
        return events

    def too_late(self, timeout: float) -> WaitTimeout:
        """As Awaited.too_late."""
        return WaitTimeout(f"job {self._job_id!r} has not ended after {timeout} s; read on, or cancel it")

    async def _look_for_the_end(self, within: float) -> None:
        record = await self._link.call(partial(_read_record, self._link.redis, self._job_id), within)
        if record.result is not None:
            self._ending = record

    async def _read_on(self) -> list[Entry]:
        """The next entries; once the job has ended those that stood there then, if they are of any use."""
        ending = self._ending
        if ending and not self._is_worth_reading(ending):
            self.has_more = False
            return []
        entries = await self._link.streams.read(self._job_id, self._place)
        if ending and ending.last:
            last = ending.last
            entries = [entry for entry in entries if entry.place.entry <= last.entry]
            self.has_more = bool(entries) and entries[-1].place != last
        else:
            self.has_more = len(entries) == AT_ONCE
        return entries

    def _is_worth_reading(self, ending: "_Record") -> bool:
        """False if nothing more stands there, or if the answer is to be made up from the result anyway."""
        if ending.epoch == self._ended_in or (ending.has_succeeded and not ending.is_told):
            return False
        return ending.last is not None and self._place.entry <= ending.last.entry and self._place != ending.last

    def _shown(self, entries: Iterable[Entry]) -> Iterator[JobEvent]:
        """What the reader is shown of these."""
        for entry in entries:
            before, self._place = self._place, entry.place
            if entry.is_restart:
                yield from self._restart(str(entry.place))
            elif entry.place.entry == before.entry:
                yield from map(self._show, list(entry.deltas())[before.part :])
            elif not entry.repeats(before):
                if entry.is_beginning:
                    yield from self._restart(self._last_id)
                yield from map(self._show, entry.deltas())

    def _show(self, delta: Delta) -> Delta:
        self._last_id, self._has_shown = delta.id, True
        return delta

    def _restart(self, event_id: str) -> Iterator[Restarted]:
        """Tell the reader that what it has is void, if it has something."""
        if self._has_shown:
            self._last_id, self._has_shown = event_id, False
            yield Restarted(id=event_id)

    def _end(self, ending: "_Record", result: JobResult) -> Iterator[JobEvent]:
        """The last event, and before it all that the stream did not tell."""
        self.is_over = True
        end = end_id(self._place, ending.epoch)
        has_all = ending.epoch == self._ended_in or (ending.is_told and self._place == ending.last)
        if ending.has_succeeded and not has_all:
            yield from self._make_up(result, end)
        yield Ended(id=end, result=result)

    def _make_up(self, result: JobResult, end: str) -> Iterator[JobEvent]:
        """The whole answer from the result. Only from its last delta on there is nothing to be told again."""
        yield from self._restart(self._last_id)
        pieces = pieces_of(result)
        for number, piece in enumerate(pieces, 1):
            yield Delta(id=end if number == len(pieces) else self._last_id, **piece)


class _Record(NamedTuple):
    """What is known of a job and its stream at one moment."""

    result: JobResult | None
    epoch: int
    is_told: bool
    """Whether all that the answering run has told stands in the stream, or stood there."""
    last: Place | None
    """Where the stream ends; None if nothing stands in it."""

    @property
    def has_succeeded(self) -> bool:
        """Whether there is an answer."""
        return self.result is not None and self.result.status is JobStatus.SUCCEEDED


async def _read_record(redis: Redis, job_id: str) -> _Record:
    """Raises JobNotFound, InvalidPayload."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.get(keys.result(job_id))
        pipe.hgetall(keys.ledger(job_id))
        pipe.exists(keys.payload(job_id))
        pipe.xrevrange(keys.events(job_id), count=1)
        record, ledger, has_payload, last = await pipe.execute()
    if not record and not ledger and not has_payload:
        raise JobNotFound(job_id)
    return _Record(
        result=reading.result_of(job_id, record, ledger) if record else None,
        epoch=int(ledger.get(b"epoch", 0)),
        is_told=bool(record) and _tells_of(record) == (ledger.get(b"teller"), ledger.get(b"told")),
        last=Place.of(last[0][0]) if last else None,
    )


def _tells_of(record: bytes) -> tuple[bytes, bytes] | None:
    """The edition and the number of batches in which the run that left this result has told its answer."""
    told = codec.decode(record)["r"].get("told")
    return (str(told[0]).encode(), str(told[1]).encode()) if told else None
