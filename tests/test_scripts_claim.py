import pytest

from contract import DAY, HIGH, LANE, LEASE, NOW, Contract, entries, entry
from promptq.producer import keys, scripts
from promptq.producer.models import JobStatus, Limits
from promptq.producer.records import Foreign

pytest_plugins = ["contract_fixture"]


async def test_a_claim_leases(contract: Contract) -> None:
    """The token stands in the ledger and in arq's key, the end of the lease in the lane and among the running."""
    await contract.accept(entry("a"))
    run = await contract.take_one()
    ledger = await contract.ledger("a")
    assert (ledger["state"], ledger["token"], ledger["due"]) == ("running", "w1:1", str(NOW + LEASE))
    assert await contract.redis.get(keys.in_progress("a")) == b"w1:1"
    assert 0 < await contract.redis.pttl(keys.in_progress("a")) <= LEASE
    assert await contract.score("a") == NOW + LEASE
    assert await contract.redis.zscore(keys.running(LANE), "a") == NOW + LEASE
    assert (run.job.payload, run.job.enqueued, run.job.epoch) == (entry("a").payload, NOW, "1")


async def test_a_claim_sent_again_gives_the_same_answer(contract: Contract) -> None:
    """After a lost reply the worker learns what it holds, and takes nothing more; others took the rest meanwhile."""
    await contract.accept(*entries("a", "b", "c", "d"))
    request = contract.request("w1", slots=2)
    first = await contract.send(request)
    assert await contract.taken(1, "w2") == ["c"]
    assert (await contract.send(request)).jobs == first.jobs
    assert await contract.taken(9, "w1") == ["d"]


async def test_an_empty_claim_sent_again_may_find_something(contract: Contract) -> None:
    """An answer without jobs binds nobody."""
    request = contract.request()
    assert (await contract.send(request)).jobs == ()
    await contract.accept(entry("a"))
    assert [job.id for job in (await contract.send(request)).jobs] == ["a"]


@pytest.mark.parametrize("end", ["cancelled", "expired", "stalled"])
async def test_a_claim_sent_again_leaves_out_what_has_ended(contract: Contract, end: str) -> None:
    """A job whose lease ran out and that ended before its worker heard of the claim is not started any more."""
    await contract.accept(entry("a", deadline=f"+{3 * LEASE}"))
    if end == "stalled":
        await contract.stall("a", times=2)
    request = contract.request("w1")
    assert [job.id for job in (await contract.send(request)).jobs] == ["a"]
    contract.later(3 * LEASE if end == "expired" else LEASE + 1)
    if end == "cancelled":
        await contract.cancel("a")
    else:
        await contract.claim("w2")
    assert (await contract.state("a")).is_final
    assert (await contract.send(request)).jobs == ()


async def test_a_claim_sent_again_leaves_out_what_another_run_has_answered(contract: Contract) -> None:
    """The answer of the run before came first: nothing is paid twice."""
    await contract.accept(entry("a"))
    late = await contract.take_one("late")
    await contract.run_out(late)
    request = contract.request("w1")
    await contract.send(request)
    assert await contract.settle(late) == "done"
    assert (await contract.send(request)).jobs == ()


async def test_a_claim_sent_again_renews_its_leases(contract: Contract) -> None:
    """The worker begins now: it has a whole lease for its first renewal."""
    await contract.accept(entry("a"))
    request = contract.request("w1")
    await contract.send(request)
    contract.later(LEASE - 1)
    await contract.send(request)
    contract.later(LEASE - 1)
    assert await contract.taken(1, "w2") == []


async def test_slots_bound_a_claim(contract: Contract) -> None:
    """Never more jobs than free slots."""
    await contract.accept(*entries("a", "b", "c"))
    claimed = await contract.claim("w1", slots=2)
    assert (len(claimed.jobs), claimed.has_more) == (2, True)
    assert not (await contract.claim("w1", slots=2)).has_more


async def test_bytes_bound_a_claim(contract: Contract) -> None:
    """A reply stays within its bytes, says so, and wakes another worker for the rest."""
    await contract.accept(*entries("a", "b", "c", payload=b"x" * 400))
    await contract.pop_markers()
    claimed = await contract.claim("w1", slots=9, max_bytes=1000)
    assert ([job.id for job in claimed.jobs], claimed.has_more) == (["a", "b"], True)
    assert await contract.pop_markers() == {LANE, ""}


async def test_a_job_larger_than_the_bound_is_claimed_alone(contract: Contract) -> None:
    """No payload is too large to be run."""
    await contract.accept(*entries("a", "b", payload=b"x" * 400))
    assert await contract.taken(9, max_bytes=100) == ["a"]
    assert await contract.taken(9, max_bytes=100) == ["b"]


async def test_no_small_job_slips_past_a_large_one(contract: Contract) -> None:
    """What does not fit any more ends the claim: turns are kept."""
    sizes = {"a": 400, "b": 900, "c": 10}
    await contract.accept(*[entry(job_id, payload=b"x" * size) for job_id, size in sizes.items()])
    assert await contract.taken(9, max_bytes=1000) == ["a"]
    assert await contract.taken(9, max_bytes=1000) == ["b", "c"]


async def test_one_suspect_at_a_time(contract: Contract) -> None:
    """Of the jobs that have stalled twice a claim takes one, or none if it may not; the others wait a second."""
    await contract.accept(*entries("a", "b"))
    await contract.stall("a", "b", times=2)
    await contract.accept(entry("c"))
    assert await contract.taken(9, may_take_poison=False) == ["c"]
    assert [await contract.state(job_id) for job_id in "ab"] == [JobStatus.DELAYED] * 2
    contract.later(1000)
    assert await contract.taken(9) == ["a"]
    contract.later(1000)
    assert await contract.taken(9, "w2") == ["b"]


async def test_the_third_stall_fails_the_job_unread(contract: Contract) -> None:
    """It may be what kills its workers: it ends in the script, with a result, and its payload is never decoded."""
    garbage = b"\x80\x04 not JSON \xff"
    await contract.accept(entry("a", payload=garbage))
    await contract.stall("a", times=2)
    await contract.run_out(await contract.take_one())
    assert await contract.taken(9, "w2") == []
    assert await contract.state("a") is JobStatus.FAILED
    result = await contract.result("a")
    assert (result["status"], result["error"]["code"]) == ("failed", "stalled")
    assert await contract.redis.get(keys.payload("a")) == garbage


async def test_a_run_out_lease_is_taken_over_only_by_who_may(contract: Contract) -> None:
    """A worker that has just come back leaves others' jobs alone, and hides them from nobody."""
    await contract.accept(entry("a"))
    run = await contract.take_one("w1")
    await contract.run_out(run)
    assert await contract.taken(1, "back", take_over_until=0) == []
    assert (await contract.state("a"), "stalls" in await contract.ledger("a")) == (JobStatus.RUNNING, False)
    assert await contract.taken(1, "w2") == ["a"]
    assert await contract.field("a", "stalls") == "1"


async def test_who_may_not_take_over_comes_back_later(contract: Contract) -> None:
    """A run-out lease that has to be left alone is no reason to claim again at once."""
    await contract.accept(entry("a"))
    await contract.run_out(await contract.take_one())
    assert (await contract.claim("back", take_over_until=0)).due_in == 1000


async def test_a_claim_that_arrives_late_takes_nothing_over(contract: Contract) -> None:
    """Redis stood still, and the renewals of others may stand behind this claim in its sockets."""
    await contract.accept(entry("a"))
    run = await contract.take_one("w1")
    request = contract.request("w2", take_over_until=contract.now + LEASE)
    contract.later(LEASE)
    assert (await contract.send(request)).jobs == ()
    assert await contract.renew(run) == ["ours"]


async def test_a_stalled_job_is_held_by_nobody(contract: Contract) -> None:
    """Until it is claimed anew it neither runs nor counts as a call in flight."""
    await contract.accept(entry("a"))
    await contract.run_out(await contract.take_one())
    await contract.claim("w2", slots=0)
    assert await contract.state("a") is JobStatus.QUEUED
    assert await contract.redis.exists(keys.running(LANE), keys.in_progress("a")) == 0


async def test_a_live_lease_is_nobody_elses(contract: Contract) -> None:
    """To the last ms."""
    await contract.accept(entry("a"))
    run = await contract.take_one("w1")
    contract.later(LEASE - 1)
    assert await contract.taken(1, "w2") == []
    contract.later(1)
    assert await contract.taken(1, "w2") == ["a"]
    assert await contract.renew(run) == ["taken"]


@pytest.mark.parametrize("place", ["queued", "delayed", "running"])
async def test_a_passed_deadline_is_a_result(contract: Contract, place: str) -> None:
    """Where nobody runs the job, the next claim ends it as expired."""
    await contract.accept(entry("a", deadline=f"+{2 * LEASE}", delay=DAY if place == "delayed" else 0))
    if place == "running":
        await contract.take_one("dies")
    contract.later(2 * LEASE)
    claimed = await contract.claim()
    assert (claimed.jobs, await contract.state("a")) == ((), JobStatus.EXPIRED)
    assert (await contract.result("a"))["error"]["code"] == "expired"


async def test_no_job_is_run_past_its_deadline(contract: Contract) -> None:
    """However many deadlines have passed at once."""
    await contract.accept(*[entry(f"a{number}", deadline="+1000") for number in range(120)])
    contract.later(1000)
    assert await contract.taken(200) == []
    assert await contract.state("a119") is JobStatus.EXPIRED


async def test_a_running_job_is_expired_by_its_worker(contract: Contract) -> None:
    """While the lease lives, the worker's word counts, not the clock's; who claims looks again in a second."""
    await contract.accept(entry("a", deadline="+5000"))
    run = await contract.take_one("w1")
    contract.later(6000)
    assert (await contract.claim("w2")).due_in == 1000
    assert await contract.state("a") is JobStatus.RUNNING
    assert await contract.settle(run) == "done"


async def test_a_cancelled_job_whose_worker_died_is_not_run_again(contract: Contract) -> None:
    """The cancel that its worker never heard of is kept."""
    await contract.accept(entry("a"))
    run = await contract.take_one()
    assert await contract.cancel("a") == ["cancelling"]
    await contract.run_out(run)
    assert await contract.taken(1, "w2") == []
    assert await contract.state("a") is JobStatus.CANCELLED


async def test_a_rewritten_score_starts_nothing_twice(contract: Contract) -> None:
    """Plain arq's `abort` sets the score to 1: the ledger says that the job is leased, and its score comes back."""
    await contract.accept(*entries("a", "b"))
    run = await contract.take_one("w1")
    await contract.redis.zadd(keys.lane(LANE), {"a": 1})
    assert await contract.taken(1, "w2") == ["b"]
    assert await contract.score("a") == NOW + LEASE
    assert await contract.renew(run) == ["ours"]


async def test_an_abort_of_a_job_that_has_just_ended_leaves_nothing(contract: Contract) -> None:
    """`abort` may put a finished job back into its lane: the next claim throws it out, and the lane with it."""
    await contract.accept(*entries("a", "b"))
    for run in await contract.take("w1", slots=2):
        await contract.redis.zadd(keys.lane(LANE), {"a": 1})
        await contract.settle(run)
    assert (await contract.claim("w1")).jobs == ()
    assert await contract.redis.exists(keys.lane(LANE), keys.LANES) == 0


async def test_a_foreign_job_is_handed_over_once_a_lease(contract: Contract) -> None:
    """A plain arq client's job goes to one worker to adopt; its payload does not expire any more."""
    await contract.plain_enqueue("a", b"theirs")
    assert (await contract.claim("w1")).foreign == (Foreign(b"a", keys.INTAKE, b"theirs"),)
    assert await contract.redis.pttl(keys.payload("a")) == -1
    assert (await contract.claim("w2")).foreign == ()
    contract.later(LEASE)
    assert (await contract.claim("w2")).foreign == (Foreign(b"a", keys.INTAKE, b"theirs"),)


async def test_a_foreign_job_is_handed_over_whatever_its_score(contract: Contract) -> None:
    """Plain arq's `abort` has set it to 1."""
    await contract.plain_enqueue("a", b"theirs")
    await contract.redis.zadd(keys.lane(keys.INTAKE), {"a": 1})
    assert (await contract.claim("w1")).foreign == (Foreign(b"a", keys.INTAKE, b"theirs"),)
    assert (await contract.claim("w2")).foreign == ()


async def test_a_foreign_job_whose_payload_is_gone_is_handed_over(contract: Contract) -> None:
    """For the worker to refuse: arq let the payload expire."""
    await contract.redis.zadd(keys.lane(keys.INTAKE), {"a": contract.now})
    assert (await contract.claim()).foreign == (Foreign(b"a", keys.INTAKE, b""),)


async def test_bytes_bound_foreign_jobs_too(contract: Contract) -> None:
    """The rest comes with the next claim."""
    for job_id in "abc":
        await contract.plain_enqueue(job_id, b"x" * 400)
    assert [theirs.id for theirs in (await contract.claim(max_bytes=1000)).foreign] == [b"a", b"b"]
    assert [theirs.id for theirs in (await contract.claim(max_bytes=1000)).foreign] == [b"c"]


async def test_a_worker_claims_only_what_it_serves(contract: Contract) -> None:
    """Other lanes stay as they are, the intake too."""
    await contract.accept(entry("a", lane="a"), entry("b", lane="b"), entry("high", lane="c", band=HIGH))
    await contract.plain_enqueue("x")
    claimed = await contract.claim("w1", slots=9, serves=("a", "b"))
    assert (sorted(job.id for job in claimed.jobs), claimed.foreign) == (["a", "b"], ())
    assert sorted(claimed.lanes) == ["a", "b"]
    assert await contract.state("high") is JobStatus.QUEUED


async def test_markers_are_put_back_only_for_slots(contract: Contract) -> None:
    """A claim that left jobs for want of slots wakes the next worker; one that found nothing more wakes nobody."""
    await contract.accept(*entries("a", "b", "c"))
    await contract.pop_markers()
    await contract.claim("w1", slots=1, known_lanes=[LANE])
    assert await contract.pop_markers() == {LANE}
    await contract.claim("w2", slots=1, known_lanes=[])
    assert await contract.pop_markers() == {LANE, ""}
    await contract.claim("w3", slots=5, known_lanes=[LANE])
    assert await contract.pop_markers() == set()


async def test_a_new_lane_is_told_from_worker_to_worker(contract: Contract) -> None:
    """Who did not know it wakes the next one, jobs or not, until all know it; who knows it wakes nobody."""
    await contract.accept(entry("a"))
    await contract.pop_markers()
    await contract.claim("w1", slots=5)
    assert await contract.pop_markers() == {""}
    await contract.claim("w2", slots=5)
    assert await contract.pop_markers() == {""}
    await contract.claim("w1", slots=5, known_lanes=[LANE])
    assert await contract.pop_markers() == set()


async def test_a_paused_lane_wakes_nobody(contract: Contract) -> None:
    """A pause, not want of slots, keeps its jobs back: whoever claims knows when it ends."""
    await contract.accept(*entries("a", "b"))
    await contract.settle(await contract.take_one(), "throttled", delay=5000)
    await contract.pop_markers()
    claimed = await contract.claim("w1", slots=1, known_lanes=[LANE])
    assert (claimed.jobs, claimed.due_in, claimed.has_more) == ((), 5000, False)
    assert await contract.pop_markers() == set()


async def test_a_claim_tells_when_to_come_back(contract: Contract) -> None:
    """The next moment at which anything comes due by itself: a delay, a lease, a deadline; else None."""
    assert (await contract.claim()).due_in is None
    await contract.accept(entry("a", delay=60_000))
    assert (await contract.claim()).due_in == 60_000
    await contract.accept(entry("b", delay=90_000, deadline="+30000"))
    assert (await contract.claim()).due_in == 30_000
    await contract.accept(entry("c"))
    assert (await contract.claim()).due_in == LEASE
    contract.later(LEASE - 4000)
    assert (await contract.claim()).due_in == 4000


async def test_at_most_100_are_promoted_at_once(contract: Contract) -> None:
    """A claim stays short, however much has come due, and asks to be repeated."""
    await contract.accept(*[entry(f"a{number}", delay=1000) for number in range(130)])
    contract.later(1000)
    claimed = await contract.claim(slots=0)
    assert (await contract.redis.zcount(keys.lane(LANE), "-inf", "(1e12"), claimed.due_in) == (100, 1)
    await contract.claim(slots=0)
    assert await contract.redis.zcount(keys.lane(LANE), "-inf", "(1e12") == 130


async def test_at_most_100_are_ended_at_once(contract: Contract) -> None:
    """However many jobs have become too large for their model: the script is short, and the worker comes at once."""
    await contract.accept(*(entry(f"large {number}", estimate="9000") for number in range(120)), entry("small"))
    await scripts.set_limits(contract.redis, LANE, Limits(tpm=6000), now=contract.now)
    claimed = await contract.claim(slots=9)
    assert (claimed.jobs, claimed.has_more) == ((), True)
    assert await contract.redis.zcard(keys.FAILED) == 100
    assert await contract.taken(9) == ["small"]


async def test_at_most_100_are_held_back_at_once(contract: Contract) -> None:
    """Plain arq jobs of a model that is paused stand before those of others."""
    for number in range(120):
        await contract.plain_enqueue(f"plain {number}")
        await contract.adopt(entry(f"plain {number}"))
    await scripts.pause(contract.redis, LANE, now=contract.now)
    claimed = await contract.claim(slots=9)
    assert (claimed.has_more, claimed.due_in) == (False, 50)
    assert await contract.redis.zcount(keys.lane(keys.INTAKE), 1 << 40, "+inf") == 100
    await contract.claim(slots=9)
    assert await contract.redis.zcount(keys.lane(keys.INTAKE), 1 << 40, "+inf") == 120
