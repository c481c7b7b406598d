"""The seam to whatever answers prompts: one method, one answer, one kind of error.

Vendor errors end at a provider's border; run.py and outcome.py know only these types.
"""

from dataclasses import dataclass
from typing import Protocol

from promptq.producer.errors import ErrorCode
from promptq.producer.models import PromptJob, ToolCall, Usage


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said, and what it cost. `finish_reason` as in JobResult."""

    content: str
    model: str
    usage: Usage
    finish_reason: str = "stop"
    reasoning_content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    citations: tuple[str, ...] = ()
    response_id: str | None = None


class ProviderError(Exception):
    """A call that brought no answer. `code` decides what becomes of the job (outcome.py).

    `retry_after` in seconds, if the provider asked for it; `usage` if it told what the failed call cost;
    `was_sent` False if the provider was not reached at all: that costs no attempt.
    The message may go into results and logs: it never holds a key or the prompt.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        retry_after: float | None = None,
        usage: Usage | None = None,
        was_sent: bool = True,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.was_sent = was_sent
        self.code, self.message, self.retry_after, self.usage = code, message, retry_after, usage


class Provider(Protocol):
    """One for a worker process; `sample` runs up to `max_jobs` times at once on its event loop."""

    name: str
    """Stands in every result."""

    async def sample(self, job: PromptJob, timeout: float) -> Answer:
        """One call, never repeated here: the queue owns every retry.

        The caller cancels it after `timeout` seconds; the provider's own limit must be longer than that.
        Cancelling it cancels the call at the vendor. Raises ProviderError.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections; no call is running."""
        ...
