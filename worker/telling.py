"""The streams of the answers that are being written in this process: what run.py hears, Redis is told every 20 ms.

Touches Redis by the tell script alone. What is lost here, a reader makes up for from the result (listening.py).
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from promptq.producer import codec, scripts
from promptq.producer.connection import OUTAGE
from promptq.producer.errors import InvalidPayload
from promptq.producer.records import Settlement, Telling
from promptq.worker.providers.base import Delta

if TYPE_CHECKING:
    from promptq.worker.run import Run

BATCH: Final = 0.02
"""Seconds for which pieces come together: a fast model costs no call to Redis for each token."""
TOLD_AT_ONCE: Final = 100
"""Jobs in one call."""
REST: Final = 1.0
"""Seconds until the next try: after an outage, or for a job that another worker seems to hold."""


class Teller:
    """Hears what the runs of one process are answered, and tells their readers. `on_error`: Redis could not be told."""

    def __init__(self, redis: Redis, ttl: int, on_error: Callable[[BaseException], None]) -> None:
        self._redis, self._ttl, self._on_error = redis, ttl, on_error
        self._stories: dict[str, _Story] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None

    def hear(self, run: "Run", delta: Delta) -> None:
        """One more piece of a run's answer."""
        story = self._stories.get(run.job.id)
        if story is None or story.run is not run:
            story = self._stories[run.job.id] = _Story(run)
        story.pieces.append(delta)
        if self._timer is None and self._flushing is None:
            self._set_timer(BATCH)

    def restart(self, run: "Run") -> None:
        """What an earlier run of the job has told, before its worker died, is void."""
        self._stories[run.job.id] = _Story(run, takes_back=True)
        if self._flushing is None:
            self._set_timer(0)

    def end(self, run: "Run") -> tuple[str, int] | None:
        """Nothing more will be heard of it. Returns edition and number of batches by which a reader has all of it."""
        story = self._stories.get(run.job.id)
        if story is None or story.run is not run:
            return None
        story.cut()
        return story.name, story.told + len(story.batches)

    async def finish(self, settlements: Iterable[Settlement]) -> None:
        """Tell the rest of the runs whose outcomes are about to be written. Raises what an outage looks like."""
        if not self._stories:
            return
        ended = []
        for settlement in settlements:
            story = self._stories.get(settlement.id)
            if story and story.run.token == settlement.token:  # its job may have come back to us as another run
                story.takes_back = settlement.kind in ("retry", "throttled", "released")
                ended.append(story)
        if self._flushing and any(story.takes_back for story in ended):
            await asyncio.wait([self._flushing])  # else Redis might run it after the taking back
        try:
            await self._tell(ended)
        except OUTAGE:
            raise
        except RedisError as error:  # such as a full Redis: a paid answer is more than its stream
            self._on_error(error)
        for story in ended:
            if self._stories.get(story.run.job.id) is story:
                del self._stories[story.run.job.id]

    async def aclose(self) -> None:
        """Tell nothing more."""
        if self._timer:
            self._timer.cancel()
        if self._flushing:
            self._flushing.cancel()
            await asyncio.wait([self._flushing])

    def _set_timer(self, wait: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(wait, self._begin_to_flush)

    def _begin_to_flush(self) -> None:
        self._timer = None
        self._flushing = asyncio.create_task(self._flush(), name="promptq teller")

    async def _flush(self) -> None:
        wait = BATCH
        try:
            await self._tell(list(self._stories.values()))
        except (RedisError, OSError) as error:
            self._on_error(error)
            wait = REST
        finally:
            self._flushing = None
        if any(story.is_due for story in self._stories.values()):
            self._set_timer(wait)

    async def _tell(self, stories: Sequence["_Story"]) -> None:
        due = [story for story in stories if story.is_due]
        for start in range(0, len(due), TOLD_AT_ONCE):
            some = due[start : start + TOLD_AT_ONCE]
            tellings = [story.next_telling() for story in some]
            replies = await scripts.tell(self._redis, tellings, ttl=self._ttl)
            for story, telling, said in zip(some, tellings, replies, strict=True):
                story.heed(telling, said)


class _Story:
    """One run's answer as far as it has come: what Redis has of this edition, and what not."""

    def __init__(self, run: "Run", *, takes_back: bool = False) -> None:
        self.run = run
        self.edition, self.told = 1, 0
        self.again = 0
        """Batches of the edition before that are in the first of this one."""
        self.batches: list[bytes] = []
        """Cut, and not yet acknowledged."""
        self.pieces: list[Delta] = []
        """Not yet cut."""
        self.takes_back = takes_back
        self._before: list[Delta] = []
        """All that was cut: each output in one piece or a few."""
        self._rests_until = 0.0

    @property
    def name(self) -> str:
        """Of this edition, as in the ledger."""
        return f"{self.run.token}/{self.edition}"

    @property
    def is_due(self) -> bool:
        """Whether there is something to tell now."""
        is_resting = asyncio.get_running_loop().time() < self._rests_until
        return bool(self.pieces or self.batches or self.takes_back) and not is_resting

    def cut(self) -> None:
        """Make a batch of what was heard since the last one. What is no text is left out: its answer fails (run.py)."""
        pieces, self.pieces = self.pieces, []
        if pieces:
            with contextlib.suppress(InvalidPayload):
                self.batches.append(_batch(pieces))
                self._before += pieces

    def next_telling(self) -> Telling:
        """What is not acknowledged; sent again it does no harm."""
        self.cut()
        batches = () if self.takes_back else tuple(self.batches)
        return Telling(self.run.job.id, self.run.token, self.edition, self.again, self.told + 1, batches)

    def heed(self, telling: Telling, said: str) -> None:
        """The answer to a telling."""
        if self.takes_back and not telling.batches:
            self.takes_back = False
        elif telling.edition != self.edition or telling.token != self.run.token:
            return  # it was told from the beginning meanwhile
        elif said == "again":
            self.again = self.told + len(self.batches)
            self.edition, self.told = self.edition + 1, 0
            self._before = _merged(self._before)
            self.batches = [_batch(self._before)]
        elif said == "stale":
            self._rests_until = asyncio.get_running_loop().time() + REST
        else:
            acknowledged = telling.first + len(telling.batches) - 1 - self.told
            del self.batches[: max(0, acknowledged)]
            self.told += max(0, acknowledged)


def _merged(pieces: Iterable[Delta]) -> list[Delta]:
    """One piece for each output."""
    outputs: dict[int, list[Delta]] = {}
    for piece in pieces:
        outputs.setdefault(piece.output, []).append(piece)
    return [
        Delta(
            content="".join(piece.content for piece in some),
            reasoning_content="".join(piece.reasoning_content for piece in some),
            tool_calls=tuple(call for piece in some for call in piece.tool_calls),
            output=output,
        )
        for output, some in sorted(outputs.items())
    ]


def _batch(pieces: Iterable[Delta]) -> bytes:
    """JSON without what is empty."""
    deltas: list[dict[str, Any]] = [
        {name: value for name, value in piece._asdict().items() if value} for piece in _merged(pieces)
    ]
    return codec.dumps(deltas)
