"""Rate limits: for each API key and model a bucket of requests and a bucket of tokens.

A call is admitted when each bucket holds at least one (request, token). Its whole cost is then taken,
so a call that is bigger than a bucket can be made; it leaves a debt that has to fill up first. A call
that is refused takes nothing from either bucket.

Knows nothing of gRPC. All times are seconds of the caller's clock.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Self

from promptq.worker.simulator.knobs import ANY_MODEL, RateLimit

MINUTE = 60.0

# What rounding may keep a bucket from being as full as it should be.
_TOLERANCE = 1e-9

Unit = Literal["Requests", "Tokens"]


class Shortage(NamedTuple):
    """Why a call is refused: how much was used of which limit, and the seconds until there is room."""

    unit: Unit
    used: int
    limit: float
    wait: float


class Pace(NamedTuple):
    """How a bucket fills: up to `size`, steadily or all at once when its minute is over."""

    per_minute: float
    size: float
    by_minute: bool

    @classmethod
    def of(cls, per_minute: float, limit: RateLimit) -> Self:
        """A minute's worth, or that of `burst` seconds; at least one, or nothing would ever pass."""
        by_minute = limit.mode == "per_minute"
        seconds = MINUTE if by_minute else limit.burst
        return cls(per_minute, max(1.0, per_minute * seconds / MINUTE), by_minute)


class Bucket:
    """What is left of one limit for one key and model; at first, all of it."""

    __slots__ = ("_filled_at", "_left", "_pace")

    def __init__(self, pace: Pace, now: float) -> None:
        self._pace = pace
        self._left = pace.size
        self._filled_at = now

    def fill(self, now: float) -> None:
        """Brings it up to date. A minute begins with the first call after the one before is over."""
        passed = now - self._filled_at
        if not self._pace.by_minute:
            self._left = min(self._pace.size, self._left + passed * self._pace.per_minute / MINUTE)
        elif passed >= MINUTE - _TOLERANCE:
            self._left = self._pace.size
        else:
            return
        self._filled_at = now

    def has_room(self) -> bool:
        """Whether it held at least one when it was filled last."""
        return self._left >= 1 - _TOLERANCE

    def take(self, amount: int) -> None:
        """Takes so much, even if there is less."""
        self._left -= amount

    def shortage(self, unit: Unit, now: float) -> Shortage:
        """What it lacks, if it has no room."""
        pace = self._pace
        due = self._filled_at + (MINUTE if pace.by_minute else (1 - self._left) * MINUTE / pace.per_minute)
        return Shortage(unit, math.ceil(pace.per_minute - self._left), pace.per_minute, due - now)

    def change(self, pace: Pace, now: float) -> None:
        """Goes on at another pace, with what is left and not with a full bucket.

        What was used of a minute stays used, and a debt stays a debt. What else is left stays the same
        share of the size.
        """
        self.fill(now)
        if self._pace.by_minute and pace.by_minute:
            self._left += pace.size - self._pace.size
        else:
            self._left *= pace.size / self._pace.size if self._left > 0 else 1
            self._filled_at = now
        self._pace = pace


class Meter:
    """The buckets of one key and model."""

    __slots__ = ("_buckets",)

    def __init__(self, limit: RateLimit, now: float) -> None:
        self._buckets = {unit: Bucket(pace, now) for unit, pace in _paces(limit).items()}

    def admit(self, tokens: int, now: float) -> Shortage | None:
        """Takes a call of so many tokens, or says what has to be waited for."""
        for bucket in self._buckets.values():
            bucket.fill(now)
        shortages = [bucket.shortage(unit, now) for unit, bucket in self._buckets.items() if not bucket.has_room()]
        if shortages:
            return max(shortages, key=lambda shortage: shortage.wait)
        for unit, bucket in self._buckets.items():
            bucket.take(1 if unit == "Requests" else tokens)
        return None

    def change(self, limit: RateLimit, now: float) -> None:
        """Goes on under another limit; a bucket that there was not before is full."""
        paces = _paces(limit)
        self._buckets = {unit: self._buckets.get(unit) or Bucket(pace, now) for unit, pace in paces.items()}
        for unit, bucket in self._buckets.items():
            bucket.change(paces[unit], now)


class Meters:
    """All keys and models. A model that is not named in the limits has those of `*`, if there are any."""

    def __init__(self, limits: Mapping[str, RateLimit], clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._meters: dict[tuple[str, str], Meter] = {}

    def admit(self, key: str, model: str, tokens: int) -> Shortage | None:
        """Takes a call of so many tokens from the meter of its key and model, or says what it lacks."""
        limit = self._limit(model)
        if limit is None:
            return None
        now = self._clock()
        meter = self._meters.get((key, model))
        if meter is None:
            meter = self._meters[key, model] = Meter(limit, now)
        return meter.admit(tokens, now)

    def change(self, limits: Mapping[str, RateLimit]) -> None:
        """Sets other limits, at once. A model that loses its limit loses its meters."""
        self._limits = limits
        now = self._clock()
        meters, self._meters = self._meters, {}
        for (key, model), meter in meters.items():
            limit = self._limit(model)
            if limit is not None:
                meter.change(limit, now)
                self._meters[key, model] = meter

    def _limit(self, model: str) -> RateLimit | None:
        return self._limits.get(model) or self._limits.get(ANY_MODEL)


def _paces(limit: RateLimit) -> dict[Unit, Pace]:
    rates: dict[Unit, float | None] = {"Requests": limit.rpm, "Tokens": limit.tpm}
    return {unit: Pace.of(rate, limit) for unit, rate in rates.items() if rate is not None}
