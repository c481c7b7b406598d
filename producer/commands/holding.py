"""Why nothing of a model starts, in words: pauses and limits. For `promptq status` and `promptq limits`."""

from datetime import datetime, timedelta
from typing import Final

from promptq.producer.errors import ErrorCode
from promptq.producer.models import AccountPause, LaneStats, LimitName, ModelLimits

_REASONS: Final = {
    ErrorCode.RATE_LIMITED: "more requests than the account allows",
    ErrorCode.NO_CREDIT: "the account is out of credit",
    ErrorCode.BAD_KEY: "the API key is refused",
    ErrorCode.UNAVAILABLE: "the provider cannot be reached",
}
_NEXT_STEPS: Final = {
    ErrorCode.NO_CREDIT: "buy some at console.x.ai; `promptq doctor` looks closer",
    ErrorCode.BAD_KEY: "give the workers another, or enable it at console.x.ai; `promptq doctor` looks closer",
}
_LIMITS: Final[dict[LimitName, str]] = {
    "rpm": "requests a minute",
    "tpm": "tokens a minute",
    "in_flight": "calls in flight",
}


def pause(held: LaneStats | ModelLimits, model: str, now: datetime) -> str | None:
    """The pause of a model, why, and how it ends; None if there is none."""
    if held.paused_by_operator:
        return f"paused by an operator; `promptq resume {model}` ends that"
    if held.paused_until is None:
        return None
    why = _why(held.pause_reason)
    if held.paused_until > now:
        left = max(held.paused_until - now, timedelta(seconds=1))
        return f"paused for {lasting(left)}, until {clock(held.paused_until, now)}: {why}"
    return f"one job tries whether the pause may end: {why}"


def account(paused: AccountPause, now: datetime) -> str:
    """The pause of an account, why, when it is asked again, and what to do."""
    name, why = f"account {paused.account}", _REASONS.get(paused.reason, paused.reason.value)
    if paused.is_open:
        return f"{name}: one job tries whether it works again; it was paused: {why}"
    again = lasting(paused.until - now)
    when = f"asked again in {again}" if paused.until > now else "asked again as soon as a worker can"
    return "; ".join(filter(None, (f"{name} is paused, {when}: {why}", _NEXT_STEPS.get(paused.reason))))


def limit(lane: LaneStats) -> str | None:
    """The limit that holds up what waits in a lane."""
    if not (lane.queued and lane.limited_by and lane.limited_to):
        return None
    return f"waits for its limit of {lane.limited_to:,.0f} {_LIMITS[lane.limited_by]}"


def clock(moment: datetime, now: datetime) -> str:
    """The time of the day, by the clock of this machine; with the date if it is not today."""
    here = moment.astimezone()
    return f"{here:%H:%M:%S}" if here.date() == now.astimezone().date() else f"{here:%Y-%m-%d %H:%M:%S}"


def lasting(span: timedelta) -> str:
    """A time span in its largest unit."""
    seconds = max(0.0, span.total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _why(reason: ErrorCode | None) -> str:
    if reason is None:
        return "no reason given"
    return f"{reason} ({_REASONS[reason]})" if reason in _REASONS else reason.value
