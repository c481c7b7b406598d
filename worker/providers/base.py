"""The seam to whatever answers prompts: one call, one answer, one kind of error, and whose account pays.

Vendor errors end at a provider's border; run.py and outcome.py know only these types.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from promptq.producer.errors import ErrorCode
from promptq.producer.models import PromptJob
from promptq.producer.results import InlineCitation, Output, OutputFile, TokenLogprob, ToolCall, Usage

OF_THE_ACCOUNT = frozenset({ErrorCode.BAD_KEY, ErrorCode.NO_CREDIT})
"""What no call of the account gets past until somebody changes the key or buys credit."""

LONGEST_JOB_TIMEOUT = 86_400.0
"""Seconds: what PromptJob allows."""
LARGEST_ANSWER = 20 << 20
"""Bytes: what gRPC takes from xAI, so that a job ends the same way over all. Of a stream about so many."""
CALL_MARGIN = 300.0
PROBE_TIMEOUT = 10.0
"""Seconds."""


class Answer(NamedTuple):
    """What the model said, and what it cost. All of it as in JobResult."""

    content: str
    model: str
    usage: Usage
    finish_reason: str = "stop"
    reasoning_content: str = ""
    encrypted_content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    server_tool_calls: tuple[ToolCall, ...] = ()
    citations: tuple[str, ...] = ()
    inline_citations: tuple[InlineCitation, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    outputs: tuple[Output, ...] = ()
    output_files: tuple[OutputFile, ...] = ()
    response_id: str | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None


class Delta(NamedTuple):
    """A piece of an answer, in the order in which it is written; tool calls are whole.

    `output`: of which of several (`Output.index`); 0 if there is one. Put together, the pieces of an output are its
    content and its reasoning content in the Answer.
    """

    content: str = ""
    reasoning_content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    output: int = 0


Hear = Callable[[Delta], None]


class ProviderError(Exception):
    """A call that brought no answer. `code` decides what becomes of the job (outcome.py).

    `retry_after` in seconds, if the provider asked for it; `usage` if it told what the failed call cost;
    `was_sent` False if the provider was not reached at all: that costs no attempt. `is_stale`, only with codes that are
    OF_THE_ACCOUNT: the call was made with a key that has been replaced since; that is no refusal of `Provider.account`,
    and the call is to be made again.
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
        is_stale: bool = False,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.was_sent, self.is_stale = was_sent, is_stale
        self.code, self.message, self.retry_after, self.usage = code, message, retry_after, usage


def longest_call(job_timeout: float) -> float:
    """Seconds for a vendor's client: more than any job has, so that it is always the worker that gives up first."""
    return max(job_timeout, LONGEST_JOB_TIMEOUT) + CALL_MARGIN


class Provider(Protocol):
    """One for a worker process; `sample` runs up to `max_jobs` times at once on its event loop."""

    name: str
    """Stands in every result."""

    @property
    def account(self) -> str:
        """Who pays for a call that is made now: the same in every process with the same key, and nothing of the key.

        It changes when the key is replaced. Cheap enough to be read at each call; on the worker's event loop alone.
        """
        ...

    async def sample(self, job: PromptJob, timeout: float, hear: Hear | None = None) -> Answer:
        """One call, never repeated here: the queue owns every retry.

        With `hear`, which never blocks, the answer is streamed: it gets every piece as it comes, before this returns.

        The caller cancels it after `timeout` seconds; the provider's own limit must be longer than that.
        Cancelling it cancels the call at the vendor. Raises ProviderError.
        """
        ...

    async def probe(self) -> None:
        """Ask whether the account works, which costs no tokens and takes seconds at most. Raises ProviderError if not.

        That is `bad_key` for a key that is refused, and what kept us from an answer otherwise, such as `unavailable`.
        The key is looked up anew, so that `account` may be another one afterwards. Whether there is credit may stay
        open: then the next call tells.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections; no call is running."""
        ...
