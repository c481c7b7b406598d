"""What the simulator's services share and what can change while it runs."""

import random
import secrets
from collections.abc import Mapping
from typing import Any

from promptq.worker.simulator.books import Books
from promptq.worker.simulator.faults import FaultPicker
from promptq.worker.simulator.knobs import Knobs


class State:
    """Knobs, books, and the faults still to come.

    A call that is in flight when the books are reset ends in the old books: the new ones never hear
    of it.
    """

    def __init__(self, knobs: Knobs) -> None:
        self.id = secrets.token_hex(4)
        self.books = Books()
        self.knobs = self._at_start = knobs
        self.faults = FaultPicker(knobs.faults, knobs.seed)
        self._random = random.Random(f"latency:{knobs.seed}")

    def patch(self, changes: Mapping[str, Any]) -> None:
        """Turns some knobs; only `faults` and `seed` begin draws and `times` of faults anew.

        Raises:
            ValueError: as `Knobs.patched`; nothing is changed.
        """
        self.knobs = self.knobs.patched(changes)
        if changes.keys() & {"faults", "seed"}:
            self._start_draws()

    def reset(self, *, keep_knobs: bool) -> None:
        """Opens new books, and sets the knobs as at the start unless told to keep them."""
        self.books = Books()
        if not keep_knobs:
            self.knobs = self._at_start
            self._start_draws()

    def draw_latency(self) -> float:
        """Seconds that the next answer takes."""
        return self.knobs.latency.at(self._random.random())

    def _start_draws(self) -> None:
        self.faults = FaultPicker(self.knobs.faults, self.knobs.seed)
        self._random = random.Random(f"latency:{self.knobs.seed}")
