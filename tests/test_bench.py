"""The measurements run and tell what they should; how fast they are is nobody's business here."""

import importlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"


def bench(*arguments: str, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    """The script as a person runs it."""
    return subprocess.run(
        [ROOT / "scripts" / "bench", *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a small run says."""
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    done = bench("drain", "pickup", "steps", "slow", "--quick", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "no-op jobs, one process" in done.stdout
    told: dict[str, Any] = json.loads(file.read_text())
    return told


def test_a_run_tells_where_it_took_place(report: dict[str, Any]) -> None:
    """Without machine, versions and sizes a figure means nothing."""
    assert report["machine"].keys() >= {"processor", "cores", "system"}
    assert report["versions"].keys() >= {"Python", "Redis server", "redis", "hiredis", "arq", "xai-sdk", "promptq"}
    assert report["settings"]["rounds"] == 1


def test_every_figure_has_its_samples(report: dict[str, Any]) -> None:
    """Value and ratio are medians of what was measured, ours by theirs; a target is reached or not."""
    figures = [figure for figure in report["figures"] if figure["measure"] != "slow"]
    assert {figure["measure"] for figure in figures} == {"drain", "pickup"}
    for figure in figures:
        ours, theirs = figure["samples"]["promptq"], figure["samples"][figure["contender"]]
        assert len(ours) == len(theirs) == report["settings"]["rounds"]
        assert min(*ours, *theirs) > 0
        assert figure["value"] == median(ours)
        assert figure["ratio"] == median(our / their for our, their in zip(ours, theirs, strict=True))
        assert (figure["reached"] is None) == (figure["target"] is None)


def test_targets_are_judged(report: dict[str, Any]) -> None:
    """A rate is to be at least, a time at most what the target says."""
    judged = [figure for figure in report["figures"] if figure["target"]]
    assert {figure["target"]["way"] for figure in judged} == {"at least", "at most"}
    for figure in judged:
        measured, target = figure[figure["target"]["of"]], figure["target"]
        reaches = measured >= target["bound"] if target["way"] == "at least" else measured <= target["bound"]
        assert figure["reached"] is reaches


def test_the_percentiles_of_a_pickup_are_in_order(report: dict[str, Any]) -> None:
    """A call starts before its result is there, and most do so sooner than the slowest."""
    times = {figure["what"]: figure["value"] for figure in report["figures"] if figure["measure"] == "pickup"}
    start, result = "enqueue to start of the call, p", "enqueue to result, p"
    assert times[start + "50"] <= times[start + "99"]
    assert times[result + "50"] <= times[result + "99"]
    assert times[start + "50"] < times[result + "50"]


def test_steps_are_of_all_three_sides(report: dict[str, Any]) -> None:
    """Each step took time; what Redis does is told by its own count, so it is none of the others'."""
    assert {step["where"] for step in report["steps"]} == {"producer", "Redis", "worker"}
    assert [step["what"] for step in report["steps"] if step["where"] == "Redis"] == [
        "enqueue script", "claim script", "settle script",
    ]  # fmt: skip
    assert all(step["microseconds"] > 0 for step in report["steps"])


@pytest.mark.parametrize(
    "arguments", [("drain", "--publish"), ("--quick", "--publish"), ("slow",), ("speed",), ("limits:speed",)]
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...]) -> None:
    """Only a full run becomes the page; `slow` needs others to look at."""
    before = PAGE.read_bytes() if PAGE.exists() else None
    done = bench(*arguments)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert (PAGE.read_bytes() if PAGE.exists() else None) == before


WITH_A_SIMULATOR = ("streams", "limits:requests", "limits:ledgers")
"""Of `limits` one part of each kind; all of them take a minute."""


@pytest.mark.timeout(300)
def test_measures_with_a_simulator_run(tmp_path: Path) -> None:
    """Each tells a figure with a target; what must never be, is not, however slow the machine is."""
    file = tmp_path / "bench.json"
    done = bench(*WITH_A_SIMULATOR, "--quick", "--json", str(file), timeout=280)
    assert done.returncode == 0, done.stderr
    told = {f"{figure['measure']} {figure['what']}": figure for figure in json.loads(file.read_text())["figures"]}
    assert {figure["measure"] for figure in told.values() if figure["target"]} == {*WITH_A_SIMULATOR, "slow"}
    assert told["limits:requests limits configured: calls answered 429 in 2 s"]["value"] < 10  # without limits: 40
    for what in (
        "limits:ledgers 50 jobs, calls that fail: jobs without exactly one result",
        "limits:ledgers 50 jobs, calls that fail: calls seen that the job's ledger does not tell",
    ):
        assert told[what]["value"] == 0
        assert told[what]["reached"] is True
    lags = [figure for what, figure in told.items() if "simulator to reader" in what]
    assert all(0 < figure["beside"] < figure["value"] for figure in lags)
    assert len(lags) == 2
    attempts = told["limits:ledgers 50 jobs, calls that fail: attempts recorded"]
    generations = told["limits:ledgers 50 jobs, calls that fail: generations started"]
    assert 50 < attempts["beside"] <= attempts["value"]
    assert 0 < generations["value"] < generations["beside"] == attempts["beside"]


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module of `scripts/benchmarks/limits`, which stands in no package that is installed."""
    monkeypatch.syspath_prepend(ROOT / "scripts" / "benchmarks")
    return lambda name: importlib.import_module(f"limits.{name}")


@pytest.mark.parametrize(
    ("gap", "seconds"), [(0.1, 0.0), (0.05, 6.0), (None, 6.0)], ids=["as it should be", "twice as fast", "not at all"]
)
def test_a_steady_rate_follows_at_once_or_never(part: Callable[[str], Any], gap: float | None, seconds: float) -> None:
    """Ten starts a second were asked for, for six seconds."""
    following = part("following")
    starts = [number * gap for number in range(1_000)] if gap else []
    assert following.followed_after(following.Phase("", 10, 20.0, 26.0), starts) == pytest.approx(seconds, abs=0.03)


def test_a_rate_that_changes_late_follows_late(part: Callable[[str], Any]) -> None:
    """Twenty starts a second, and ten from 1.5 s after the change on: a second that begins before holds too many."""
    following = part("following")
    starts = [20 + number * 0.05 for number in range(30)] + [21.5 + number * 0.1 for number in range(100)]
    found = following.followed_after(following.Phase("", 10, 20.0, 26.0), starts)
    assert 1.1 < found < 1.5  # three too many are allowed


def test_a_pause_is_followed_from_the_last_start_on(part: Callable[[str], Any]) -> None:
    """Starts before and after the pause do not count."""
    following = part("following")
    pause = following.Phase("", 0, 20.0, 26.0)
    assert following.followed_after(pause, [19.5, 20.25, 26.5]) == pytest.approx(0.25)
    assert following.followed_after(pause, [19.5, 26.5]) == 0
    assert following.followed_after(pause, []) == 0


@pytest.mark.parametrize(("starts", "taken"), [([], 0), ([1.1], 0), ([1.1, 1.2], 1)])
def test_slots_that_were_free_before_may_be_taken(part: Callable[[str], Any], starts: list[float], taken: int) -> None:
    """Nine of ten slots are busy when a job is accepted: one call of others may start before its own, but no second."""
    sharing = part("sharing")

    def call(name: str, started: float, ended: float | None = None) -> Any:
        return SimpleNamespace(prompt=f"#{name} 0: ...", started_at=started, ended_at=ended)

    calls = [call("low", 0.5) for _ in range(9)] + [call("low", 0.1, 0.9)] + [call("low", at) for at in starts]
    assert sharing._taken({0: 1.0}, [*calls, call("high", 1.5)], "high") == ([taken], [pytest.approx(500)])
