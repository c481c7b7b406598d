"""What a reader of a running job is told: `Delta`, `Restarted`, `Ended`; and places in a job's stream, as events' ids.

The stream is what the tell script writes (lua/tell.lua); listening.py makes events of it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, Self

import pydantic_core
from pydantic import ValidationError

from promptq.producer.errors import InvalidPayload
from promptq.producer.fields import Read
from promptq.producer.results import JobResult, ToolCall


class Delta(Read):
    """A piece of the answer; each tool call comes whole, and one that the provider runs itself again when it is done.

    `output`: of which of several outputs (`Output.index`); 0 if there is one. `id`: to read on from it.
    """

    type: Literal["delta"] = "delta"
    id: str
    content: str = ""
    reasoning_content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    output: int = 0


class Restarted(Read):
    """What came before is void, and the answer begins anew: another run has taken over, or pieces were missing."""

    type: Literal["restarted"] = "restarted"
    id: str


class Ended(Read):
    """The last event: how the job ended, whatever its status."""

    type: Literal["ended"] = "ended"
    id: str
    result: JobResult


JobEvent = Delta | Restarted | Ended

_ID: Final = re.compile(r"(\d{1,20})-(\d{1,20})(?:\.(\d{1,9})|\.end(\d{1,20}))?", re.ASCII)
_GREATEST: Final = 2**64 - 1


class Place(NamedTuple):
    """Up to where a stream was read: the entry `ms-seq`, and of its deltas the first `part`; 0: all."""

    ms: int
    seq: int
    part: int = 0

    @classmethod
    def of(cls, entry_id: bytes) -> Self:
        """Behind an entry."""
        ms, _, seq = entry_id.partition(b"-")
        return cls(int(ms), int(seq))

    @property
    def entry(self) -> tuple[int, int]:
        """The id of its entry, to be compared."""
        return self.ms, self.seq

    @property
    def read_from(self) -> str:
        """The entry behind which Redis is to read on: one that was read in part is read again."""
        ms, seq = self.entry
        if self.part and any(self.entry):
            ms, seq = (ms, seq - 1) if seq else (ms - 1, _GREATEST)
        return f"{ms}-{seq}"

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}.{self.part}" if self.part else f"{self.ms}-{self.seq}"


BEGINNING: Final = Place(0, 0)


def end_id(place: Place, epoch: int) -> str:
    """Behind all events, of which those up to `place` came from the stream, in this life of the job (requeue.lua)."""
    return f"{place.ms}-{place.seq}.end{epoch}"


def parse_id(event_id: str) -> tuple[Place, int | None]:
    """Where the event stands; and if it was the last one, in which life of the job. Raises ValueError."""
    found = _ID.fullmatch(event_id)
    if found is None:
        raise ValueError("after: not the id of an event; give the `id` of the last one that you have, or None")
    ms, seq, part, epoch = found.groups()
    place = Place(min(int(ms), _GREATEST), min(int(seq), _GREATEST), int(part or 0))
    return place, None if epoch is None else int(epoch)


class Entry(NamedTuple):
    """One entry of a stream."""

    place: Place
    fields: Mapping[bytes, bytes]

    @property
    def is_restart(self) -> bool:
        """What stood before it is void."""
        return b"r" in self.fields

    @property
    def is_beginning(self) -> bool:
        """It is the answer from its beginning, written again."""
        return b"w" in self.fields

    def repeats(self, place: Place) -> bool:
        """Whether it is a beginning that is all known to who has read up to `place`."""
        return self.fields.get(b"w") == str(place).encode()

    def deltas(self) -> Iterator[Delta]:
        """The pieces that it holds. Raises InvalidPayload."""
        try:
            pieces = pydantic_core.from_json(self.fields[b"d"])
            for number, piece in enumerate(pieces, 1):
                part = number if number < len(pieces) else 0
                yield Delta.model_validate(piece | {"id": str(self.place._replace(part=part)), "type": "delta"})
        except (ValidationError, ValueError, TypeError, KeyError) as error:
            kind = type(error).__name__
            raise InvalidPayload(f"a stream holds what is no event of ours ({kind}); read the result") from None


def pieces_of(answer: JobResult) -> list[dict[str, Any]]:
    """The whole answer as the fields of one delta for each output that says something."""
    calls = (*answer.server_tool_calls, *answer.tool_calls)  # in the order in which they were made
    pieces = [
        (output.content, output.reasoning_content, output.tool_calls, output.index) for output in answer.outputs
    ] or [(answer.content, answer.reasoning_content, calls, 0)]
    names = ("content", "reasoning_content", "tool_calls", "output")
    return [dict(zip(names, piece, strict=True)) for piece in pieces if any(piece[:3])]
