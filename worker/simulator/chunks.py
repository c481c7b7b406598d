"""Cuts an answer into the chunks of a stream."""

from collections.abc import Iterator

from xai_sdk.proto import chat_pb2

from promptq.worker.simulator.outputs import pieces_of


def cut(response: chat_pb2.GetChatCompletionResponse, tokens: int) -> list[chat_pb2.GetChatCompletionChunk]:
    """Output by output: reasoning, text, calls of tools; then usage and citations in a chunk of their own.

    An output's last chunk has its finish reason. `tokens`: of text in each chunk; 0 leaves texts whole.
    """
    chunks = [_chunk(response, delta) for output in response.outputs for delta in _deltas(output, tokens)]
    last = _chunk(response, None)
    last.usage.CopyFrom(response.usage)
    last.citations.extend(response.citations)
    return [*chunks, last]


def _deltas(output: chat_pb2.CompletionOutput, width: int) -> Iterator[chat_pb2.CompletionOutputChunk]:
    message = output.message
    for piece in _cut_text(message.reasoning_content, width):
        yield _delta(output, chat_pb2.Delta(reasoning_content=piece))
    for number, piece in enumerate(_cut_text(message.content, width)):
        delta = _delta(output, chat_pb2.Delta(content=piece))
        if output.HasField("logprobs"):
            start = number * width
            delta.logprobs.content.extend(output.logprobs.content[start : start + width] if width else ())
        yield delta
    end = chat_pb2.Delta(
        tool_calls=message.tool_calls, encrypted_content=message.encrypted_content, citations=message.citations
    )
    last = _delta(output, end)
    last.finish_reason = output.finish_reason
    yield last


def _cut_text(text: str, width: int) -> list[str]:
    return pieces_of(text, width) if width else [text]


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
