"""What must be true of the limits and pauses of one model: `Meter` hears what starts, is given back, and pauses it.

It knows nothing of how the scripts count: whatever they do, no window of time may hold more than its limit lets start.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from promptq.producer.models import Limits

BURST: Final = 200
"""Ms of a limit that may start at once, beside the one request or job that may always start."""
SHORTEST_PAUSE: Final = 1000
PROBE: Final = 30_000
NEXT_PROBE: Final = 1000
MOST_DEBT: Final = 60_000


@dataclass(slots=True)
class Meter:
    """One model. Times in ms; windows begin when the limits were set last."""

    limits: Limits = field(default_factory=Limits)
    starts: list[int] = field(default_factory=list)
    refunds: list[int] = field(default_factory=list)
    """Of requests: runs that made no call."""
    tokens_until: float = 0
    """Until when the tokens are used, at the least."""
    is_inexact: bool = False
    """What is given back at a lower rate than it was charged at is worth more time."""
    was_throttled: bool = False
    is_held: bool = False
    """By an operator."""
    paused_until: int = 0
    paused_since: int = 0
    is_half_open: bool = False
    probed_until: int = 0

    def limit(self, limits: Limits) -> None:
        """The limits were set anew, and what 429s have taught is forgotten."""
        self.limits = limits
        self.starts.clear()
        self.refunds.clear()
        self.was_throttled = self.is_inexact = False
        self.tokens_until = 0

    def hold(self) -> None:
        """An operator paused the model."""
        self.is_held = True

    def resume(self) -> None:
        """An operator ended all of its pauses."""
        self.is_held = self.is_half_open = False
        self.paused_until = 0

    def pause(self, now: int, least: int, reason: str) -> None:
        """The model pauses since just now, for at least so long."""
        self.paused_until, self.paused_since = now + max(least, SHORTEST_PAUSE), now
        self.is_half_open, self.probed_until = reason == "unavailable", 0

    def answer(self, claimed: int) -> None:
        """A call was answered that was claimed then."""
        if claimed > self.paused_since:
            self.is_half_open = False

    def pass_probe_on(self, now: int, claimed: int, kind: str) -> None:
        """A run ended without an answer: if it was the probe, another job may be."""
        if claimed >= self.paused_since:
            self.probed_until = 0 if kind == "released" else min(self.probed_until, now + NEXT_PROBE)

    def refund(self, now: int) -> None:
        """A run made no call: another may start instead."""
        self.refunds.append(now)
        self.is_inexact = self.is_inexact or self.was_throttled

    def charge(self, now: int, tokens: int) -> None:
        """So many tokens are used, or given back."""
        if self.limits.tpm:
            used = max(self.tokens_until, now - BURST) + tokens * 60_000 / self.limits.tpm
            self.tokens_until = min(used, now + MOST_DEBT)
        self.is_inexact = self.is_inexact or (self.was_throttled and tokens < 0)

    def start(self, now: int, tokens: int) -> Iterator[str]:
        """A job was leased and charged so many tokens; yields what is wrong with that."""
        if self.is_held or now < self.paused_until:
            yield "started under a pause"
        if self.is_half_open:
            if now < self.probed_until:
                yield "started beside a probe"
            self.probed_until = now + PROBE
        if not self.is_inexact:
            yield from self._overdrafts(now)
        self.charge(now, tokens)

    def _overdrafts(self, now: int) -> Iterator[str]:
        if self.limits.tpm and self.tokens_until > now + 1:
            yield f"over the limit: tokens, used for {self.tokens_until - now:.0f} ms more"
        self.starts.append(now)
        rpm = self.limits.rpm
        for requests, began in enumerate(reversed(self.starts), 1):
            given_back = sum(refund >= began for refund in self.refunds)
            if rpm and requests > 1.001 + given_back + rpm * (now - began + BURST) / 60_000:
                yield f"over the limit: requests, {requests} in {now - began} ms at {rpm} a minute"
