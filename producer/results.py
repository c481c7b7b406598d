"""The result on its way out: what the model answered, what it cost, or why there is no answer.

Older and newer workers write the same record: a field that one of them does not know has its default.
"""

import math
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final, Self, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from promptq.producer.errors import ErrorCode, InvalidAnswer, JobCancelled, JobExpired, JobFailed
from promptq.producer.fields import Read
from promptq.producer.messages import Message
from promptq.producer.models import JobStatus

TICKS_PER_USD: Final = 10_000_000_000
"""xAI counts money in ticks: 1 USD is 1e10 of them."""

CUT_SHORT: Final = frozenset({"length", "context", "time_limit"})
"""Finish reasons of answers that are not whole."""

ModelT = TypeVar("ModelT", bound=BaseModel)


class Usage(Read):
    """Tokens of one or more attempts, and their cost.

    `cost_in_usd_ticks` None: the provider told no cost, which is not 0. An attempt keeps the first six (`BOOKED`); the
    others stand in the usage of the answer. `server_side_tools_used`: how often, by names such as `web_search`.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_prompt_tokens: int = 0
    total_tokens: int = 0
    cost_in_usd_ticks: int | None = None
    prompt_text_tokens: int = 0
    prompt_image_tokens: int = 0
    num_sources_used: int = 0
    server_side_tools_used: dict[str, int] = Field(default_factory=dict)

    @property
    def cost_usd(self) -> Decimal | None:
        """Exact dollars."""
        return None if self.cost_in_usd_ticks is None else Decimal(self.cost_in_usd_ticks) / TICKS_PER_USD

    def amounts(self) -> tuple[int | None, ...]:
        """What is booked, in the order of `BOOKED`."""
        return (
            self.prompt_tokens, self.completion_tokens, self.reasoning_tokens,
            self.cached_prompt_tokens, self.total_tokens, self.cost_in_usd_ticks,
        )  # fmt: skip

    def __add__(self, other: "Usage") -> "Usage":
        ticks = [u.cost_in_usd_ticks for u in (self, other) if u.cost_in_usd_ticks is not None]
        tools = dict(self.server_side_tools_used)
        for name, count in other.server_side_tools_used.items():
            tools[name] = tools.get(name, 0) + count
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens + other.cached_prompt_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
            cost_in_usd_ticks=sum(ticks) if ticks else None,
            prompt_text_tokens=self.prompt_text_tokens + other.prompt_text_tokens,
            prompt_image_tokens=self.prompt_image_tokens + other.prompt_image_tokens,
            num_sources_used=self.num_sources_used + other.num_sources_used,
            server_side_tools_used=tools,
        )


BOOKED: Final = tuple(Usage.model_fields)[:6]
"""What the settle script adds up, and a ledger keeps of each attempt."""


class ToolCall(Read):
    """A tool that the model wants called, or that was called; `arguments` is JSON as the model wrote it.

    `type`: `function` if the caller is to run it and to answer with a `tool` message; otherwise what the provider ran
    itself, such as `web_search`. Then `status` says how that went: `failed` with `error_message`.
    """

    id: str
    name: str
    arguments: str
    type: str = "function"
    status: str | None = None
    error_message: str | None = None


class InlineCitation(Read):
    """A source, and the place in the content that rests on it: from `start_index` up to `end_index`.

    `type`: `web` or `x`, with a URL, or `collections`, with the rest.
    """

    id: str = ""
    type: str = ""
    start_index: int = 0
    end_index: int = 0
    url: str | None = None
    file_id: str | None = None
    chunk_id: str | None = None
    chunk_content: str | None = None
    score: float | None = None
    collection_ids: tuple[str, ...] = ()


_UNLIKELIEST: Final = -9999.0


def _is_json(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _UNLIKELIEST


class TopLogprob(Read):
    """A token that might have stood there. `bytes`: its UTF-8, since a character may be cut apart.

    `logprob` of a probability of zero is -9999, as OpenAI has it: JSON has no minus infinity.
    """

    token: str
    logprob: Annotated[float, AfterValidator(_is_json)]
    bytes: tuple[int, ...] | None = None


class TokenLogprob(TopLogprob):
    """A token of the answer, and the likeliest ones at its place."""

    top_logprobs: tuple[TopLogprob, ...] = ()


class Output(Read):
    """One of several outputs: an answer of `n`, or one turn of an answer with tools that the provider ran itself.

    `role`: `assistant`, or `tool` for what such a tool gave. `tool_calls` are of both kinds.
    """

    index: int = 0
    role: str = "assistant"
    content: str = ""
    reasoning_content: str = ""
    encrypted_content: str = ""
    finish_reason: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    inline_citations: tuple[InlineCitation, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None

    def to_message(self) -> Message:
        """For the messages of a next job. Raises InvalidAnswer if nothing is in it that a message may say."""
        return _message_of(self, self.role)


class OutputFile(Read):
    """A file that code wrote while the model answered."""

    file_id: str
    name: str = ""


class JobError(Read):
    """Why a job has no answer."""

    code: ErrorCode
    message: str


class Attempt(Read):
    """One call to the provider that was really made."""

    worker: str
    started_at: datetime
    finished_at: datetime
    code: ErrorCode | None = None
    """None: the provider answered."""
    message: str = ""
    usage: Usage | None = None


class JobResult(Read):
    """How a job ended. Returned for failures too: `raise_for_status()` turns those into exceptions.

    Of `n` answers, `content` and what belongs to it is the first.
    """

    id: str
    status: JobStatus
    content: str = ""
    reasoning_content: str = ""
    encrypted_content: str = ""
    """Reasoning that only the provider can read (`use_encrypted_content`)."""
    finish_reason: str | None = None
    """`stop`, `tool_calls`, or why it is cut: `length`, `context`, `time_limit`; `unknown` if it is new to us."""
    model: str = ""
    usage: Usage = Usage()
    """Of the attempt that gave the answer; what the others cost is in `attempts`."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What the caller is to run."""
    server_tool_calls: tuple[ToolCall, ...] = ()
    """What the provider has run itself."""
    citations: tuple[str, ...] = ()
    inline_citations: tuple[InlineCitation, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    outputs: tuple[Output, ...] = ()
    """All of them, if there were several."""
    output_files: tuple[OutputFile, ...] = ()
    response_id: str | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None
    """The tier that was granted."""
    error: JobError | None = None
    attempts: tuple[Attempt, ...] = ()
    metadata: dict[str, str] = Field(default_factory=dict)
    provider: str | None = None
    enqueued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    time_to_first_token: float | None = None
    """Seconds from the call to the first piece of the answer, if it was streamed."""
    worker: str | None = None
    group: str | None = None

    @property
    def is_cut_short(self) -> bool:
        """Whether the answer ended before the model was done."""
        return self.finish_reason in CUT_SHORT

    def raise_for_status(self) -> Self:
        """Return the result itself if the job succeeded.

        Raises JobFailed, or JobCancelled or JobExpired, which are kinds of it.
        """
        if self.status is JobStatus.SUCCEEDED:
            return self
        kinds: dict[JobStatus, type[JobFailed]] = {JobStatus.CANCELLED: JobCancelled, JobStatus.EXPIRED: JobExpired}
        raise kinds.get(self.status, JobFailed)(self)

    def parse(self, model: type[ModelT]) -> ModelT:
        """The answer as the pydantic class that was its `response_format`.

        Raises as `raise_for_status`; InvalidAnswer, without the answer's words, if it is no such thing.
        """
        content = self.raise_for_status().content
        try:
            return model.model_validate_json(content)
        except ValidationError as error:
            raise InvalidAnswer(self._why_no(model, error)) from None

    def _why_no(self, model: type[BaseModel], error: ValidationError) -> str:
        """Only names of the model's own fields: other keys are the answer's words."""
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = first["loc"][0] if first["loc"] and first["loc"][0] in model.model_fields else "the answer"
        cut = f"; it was cut short ({self.finish_reason}), allow it more tokens" if self.is_cut_short else ""
        return f"{self.id}: not a {model.__name__}: {field}: {first['type']}{cut}"

    def to_message(self) -> Message:
        """The answer as an assistant's message, for the messages of a next job.

        Raises as `raise_for_status`; InvalidAnswer if nothing is in it that a message may say.
        """
        return _message_of(self.raise_for_status(), "assistant")

    def to_messages(self) -> tuple[Message, ...]:
        """Every turn of an answer with tools that the provider ran itself; otherwise `to_message` alone.

        Raises as `to_message`.
        """
        if not self.outputs or not self.server_tool_calls:
            return (self.to_message(),)
        return tuple(output.to_message() for output in self.raise_for_status().outputs)


def _message_of(said: JobResult | Output, role: str) -> Message:
    calls = [
        {
            "id": call.id,
            "type": call.type,
            "function": {"name": call.name, "arguments": call.arguments},
            "status": call.status,
            "error_message": call.error_message,
        }
        for call in said.tool_calls
    ]
    fields = {
        "role": role,
        "content": said.content,
        "reasoning_content": said.reasoning_content or None,
        "encrypted_content": said.encrypted_content or None,
        "tool_calls": calls or None,
        "tool_call_id": said.tool_calls[0].id if calls and role == "tool" else None,
    }
    try:
        return Message.model_validate(fields)
    except ValidationError as error:
        where = ".".join(str(place) for place in error.errors()[0]["loc"][:1])
        raise InvalidAnswer(f"cannot go back as a message: its {where} is empty, or of a kind new to us") from None
