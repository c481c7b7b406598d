"""A number that is fixed or drawn: how long an answer takes, how many tokens it has."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, get_args

Shape = Literal["fixed", "uniform", "lognormal", "exponential"]

SPECS = "NUMBER, uniform:LOW,HIGH, lognormal:MEDIAN,SIGMA or exponential:MEAN"
_NUMBERS_AFTER: dict[Shape, int] = {"fixed": 1, "uniform": 2, "lognormal": 2, "exponential": 1}
_STANDARD_NORMAL = NormalDist()
_SMALLEST_CHANCE = 2.0**-53


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution of numbers of which none is negative.

    `first` is the number itself, LOW, MEDIAN or MEAN; `second` is HIGH or SIGMA.
    """

    shape: Shape
    first: float
    second: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.first) and math.isfinite(self.second)):
            raise ValueError("its numbers must be finite")
        if self.first < 0 or self.second < 0:
            raise ValueError("its numbers must not be negative")
        if self.shape == "uniform" and self.second < self.first:
            raise ValueError("HIGH must not be below LOW")
        if self.shape == "lognormal" and self.first == 0:
            raise ValueError("MEDIAN must be above 0")

    def at(self, chance: float) -> float:
        """The number that this share of all draws stays below; `chance` is in [0, 1)."""
        match self.shape:
            case "fixed":
                return self.first
            case "uniform":
                return self.first + chance * (self.second - self.first)
            case "lognormal":
                deviations = _STANDARD_NORMAL.inv_cdf(max(chance, _SMALLEST_CHANCE))
                return self.first * math.exp(self.second * deviations)
            case "exponential":
                return -self.first * math.log1p(-chance)

    def __str__(self) -> str:
        if self.shape == "fixed":
            return f"{self.first:.17g}"
        numbers = (self.first, self.second)[: _NUMBERS_AFTER[self.shape]]
        return f"{self.shape}:{','.join(f'{number:.17g}' for number in numbers)}"


def parse_spread(value: object) -> Spread:
    """Reads a number or one of `SPECS`.

    Raises:
        ValueError: it is neither; the message says what it may be.
    """
    if isinstance(value, Spread):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Spread("fixed", float(value))
    if not isinstance(value, str):
        raise ValueError(f"must be {SPECS}")  # noqa: TRY004 - pydantic turns only ValueError into its own
    return _parse_text(value)


def parse_count(value: object) -> Spread:
    """Reads a whole number or `uniform:LOW,HIGH` of whole numbers.

    Raises:
        ValueError: it is neither.
    """
    spread = parse_spread(value)
    whole = spread.first % 1 == 0 and spread.second % 1 == 0
    if spread.shape not in ("fixed", "uniform") or not whole:
        raise ValueError("must be a whole NUMBER or uniform:LOW,HIGH of whole numbers")
    return spread


def _parse_text(text: str) -> Spread:
    name, colon, rest = text.partition(":")
    numbers = _numbers(rest if colon else text)
    shape = _shape(name.strip()) if colon else "fixed"
    if shape is None or len(numbers) != _NUMBERS_AFTER[shape]:
        raise ValueError(f"must be {SPECS}")
    return Spread(shape, *numbers)


def _shape(name: str) -> Shape | None:
    return next((shape for shape in get_args(Shape) if shape == name), None)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []
