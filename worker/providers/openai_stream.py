"""From the server-sent events of a streamed chat completion to what the same call would have brought at once.

Touches no network: it is given the bytes as they come.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Final

from promptq.producer.errors import ErrorCode
from promptq.producer.results import ToolCall
from promptq.worker.providers.base import LARGEST_ANSWER, Delta, Hear, ProviderError
from promptq.worker.providers.openai_answer import (
    CalledFunction,
    CalledTool,
    Choice,
    Completion,
    Count,
    Head,
    Logprobs,
    Read,
    Said,
    Words,
    none_is_empty,
    read_as,
    too_large,
)

LINGER: Final = 0.5
"""Seconds for a server to end the response after its last event: then the connection can take the next call."""

PATIENCE: Final = 5.0
"""Seconds for what may come after the last reason to finish, such as the usage: some servers end no stream."""

_DONE: Final = b"[DONE]"


class ErrorEvent(Exception):
    """The server says in its stream that there will be no answer; `body` is its JSON."""

    def __init__(self, body: bytes) -> None:
        super().__init__("an error in the stream")
        self.body = body


class _FunctionPiece(Read):
    name: Words = ""
    arguments: Words = ""


class _CallPiece(Read):
    index: int | None = None
    id: Words = ""
    type: Words = ""
    function: Annotated[_FunctionPiece, none_is_empty(_FunctionPiece())] = _FunctionPiece()

    @property
    def size(self) -> int:
        """In characters."""
        return len(self.id) + len(self.function.name) + len(self.function.arguments)


class _Piece(Said):
    tool_calls: Annotated[tuple[_CallPiece, ...], none_is_empty(())] = ()  # type: ignore[assignment] # in parts

    @property
    def size(self) -> int:
        """Characters that it adds to the answer."""
        of_calls = sum(call.size for call in self.tool_calls)
        return len(self.content or self.refusal) + len(self.reasoning_content) + of_calls


class _ChoicePiece(Read):
    index: Count = 0
    delta: Annotated[_Piece, none_is_empty(_Piece())] = _Piece()
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class _Chunk(Head):
    choices: Annotated[tuple[_ChoicePiece, ...], none_is_empty(())] = ()
    object: Words = ""
    error: Any = None


async def completion_in(pieces: AsyncIterator[bytes], hear: Hear) -> Completion:
    """The completion that this stream brings, heard as it comes.

    Raises:
        ErrorEvent: The server says that there is none.
        ProviderError: The stream ends too early, becomes too large, or is none.
    """
    events, gathering = _Events(), Gathering()
    try:
        async with asyncio.timeout(None) as patience:
            async for got in pieces:
                for event in events.feed(got):
                    for delta in gathering.add(event):
                        hear(delta)
                if gathering.is_whole:
                    latest = asyncio.get_running_loop().time() + (LINGER if gathering.is_done else PATIENCE)
                    patience.reschedule(min(latest, patience.when() or latest))
    except TimeoutError:
        if not gathering.is_whole:
            raise
    for delta in gathering.end():
        hear(delta)
    return gathering.completion()


class Gathering:
    """Takes the data of the events as they come."""

    def __init__(self) -> None:
        self.is_done = False
        self._head: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._size = 0

    def add(self, event: bytes) -> Iterator[Delta]:
        """What is new in it."""
        if self.is_done or event == _DONE:
            self.is_done = True
            return
        chunk = read_as(_Chunk, event)
        if chunk.error is not None or chunk.object == "error":
            raise ErrorEvent(event)
        self._head |= {name: value for name in Head.model_fields if (value := getattr(chunk, name))}
        for piece in chunk.choices:
            if piece.index not in self._choices:
                self._choices[piece.index] = _Choice(piece.index)
            self._limit(len(event) if piece.logprobs else piece.delta.size)
            delta = self._choices[piece.index].add(piece)
            if any(delta[:3]):
                yield delta

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the answer is missing."""
        has_finished = bool(self._choices) and all(choice.finish_reason for choice in self._choices.values())
        return self.is_done or has_finished

    def _limit(self, size: int) -> None:
        self._size += size
        if self._size > LARGEST_ANSWER:
            raise too_large()

    def end(self) -> Iterator[Delta]:
        """What was still open. Raises ProviderError if the stream was cut off."""
        if not self.is_whole:
            raise ProviderError(ErrorCode.UNAVAILABLE, "the stream ended before the answer did")
        for choice in self._choices.values():
            if calls := choice.calls_to_tell():
                yield Delta(tool_calls=calls, output=choice.index)

    def completion(self) -> Completion:
        """All of it."""
        return Completion(choices=tuple(choice.whole() for choice in self._choices.values()), **self._head)


class _Choice:
    """One of the answers as far as it has come."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.finish_reason: str | None = None
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._told = 0
        self._logprobs: list[Any] | None = None

    def add(self, piece: _ChoicePiece) -> Delta:
        """A refusal is said in the place of the answer."""
        content, reasoning = piece.delta.content or piece.delta.refusal, piece.delta.reasoning_content
        self._content.append(content)
        self._reasoning.append(reasoning)
        for call in piece.delta.tool_calls:
            self._call(call).add(call)
        if piece.logprobs:
            self._logprobs = self._logprobs or []
            self._logprobs.extend(piece.logprobs.content)
        self.finish_reason = piece.finish_reason or self.finish_reason
        return Delta(content, reasoning, self.calls_to_tell() if piece.finish_reason else (), self.index)

    def calls_to_tell(self) -> tuple[ToolCall, ...]:
        """Those that nobody has heard of."""
        calls = tuple(call.whole().told() for call in self._calls[self._told :])
        self._told = len(self._calls)
        return calls

    def whole(self) -> Choice:
        said = {"content": "".join(self._content), "reasoning_content": "".join(self._reasoning)}
        calls = tuple(call.whole() for call in self._calls)
        return Choice(
            index=self.index,
            message=Said.model_validate(said | {"tool_calls": calls}),
            finish_reason=self.finish_reason,
            logprobs=None if self._logprobs is None else Logprobs(content=tuple(self._logprobs)),
        )

    def _call(self, piece: _CallPiece) -> "_Call":
        """By its index; where a server gives none, an id begins a new call."""
        if piece.index is not None and piece.index in self._by_index:
            return self._by_index[piece.index]
        if piece.index is not None or piece.id or not self._calls:
            self._calls.append(_Call())
        if piece.index is not None:
            self._by_index[piece.index] = self._calls[-1]
        return self._calls[-1]


class _Call:
    """A call of a tool, whose arguments come in pieces."""

    def __init__(self) -> None:
        self._id = self._type = self._name = ""
        self._arguments: list[str] = []

    def add(self, piece: _CallPiece) -> None:
        self._id = self._id or piece.id
        self._type = self._type or piece.type
        self._name = self._name or piece.function.name
        self._arguments.append(piece.function.arguments)

    def whole(self) -> CalledTool:
        function = CalledFunction(name=self._name, arguments="".join(self._arguments))
        return CalledTool(id=self._id, type=self._type, function=function)


class _Events:
    """Server-sent events, cut as the network cuts them."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, got: bytes) -> Iterator[bytes]:
        """The data of the events that end in these bytes."""
        first, *others = got.split(b"\n")
        self._line.append(first)
        self._size += len(first)
        for begun in others:
            line = b"".join(self._line).removesuffix(b"\r")
            self._line, self._size = [begun], self._size + len(begun)
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data, self._size = [], len(begun)
        if self._size > LARGEST_ANSWER:
            raise too_large()
