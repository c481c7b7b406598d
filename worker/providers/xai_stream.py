"""From the chunks of xAI's stream to the response that the same call would have brought at once."""

from collections.abc import Iterable, Iterator
from typing import Final

from xai_sdk.proto import chat_pb2

from promptq.producer.errors import ErrorCode
from promptq.worker.providers.base import LARGEST_ANSWER, Delta, ProviderError
from promptq.worker.providers.xai_answer import tool_calls_of

_OF_ALL: Final = ("id", "model", "system_fingerprint", "service_tier")


class Gathering:
    """Takes the chunks as they come. What the SDK's own leaves out: log probabilities, files, and a role or finish
    reason that a later chunk does not repeat.
    """

    def __init__(self) -> None:
        self._whole = chat_pb2.GetChatCompletionResponse()
        self._outputs: dict[int, _Output] = {}
        self._size = 0

    def add(self, chunk: chat_pb2.GetChatCompletionChunk) -> Iterator[Delta]:
        """What is new in it. Raises ProviderError if the answer becomes too large."""
        whole = self._whole
        for name in _OF_ALL:
            if value := getattr(chunk, name):
                setattr(whole, name, value)
        if chunk.HasField("usage"):
            whole.usage.CopyFrom(chunk.usage)
        whole.citations.extend(chunk.citations)
        whole.output_files.extend(chunk.output_files)
        for piece in chunk.outputs:
            delta = piece.delta
            self._limit(piece.ByteSize())
            self._output(piece.index).add(piece)
            if delta.content or delta.reasoning_content or delta.tool_calls:
                yield Delta(delta.content, delta.reasoning_content, tool_calls_of(delta.tool_calls), piece.index)

    def response(self) -> chat_pb2.GetChatCompletionResponse:
        """All of it, once the stream has ended."""
        self._whole.outputs.extend(self._outputs[index].whole() for index in sorted(self._outputs))
        return self._whole

    def _output(self, index: int) -> "_Output":
        output = self._outputs.get(index)
        if output is None:
            output = self._outputs[index] = _Output(index)
        return output

    def _limit(self, size: int) -> None:
        self._size += size
        if self._size > LARGEST_ANSWER:
            raise ProviderError(ErrorCode.TOO_LARGE, f"the answer is larger than {LARGEST_ANSWER:,} bytes")


class _Output:
    """One output as far as it has come."""

    def __init__(self, index: int) -> None:
        self._whole = chat_pb2.CompletionOutput(index=index)
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._encrypted: list[str] = []
        self._calls: dict[str, chat_pb2.ToolCall] = {}

    def add(self, piece: chat_pb2.CompletionOutputChunk) -> None:
        whole, delta = self._whole, piece.delta
        self._content.append(delta.content)
        self._reasoning.append(delta.reasoning_content)
        self._encrypted.append(delta.encrypted_content)
        if delta.role:
            whole.message.role = delta.role
        if piece.finish_reason:
            whole.finish_reason = piece.finish_reason
        if piece.HasField("logprobs"):
            whole.logprobs.MergeFrom(piece.logprobs)
        if delta.citations:
            whole.message.citations.extend(delta.citations)
        if delta.tool_calls:
            self._take(delta.tool_calls)

    def whole(self) -> chat_pb2.CompletionOutput:
        message = self._whole.message
        message.content = "".join(self._content)
        message.reasoning_content = "".join(self._reasoning)
        message.encrypted_content = "".join(self._encrypted)
        message.tool_calls.extend(self._calls.values())
        return self._whole

    def _take(self, calls: Iterable[chat_pb2.ToolCall]) -> None:
        """A call that xAI runs itself is told again when it is done."""
        for call in calls:
            self._calls[call.id or f"the {len(self._calls)}th"] = call
