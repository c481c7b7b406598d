"""`echo` answers in-process with the prompt itself: for tests and benchmarks of the queue, never the default."""

import asyncio
import re

from promptq.producer.models import PromptJob
from promptq.producer.results import Usage
from promptq.worker.providers.base import Answer, Delta, Hear


class EchoProvider:
    """Answers with the last message after `latency` seconds; counts a token for every four characters."""

    name = "echo"
    account = "echo"

    def __init__(self, latency: float = 0.0) -> None:
        self._latency = latency

    async def sample(
        self,
        job: PromptJob,
        timeout: float,  # noqa: ARG002 - the seam's signature
        hear: Hear | None = None,
    ) -> Answer:
        """Never fails. Streamed, it comes word by word, in the same time."""
        texts = [message.text for message in job.messages]
        content = texts[-1]
        pieces = re.findall(r"\s*\S+\s*$|\s*\S+|\s+", content) if hear else [content]
        for piece in pieces:
            if self._latency:
                await asyncio.sleep(self._latency / len(pieces))
            if hear:
                hear(Delta(piece))
        prompt_tokens = _tokens(sum(map(len, texts)))
        completion_tokens = _tokens(len(content))
        usage = Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )
        return Answer(content, str(job.model), usage)

    async def probe(self) -> None:
        """Nothing can be wrong."""

    async def aclose(self) -> None:
        """Nothing is open."""


def _tokens(characters: int) -> int:
    return max(1, characters // 4)
