"""`slow`: the longest of our scripts in everything that this run did."""

from figures import Figure, Target
from rig import Rig


def slow(rig: Rig) -> list[Figure]:
    """From the slow logs of all the servers; nothing in them means that nothing took a millisecond."""
    longest = max(rig.slow, key=lambda call: call.milliseconds, default=None)
    target = Target(5, "value", "at most")
    if longest is None:
        return [Figure("slow", "the longest script", 0, "ms", target=target, note="no script took a millisecond")]
    over = sum(call.milliseconds > target.bound for call in rig.slow)
    by_verb = {verb: max(c.milliseconds for c in rig.slow if c.verb == verb) for verb in {c.verb for c in rig.slow}}
    verbs = ", ".join(f"{verb} {most:.1f} ms" for verb, most in sorted(by_verb.items()))
    events = ", ".join(f"{event} {most} ms" for event, most in sorted(rig.latency.items()))
    return [
        Figure(
            "slow", f"the longest script: {longest.verb} with {longest.arguments:,} arguments, in `{longest.measure}`",
            longest.milliseconds, "ms", target=target,
            note=f"{over} of {rig.script_calls:,} calls of scripts took longer than {target.bound:g} ms; the longest"
            f" of each: {verbs}; Redis' own latency monitor: {events}",
            samples={verb: [c.milliseconds for c in rig.slow if c.verb == verb] for verb in by_verb},
        )
    ]  # fmt: skip
