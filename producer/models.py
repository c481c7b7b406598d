"""What the queue takes and shows, as frozen pydantic models: the job, limits, tenants and counts. Results: results.py.

The producer validates a job once, when it is enqueued; the worker validates it again because Redis is a border.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from promptq.producer import keys
from promptq.producer.errors import ErrorCode
from promptq.producer.fields import Frozen, Name, Read, Text
from promptq.producer.messages import Message
from promptq.producer.tools import (
    MOST_TOOLS,
    AnyResponseFormat,
    FunctionChoice,
    FunctionTool,
    Guideline,
    IncludeOption,
    SearchParameters,
    Tool,
    ToolChoice,
)


class Band(IntEnum):
    """The rank of a priority: a lower one always goes first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


_BANDS = {band.name.lower(): band for band in Band}


class JobStatus(StrEnum):
    """Where a job is. The last four are final: then there is a result.

    Delayed: not before a moment, or behind an earlier job of its conversation.
    """

    QUEUED = "queued"
    DELAYED = "delayed"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self in _FINAL


_FINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.EXPIRED})


_LONGEST = timedelta(days=3650)


def _not_the_intake(model: str) -> str:
    if model == keys.INTAKE:
        raise ValueError(f"{keys.INTAKE!r} is the intake lane of plain arq clients, not a model")
    return model


ModelName = Annotated[Name, AfterValidator(_not_the_intake)]


def _in_a_list(stop: Any) -> Any:
    """OpenAI takes a single one as it is, too."""
    return (stop,) if isinstance(stop, str) else stop


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _in_the_calendar(deadline: timedelta | datetime) -> timedelta | datetime:
    if isinstance(deadline, datetime):
        try:
            deadline.astimezone(UTC).timestamp()
        except (OverflowError, ValueError, OSError):
            raise ValueError("is beyond the calendar") from None
    return deadline


def _seconds(deadline: Any) -> Any:
    """A number is seconds from now, never a time since 1970."""
    if isinstance(deadline, bool | Decimal) or (isinstance(deadline, str) and _is_number(deadline)):
        raise ValueError("must be seconds as int or float, a timedelta or a datetime")
    if not isinstance(deadline, int | float):
        return deadline
    if not 0 < deadline <= _LONGEST.total_seconds():
        raise ValueError(f"must be more than 0 seconds and at most {_LONGEST.days} days")
    return timedelta(seconds=deadline)


Duration = Annotated[timedelta, Field(ge=timedelta(0), le=_LONGEST)]
PositiveDuration = Annotated[timedelta, Field(ge=timedelta(milliseconds=1), le=_LONGEST)]


class PromptJob(Frozen):
    """One prompt with its options and, if the caller chose one, an id.

    The *request* (what the model is asked: `REQUEST_FIELDS`) decides whether two jobs under one id are the same.
    Durations are seconds or `timedelta`s.
    """

    messages: tuple[Message, ...] = Field(min_length=1)
    model: ModelName | None = None
    """None: `PROMPTQ_DEFAULT_MODEL` of the producer."""
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    reasoning_effort: Literal["none", "low", "medium", "high", "xhigh"] | None = None
    seed: int | None = Field(None, ge=-(2**31), lt=2**31)
    stop: Annotated[tuple[Text, ...], BeforeValidator(_in_a_list)] | None = None
    user: Name | None = None
    safety_identifier: Name | None = None
    """The caller's own user, as a hash: xAI lays misuse on it, not on the whole key."""
    n: int | None = Field(None, ge=1, le=128)
    """Answers to give; `JobResult.outputs` holds them all."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=8)
    tools: tuple[Tool, ...] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_turns: int | None = Field(None, ge=1, lt=2**31)
    """Rounds of tools that xAI runs itself."""
    response_format: AnyResponseFormat | None = None
    """Also a pydantic class: `JobResult.parse` reads the answer into it."""
    search_parameters: SearchParameters | None = None
    include: tuple[IncludeOption, ...] | None = None
    store_messages: bool | None = None
    """Whether xAI keeps the conversation, so that `previous_response_id` may go on from it."""
    previous_response_id: Text | None = None
    use_encrypted_content: bool | None = None
    agent_count: Literal[4, 16] | None = None
    service_tier: Literal["default", "priority"] | None = None
    guidelines: tuple[Guideline, ...] | None = None

    timeout: Annotated[float, Field(gt=0, le=86400)] | None = None
    """Seconds for one attempt. None: `PROMPTQ_JOB_TIMEOUT` of the worker."""
    max_attempts: int | None = Field(None, ge=1, le=100)
    """None: `PROMPTQ_MAX_ATTEMPTS` of the worker."""
    stream: bool | None = None
    """Whether readers may follow the answer while it is written (`PromptQueue.events`)."""
    conversation: Name | None = None
    """Its jobs, of one tenant, run in the order in which they were enqueued, one at a time, however the one before
    ended; the provider finds their common beginning in its prompt cache."""

    id: Name | None = None
    priority: Literal["high", "normal", "low"] = "normal"
    tenant: Name = "default"
    delay: Duration | None = None
    """Not before this much from now."""
    deadline: (
        Annotated[PositiveDuration | datetime, BeforeValidator(_seconds), AfterValidator(_in_the_calendar)] | None
    ) = None
    """From now, or a point in time (naive ones are local time). Without an answer by then the job is `expired`."""
    result_ttl: PositiveDuration | None = None
    """How long its result is kept. None: `PROMPTQ_RESULT_TTL`, `PROMPTQ_FAILURE_TTL`."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """Comes back with the result."""
    group: Name | None = None
    """Counted and read together with the others of that name (`PromptQueue.group`)."""

    @field_validator("top_logprobs")
    @classmethod
    def _goes_with_logprobs(cls, count: int | None, info: ValidationInfo) -> int | None:
        if count is not None and not info.data.get("logprobs"):
            raise ValueError("needs logprobs to be true")
        return count

    @field_validator("tool_choice")
    @classmethod
    def _is_among_the_tools(cls, choice: Any, info: ValidationInfo) -> Any:
        tools = info.data.get("tools") or ()
        if choice == "required" and not tools:
            raise ValueError("needs tools")
        if isinstance(choice, FunctionChoice):
            names = {tool.spec.name for tool in tools if isinstance(tool, FunctionTool)}
            if choice.chosen not in names:
                raise ValueError("names a function that is not among the tools")
        return choice

    @model_validator(mode="before")
    @classmethod
    def _prompt_is_one_user_message(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "prompt" not in data:
            return data
        if "messages" in data:
            raise ValueError("give prompt or messages, not both")
        fields = data.copy()
        prompt = fields.pop("prompt")
        fields["messages"] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return fields

    @property
    def band(self) -> Band:
        """The rank of its priority."""
        return _BANDS[self.priority]

    def payload(self) -> dict[str, Any]:
        """The request and how to run it: what the worker reads, JSON-ready, without what was left out."""
        return self.model_dump(mode="json", exclude=DELIVERY_FIELDS, exclude_none=True)


DELIVERY_FIELDS = {"id", "priority", "tenant", "delay", "deadline", "result_ttl", "metadata", "group"}
PAYLOAD_FIELDS = frozenset(PromptJob.model_fields) - DELIVERY_FIELDS
REQUEST_FIELDS = PAYLOAD_FIELDS - {"timeout", "max_attempts", "stream", "conversation"}


class Limits(Frozen):
    """How much of one model the whole fleet may use; None: any amount."""

    rpm: int | None = Field(None, ge=1)
    """Requests a minute."""
    tpm: int | None = Field(None, ge=1)
    """Tokens a minute, of prompts and answers."""
    in_flight: int | None = Field(None, ge=1)
    """Calls at once."""


LimitName = Literal["rpm", "tpm", "in_flight"]


class ModelLimits(Read):
    """The limits of one model, and what the whole fleet uses of them."""

    model: str
    limits: Limits = Limits()
    requests: float = 0.0
    """Started a minute, by the last ten seconds."""
    tokens: float = 0.0
    """Used a minute, by the last ten seconds."""
    in_flight: int = 0
    """Calls under way."""
    rpm_now: float | None = None
    """Requests a minute that may start now: the limit, or less since the provider said 429. None: any number."""
    tpm_now: float | None = None
    """Tokens a minute, likewise."""
    throttled_at: datetime | None = None
    """When the provider last said 429."""
    paused_by_operator: bool = False
    """By `pause`, until `resume`."""
    paused_until: datetime | None = None
    pause_reason: ErrorCode | None = None


class Tenant(Frozen):
    """How a tenant shares with others."""

    name: Name
    weight: int = Field(1, ge=1, le=100)
    """Turns that it has for each of an ordinary tenant."""
    max_queued: int | None = Field(None, ge=0)
    """Jobs of it that may wait, queued or delayed. None: any number."""


class TenantStats(Read):
    """A tenant, and how many of its jobs wait, queued or delayed."""

    name: str
    weight: int = 1
    max_queued: int | None = None
    waiting: int = 0


class LaneStats(Read):
    """What waits and runs in one lane. `running` counts the calls in flight of the lane's model.

    `stalled`: those of them whose lease ran out and that nobody has taken over. `waiting_since`: when the jobs that are
    next in their bands were enqueued, the earliest of them. `paused_until` may be past: then one job finds out whether
    the pause may end. `limited_by`: the limit of which nothing is left just now, and `limited_to` how much of it there
    is: requests or tokens a minute, or calls.
    """

    lane: str
    high: int
    normal: int
    low: int
    delayed: int
    running: int
    stalled: int = 0
    waiting_since: datetime | None = None
    paused_by_operator: bool = False
    paused_until: datetime | None = None
    pause_reason: ErrorCode | None = None
    limited_by: LimitName | None = None
    limited_to: float | None = None

    @property
    def queued(self) -> int:
        """Jobs that could run now."""
        return self.high + self.normal + self.low


class AccountPause(Read):
    """Nobody claims for an account whose key was refused or whose credit was gone. `account`: as `xai:1a2b3c4d`.

    `is_open`: it works again as far as the provider tells, and one job goes first.
    """

    account: str
    reason: ErrorCode
    until: datetime
    is_open: bool = False


class QueueStats(Read):
    """The whole queue at one moment."""

    lanes: tuple[LaneStats, ...]
    paused_accounts: tuple[AccountPause, ...] = ()
    failed: int
    """Failed jobs whose result is still kept."""
    workers: int = 0
    """Worker processes that claimed or renewed in the last 15 seconds."""
    worker_seen_at: datetime | None = None
    """When the last of them did, if that was in the last ten minutes."""


class GroupCounts(Read):
    """How many jobs of one group are where."""

    name: str
    queued: int = 0
    delayed: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0

    @property
    def open(self) -> int:
        """Jobs that have not ended."""
        return self.queued + self.delayed + self.running

    @property
    def ended(self) -> int:
        """Jobs that have a result, or had one."""
        return self.succeeded + self.failed + self.cancelled + self.expired

    @property
    def total(self) -> int:
        """All jobs that were ever enqueued into the group."""
        return self.open + self.ended

    @property
    def progress(self) -> float:
        """The part that has ended, from 0 to 1."""
        return self.ended / self.total if self.total else 1.0


def from_ms(milliseconds: float) -> datetime:
    """The moment that Redis wrote as milliseconds since 1970."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
