from typing import Any

import pytest

from contract import LANE, NOW
from promptq.producer import ErrorCode, keys, scripts
from promptq.producer.meters import FIELDS, LIMITS, Held, Meter
from promptq.producer.models import Limits

pytestmark = pytest.mark.producer

ASKED = """
local now, meter = tonumber(ARGV[1]), meter_of(ARGV[2])
local rpm, tpm = rates(now, meter)
note_use(now, meter, 0, 0)
return { exact(rpm or -1), exact(tpm or -1), exact(meter.starts), exact(meter.spend) }
"""
"""What the scripts themselves say, behind the text of `common` and `meter`."""


def meter(values: dict[str, Any], limits: dict[str, Any] | None = None, in_flight: int = 0) -> Meter:
    """A meter as it stands in Redis."""

    def written(value: Any) -> bytes | None:
        return None if value is None else str(value).encode()

    told = [written(values.get(name)) for name in FIELDS]
    return Meter(NOW, told, [written((limits or {}).get(name)) for name in LIMITS], in_flight)


@pytest.mark.parametrize("limits", [{}, {"rpm": 600}, {"tpm": 90_000}, {"rpm": 600, "tpm": 90_000}, {"in_flight": 7}])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"factor": 0.4, "dropped": NOW},
        {"factor": 0.4, "dropped": NOW - 9_000},
        {"factor": 1 / 64, "dropped": NOW - 80_000_000},
        {"factor": 0.4, "dropped": NOW + 9_000},
        {"learned": 30, "dropped": NOW - 9_000},
        {"learned": 30, "dropped": NOW + 9_000},
        {"learned": 30, "dropped": NOW - 90_000},
        {"learned": 30, "dropped": NOW - 90_000, "grown": 40_000, "pressed": NOW - 3_000},
        {"learned": 30, "dropped": NOW - 90_000, "grown": 85_000, "pressed": NOW - 3_000},
        {"at": NOW - 3_000, "starts": 12.5, "spend": 40_000},
    ],
)
async def test_a_reader_and_the_scripts_say_the_same(
    redis_client: Any, limits: dict[str, int], values: dict[str, float]
) -> None:
    """Rates, and what is used, of any meter."""
    if limits:
        await redis_client.hset(keys.LIMITS, mapping={f"{LANE}:{name}": value for name, value in limits.items()})
    if values:
        await redis_client.hset(keys.meter(LANE), mapping=values)
        await redis_client.expire(keys.meter(LANE), 60)
    library = scripts.LIMITS.text.partition("-- Set the limits of a model")[0]
    rpm, tpm, starts, spend = map(float, await redis_client.eval(library + ASKED, 0, NOW, LANE))
    read = meter(values, limits)
    assert read.rates == (None if rpm < 0 else pytest.approx(rpm), None if tpm < 0 else pytest.approx(tpm))
    assert list(read.use) == pytest.approx([6 * starts, 6 * spend])
    assert read.limits == Limits(**limits)
    assert read.is_known == bool(limits or values)


@pytest.mark.parametrize(
    ("values", "limits", "in_flight", "held"),
    [
        ({}, {"rpm": 60, "tpm": 60, "in_flight": 2}, 1, None),
        ({}, {"in_flight": 2}, 2, Held("in_flight", 2)),
        ({"requests": NOW + 500}, {"rpm": 60}, 0, Held("rpm", 60)),
        ({"requests": NOW + 3_600_000}, {"rpm": 60}, 0, None),
        ({"requests": NOW - 60}, {"rpm": 60}, 0, Held("rpm", 60)),
        ({"requests": NOW - 190}, {"rpm": 6000}, 0, None),
        ({"tokens": NOW + 1}, {"tpm": 900}, 0, Held("tpm", 900)),
        ({"requests": NOW + 500}, {}, 0, None),
        ({"requests": NOW, "learned": 30, "dropped": NOW}, {}, 0, Held("rpm", 30)),
        ({"requests": NOW, "factor": 0.5, "dropped": NOW}, {"rpm": 60}, 0, Held("rpm", 30)),
    ],
)
def test_the_limit_that_holds_a_model_up(
    values: dict[str, float], limits: dict[str, int], in_flight: int, held: Held | None
) -> None:
    """The one of which nothing is left; between two claims a little comes together, which is nothing yet."""
    assert meter(values, limits, in_flight).held == held


@pytest.mark.parametrize(
    ("values", "pause"),
    [
        ({}, (None, None)),
        ({"until": NOW + 1, "reason": "rate_limited"}, (NOW + 1, ErrorCode.RATE_LIMITED)),
        ({"until": NOW, "reason": "rate_limited"}, (None, None)),
        ({"until": NOW + 3_600_000, "reason": "rate_limited"}, (None, None)),
        ({"until": NOW, "reason": "unavailable"}, (NOW, ErrorCode.UNAVAILABLE)),
        ({"until": NOW + 1, "reason": "of a newer worker"}, (NOW + 1, None)),
        ({"until": "tomorrow", "reason": "unavailable"}, (None, None)),
    ],
)
def test_pauses(values: dict[str, Any], pause: tuple[float | None, ErrorCode | None]) -> None:
    """After `unavailable` one job finds out whether it may end; after a 429 it is over when its time is."""
    assert meter(values).pause == pause
