"""The knobs of the simulator: how it answers, what that costs, and what goes wrong."""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from promptq.worker.simulator.credentials import fingerprint_of, is_fingerprint
from promptq.worker.simulator.spread import Spread, parse_count, parse_spread

MIB = 1 << 20
ANY_MODEL = "*"

StatusName = Literal[
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
]

KeyState = Literal["good", "expired", "incorrect", "blocked", "team_blocked", "disabled"]
RetryHint = Literal["none", "retry_after", "retry_info"]

_TRAILER_KEY = re.compile(r"[0-9a-z_.-]+")
_FIELDS_OF_ONE_KIND = {
    "code": "status",
    "details": "status",
    "trailers": "status",
    "after_start": "status",
    "size": "oversized",
}
_KINDS_IN_THE_MIDDLE = ("status", "drop_call", "hang")


def _can_be_sent(trailers: dict[str, str]) -> dict[str, str]:
    for key, value in trailers.items():
        if not _TRAILER_KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no trailer key: lower-case letters, digits and -_. only")
        if key.endswith("-bin"):
            _check_base64(key, value)
        elif not (value.isascii() and value.isprintable()):
            raise ValueError(f"the value of {key!r} must be printable ASCII")
    return trailers


def _check_base64(key: str, value: str) -> None:
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"the value of {key!r} must be base64: its key ends in -bin") from None


Latency = Annotated[Spread, BeforeValidator(parse_spread), PlainSerializer(str)]
TokenCount = Annotated[Spread, BeforeValidator(parse_count), PlainSerializer(str)]
Trailers = Annotated[dict[str, str], AfterValidator(_can_be_sent)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fault(_Frozen):
    """What goes wrong with a call. Of several that fit, the first in the list happens.

    - `status`: the call ends with `code`, `details` and `trailers`; at once and free of charge, or
      with `after_start` when the answer would have come and charged in full.
    - `drop_call`: charged in full, then UNAVAILABLE, as when a connection breaks.
    - `hang`: charged in full, never answers; the client has to give up.
    - `oversized`: an answer of `size` bytes, more than the client's 20 MiB receive limit.

    Attributes:
        rate: The probability that a call that fits fails, 0 to 1.
        match: Only prompts that contain this text fit.
        times: It happens at most so often; None is for ever.
        trailers: A key that ends in `-bin` has its value in base64.
        size: Bytes of text in an `oversized` answer.
        after_chunks: A streamed answer fails after so many chunks, the last one at the latest; a
            `status` with `after_start` only. An answer that is not streamed has none.
    """

    kind: Literal["status", "drop_call", "hang", "oversized"]
    rate: float = Field(default=1.0, ge=0, le=1)
    match: str | None = None
    times: int | None = Field(default=None, ge=0)
    code: StatusName = "UNAVAILABLE"
    details: str = "simulated fault"
    trailers: Trailers = {}
    after_start: bool = False
    size: int = Field(default=21 * MIB, gt=0, le=256 * MIB)
    after_chunks: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fails_in_the_middle(self) -> Self:
        if self.after_chunks and self.kind not in _KINDS_IN_THE_MIDDLE:
            raise ValueError(f"after_chunks belongs to kinds {', '.join(_KINDS_IN_THE_MIDDLE)}, not to {self.kind!r}")
        if self.after_chunks and self.kind == "status" and not self.after_start:
            raise ValueError("after_chunks needs after_start: chunks come from a generation")
        return self

    @model_validator(mode="after")
    def _has_only_fields_of_its_kind(self) -> Self:
        for field, kind in _FIELDS_OF_ONE_KIND.items():
            is_set = getattr(self, field) != type(self).model_fields[field].default
            if is_set and kind != self.kind:
                raise ValueError(f"{field} belongs to kind {kind!r}, not to {self.kind!r}")
        return self


class TokenCost(_Frozen):
    """What a token costs, in ticks (10**10 are 1 USD). Reasoning tokens cost as completion tokens.

    The defaults are 3 USD and 15 USD for a million tokens.
    """

    prompt: int = Field(default=30_000, ge=0)
    completion: int = Field(default=150_000, ge=0)


def _parse_cost(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value == "none":
        return None
    prompt, _, completion = value.partition(",")
    if not (prompt.isdecimal() and completion.isdecimal()):
        raise ValueError("must be PROMPT,COMPLETION in whole ticks, or none")
    return TokenCost(prompt=int(prompt), completion=int(completion))


class RateLimit(_Frozen):
    """What one API key may do with one model; None is no limit. `buckets` has the rules.

    - `smooth`: fills continuously, and holds what comes in `burst` seconds, at least one.
    - `per_minute`: a whole minute's worth for each minute, which begins with a call.

    Attributes:
        rpm: Requests per minute.
        tpm: Tokens per minute: prompt, reasoning and answer, charged when the call starts.
        burst: Seconds; `smooth` only.
    """

    rpm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    tpm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    mode: Literal["smooth", "per_minute"] = "smooth"
    burst: float = Field(default=1.0, gt=0, allow_inf_nan=False)


def _without_secrets(keys: object) -> object:
    if not isinstance(keys, Mapping):
        return keys
    names = {name: str(name) for name in keys}
    return {text if is_fingerprint(text) else fingerprint_of(text): keys[name] for name, text in names.items()}


class Knobs(_Frozen):
    """How the simulator answers.

    Attributes:
        latency: Seconds until the answer, or until its first token if `tokens_per_second` is set: a
            number, or text such as `uniform:0.5,2`, `lognormal:MEDIAN,SIGMA` or `exponential:MEAN`.
        tokens_per_second: Pace at which reasoning and answer are written, streamed or not; None is at
            once.
        tokens_per_chunk: Of text in each chunk of a streamed answer, which come at an even pace. XAI sends one or two.
        answer_tokens: Length of the answer: a whole number or `uniform:LOW,HIGH`. The same prompt
            always gets the same length.
        reasoning_tokens: Tokens thought before the answer, like `answer_tokens`.
        cached_share: Share of the prompt's text tokens that counts as cached, 0 to 1. In a conversation
            (`x-grok-conv-id`) at least what the prompt has in common with the one before it.
        cost_in_usd_ticks: Cost of a token, also as text `PROMPT,COMPLETION`; None (`none`) leaves
            the cost out of the usage.
        max_concurrent_streams: Calls at a time that one connection may have; None is no limit. Only
            at start.
        seed: Makes draws repeatable, and is part of what an answer says.
        key: What becomes of any API key: `expired` was good once, `incorrect` is unknown, the others
            are known and of no use.
        keys: The same for single keys, over `key`: by the key, or by its fingerprint as the journal
            has it. Only fingerprints are kept and sent.
        limits: Rate limits by model; those of `*` are for every model without its own. Each key and
            model has its own meter. Changed while it runs, they hold at once, and a meter that was
            used up stays so.
        retry_hint: What a call that a rate limit refuses is told about the time to wait: nothing, the
            trailer `retry-after` (whole seconds, rounded up), or `google.rpc.RetryInfo` (exact).
        credit_in_usd_ticks: What the account has, for all its keys. Each generation that starts is
            paid from it; when nothing is left, none starts. Set again, the account has that. None
            never ends.
        no_credit_code: The status of a call that is refused for want of credit.
        faults: What goes wrong.
    """

    latency: Latency = Spread("fixed", 0.0)
    tokens_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    tokens_per_chunk: int = Field(default=8, gt=0)
    answer_tokens: TokenCount = Spread("fixed", 60.0)
    reasoning_tokens: TokenCount = Spread("fixed", 0.0)
    cached_share: float = Field(default=0.0, ge=0, le=1)
    cost_in_usd_ticks: Annotated[TokenCost | None, BeforeValidator(_parse_cost)] = TokenCost()
    max_concurrent_streams: int | None = Field(default=None, gt=0)
    seed: int = 0
    key: KeyState = "good"
    keys: Annotated[dict[str, KeyState], BeforeValidator(_without_secrets)] = {}
    limits: dict[str, RateLimit] = {}
    retry_hint: RetryHint = "none"
    credit_in_usd_ticks: int | None = None
    no_credit_code: Literal["RESOURCE_EXHAUSTED", "PERMISSION_DENIED"] = "RESOURCE_EXHAUSTED"
    faults: tuple[Fault, ...] = ()

    def state_of(self, key: str) -> KeyState:
        """What becomes of the key with this fingerprint."""
        return self.keys.get(key, self.key)

    def patched(self, changes: Mapping[str, Any]) -> Self:
        """These knobs with `changes` on top.

        Raises:
            ValueError: a change is bad (pydantic's ValidationError, which names the field), or of a
                knob that can be set only at start.
        """
        patched = self.model_validate({**self.model_dump(), **changes})
        if patched.max_concurrent_streams != self.max_concurrent_streams:
            raise ValueError("max_concurrent_streams can be set only when the simulator starts")
        return patched
