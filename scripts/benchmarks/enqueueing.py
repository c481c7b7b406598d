"""`enqueue`: jobs a second into an empty queue."""

from collections.abc import Sequence

from contenders import ARQ, PROMPTQ
from figures import Figure, Target, alone, compared
from rig import Child, Rig

WAYS = {
    "strings": "enqueue_many of strings, model and max_tokens for all",
    "dicts": "enqueue_many of dicts, each with its own id",
    "single": "enqueue, one awaited after the other",
}


def enqueue(rig: Rig) -> list[Figure]:
    """In bulk, and one after the other beside arq's `enqueue_job`."""
    plan = rig.plan
    ours: dict[str, list[float]] = {way: [] for way in WAYS}
    theirs: list[float] = []
    for _ in range(plan.rounds):
        for way, rates in ours.items():
            rates.append(_rate(rig, PROMPTQ.name, way, plan.single_jobs if way == "single" else plan.bulk_jobs))
        theirs.append(_rate(rig, ARQ.name, "single", plan.single_jobs))
    return [
        _alone("strings", ours["strings"], Target(30_000, "value", "at least", "40,000")),
        _alone("dicts", ours["dicts"]),
        compared(
            "enqueue", WAYS["single"], "jobs/s", ours=ours["single"], contender="arq's enqueue_job", theirs=theirs,
            target=Target(1.5, "ratio", "at least"),
        ),
    ]  # fmt: skip


def _alone(way: str, rates: Sequence[float], target: Target | None = None) -> Figure:
    return alone("enqueue", WAYS[way], "jobs/s", ours=rates, target=target)


def _rate(rig: Rig, contender: str, way: str, count: int) -> float:
    told = {"contender": contender, "way": way, "count": count}
    with rig.server() as server, Child("child_producer", url=server.url, **told) as producer:
        producer.hear()
        producer.go()
        seconds: float = producer.hear(within=300)["seconds"]
        lane = (PROMPTQ if contender == PROMPTQ.name else ARQ).lane
        if (stored := server.client.zcard(lane)) != count:
            raise RuntimeError(f"{stored} jobs stand in the queue, not {count}")
    return count / seconds
