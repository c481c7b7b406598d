"""What the simulator's services share and what can change while it runs."""

import random
import secrets
from collections.abc import Mapping
from typing import Any

from promptq.worker.simulator.books import Books, Totals
from promptq.worker.simulator.buckets import Meters
from promptq.worker.simulator.caches import PromptCache
from promptq.worker.simulator.conversations import Conversations
from promptq.worker.simulator.faults import FaultPicker
from promptq.worker.simulator.knobs import Knobs


class State:
    """Knobs, books, meters of the rate limits, what is left of the credit, the faults still to come, and what is kept.

    A call that is in flight when the books are reset ends in the old books: the new ones never hear
    of it.
    """

    knobs: Knobs
    meters: Meters
    faults: FaultPicker
    conversations: Conversations
    cache: PromptCache
    _random: random.Random

    def __init__(self, knobs: Knobs) -> None:
        self.id = secrets.token_hex(4)
        self.books = Books()
        self._at_start = knobs
        self._begin(knobs)

    def patch(self, changes: Mapping[str, Any]) -> None:
        """Turns some knobs; only `faults` and `seed` begin draws and `times` of faults anew.

        The credit is what it was last set to, less what was spent since.

        Raises:
            ValueError: as `Knobs.patched`; nothing is changed.
        """
        self.knobs = self.knobs.patched(changes)
        if changes.keys() & {"faults", "seed"}:
            self._start_draws()
        if "limits" in changes:
            self.meters.change(self.knobs.limits)
        if "credit_in_usd_ticks" in changes:
            self._credit = self.knobs.credit_in_usd_ticks

    def reset(self, *, keep_knobs: bool) -> None:
        """Opens new books; unless told to keep the knobs, begins anew with all else too."""
        self.books = Books()
        if not keep_knobs:
            self._begin(self._at_start)

    def totals(self) -> Totals:
        """The books in numbers, and what is left of the credit."""
        return self.books.totals(credit=self._credit)

    def has_credit(self) -> bool:
        """Whether a generation may start."""
        return self._credit is None or self._credit > 0

    def spend(self, ticks: int | None) -> None:
        """Takes a generation's cost from the credit; the last one may cost more than is left."""
        if self._credit is not None and ticks is not None:
            self._credit -= ticks

    def draw_latency(self) -> float:
        """Seconds that the next answer takes."""
        return self.knobs.latency.at(self._random.random())

    def _begin(self, knobs: Knobs) -> None:
        self.knobs = knobs
        self.meters = Meters(knobs.limits)
        self.conversations = Conversations()
        self.cache = PromptCache()
        self._credit = knobs.credit_in_usd_ticks
        self._start_draws()

    def _start_draws(self) -> None:
        self.faults = FaultPicker(self.knobs.faults, self.knobs.seed)
        self._random = random.Random(f"latency:{self.knobs.seed}")
