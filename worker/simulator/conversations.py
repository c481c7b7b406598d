"""Answers that are kept: for a conversation to go on with, to be read again, or to be read later."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from xai_sdk.proto import chat_pb2

from promptq.worker.simulator.refusals import not_found

MOST_STORED = 10_000


class _Stored(NamedTuple):
    """An answer, and all that was said until its end."""

    response: chat_pb2.GetChatCompletionResponse
    messages: Sequence[chat_pb2.Message]


class Conversations:
    """Stored answers by their ids, the oldest dropped when there are too many, and deferred ones."""

    def __init__(self) -> None:
        self._stored: dict[str, _Stored] = {}
        self._deferred: dict[str, asyncio.Task[chat_pb2.GetChatCompletionResponse | None]] = {}

    def store(self, response: chat_pb2.GetChatCompletionResponse, messages: Sequence[chat_pb2.Message]) -> None:
        """Keeps an answer and what it answers."""
        answers = [
            chat_pb2.Message(
                role=output.message.role,
                content=[chat_pb2.Content(text=output.message.content)],
                tool_calls=output.message.tool_calls,
            )
            for output in response.outputs
        ]
        self._stored[response.id] = _Stored(response, (*messages, *answers))
        if len(self._stored) > MOST_STORED:
            del self._stored[next(iter(self._stored))]

    def stored(self, response_id: str) -> chat_pb2.GetChatCompletionResponse:
        """An answer that is kept. Raises Refusal for any other id."""
        if response_id not in self._stored:
            raise not_found("Response", response_id)
        return self._stored[response_id].response

    def messages_until(self, response_id: str) -> Sequence[chat_pb2.Message] | None:
        """The conversation up to and with an answer; empty for no id, None for one that is not kept."""
        if not response_id:
            return ()
        stored = self._stored.get(response_id)
        return stored.messages if stored else None

    def delete(self, response_id: str) -> None:
        """Forgets such an answer. Raises Refusal for any other id."""
        self.stored(response_id)
        del self._stored[response_id]

    def defer(self, request_id: str, answer: asyncio.Task[chat_pb2.GetChatCompletionResponse | None]) -> None:
        """Keeps an answer that is still to come; it is None if it fails."""
        self._deferred[request_id] = answer

    def deferred(self, request_id: str) -> asyncio.Task[chat_pb2.GetChatCompletionResponse | None]:
        """That answer; one that has come is given once. Raises Refusal for any other id."""
        answer = self._deferred.get(request_id)
        if answer is None:
            raise not_found("Deferred request", request_id)
        if answer.done():
            del self._deferred[request_id]
        return answer
