"""Who is next: bands, turns, lanes."""

from typing import Literal

import pytest

from contract import HIGH, LANE, LOW, NORMAL, Contract, entries, entry
from promptq.producer import keys
from promptq.producer.models import JobStatus

pytest_plugins = ["contract_fixture"]


def numbered(name: str, count: int) -> list[str]:
    """Ids whose order by name is their order by number."""
    return [f"{name}{number:03}" for number in range(1, count + 1)]


async def test_a_lower_band_goes_first(contract: Contract) -> None:
    """No job of a band is taken while one of a higher rank is queued, whenever it came."""
    await contract.accept(*entries("l1", "l2", band=LOW), *entries("n1", "n2", band=NORMAL))
    assert await contract.taken(1) == ["n1"]
    await contract.accept(entry("h1", band=HIGH, tenant="z"))
    assert await contract.taken(4) == ["h1", "n2", "l1", "l2"]


async def test_a_tenant_with_one_job_is_next(contract: Contract) -> None:
    """A tenant's backlog delays nobody but itself."""
    await contract.accept(*entries(*numbered("a", 100), tenant="anna"))
    assert await contract.taken(1) == ["a001"]
    await contract.accept(entry("b", tenant="bert"))
    assert await contract.taken(3) == ["b", "a002", "a003"]


async def test_tenants_are_served_turn_by_turn(contract: Contract) -> None:
    """However they are enqueued, each gets one job per round, in its own order."""
    for tenant in "abc":
        await contract.accept(*entries(*numbered(tenant, 4), tenant=tenant))
    taken = [await contract.taken(3) for _ in range(4)]
    assert [sorted(ids) for ids in taken] == [[f"{tenant}{turn:03}" for tenant in "abc"] for turn in range(1, 5)]


async def test_who_was_away_has_saved_nothing_up(contract: Contract) -> None:
    """A tenant that comes late starts at the band's clock: one job each from then on."""
    await contract.accept(*entries(*numbered("a", 60), tenant="anna"))
    await contract.taken(50)
    await contract.accept(*entries(*numbered("b", 5), tenant="bert"))
    taken = await contract.taken(6)
    assert taken[0] == "b001"
    assert sum(job_id.startswith("b") for job_id in taken) == 3


async def test_newcomers_are_served_in_the_order_in_which_they_come(contract: Contract) -> None:
    """Tenants with one job each, whatever the ids."""
    arrivals = ["e", "b", "d", "a", "c"]
    for job_id in arrivals:
        await contract.accept(entry(job_id, tenant=f"tenant of {job_id}"))
    assert await contract.taken(9) == arrivals


async def test_nobody_is_overtaken_for_ever(contract: Contract) -> None:
    """One new tenant after the other, and always one slot: the job that was there first is not left for last."""
    await contract.accept(entry("z", tenant="first"))
    taken = []
    for number in range(5):
        await contract.accept(entry(f"a{number}", tenant=f"newcomer {number}"))
        taken += await contract.taken(1)
    assert taken[0] == "z"


async def test_the_clock_moves_with_newcomers(contract: Contract) -> None:
    """A little with each, so that they do not hold up for ever what waits behind its own tenant's jobs."""
    await contract.accept(*entries("a1", "a2"))
    clocks = []
    for number in range(4):
        await contract.accept(entry(f"b{number}", tenant=f"newcomer {number}"))
        await contract.taken(1)
        clocks.append(await contract.redis.zscore(keys.fair(LANE, NORMAL), "") or 1)
    assert clocks == sorted(set(clocks))
    assert clocks[-1] < 2
    assert await contract.state("a2") is JobStatus.QUEUED


async def test_the_clock_never_goes_back(contract: Contract) -> None:
    """A job that comes back runs at its old turn, and new tenants still start where the band has got to."""
    await contract.accept(*entries(*numbered("a", 9), tenant="anna"))
    runs = await contract.take("w1", slots=5)
    await contract.settle(runs[0], "released")
    assert await contract.taken(1) == ["a001"]
    await contract.accept(entry("c", tenant="carl"))
    assert 5 < float(await contract.field("c", "turn")) < 5.001
    assert await contract.redis.zscore(keys.fair(LANE, NORMAL), "") == 5


async def test_finishes_that_are_past_are_forgotten(contract: Contract) -> None:
    """Else a lane that never runs empty would remember every tenant it has ever had."""
    await contract.accept(entry("b", tenant="bert"), *entries(*numbered("a", 9), tenant="anna"))
    assert await contract.redis.zscore(keys.fair(LANE, NORMAL), "bert") == 2
    await contract.taken(7)
    assert await contract.redis.zscore(keys.fair(LANE, NORMAL), "bert") is None


@pytest.mark.parametrize("how", ["retry", "throttled", "released", "run out"])
async def test_a_job_that_comes_back_is_next(
    contract: Contract, how: Literal["retry", "throttled", "released", "run out"]
) -> None:
    """Retried, throttled, released, or its worker died: it keeps its turn, so that it is next and not last."""
    await contract.accept(*entries(*numbered("a", 5)))
    first, second = await contract.take("w1", slots=2)
    turn = await contract.field(first.id, "turn")
    if how == "run out":
        await contract.run_out(first)
        await contract.renew(second)
    else:
        await contract.settle(first, how, delay=1000)
        contract.later(1000)
    assert await contract.taken(1, "w2") == ["a001"]
    assert await contract.field(first.id, "turn") == turn
    contract.later(60_000)
    await contract.renew(second)
    await contract.settle(second)


async def test_a_delayed_job_gets_its_turn_when_it_comes_due(contract: Contract) -> None:
    """It stands behind what its tenant has enqueued meanwhile, but before what comes later."""
    await contract.accept(entry("delayed", delay=5000))
    await contract.accept(*entries("a1", "a2"))
    contract.later(5000)
    await contract.claim(slots=0)
    await contract.accept(entry("a3"))
    assert await contract.taken(9) == ["a1", "a2", "delayed", "a3"]


async def test_lanes_share_the_slots(contract: Contract) -> None:
    """Inside a band each lane gets its part, and what one does not need goes to the others."""
    await contract.accept(*entries(*numbered("a", 9), lane="a"), *entries(*numbered("b", 9), lane="b"))
    assert sorted(await contract.taken(4)) == ["a001", "a002", "b001", "b002"]
    await contract.accept(entry("c", lane="c"))
    taken = await contract.taken(7)
    assert sorted(job_id[0] for job_id in taken) == ["a", "a", "a", "b", "b", "b", "c"]


async def test_lanes_take_turns_between_claims(contract: Contract) -> None:
    """A worker with one slot does not stay in one lane."""
    await contract.accept(*entries(*numbered("a", 3), lane="a"), *entries(*numbered("b", 3), lane="b"))
    taken = []
    for _ in range(6):
        taken += [job_id[0] for job_id in await contract.taken(1)]
        contract.later(1)
    assert taken in (list("ababab"), list("bababa"))


async def test_the_band_goes_before_the_lane(contract: Contract) -> None:
    """A high job of one lane is taken before the normal ones of all lanes."""
    await contract.accept(*entries("a1", "a2", lane="a"), entry("b1", lane="b"))
    await contract.accept(entry("b2", lane="b", band=HIGH))
    assert (await contract.taken(9))[0] == "b2"


async def test_bands_have_turns_of_their_own(contract: Contract) -> None:
    """What a tenant does in one band costs it nothing in another."""
    await contract.accept(*entries(*numbered("a", 50), band=HIGH))
    await contract.accept(entry("a", band=LOW), entry("b", band=LOW, tenant="bert"))
    assert [float(await contract.field(job_id, "turn")) // 1 for job_id in "ab"] == [1, 1]


async def test_a_lane_that_has_run_empty_begins_anew(contract: Contract) -> None:
    """Its clocks are forgotten with its last job."""
    await contract.accept(*entries(*numbered("a", 9)))
    for run in await contract.take("w1", slots=9):
        await contract.settle(run)
    assert await contract.redis.exists(keys.LANES, keys.fair(LANE, NORMAL)) == 0
    await contract.accept(entry("b"))
    assert await contract.field("b", "turn") == "1"
