"""The values that cross Redis, as frozen pydantic models: the job on its way in, the result on its way out.

The producer validates a job once, when it is enqueued; the worker validates it again because Redis is a border.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from promptq.producer import keys
from promptq.producer.errors import ErrorCode, JobCancelled, JobExpired, JobFailed

TICKS_PER_USD = 10_000_000_000
"""xAI counts money in ticks: 1 USD is 1e10 of them."""


class Band(IntEnum):
    """The rank of a priority: a lower one always goes first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


class JobStatus(StrEnum):
    """Where a job is. The last four are final: then there is a result."""

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


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Read(BaseModel):
    """What a reader builds: unknown fields are passed over, since a newer worker may have written them."""

    model_config = ConfigDict(frozen=True, extra="ignore")


_LONGEST = timedelta(days=3650)


def _plain(name: str) -> str:
    if not name.isprintable() or name != name.strip():
        raise ValueError("must be printable, without spaces at its ends")
    return name


def _not_the_intake(model: str) -> str:
    if model == keys.INTAKE:
        raise ValueError(f"{keys.INTAKE!r} is the intake lane of plain arq clients, not a model")
    return model


Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_plain)]
ModelName = Annotated[Name, AfterValidator(_not_the_intake)]
Text = Annotated[str, Field(min_length=1)]


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


class Message(_Frozen):
    """One message of the conversation that the model answers."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text


class PromptJob(_Frozen):
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
    stop: tuple[Text, ...] | None = None
    user: Name | None = None

    timeout: Annotated[float, Field(gt=0, le=86400)] | None = None
    """Seconds for one attempt. None: `PROMPTQ_JOB_TIMEOUT` of the worker."""
    max_attempts: int | None = Field(None, ge=1, le=100)
    """None: `PROMPTQ_MAX_ATTEMPTS` of the worker."""

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

    @model_validator(mode="before")
    @classmethod
    def _prompt_is_one_user_message(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "prompt" not in data:
            return data
        if "messages" in data:
            raise ValueError("give prompt or messages, not both")
        rest = {name: value for name, value in data.items() if name != "prompt"}
        prompt = data["prompt"]
        return rest | {"messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt}

    @property
    def band(self) -> Band:
        """The rank of its priority."""
        return Band[self.priority.upper()]

    def payload(self) -> dict[str, Any]:
        """The request and how to run it: what the worker reads, JSON-ready, without what was left out."""
        return self.model_dump(mode="json", exclude=DELIVERY_FIELDS, exclude_none=True)


DELIVERY_FIELDS = {"id", "priority", "tenant", "delay", "deadline", "result_ttl", "metadata", "group"}
PAYLOAD_FIELDS = frozenset(PromptJob.model_fields) - DELIVERY_FIELDS
REQUEST_FIELDS = PAYLOAD_FIELDS - {"timeout", "max_attempts"}


class Usage(_Read):
    """Tokens of one or more attempts, and their cost.

    `cost_in_usd_ticks` None: the provider told no cost, which is not 0.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_prompt_tokens: int = 0
    total_tokens: int = 0
    cost_in_usd_ticks: int | None = None

    @property
    def cost_usd(self) -> Decimal | None:
        """Exact dollars."""
        return None if self.cost_in_usd_ticks is None else Decimal(self.cost_in_usd_ticks) / TICKS_PER_USD

    def amounts(self) -> tuple[int | None, ...]:
        """Its numbers, in the order of the fields."""
        return (
            self.prompt_tokens, self.completion_tokens, self.reasoning_tokens,
            self.cached_prompt_tokens, self.total_tokens, self.cost_in_usd_ticks,
        )  # fmt: skip

    def __add__(self, other: "Usage") -> "Usage":
        ticks = [u.cost_in_usd_ticks for u in (self, other) if u.cost_in_usd_ticks is not None]
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens + other.cached_prompt_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
            cost_in_usd_ticks=sum(ticks) if ticks else None,
        )


class ToolCall(_Read):
    """A function that the model wants called; `arguments` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


class JobError(_Read):
    """Why a job has no answer."""

    code: ErrorCode
    message: str


class Attempt(_Read):
    """One call to the provider that was really made."""

    worker: str
    started_at: datetime
    finished_at: datetime
    code: ErrorCode | None = None
    """None: the provider answered."""
    message: str = ""
    usage: Usage | None = None


class JobResult(_Read):
    """How a job ended. Returned for failures too: `raise_for_status()` turns those into exceptions."""

    id: str
    status: JobStatus
    content: str = ""
    reasoning_content: str = ""
    finish_reason: str | None = None
    """`stop`, `tool_calls`, or why it is cut: `length`, `context`, `time_limit`; `unknown` if it is new to us."""
    model: str = ""
    usage: Usage = Usage()
    """Of the attempt that gave the answer; what the others cost is in `attempts`."""
    tool_calls: tuple[ToolCall, ...] = ()
    citations: tuple[str, ...] = ()
    response_id: str | None = None
    error: JobError | None = None
    attempts: tuple[Attempt, ...] = ()
    metadata: dict[str, str] = Field(default_factory=dict)
    provider: str | None = None
    enqueued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    worker: str | None = None
    group: str | None = None

    def raise_for_status(self) -> Self:
        """Return the result itself if the job succeeded.

        Raises JobFailed, or JobCancelled or JobExpired, which are kinds of it.
        """
        if self.status is JobStatus.SUCCEEDED:
            return self
        kinds: dict[JobStatus, type[JobFailed]] = {JobStatus.CANCELLED: JobCancelled, JobStatus.EXPIRED: JobExpired}
        raise kinds.get(self.status, JobFailed)(self)


class Limits(_Frozen):
    """How much of one model the whole fleet may use; None: any amount."""

    rpm: int | None = Field(None, ge=1)
    """Requests a minute."""
    tpm: int | None = Field(None, ge=1)
    """Tokens a minute, of prompts and answers."""
    in_flight: int | None = Field(None, ge=1)
    """Calls at once."""


LimitName = Literal["rpm", "tpm", "in_flight"]


class ModelLimits(_Read):
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


class Tenant(_Frozen):
    """How a tenant shares with others."""

    name: Name
    weight: int = Field(1, ge=1, le=100)
    """Turns that it has for each of an ordinary tenant."""
    max_queued: int | None = Field(None, ge=0)
    """Jobs of it that may wait, queued or delayed. None: any number."""


class TenantStats(_Read):
    """A tenant, and how many of its jobs wait, queued or delayed."""

    name: str
    weight: int = 1
    max_queued: int | None = None
    waiting: int = 0


class LaneStats(_Read):
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


class AccountPause(_Read):
    """Nobody claims for an account whose key was refused or whose credit was gone. `account`: as `xai:1a2b3c4d`.

    `is_open`: it works again as far as the provider tells, and one job goes first.
    """

    account: str
    reason: ErrorCode
    until: datetime
    is_open: bool = False


class QueueStats(_Read):
    """The whole queue at one moment."""

    lanes: tuple[LaneStats, ...]
    paused_accounts: tuple[AccountPause, ...] = ()
    failed: int
    """Failed jobs whose result is still kept."""
    workers: int = 0
    """Worker processes that claimed or renewed in the last 15 seconds."""
    worker_seen_at: datetime | None = None
    """When the last of them did, if that was in the last ten minutes."""


class GroupCounts(_Read):
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
