"""Tenants with work share a band by their weights, whoever comes when and however many slots a claim has."""

import asyncio
from itertools import combinations
from typing import Any

import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from contract import Contract, entry
from promptq.producer import scripts

JOBS = 40
weights = st.one_of(st.integers(1, 5), st.sampled_from([1, 100]))
tenants = st.lists(st.tuples(weights, st.integers(0, 30)), min_size=2, max_size=4)
"""Weight of each, and after how many jobs in all it comes with its own."""


@pytest.mark.leaves_keys("the last claims are not answered")
def test_tenants_share_by_their_weights(redis_url: str) -> None:
    """In whatever stretch two tenants both have work: their shares differ by less than one job of each."""
    with asyncio.Runner() as runner:
        client = redis.asyncio.Redis.from_url(redis_url)

        @seed(1)
        @settings(max_examples=40, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(tenants=tenants, slots=st.lists(st.integers(1, 7), min_size=1, max_size=9))
        def share(tenants: list[tuple[int, int]], slots: list[int]) -> None:
            served = runner.run(serve(client, tenants, slots))
            for one, other in combinations(range(len(tenants)), 2):
                check_shares(served, (one, tenants[one]), (other, tenants[other]))

        try:
            share()
        finally:
            runner.run(client.aclose())


async def serve(client: Any, tenants: list[tuple[int, int]], slots: list[int]) -> list[int]:
    """Whose jobs were claimed, in their order; claims have so many slots, again and again."""
    await client.flushall()
    contract = Contract(client)
    served: list[int] = []
    waiting = dict(enumerate(tenants))
    while waiting or len(served) < JOBS * len(tenants):
        for index, (weight, comes) in list(waiting.items()):
            if len(served) >= comes or len(served) == JOBS * (len(tenants) - len(waiting)):
                del waiting[index]
                await scripts.set_tenant(client, f"t{index}", weight=weight, max_queued=None)
                await contract.accept(*(entry(f"{index} {number}", tenant=f"t{index}") for number in range(JOBS)))
        served += [int(job_id.split()[0]) for job_id in await contract.taken(slots[len(served) % len(slots)])]
    return served


def check_shares(served: list[int], one: tuple[int, tuple[int, int]], other: tuple[int, tuple[int, int]]) -> None:
    """Over every stretch from when both have come until one has no work left."""
    lead, least, most = 0.0, 0.0, 0.0
    left = {one[0]: JOBS, other[0]: JOBS}
    for position, tenant in enumerate(served):
        if tenant not in left:
            continue
        left[tenant] -= 1
        if position < max(one[1][1], other[1][1]) + 7:
            continue
        if not left[tenant]:
            return
        index, (weight, _) = one if tenant == one[0] else other
        lead += (1 if index == one[0] else -1) / weight
        least, most = min(least, lead), max(most, lead)
        assert most - least <= 1 / one[1][0] + 1 / other[1][0] + 0.01, (one, other, served[: position + 1])
