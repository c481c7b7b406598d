"""Decides which fault, if any, happens to a call."""

import random
from collections.abc import Iterable

from promptq.worker.simulator.knobs import Fault


class FaultPicker:
    """The faults still to come. The same seed and the same order of calls pick the same faults."""

    def __init__(self, faults: Iterable[Fault], seed: int) -> None:
        self._pending = [_Pending(fault) for fault in faults]
        self._random = random.Random(f"faults:{seed}")

    def pick(self, prompt: str) -> Fault | None:
        """The first fault that fits the prompt and whose dice say so; takes one of its `times`."""
        for pending in self._pending:
            if pending.fits(prompt) and self._random.random() < pending.fault.rate:
                pending.happened += 1
                return pending.fault
        return None


class _Pending:
    __slots__ = ("fault", "happened")

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.happened = 0

    def fits(self, prompt: str) -> bool:
        times, match = self.fault.times, self.fault.match
        return (times is None or self.happened < times) and (match is None or match in prompt)
