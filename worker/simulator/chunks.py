"""Cuts an answer into the chunks of a stream."""

from collections.abc import Iterator

from xai_sdk.proto import chat_pb2

from promptq.worker.simulator.outputs import pieces_of

TOKENS_PER_CHUNK = 8
MOST_CHUNKS_PER_TEXT = 1_000


def cut(response: chat_pb2.GetChatCompletionResponse, *, in_one: bool = False) -> list[chat_pb2.GetChatCompletionChunk]:
    """Output by output: reasoning, text, calls of tools; then usage and citations in a chunk of their own.

    An output's last chunk has its finish reason. `in_one` leaves texts whole.
    """
    chunks = [
        _chunk(response, delta)
        for output in response.outputs
        for delta in _deltas(output, 0 if in_one else _width(output.message.content))
    ]
    last = _chunk(response, None)
    last.usage.CopyFrom(response.usage)
    last.citations.extend(response.citations)
    return [*chunks, last]


def _width(text: str) -> int:
    """Tokens in each chunk."""
    return max(TOKENS_PER_CHUNK, len(text) // MOST_CHUNKS_PER_TEXT)


def _deltas(output: chat_pb2.CompletionOutput, width: int) -> Iterator[chat_pb2.CompletionOutputChunk]:
    """`width` is in tokens; 0 leaves the text whole."""
    message = output.message
    for piece in pieces_of(message.reasoning_content, TOKENS_PER_CHUNK):
        yield _delta(output, chat_pb2.Delta(reasoning_content=piece))
    texts = pieces_of(message.content, width) if width else [message.content]
    for number, piece in enumerate(texts):
        delta = _delta(output, chat_pb2.Delta(content=piece))
        if output.HasField("logprobs"):
            start = number * width
            delta.logprobs.content.extend(output.logprobs.content[start : start + width] if width else ())
        yield delta
    end = chat_pb2.Delta(tool_calls=message.tool_calls, encrypted_content=message.encrypted_content)
    last = _delta(output, end)
    last.finish_reason = output.finish_reason
    yield last


def _delta(output: chat_pb2.CompletionOutput, delta: chat_pb2.Delta) -> chat_pb2.CompletionOutputChunk:
    delta.role = output.message.role
    return chat_pb2.CompletionOutputChunk(index=output.index, delta=delta)


def _chunk(
    response: chat_pb2.GetChatCompletionResponse, output: chat_pb2.CompletionOutputChunk | None
) -> chat_pb2.GetChatCompletionChunk:
    return chat_pb2.GetChatCompletionChunk(
        id=response.id,
        model=response.model,
        created=response.created,
        system_fingerprint=response.system_fingerprint,
        service_tier=response.service_tier,
        outputs=[output] if output else [],
    )
