"""The simulator's rate limits, on a clock of the test's own."""

from typing import Any

import pytest
from pydantic import ValidationError

from promptq.worker.simulator.buckets import Meters, Shortage
from promptq.worker.simulator.knobs import Knobs, RateLimit


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Its time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The time of the meters."""
    return Clock()


def limited(clock: Clock, **limit: Any) -> Meters:
    """Meters with one limit for every model."""
    return Meters({"*": RateLimit(**limit)}, clock)


def admitted(meters: Meters, most: int = 10_000, *, tokens: int = 1) -> int:
    """How many calls get through at this moment."""
    return next((count for count in range(most) if meters.admit("key", "grok-4", tokens)), most)


def refused(meters: Meters, tokens: int = 1) -> Shortage:
    """What a call is told that must not get through."""
    shortage = meters.admit("key", "grok-4", tokens)
    assert shortage is not None
    return shortage


# --- smooth ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "at_once"),
    [({"rpm": 600}, 10), ({"rpm": 600, "burst": 0.2}, 2), ({"rpm": 600, "burst": 60}, 600), ({"rpm": 6}, 1)],
)
def test_smooth_holds_its_burst(clock: Clock, limit: dict[str, float], at_once: int) -> None:
    """After any silence as many calls as come in `burst` seconds pass at once, and at least one."""
    meters = limited(clock, **limit)
    for _ in range(2):
        assert admitted(meters) == at_once
        clock.now += 3600


@pytest.mark.parametrize("step", [0.005, 0.03, 0.5])
def test_smooth_passes_its_rate(clock: Clock, step: float) -> None:
    """Asked twice a burst or more often, a minute passes the rate and the burst of its beginning, no call more."""
    meters = limited(clock, rpm=137)
    passed = 0
    end = clock.now + 60
    while clock.now <= end:
        passed += admitted(meters)
        clock.now += step
    assert passed == pytest.approx(137 + 137 / 60, abs=2)


@pytest.mark.parametrize("rpm", [7, 480, 59_999])
def test_the_wait_is_the_true_one(clock: Clock, rpm: float) -> None:
    """A call that waits as long as it was told passes, and just before that it is refused."""
    meters = limited(clock, rpm=rpm)
    for _ in range(50):
        admitted(meters)
        wait = refused(meters).wait
        clock.now += wait * 0.99
        assert refused(meters).wait == pytest.approx(wait * 0.01, rel=0.01)
        assert refused(meters).used == rpm
        clock.now += wait * 0.01
        assert admitted(meters) == 1


def test_a_call_bigger_than_the_burst_passes_and_is_paid_off(clock: Clock) -> None:
    """Any call passes while one token is left; all of it is charged, so that on average the rate holds."""
    meters = limited(clock, tpm=6_000)
    assert meters.admit("key", "grok-4", 1_100) is None
    shortage = refused(meters)
    assert (shortage.unit, shortage.used, shortage.limit) == ("Tokens", 7_000, 6_000)
    assert shortage.wait == pytest.approx(10.01)
    clock.now += 10
    assert meters.admit("key", "grok-4", 1) is not None
    clock.now += 0.01
    assert meters.admit("key", "grok-4", 1) is None


def test_a_refused_call_charges_nothing(clock: Clock) -> None:
    """Neither bucket loses anything to a call that the other one refuses."""
    meters = limited(clock, rpm=120, tpm=60)
    assert meters.admit("key", "grok-4", 2) is None
    for _ in range(100):
        assert refused(meters, tokens=1_000).unit == "Tokens"
    clock.now += 2
    assert meters.admit("key", "grok-4", 0) is None
    assert meters.admit("key", "grok-4", 0) is None
    for _ in range(100):
        assert refused(meters, tokens=1_000).unit == "Requests"
    clock.now += 0.5
    assert meters.admit("key", "grok-4", 1_000) is None


def test_of_two_shortages_the_longer_counts(clock: Clock) -> None:
    """A call that lacks both is told the wait after which it has both."""
    meters = limited(clock, rpm=60, tpm=60)
    assert meters.admit("key", "grok-4", 31) is None
    shortage = refused(meters)
    assert shortage.unit == "Tokens"
    assert shortage.wait == pytest.approx(31)
    clock.now += shortage.wait
    assert meters.admit("key", "grok-4", 1) is None


# --- per minute --------------------------------------------------------------------------------------


def test_a_minute_begins_with_a_call(clock: Clock) -> None:
    """The whole quota passes at once, then nothing until the minute is over, whatever the wall clock says."""
    meters = limited(clock, rpm=5, mode="per_minute")
    for _ in range(3):
        clock.now += 17.3
        assert admitted(meters) == 5
        clock.now += 40
        shortage = refused(meters)
        assert (shortage.unit, shortage.used, shortage.limit) == ("Requests", 5, 5)
        assert shortage.wait == pytest.approx(20)
        clock.now += shortage.wait


def test_tokens_of_a_minute(clock: Clock) -> None:
    """The last call of a minute may be bigger than what is left; the next minute begins full."""
    meters = limited(clock, tpm=100, mode="per_minute")
    assert admitted(meters, tokens=40) == 3
    assert (refused(meters).used, refused(meters).wait) == (120, 60)
    clock.now += 60
    assert admitted(meters, tokens=25) == 4


# --- who has which meter -----------------------------------------------------------------------------


def test_each_key_and_model_has_its_own(clock: Clock) -> None:
    """What one key or model uses up, no other lacks; `*` has a meter for each model too."""
    meters = Meters({"grok-4": RateLimit(rpm=120), "*": RateLimit(rpm=60), "free": RateLimit()}, clock)
    passed = {
        (key, model): sum(meters.admit(key, model, 1) is None for _ in range(5))
        for key in ("one", "two")
        for model in ("grok-4", "grok-3", "grok-2", "free")
    }
    assert passed == {
        (key, model): count
        for key in ("one", "two")
        for model, count in {"grok-4": 2, "grok-3": 1, "grok-2": 1, "free": 5}.items()
    }


def test_without_limits_everything_passes(clock: Clock) -> None:
    """A model that is not named, with no `*`, has no limit."""
    assert Meters({"grok-3": RateLimit(rpm=1)}, clock).admit("key", "grok-4", 10**9) is None


# --- changes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "used", "after", "left"),
    [
        ({"rpm": 600}, 10, {"rpm": 6000}, 0),
        ({"rpm": 600}, 5, {"rpm": 6000}, 50),
        ({"rpm": 600}, 5, {"rpm": 120}, 1),
        ({"rpm": 600}, 0, {"rpm": 120}, 2),
        ({"rpm": 600}, 5, {"rpm": 600, "burst": 2}, 10),
        ({"rpm": 600, "mode": "per_minute"}, 100, {"rpm": 700, "mode": "per_minute"}, 600),
        ({"rpm": 600, "mode": "per_minute"}, 100, {"rpm": 100, "mode": "per_minute"}, 0),
        ({"rpm": 600, "mode": "per_minute"}, 300, {"rpm": 600}, 5),
        ({"rpm": 600}, 5, {"rpm": 60, "mode": "per_minute"}, 30),
        ({"rpm": 600}, 5, {"tpm": 600}, 10),
    ],
)
def test_a_change_hands_out_no_new_burst(
    clock: Clock, before: dict[str, Any], used: int, after: dict[str, Any], left: int
) -> None:
    """The share that was left stays left; of a minute, what was used stays used; what is new is full."""
    meters = limited(clock, **before)
    assert admitted(meters, used) == used
    meters.change({"*": RateLimit(**after)})
    assert admitted(meters) == left


def test_a_change_holds_at_once(clock: Clock) -> None:
    """From the change on the new rate counts, for waiting and for a debt of before too."""
    meters = limited(clock, rpm=1, tpm=60)
    assert meters.admit("key", "grok-4", 101) is None
    clock.now += 30
    meters.change({"*": RateLimit(rpm=60, tpm=600)})
    assert refused(meters).wait == pytest.approx(71 / 10)
    meters.change({})
    assert admitted(meters, 100) == 100


def test_a_window_goes_on_over_a_change(clock: Clock) -> None:
    """Another quota does not begin another minute."""
    meters = limited(clock, rpm=2, mode="per_minute")
    assert admitted(meters) == 2
    clock.now += 50
    meters.change({"*": RateLimit(rpm=3, mode="per_minute")})
    assert admitted(meters) == 1
    assert refused(meters).wait == pytest.approx(10)


@pytest.mark.parametrize(
    "limit", [{"rpm": 0}, {"tpm": -1}, {"rpm": "inf"}, {"burst": 0}, {"mode": "slow"}, {"rps": 1}], ids=str
)
def test_a_bad_limit_is_refused(limit: dict[str, Any]) -> None:
    """The error names the model and the field."""
    with pytest.raises(ValidationError, match=rf"limits\.grok-4\.{next(iter(limit))}"):
        Knobs.model_validate({"limits": {"grok-4": limit}})
