"""What a measure returns: figures, each with its raw samples, a contender beside it and perhaps a target."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Target:
    """A bound for the ratio or the value; `aim`, in words, is what we would like beyond it."""

    bound: float
    of: Literal["ratio", "value"]
    way: Literal["at least", "at most"]
    aim: str = ""

    def is_met_by(self, figure: "Figure") -> bool:
        """Whether the figure reaches it."""
        measured = figure.ratio if self.of == "ratio" else figure.value
        if measured is None:
            return False
        return measured >= self.bound if self.way == "at least" else measured <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.way == "at least" else "≤"
        unit = "x" if self.of == "ratio" else ""
        return f"{sign} {self.bound:,g}{unit}" + (f" (aim {self.aim})" if self.aim else "")


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `ratio` is ours to the contender's; the median of the rounds' ratios."""

    measure: str
    what: str
    value: float
    unit: str
    contender: str = ""
    beside: float | None = None
    """The contender's value, in the same unit."""
    ratio: float | None = None
    target: Target | None = None
    note: str = ""
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By contender, in the order of the rounds."""

    @property
    def is_reached(self) -> bool | None:
        """None: there is no target."""
        return None if self.target is None else self.target.is_met_by(self)


def compared(
    measure: str,
    what: str,
    unit: str,
    *,
    ours: Sequence[float],
    contender: str,
    theirs: Sequence[float],
    target: Target | None = None,
) -> Figure:
    """A figure from samples of the same rounds: medians, and the median of the ratios round by round."""
    return Figure(
        measure,
        what,
        value=statistics.median(ours),
        unit=unit,
        contender=contender,
        beside=statistics.median(theirs),
        ratio=statistics.median(our / their for our, their in zip(ours, theirs, strict=True)),
        target=target,
        samples={"promptq": list(ours), contender: list(theirs)},
    )


def alone(measure: str, what: str, unit: str, *, ours: Sequence[float], target: Target | None = None) -> Figure:
    """A figure without a contender: the median."""
    return Figure(measure, what, statistics.median(ours), unit, target=target, samples={"promptq": list(ours)})


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that so many percent do not exceed."""
    ranked = sorted(samples)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]
