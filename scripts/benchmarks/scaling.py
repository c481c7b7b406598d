"""`scale`: many processes whose jobs take their time."""

import asyncio
import time
from contextlib import ExitStack

from contenders import ARQ, PROMPTQ, Contender, prompts
from figures import Figure, Target, compared
from rig import Rig


def scale(rig: Rig) -> list[Figure]:
    """A fleet, beside what its slots could do at best."""
    plan = rig.plan
    ours, theirs = [], []
    for _ in range(plan.rounds):
        ours.append(_fleet(rig, PROMPTQ, plan.scale_batches))
        theirs.append(_fleet(rig, ARQ, plan.arq_scale_batches))
    ideal = [plan.scale_workers * plan.scale_slots / plan.scale_latency] * plan.rounds
    what = f"{plan.scale_workers} processes x {plan.scale_slots} slots, jobs of {plan.scale_latency:g} s"
    target = Target(0.95, "ratio", "at least")
    return [
        compared("scale", what, "jobs/s", ours=ours, contender="the ideal", theirs=ideal, target=target),
        compared("scale", f"the same by {plan.arq}", "jobs/s", ours=theirs, contender="the ideal", theirs=ideal),
    ]


def _fleet(rig: Rig, contender: Contender, batches: int) -> float:
    """Jobs a second: all are queued, all workers start at once, and the clock ends with the last result."""
    plan = rig.plan
    texts = prompts(plan.scale_workers * plan.scale_slots * batches)
    with rig.server() as server, ExitStack() as stack:
        ids = asyncio.run(contender.fill(server.url, texts))
        told = {"max_jobs": plan.scale_slots, "latency": plan.scale_latency}
        fleet = [
            stack.enter_context(rig.new_worker(contender.name, server.url, **told)) for _ in range(plan.scale_workers)
        ]
        for worker in fleet:
            worker.hear()
        began = time.perf_counter()
        for worker in fleet:
            worker.go()
        ended, _ = server.wait_until_at_most(0, contender.lane)
        contender.check(server.url, ids, texts)
    return len(texts) / (ended - began)
