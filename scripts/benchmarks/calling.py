"""`calls`: what the queue costs a caller of the API."""

from contenders import MODEL, PROMPTQ_CALLS
from figures import Figure, Target, compared
from promptq.worker.simulator.process import simulator_process
from rig import Child, Rig
from throughput import drain_once

SCRIPT = "a script without a queue"


def calls(rig: Rig) -> list[Figure]:
    """Through the queue to the simulator, beside a script that calls it directly."""
    rates: list[float] = []
    costs: list[float] = []
    script_rates: list[float] = []
    script_costs: list[float] = []
    with simulator_process() as simulator:
        settings = {"provider": "xai", "xai_host": simulator.host, "xai_insecure": True, "xai_api_key": "simulated"}
        for _ in range(rig.plan.rounds):
            drained = drain_once(rig, PROMPTQ_CALLS, rig.plan.calls, settings=settings)
            rates.append(drained.rate)
            costs.append(drained.worker_cpu)
            rate, cost = _script(rig, simulator.host)
            script_rates.append(rate)
            script_costs.append(cost)
    target = Target(0.85, "ratio", "at least", aim="0.95")
    return [
        compared(
            "calls", "calls through the queue", "calls/s",
            ours=rates, contender=SCRIPT, theirs=script_rates, target=target,
        ),
        compared(
            "calls", "processor time of the caller", "us/call", ours=costs, contender=SCRIPT, theirs=script_costs
        ),
    ]  # fmt: skip


def _script(rig: Rig, host: str) -> tuple[float, float]:
    """Calls a second, and microseconds of processor time a call."""
    count = rig.plan.calls
    with Child("child_script", host=host, model=MODEL, count=count, at_once=rig.plan.max_jobs) as script:
        script.hear()
        script.go()
        said = script.hear(within=300)
    return count / said["seconds"], said["cpu"] / count * 1e6
