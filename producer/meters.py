"""What a model's meter says to a reader: the same sums as in lua/meter.lua, which writes it. No Redis here.

Used by `reading.py` and `limits.py`. A moment further ahead than any rule puts one is of a clock that was set back.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from promptq.producer.errors import ErrorCode
from promptq.producer.models import LimitName, Limits

FIELDS: Final = [
    "until", "requests", "tokens", "factor", "learned", "dropped", "pressed", "grown", "at", "starts", "spend",
    "reason",
]  # fmt: skip
LIMITS: Final = ["rpm", "tpm", "in_flight", "paused"]

_CLIMB = 1.05 ** (1 / 2000)
_CLIMB_TO_LIMIT = _CLIMB**4
_LONGEST_CLIMB = 600_000
"""In ms: by then any rate has climbed to its limit, or is forgotten."""
_FORGOTTEN = 8
_UNPRESSED = 15_000
_HALF_OPEN = frozenset({ErrorCode.UNAVAILABLE})
_SUMMED = 10_000
"""In ms: about as far back as `starts` and `spend` go."""
LONGEST_PAUSE: Final = 750_000
LONGEST_PROBE: Final = 30_000
_LONGEST_DEBT = 60_020
_GATHERING = 100
"""In ms: workers claim when so little of a limit is unused, so less is none."""


class Held(NamedTuple):
    """Which limit holds a model up, and at how much of it: requests or tokens a minute, or calls."""

    by: LimitName
    at: float


class Meter:
    """One model at one moment, `now`, in ms since 1970."""

    def __init__(
        self, now: int, values: Sequence[bytes | None], limits: Sequence[bytes | None], in_flight: int
    ) -> None:
        """`values` of FIELDS and `limits` of LIMITS, as Redis has them; `in_flight` calls run."""
        *numbers, reason = values
        self._numbers: Mapping[str, float | None] = dict(zip(FIELDS, map(_number, numbers), strict=False))
        rpm, tpm, most, held = (_number(limit) for limit in limits)
        self.limits = Limits(rpm=_whole(rpm), tpm=_whole(tpm), in_flight=_whole(most))
        self.in_flight, self._now = in_flight, now
        self.is_paused_by_operator = bool(held)
        self.is_known = any(value is not None for value in (*values, *limits))
        self._reason = _error_code(reason)

    @property
    def pause(self) -> tuple[float | None, ErrorCode | None]:
        """Until when it is paused, in ms, and why. It may be past while one job finds out whether that may end."""
        until = self._numbers["until"]
        if until is None or until > self._now + LONGEST_PAUSE:
            return None, None
        is_over = until <= self._now and self._reason not in _HALF_OPEN
        return (None, None) if is_over else (until, self._reason)

    @property
    def rates(self) -> tuple[float | None, float | None]:
        """Requests and tokens a minute that may start now; None: any number."""
        limits, climbed = self.limits, self._climbed()
        share = min(1.0, (self._numbers["factor"] or 1.0) * climbed)
        learned = self._numbers["learned"]
        if limits.rpm is None and limits.tpm is None and learned is not None and climbed < _FORGOTTEN:
            return learned * climbed, None
        return (limits.rpm and limits.rpm * share), (limits.tpm and limits.tpm * share)

    @property
    def use(self) -> tuple[float, float]:
        """Requests started and tokens used a minute."""
        age = max(0.0, self._now - (self._numbers["at"] or self._now))
        minutes = math.exp(-age / _SUMMED) * 60_000 / _SUMMED
        return (self._numbers["starts"] or 0) * minutes, (self._numbers["spend"] or 0) * minutes

    @property
    def held(self) -> Held | None:
        """Which limit lets nothing more start now."""
        rpm, tpm = self.rates
        if self.limits.in_flight and self.in_flight >= self.limits.in_flight:
            return Held("in_flight", self.limits.in_flight)
        if tpm is not None and self._is_used_up("tokens"):
            return Held("tpm", tpm)
        if rpm is not None and self._is_used_up("requests"):
            return Held("rpm", rpm)
        return None

    @property
    def throttled(self) -> float | None:
        """When the provider last said 429, in ms."""
        return self._numbers["dropped"]

    def _is_used_up(self, what: str) -> bool:
        until = self._numbers[what]
        return until is not None and -_GATHERING < until - self._now <= _LONGEST_DEBT

    def _climbed(self) -> float:
        dropped = self._numbers["dropped"] or self._now
        since = self._now - dropped
        if not 0 <= since < _LONGEST_CLIMB:
            since = _LONGEST_CLIMB
        if self.limits.rpm or self.limits.tpm or dropped > self._now:
            return float(_CLIMB_TO_LIMIT**since)
        pressed = max(self._numbers["pressed"] or 0, dropped)
        grown = (self._numbers["grown"] or 0) + max(0, min(_UNPRESSED, self._now - pressed))
        return float(_CLIMB ** min(grown, _LONGEST_CLIMB))


def _number(value: bytes | None) -> float | None:
    """None for what no script wrote."""
    try:
        number = float(value or b"")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _error_code(reason: bytes | None) -> ErrorCode | None:
    """None for what a newer worker may have written, too."""
    text = (reason or b"").decode(errors="replace")
    return ErrorCode(text) if text in {code.value for code in ErrorCode} else None


def _whole(limit: float | None) -> int | None:
    return int(limit) if limit and limit >= 1 else None
