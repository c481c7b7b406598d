"""Tenants: shares of a band by weight, caps of what waits, and turns that are given back."""

from collections import Counter

import pytest

from contract import LANE, Contract, Run, entries, entry
from promptq.producer import keys, scripts
from promptq.producer.records import Kind, TenantFull

pytest_plugins = ["contract_fixture"]


async def waiting(contract: Contract, lane: str = LANE) -> dict[str, int]:
    """How many jobs of each tenant and band wait."""
    found = await contract.redis.hgetall(keys.waiting(lane))
    return {place.decode(): int(count) for place, count in found.items()}


async def test_a_band_is_shared_by_weight(contract: Contract) -> None:
    """Of 40 jobs a tenant of weight 3 gets 30, from the first one on."""
    await scripts.set_tenant(contract.redis, "big", weight=3, max_queued=None)
    for tenant in ("big", "small"):
        await contract.accept(*(entry(f"{tenant} {number}", tenant=tenant) for number in range(60)))
    for count in (8, 32):
        taken = Counter(job_id.split()[0] for job_id in await contract.taken(count))
        assert abs(taken["big"] - 3 * taken["small"]) <= 3
    assert await contract.redis.delete(keys.TENANTS) == 1


async def test_a_weight_holds_for_jobs_that_come_later(contract: Contract) -> None:
    """Those that have their turns keep them."""
    await contract.accept(*entries("a", "b", tenant="anna"))
    await scripts.set_tenant(contract.redis, "anna", weight=100, max_queued=None)
    await contract.accept(*entries("c", "d", tenant="anna"))
    turns = [float(await contract.field(job_id, "turn")) for job_id in "abcd"]
    assert [turns[1] - turns[0], turns[2] - turns[1]] == [1, 1]
    assert turns[3] - turns[2] == pytest.approx(0.01)
    await contract.redis.delete(keys.TENANTS)


async def test_what_waits_is_counted(contract: Contract) -> None:
    """By tenant and band, delayed jobs too; what runs or has ended is not."""
    await contract.accept(*entries("a", "b", "c"), entry("d", delay=5000), entry("e", tenant="ben", band=0))
    assert await waiting(contract) == {"1:anna": 4, "0:ben": 1}
    runs = {run.id: run for run in await contract.take("w1", slots=3)}
    assert await waiting(contract) == {"1:anna": 2}
    await contract.settle(runs["a"], "retry", delay=1000)
    await contract.settle(runs["b"])
    await contract.cancel("c")
    assert await waiting(contract) == {"1:anna": 2}
    contract.later(5000)
    await contract.claim(slots=0)
    assert await waiting(contract) == {"1:anna": 2}


async def test_counts_go_with_the_lane(contract: Contract) -> None:
    """Nothing stays of an empty one."""
    await contract.accept(entry("a"))
    await contract.settle(await contract.take_one())
    assert await contract.redis.exists(keys.waiting(LANE)) == 0


@pytest.mark.parametrize("where", [LANE, "grok-3"])
async def test_a_cap_refuses_the_whole_call(contract: Contract, where: str) -> None:
    """Whatever the lanes and bands; other tenants go on; when some run there is room again."""
    await scripts.set_tenant(contract.redis, "anna", weight=None, max_queued=3)
    await contract.accept(entry("a"), entry("b", delay=1000), entry("c", band=0))
    said = await contract.enqueue(entry("d", tenant="ben"), entry("e", lane=where))
    assert said == TenantFull("anna", 3, 3)
    assert await contract.redis.exists(keys.ledger("d"), keys.ledger("e")) == 0
    assert await contract.dispositions(entry("a"), entry("d", tenant="ben")) == [
        ("duplicate", "queued"),
        ("created", "queued"),
    ]
    await contract.take_one()
    await contract.accept(entry("e", lane=where))
    await contract.redis.delete(keys.TENANTS)


async def test_a_tenant_gives_its_turns_back_with_its_last_job(contract: Contract) -> None:
    """All were cancelled: its next job stands among the others, not behind the turns that it never used."""
    ids = [f"mine {number}" for number in range(50)]
    await contract.accept(*entries(*ids, tenant="anna"))
    await contract.accept(*(entry(f"theirs {number}", tenant="ben") for number in range(20)))
    await contract.cancel(*ids)
    await contract.accept(entry("again", tenant="anna"))
    assert "again" in await contract.taken(2)


async def test_a_tenant_that_still_waits_keeps_its_place(contract: Contract) -> None:
    """Cancelling all but one does not let it come twice."""
    await contract.accept(*entries("a", "b", "c", tenant="anna"))
    await contract.accept(*(entry(f"theirs {number}", tenant="ben") for number in range(9)))
    await contract.cancel("b", "c")
    await contract.accept(entry("d", tenant="anna"))
    taken = await contract.taken(4)
    assert "d" not in taken


async def test_a_deadline_that_passes_gives_turns_back_too(contract: Contract) -> None:
    """The job was not served."""
    await contract.accept(*(entry(f"mine {number}", tenant="anna", deadline="+1000") for number in range(50)))
    await contract.accept(*(entry(f"theirs {number}", tenant="ben") for number in range(20)))
    contract.later(1001)
    await contract.claim(slots=0)
    await contract.accept(entry("again", tenant="anna"))
    assert "again" in await contract.taken(2)


@pytest.mark.parametrize("kind", ["retry", "throttled", "released"])
async def test_a_returning_job_is_next_in_its_tenant(contract: Contract, kind: Kind) -> None:
    """Behind it wait a hundred of its own tenant."""
    await contract.accept(entry("first"))
    await contract.accept(*(entry(f"later {number}") for number in range(100)))
    run: Run = await contract.take_one()
    await contract.settle(run, kind, delay=1000, reason="provider_error")
    contract.later(2000)
    assert await contract.taken(1) == ["first"]
