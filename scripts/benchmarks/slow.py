"""`slow`: the longest of our scripts in everything that this run did, and what the longest calls take by themselves."""

from figures import Figure, Target, alone
from rig import Rig
from steps import longest_calls

TARGET = Target(5, "value", "at most")


def slow(rig: Rig) -> list[Figure]:
    """From the slow logs of all the servers; and, where a busy machine stretches those, medians of calls alone."""
    figures = [_longest(rig)] if rig.slow else []
    return figures + [
        alone("slow", f"{what}, its longest call, median of {len(times)}", "ms", ours=times, target=TARGET)
        for what, times in longest_calls(rig).items()
    ]


def _longest(rig: Rig) -> Figure:
    longest = max(rig.slow, key=lambda call: call.milliseconds)
    samples: dict[str, list[float]] = {}
    for call in rig.slow:
        samples.setdefault(call.verb, []).append(call.milliseconds)
    over = sum(call.milliseconds > TARGET.bound for call in rig.slow)
    verbs = ", ".join(f"{verb} {max(times):.1f} ms" for verb, times in sorted(samples.items()))
    events = ", ".join(f"{event} {most} ms" for event, most in sorted(rig.latency.items()))
    return Figure(
        "slow",
        f"the longest script: {longest.verb} with {longest.arguments:,} arguments, in `{longest.measure}`",
        longest.milliseconds,
        "ms",
        target=TARGET,
        note=f"{over} of {rig.script_calls:,} calls of scripts took longer than {TARGET.bound:g} ms; the longest"
        f" of each: {verbs}; Redis' own latency monitor: {events}",
        samples=samples,
    )
