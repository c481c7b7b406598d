from datetime import UTC, datetime
from typing import Any

import pytest
from redis.asyncio import Redis

from contract import DAY, FAILURE_TTL, LANE, LEASE, NOW, RESULT_TTL, Contract, Run, entries, entry, usage_key
from hand import Hand
from promptq.producer import PromptQueue, keys, scripts
from promptq.producer.models import JobStatus
from promptq.producer.records import Kind

pytest_plugins = ["contract_fixture"]

USAGE = (10, 20, 5, 3, 30, 700)
BOOKED = {
    f"{LANE}:attempts": 1, f"{LANE}:prompt_tokens": 10, f"{LANE}:completion_tokens": 20, f"{LANE}:reasoning_tokens": 5,
    f"{LANE}:cached_prompt_tokens": 3, f"{LANE}:total_tokens": 30, f"{LANE}:cost_in_usd_ticks": 700,
}  # fmt: skip
TOKENS = (("attempts", 1), ("total_tokens", 9))
FINAL: tuple[Kind, ...] = ("succeeded", "failed", "cancelled", "expired")
GIVEN_BACK: tuple[Kind, ...] = ("retry", "throttled", "released")


async def two_runs(contract: Contract, job_id: str = "a") -> tuple[Run, Run]:
    """A job whose first run lost its lease to a second one."""
    await contract.accept(entry(job_id))
    first = await contract.take_one("w1")
    await contract.run_out(first)
    return first, await contract.take_one("w2")


@pytest.mark.parametrize("kind", FINAL)
async def test_an_end_is_written_whole(contract: Contract, kind: Kind) -> None:
    """Result and state are there with the same time to live; lane, lease and marks are gone; readers are told."""
    await contract.accept(entry("a", deadline="+5000"))
    run = await contract.take_one()
    async with contract.redis.pubsub() as listener:
        await listener.subscribe(keys.done("a"))
        await listener.get_message(timeout=1)
        assert await contract.settle(run, kind) == "done"
        heard = await listener.get_message(ignore_subscribe_messages=True, timeout=1)
    assert heard["data"] == kind.encode()
    assert await contract.redis.get(keys.result("a")) == run.outcome(kind).result
    assert await contract.state("a") == kind
    ttl = FAILURE_TTL if kind == "failed" else RESULT_TTL
    lives = [await contract.redis.pttl(key) for key in (keys.result("a"), keys.ledger("a"))]
    assert all(ttl - 5000 < live <= ttl for live in lives)
    gone = [keys.lane(LANE), keys.in_progress("a"), keys.running(LANE), keys.DEADLINES, keys.LANES]
    assert await contract.redis.exists(*gone) == 0


async def test_a_failed_job_keeps_its_payload(contract: Contract) -> None:
    """As long as its result, to be run again; the payloads of the others go at once."""
    await contract.accept(*entries("a", "b"))
    failed, succeeded = await contract.take("w1", slots=2)
    await contract.settle(failed, "failed")
    await contract.settle(succeeded)
    assert FAILURE_TTL - 5000 < await contract.redis.pttl(keys.payload("a")) <= FAILURE_TTL
    assert await contract.redis.exists(keys.payload("b")) == 0
    assert await contract.redis.zrange(keys.FAILED, 0, -1) == [b"a"]
    assert await contract.redis.pttl(keys.FAILED) > 0


@pytest.mark.parametrize("kind", FINAL)
async def test_the_jobs_own_ttl_goes_first(contract: Contract, kind: Kind) -> None:
    """A producer may have its result kept longer or shorter than the worker's settings."""
    await contract.accept(entry("a", ttl=77_000))
    await contract.settle(await contract.take_one(), kind)
    for key in (keys.result("a"), keys.ledger("a")):
        assert 70_000 < await contract.redis.pttl(key) <= 77_000


async def test_a_short_lived_failure_forgets_no_other(contract: Contract) -> None:
    """The list of failed jobs keeps each as long as its own result."""
    await contract.accept(entry("long", ttl=DAY), entry("short", ttl=1000), entry("later"))
    long, short, later = await contract.take("w1", slots=3)
    await contract.settle(long, "failed")
    contract.later(5000)
    await contract.settle(short, "failed")
    assert set(await contract.redis.zrange(keys.FAILED, 0, -1)) == {b"long", b"short"}
    contract.later(1001)
    await contract.settle(later, "failed")
    assert set(await contract.redis.zrange(keys.FAILED, 0, -1)) == {b"long", b"later"}


@pytest.mark.parametrize("second", FINAL)
async def test_the_first_result_wins(contract: Contract, second: Kind) -> None:
    """What comes later is told that the job is over, and changes nothing."""
    one, two = await two_runs(contract)
    assert await contract.settle(one) == "done"
    assert await contract.settle(two, second) == "over"
    assert (await contract.result("a"))["content"] == one.token
    assert await contract.state("a") is JobStatus.SUCCEEDED


async def test_a_late_success_is_taken_while_another_runs(contract: Contract) -> None:
    """It is paid for; the other run hears at its next renewal that the job is over."""
    late, holder = await two_runs(contract)
    assert await contract.settle(late) == "done"
    assert await contract.renew(holder) == ["over"]
    assert await contract.redis.exists(keys.in_progress("a"), keys.running(LANE), keys.lane(LANE)) == 0


@pytest.mark.parametrize("how", ["queued", "delayed"])
async def test_a_late_success_is_taken_while_the_job_waits(contract: Contract, how: str) -> None:
    """It is not run again."""
    late, holder = await two_runs(contract)
    await contract.settle(holder, "released" if how == "queued" else "retry", delay=5000)
    assert await contract.state("a") == how
    assert await contract.settle(late) == "done"
    contract.later(5000)
    assert await contract.taken(1) == []


async def test_a_success_of_another_epoch_is_stale(contract: Contract) -> None:
    """A requeued job asks for a new answer: what an earlier life of it brings is not that."""
    await contract.accept(entry("a"))
    run = await contract.take_one()
    await contract.run_out(run)
    await contract.redis.hset(keys.ledger("a"), "epoch", "2")
    again = await contract.take_one("w2")
    assert await contract.settle(run) == "stale"
    assert await contract.settle(again) == "done"


@pytest.mark.parametrize("kind", [*GIVEN_BACK, "failed", "cancelled", "expired"])
async def test_only_the_holder_gives_back_or_fails(contract: Contract, kind: Kind) -> None:
    """A run that lost its lease neither ends the job nor takes it from the one that has it, nor pauses the model."""
    late, holder = await two_runs(contract)
    before = await contract.ledger("a")
    assert await contract.settle(late, kind, attempt=b"", delay=1) == "stale"
    assert await contract.ledger("a") == before
    assert await contract.redis.hexists(keys.meter(LANE), "until") == 0
    assert await contract.renew(holder) == ["ours"]


@pytest.mark.parametrize("kind", GIVEN_BACK)
async def test_giving_back_sent_again_changes_nothing(contract: Contract, kind: Kind) -> None:
    """The first time gives the job back; the second finds that it is not held any more."""
    await contract.accept(entry("a"))
    run = await contract.take_one()
    assert await contract.settle(run, kind, delay=1000) == ("pausing" if kind == "throttled" else "back")
    assert await contract.redis.exists(keys.running(LANE), keys.in_progress("a")) == 0
    before = await contract.ledger("a"), await contract.redis.hgetall(keys.meter(LANE))
    assert await contract.settle(run, kind, delay=1000) == "stale"
    assert (await contract.ledger("a"), await contract.redis.hgetall(keys.meter(LANE))) == before


async def test_books_are_written_once_an_attempt(contract: Contract) -> None:
    """However often the outcome is sent: twice in one call, again, and when the job has long ended."""
    await contract.accept(entry("a"))
    run = await contract.take_one()
    outcome = run.outcome(usage=USAGE)
    assert await scripts.settle(contract.redis, [outcome, outcome], wake=False, now=contract.now) == ["done", "over"]
    assert await contract.settle(run, usage=USAGE) == "over"
    assert await contract.settle(run, "failed", usage=USAGE) == "over"
    assert await contract.usage() == BOOKED


async def test_every_attempt_is_on_the_books(contract: Contract) -> None:
    """A late run's and a retried one's too: what was called is paid. Each stands in the ledger as it was written."""
    late, holder = await two_runs(contract)
    await contract.settle(holder, "retry", usage=USAGE)
    await contract.settle(await contract.take_one("w2"), usage=USAGE)
    assert await contract.settle(late, usage=USAGE) == "over"
    assert await contract.usage() == {name: 3 * amount for name, amount in BOOKED.items()}
    ledger = await contract.ledger("a")
    assert sorted(value for name, value in ledger.items() if name.startswith("attempt:")) == [
        '{"worker":"w1:1"}', '{"worker":"w2:1"}', '{"worker":"w2:2"}',
    ]  # fmt: skip


async def test_what_made_no_call_is_no_attempt(contract: Contract) -> None:
    """Released before its call: nothing on the books, nothing spent."""
    await contract.accept(entry("a"))
    assert await contract.settle(await contract.take_one(), "released", attempt=b"", usage=USAGE) == "back"
    assert await contract.usage() == {}
    assert (await contract.take_one()).job.spent == 0


@pytest.mark.parametrize(("ticks", "booked"), [(None, {}), (0, {}), (5, {f"{LANE}:cost_in_usd_ticks": 5})])
async def test_no_cost_told_adds_nothing(contract: Contract, ticks: int | None, booked: dict[str, int]) -> None:
    """No cost and a cost of 0 are the same to the day's sum; which it was stands in the attempt."""
    await contract.accept(entry("a"))
    await contract.settle(await contract.take_one(), usage=(0, 0, 0, 0, 0, ticks))
    assert await contract.usage() == {f"{LANE}:attempts": 1} | booked


async def test_books_are_kept_by_day_and_model(contract: Contract) -> None:
    """The day in UTC on which the outcome was written, for 90 days."""
    await contract.accept(entry("a"), entry("b", lane="grok-3"), entry("c", delay=DAY))
    for run in await contract.take("w1", slots=2):
        await contract.settle(run, usage=(0, 0, 0, 0, 9, None))
    today = {f"{model}:{name}": amount for model in (LANE, "grok-3") for name, amount in TOKENS}
    assert await contract.usage() == today
    assert await contract.redis.pttl(usage_key(contract.now)) > 89 * DAY
    contract.later(DAY)
    await contract.settle(await contract.take_one(), usage=(0, 0, 0, 0, 9, None))
    assert await contract.usage() == {f"{LANE}:{name}": amount for name, amount in TOKENS}


@pytest.mark.parametrize(("kind", "spent"), [("retry", 1), ("released", 0), ("throttled", 0)])
async def test_what_is_spent(contract: Contract, kind: Kind, spent: int) -> None:
    """A retry counts against the attempts; a release and a throttle do not. Timeouts and releases are counted apart."""
    await contract.accept(entry("a"))
    await contract.settle(await contract.take_one(), kind, reason="timeout", delay=1000)
    assert (await contract.ledger("a")).get("releases") == ("1" if kind == "released" else None)
    contract.later(1000)
    job = (await contract.take_one()).job
    assert (job.spent, job.timeouts, job.stalls) == (spent, 1, 0)


async def test_a_retry_waits_for_its_delay(contract: Contract) -> None:
    """Not before; the next claim knows when."""
    await contract.accept(entry("a"))
    await contract.settle(await contract.take_one(), "retry", delay=3000)
    claimed = await contract.claim()
    assert (claimed.jobs, claimed.due_in) == ((), 3000)
    contract.later(3000)
    assert await contract.taken(1) == ["a"]


@pytest.mark.parametrize("kind", GIVEN_BACK)
async def test_a_cancelled_job_that_is_given_back_ends(contract: Contract, kind: Kind) -> None:
    """The cancel came while it ran: it is not run again."""
    await contract.accept(entry("a"))
    run = await contract.take_one()
    await contract.cancel("a")
    assert await contract.settle(run, kind) == "done"
    assert await contract.state("a") is JobStatus.CANCELLED


async def test_an_answer_beats_a_cancel(contract: Contract) -> None:
    """The call was answered before its worker heard of the cancel: it is paid for."""
    await contract.accept(entry("a"))
    run = await contract.take_one()
    await contract.cancel("a")
    assert await contract.settle(run) == "done"
    assert await contract.state("a") is JobStatus.SUCCEEDED


async def test_a_job_that_nobody_knows_is_gone(contract: Contract) -> None:
    """Its ledger expired, or Redis lost it: nothing is written."""
    await contract.accept(entry("a"))
    run = await contract.take_one()
    await contract.redis.flushall()
    assert await contract.settle(run) == "gone"
    assert await contract.redis.dbsize() == 0


async def test_a_bad_outcome_stops_no_other(contract: Contract) -> None:
    """Each outcome of a call is written by itself; the job of the bad one runs again when its lease ends."""
    await contract.accept(*entries("bad", "good"))
    bad, good = await contract.take("w1", slots=2)
    never: Any = "never"
    outcomes = [bad.outcome("retry", delay=never), good.outcome()]
    said = await scripts.settle(contract.redis, outcomes, wake=False, now=contract.now)
    assert (said[0].partition(":")[0], said[1]) == ("error", "done")
    contract.later(LEASE)
    assert await contract.taken(1) == ["bad"]


@pytest.mark.parametrize("wake", [True, False])
async def test_who_settles_without_claiming_wakes_others(contract: Contract, wake: bool) -> None:
    """For what goes back; a claim that follows looks for itself."""
    await contract.accept(entry("a"))
    run = await contract.take_one()
    await contract.pop_markers()
    await contract.settle(run, "retry", delay=1000, wake=wake)
    assert await contract.pop_markers() == ({LANE} if wake else set())
    assert await contract.score("a") == NOW + 1000


@pytest.mark.parametrize("counter", ["prompt_tokens", "total_tokens", "cost_in_usd_ticks", "attempts"])
async def test_a_counter_that_takes_no_more_keeps_no_other_from_the_books(redis_client: Redis, counter: str) -> None:
    """The day's books are written once a call: one bad counter must not cost the whole call's."""
    hand = Hand(redis_client)
    day = keys.usage(datetime.now(UTC).date())
    await redis_client.hset(day, f"grok-4:{counter}", 2**63 - 1)  # type: ignore[misc, arg-type]
    await PromptQueue(redis_client).enqueue("Hello")
    await hand.settle(await hand.claim())
    books = await redis_client.hgetall(day)  # type: ignore[misc]
    named = ("attempts", "prompt_tokens", "completion_tokens", "total_tokens", "cost_in_usd_ticks")
    assert books.keys() == {f"grok-4:{name}".encode() for name in named}
    assert await redis_client.ttl(day) > 0
