"""`./scripts/bench`: run the measures that were asked for, and tell."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

import machine
from calling import calls
from enqueueing import enqueue
from figures import Figure
from limits import PARTS
from plan import FULL, QUICK
from reaction import idle, pickup, recover
from report import Report
from rig import Rig
from scaling import scale
from slow import slow
from steps import steps
from streams import streams
from throughput import drain, latency, million

MEASURES: dict[str, Callable[[Rig], list[Figure]]] = {
    measure.__name__: measure
    for measure in (drain, calls, enqueue, pickup, scale, idle, recover, million, latency, streams)
} | PARTS
STEPS, SLOW = "steps", "slow"
WIDTH = 160
"""Of the table where there is no terminal."""
NAMES = (*MEASURES, STEPS, SLOW)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    parser = _parser()
    told = parser.parse_args(arguments)
    if unknown := set(told.measures).difference(NAMES, map(_whole, NAMES)):
        parser.error(f"no such measure: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    chosen = [name for name in NAMES if {name, _whole(name)}.intersection(told.measures)] or list(NAMES)
    if told.publish and (told.quick or chosen != list(NAMES)):
        parser.error("only a full run is published: leave out the measures and --quick")
    if chosen == [SLOW]:
        parser.error("slow looks at what the other measures did: name one of them, too")
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    found = run(chosen, Rig(QUICK if told.quick else FULL), Console(stderr=True))
    found.show(console)
    if told.json:
        told.json.write_text(json.dumps(found.as_dict(), indent=1) + "\n")
    if told.publish:
        found.publish()
    missed = any(figure.is_reached is False for figure in found.figures)
    return 1 if told.check and missed else 0


def run(chosen: Sequence[str], rig: Rig, progress: Console) -> Report:
    """Measure, one after the other, telling `progress` which."""
    taken_at = datetime.now(UTC).isoformat(timespec="seconds")
    where = machine.machine()
    with rig.server() as server:
        versions = machine.versions(server)
    figures: list[Figure] = []
    for name in chosen:
        if name not in MEASURES:
            continue
        rig.measure, began = name, time.monotonic()
        progress.print(f"{name} ...", end=" ")
        figures += MEASURES[name](rig)
        progress.print(f"{time.monotonic() - began:.0f} s", highlight=False)
    if SLOW in chosen or len(chosen) > 1:
        figures += slow(rig)
    return Report(taken_at, where, versions, rig.plan, figures, steps(rig) if STEPS in chosen else (), rig.raw)


def _whole(name: str) -> str:
    """`limits` for `limits:requests`; itself for a measure without parts."""
    return name.partition(":")[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./scripts/bench", description="Measures speed; docs/benchmarks.md says how.")
    which = f"all of: {', '.join(NAMES)}; `limits` means all its parts"
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help=which)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file, raw samples included")
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks.md; of a full run alone")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it runs, not how fast")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
