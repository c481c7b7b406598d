"""A hand on one call of the SDK's chat: metadata of its own, an end at the server, and its chunks."""

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

from xai_sdk.aio.chat import Chat
from xai_sdk.proto import chat_pb2


@contextmanager
def in_hand(chat: Chat, headers: Mapping[str, str]) -> Iterator[Chat]:
    """The chat, whose calls carry these headers and are over at the server when the block ends, however it does.

    The SDK gives no call away: a cancel that comes when its interceptors have started a call, before the waiting task
    has run again, would leave the call running, and costing, to its own timeout.
    """
    # The one place for metadata of a call: the SDK takes it for whole clients alone, and interceptors not at all.
    stub = _Stub(chat._stub, tuple(headers.items()))  # noqa: SLF001
    chat._stub = stub  # type: ignore[assignment]  # noqa: SLF001 - it has what a chat uses of it
    try:
        yield chat
    finally:
        stub.cancel()


async def chunks_of(chat: Chat, count: int) -> AsyncGenerator[chat_pb2.GetChatCompletionChunk, None]:
    """What the model writes, as it comes, for `count` answers. To be closed, also after an error.

    What the SDK gathers from the chunks is not used: it lacks some of their fields.
    """
    stream: Any = chat.stream() if count == 1 else chat.stream_batch(count)
    async with aclosing(stream):
        async for _, chunk in stream:
            yield chunk.proto if count == 1 else chunk[0].proto


class _Stub:
    """Stands in for a ChatStub."""

    def __init__(self, stub: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._stub, self._metadata = stub, metadata
        self._calls: list[Any] = []

    def GetCompletion(self, request: chat_pb2.GetCompletionsRequest) -> Any:  # noqa: N802 - the protocol's name
        return self._kept(self._stub.GetCompletion(request, metadata=self._metadata))

    def GetCompletionChunk(self, request: chat_pb2.GetCompletionsRequest) -> Any:  # noqa: N802
        return self._kept(self._stub.GetCompletionChunk(request, metadata=self._metadata))

    def cancel(self) -> None:
        """End what has not ended."""
        for call in self._calls:
            call.cancel()

    def _kept(self, call: Any) -> Any:
        self._calls.append(call)
        return call
