"""The measurements run and tell what they should; how fast they are is nobody's business here."""

import json
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The script as a person runs it."""
    return subprocess.run(
        [ROOT / "scripts" / "bench", *arguments], capture_output=True, text=True, timeout=100, check=False
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


@pytest.mark.parametrize("arguments", [("drain", "--publish"), ("--quick", "--publish"), ("slow",), ("speed",)])
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...]) -> None:
    """Only a full run becomes the page; `slow` needs others to look at."""
    before = PAGE.read_bytes() if PAGE.exists() else None
    done = bench(*arguments)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert (PAGE.read_bytes() if PAGE.exists() else None) == before
