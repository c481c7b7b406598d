"""The prompt cache: what two calls of one conversation begin with counts as cached in the second."""

from collections.abc import Sequence
from typing import NamedTuple

from xai_sdk.proto import chat_pb2

from promptq.worker.simulator.answers import characters_in
from promptq.worker.simulator.prose import tokens_in

MOST_CONVERSATIONS = 1_000


class Place(NamedTuple):
    """Where a call looks for its beginning; without a conversation, nowhere."""

    key: str
    model: str
    conversation: str


class PromptCache:
    """What was said last in each place; the one that was longest not heard of is dropped when there are too many."""

    def __init__(self) -> None:
        self._said: dict[Place, Sequence[chat_pb2.Message]] = {}

    def tokens(self, place: Place, messages: Sequence[chat_pb2.Message]) -> int:
        """Of the messages that these have in common with the last call there, up to the first that differs."""
        characters = 0
        for message, before in zip(messages, self._said.get(place, ()), strict=False):
            if message != before:
                break
            characters += characters_in(message)
        return tokens_in(characters) if characters else 0

    def keep(self, place: Place, messages: Sequence[chat_pb2.Message]) -> None:
        """A generation was started there."""
        if not place.conversation:
            return
        self._said.pop(place, None)
        self._said[place] = messages
        if len(self._said) > MOST_CONVERSATIONS:
            del self._said[next(iter(self._said))]
