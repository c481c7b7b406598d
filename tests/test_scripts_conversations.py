"""Conversations: their jobs run in the order in which they were accepted, one at a time."""

import pytest

from contract import DAY, HIGH, LANE, LEASE, Contract, Run, entries, entry
from promptq.producer import keys, scripts
from promptq.producer.models import JobStatus
from promptq.producer.records import Entry

pytest_plugins = ["contract_fixture"]

TALK = keys.conversation_of("anna", "talk")
LOOKED_AT = 60_000


def turns(*ids: str, **fields: object) -> list[Entry]:
    """Jobs of one conversation."""
    return entries(*ids, conversation=TALK, **fields)


async def first_of(contract: Contract, *ids: str) -> Run:
    """A conversation; the run of its first job."""
    await contract.accept(*turns(*ids))
    run = await contract.take_one(slots=9)
    assert run.id == ids[0]
    return run


async def test_one_at_a_time_in_their_order(contract: Contract) -> None:
    """However many slots are free, and whatever their priority; jobs of no conversation do not wait for it."""
    await contract.accept(*turns("a"), *turns("b", band=HIGH), entry("alone"), *turns("c"))
    told = []
    while runs := await contract.take(slots=9):
        told.append([run.id for run in runs])
        for run in runs:
            assert await contract.settle(run) == "done"
    assert told == [["a", "alone"], ["b"], ["c"]]
    assert await contract.redis.exists(keys.conversation("anna", "talk")) == 0


async def test_a_waiting_one_is_delayed_and_its_worker_is_woken(contract: Contract) -> None:
    """In the lane of its own model."""
    await contract.accept(*turns("a"), *turns("b", lane="grok-3"))
    assert await contract.state("b") is JobStatus.DELAYED
    run = await contract.take_one(slots=9)
    await contract.pop_markers()
    await contract.settle(run)
    assert await contract.state("b") is JobStatus.QUEUED
    assert "grok-3" in await contract.pop_markers()


@pytest.mark.parametrize("kind", ["failed", "cancelled", "expired"])
async def test_the_next_one_runs_however_the_one_before_ended(contract: Contract, kind: str) -> None:
    """Their prompts were all accepted."""
    run = await first_of(contract, "a", "b")
    assert await contract.settle(run, kind) == "done"  # type: ignore[arg-type]
    assert await contract.taken(9) == ["b"]


async def test_after_three_stalls_the_next_one_runs(contract: Contract) -> None:
    """Its turn does not end with a worker's death, but with the job."""
    await contract.accept(*turns("a", "b"))
    for _ in range(2):
        run = await contract.take_one(slots=9)
        assert run.id == "a"
        await contract.run_out(run)
    run = await contract.take_one(slots=9)
    await contract.run_out(run)
    assert await contract.taken(9) == ["b"]
    assert await contract.state("a") is JobStatus.FAILED


async def test_a_retry_keeps_its_place(contract: Contract) -> None:
    """Through its backoff, also when another one of the conversation is cancelled meanwhile."""
    run = await first_of(contract, "a", "b", "c")
    await contract.settle(run, "retry", reason="provider_error", delay=5000)
    assert await contract.cancel("b") == ["cancelled"]
    assert await contract.taken(9) == []
    contract.later(5000)
    run = await contract.take_one(slots=9)
    assert run.id == "a"
    await contract.settle(run)
    assert await contract.taken(9) == ["c"]


async def test_a_cancelled_first_one_makes_way(contract: Contract) -> None:
    """At once, not when somebody looks for it."""
    await contract.accept(*turns("a", "b"))
    assert await contract.cancel("a") == ["cancelled"]
    assert await contract.taken(9) == ["b"]


async def test_a_delay_of_its_own_holds_up_those_behind_it(contract: Contract) -> None:
    """And does not begin anew when its turn comes."""
    await contract.accept(*turns("a"), *turns("b", delay=8000), *turns("c"))
    run = await contract.take_one(slots=9)
    contract.later(3000)
    await contract.settle(run)
    assert (await contract.claim(slots=9)).due_in == 5000
    contract.later(5000)
    run = await contract.take_one(slots=9)
    assert run.id == "b"
    await contract.settle(run)
    assert await contract.taken(9) == ["c"]


async def test_a_deadline_passes_while_it_waits(contract: Contract) -> None:
    """It ends then, and the others close up."""
    await contract.accept(*turns("a"), *turns("b", deadline="+2000"), *turns("c"))
    run = await contract.take_one(slots=9)
    contract.later(2001)
    assert await contract.renew(run) == ["ours"]
    assert await contract.state("b") is JobStatus.EXPIRED
    assert await contract.taken(9) == []
    await contract.settle(run)
    assert await contract.taken(9) == ["c"]


async def test_conversations_of_two_tenants_are_two(contract: Contract) -> None:
    """Whatever they call them: nobody holds up another."""
    assert keys.conversation_of("a:b", "c") != keys.conversation_of("a", "b:c")
    await contract.accept(*turns("a"), *entries("b", tenant="bob", conversation=keys.conversation_of("bob", "talk")))
    assert set(await contract.taken(9)) == {"a", "b"}


async def test_a_requeued_one_comes_last(contract: Contract) -> None:
    """Those behind it have had their turn, or were accepted before it was requeued."""
    run = await first_of(contract, "a", "b")
    await contract.settle(run, "failed")
    assert await scripts.requeue(contract.redis, ["a"], nonce="n", now=contract.now) == ["requeued"]
    run = await contract.take_one(slots=9)
    assert run.id == "b"
    await contract.settle(run)
    assert await contract.taken(9) == ["a"]


@pytest.mark.parametrize("what", ["its keys", "its ledger", "its state"])
async def test_one_that_vanishes_holds_up_nobody_for_long(contract: Contract, what: str) -> None:
    """Somebody deletes or breaks its record: those behind it are looked at every minute."""
    await contract.accept(*turns("a", "b"))
    match what:
        case "its keys":
            await contract.redis.delete(keys.ledger("a"), keys.payload("a"))
            await contract.redis.zrem(keys.lane(LANE), "a")
        case "its ledger":
            await contract.redis.delete(keys.ledger("a"))
            await contract.redis.set(keys.ledger("a"), "no hash", px=DAY)
        case _:
            await contract.redis.hset(keys.ledger("a"), "state", "no state")
    taken = await contract.taken(9)
    contract.later(LOOKED_AT)
    assert taken + await contract.taken(9) == ["b"]


async def test_a_lost_reply_adds_nobody_twice(contract: Contract) -> None:
    """The same call again finds the job in its place."""
    for _ in range(2):
        assert await contract.dispositions(*turns("a", "b"), nonce="n") == [
            ("created", "queued"),
            ("created", "delayed"),
        ]
    run = await contract.take_one(slots=9)
    await contract.settle(run)
    run = await contract.take_one(slots=9)
    assert run.id == "b"
    await contract.settle(run)
    assert await contract.redis.exists(keys.conversation("anna", "talk")) == 0


async def test_plain_arq_jobs_have_conversations_too(contract: Contract) -> None:
    """From their adoption on."""
    for job_id in ("a", "b"):
        await contract.plain_enqueue(job_id)
    for job_id in ("a", "b"):
        assert await contract.adopt(entry(job_id, conversation=TALK)) == "adopted"
    run = await contract.take_one(slots=9)
    assert run.id == "a"
    contract.later(LEASE // 2)
    assert await contract.taken(9) == []
    await contract.settle(run)
    assert await contract.taken(9) == ["b"]
