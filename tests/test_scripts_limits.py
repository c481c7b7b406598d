"""The limits of a model for the whole fleet: what starts when, what is charged, and what a 429 does to the rate."""

import itertools

import pytest

from contract import LANE, Contract, Run, entry
from promptq.producer import keys, scripts
from promptq.producer.models import JobStatus, Limits
from promptq.producer.records import Kind

pytest_plugins = ["contract_fixture"]

MINUTE = 60_000


async def limited(contract: Contract, jobs: int = 200, estimate: str = "100/0", **limits: int) -> None:
    """A backlog of a model with these limits."""
    await scripts.set_limits(contract.redis, LANE, Limits(**limits), now=contract.now)
    for start in range(0, jobs, 100):
        numbers = range(start, min(jobs, start + 100))
        await contract.accept(*(entry(f"job {number}", estimate=estimate) for number in numbers))


async def started_within(contract: Contract, milliseconds: int, step: int = 10) -> list[int]:
    """Claim whenever a worker would, for so long; the times at which jobs started, and the jobs go on running."""
    began, times = contract.now, list[int]()
    while contract.now < began + milliseconds:
        claimed = await contract.claim(slots=100)
        times += [contract.now - began] * len(claimed.jobs)
        contract.later(max(step, min(claimed.due_in or step, 1000)))
    return times


def meter_of(job_tokens: int) -> tuple[int | None, ...]:
    """The usage of an answer with so many tokens."""
    return (job_tokens, 0, 0, 0, job_tokens, None)


async def test_requests_start_at_their_rate(contract: Contract) -> None:
    """1,200 a minute: four at once, which are worth 200 ms, then twenty a second; what waits holds no slot."""
    await limited(contract, rpm=1200)
    times = await started_within(contract, 5_000)
    assert times.count(0) == 5
    assert 100 <= len(times) <= 5 * 20 + 5
    assert (await contract.claim(slots=9)).has_more is False


@pytest.mark.parametrize(("rpm", "at_once"), [(60, 1), (240, 1), (300, 2), (600, 3), (6000, 21)])
async def test_a_burst_is_one_request_or_200_ms(contract: Contract, rpm: int, at_once: int) -> None:
    """However long nothing started."""
    await limited(contract, rpm=rpm)
    contract.later(MINUTE)
    assert len(await contract.taken(100)) == at_once


async def test_a_slow_rate_is_kept_exactly(contract: Contract) -> None:
    """One a second is one a second: nothing is saved up for a second one within it, and a call may be a little late."""
    await limited(contract, rpm=60)
    times = await started_within(contract, 10_000, step=1)
    assert all(1000 < later - earlier < 1050 for earlier, later in itertools.pairwise(times))
    assert len(times) == 10


async def test_who_has_to_wait_hears_for_how_long(contract: Contract) -> None:
    """Until about 50 ms worth of quota has come together."""
    await limited(contract, rpm=1200)
    await contract.taken(100)
    due_in = (await contract.claim(slots=9)).due_in
    assert due_in is not None
    assert 50 <= due_in <= 110


async def test_tokens_are_charged_by_estimate(contract: Contract) -> None:
    """60,000 a minute are 1,000 a second: jobs of 100 start ten a second."""
    await limited(contract, tpm=60_000)
    times = await started_within(contract, 5_000)
    assert times.count(0) == 3
    assert 48 <= len(times) <= 53
    assert await contract.field("job 0", "charged") == "100"


async def test_a_job_of_any_size_starts_when_nothing_is_owed(contract: Contract) -> None:
    """Larger than the burst, it is charged whole; the next waits until it is paid off."""
    await limited(contract, jobs=1, tpm=60_000, estimate="30000/0")
    await contract.accept(entry("small", estimate="1/0"))
    [large] = await contract.take("w1", slots=9)
    await contract.settle(large, usage=meter_of(30_000))
    contract.later(29_700)
    assert await contract.taken(9) == []
    contract.later(300)
    assert await contract.taken(9) == ["small"]


async def test_a_prompt_larger_than_a_minute_fails(contract: Contract) -> None:
    """It could never be sent; whoever waits for it hears why, and the next one goes on."""
    await limited(contract, jobs=1, tpm=60_000, estimate="60001/0")
    await contract.accept(entry("small", estimate="1/0"))
    assert await contract.taken(9) == ["small"]
    assert (await contract.result("job 0"))["error"]["code"] == "too_large"


async def test_a_large_allowance_for_the_answer_is_no_large_job(contract: Contract) -> None:
    """Most answers are shorter than they may be."""
    await limited(contract, jobs=1, tpm=60_000, estimate="10/1000000")
    assert await contract.taken(9) == ["job 0"]


async def test_usage_goes_before_the_estimate(contract: Contract) -> None:
    """An answer of more tokens is charged the rest; one of fewer gives it back."""
    await limited(contract, jobs=2, tpm=60_000)
    first, second = await contract.take("w1", slots=2)
    owed = float(await contract.redis.hget(keys.meter(LANE), "tokens"))
    await contract.settle(first, usage=meter_of(600))
    assert float(await contract.redis.hget(keys.meter(LANE), "tokens")) == owed + 500
    await contract.settle(second, usage=meter_of(40))
    assert float(await contract.redis.hget(keys.meter(LANE), "tokens")) == owed + 500 - 60


async def test_what_is_given_back_is_of_the_last_minute(contract: Contract) -> None:
    """What was not used longer ago cannot be used any more."""
    await limited(contract, jobs=1, tpm=60_000)
    run = await contract.take_one()
    contract.later(5_000)
    await contract.renew(run)
    contract.later(MINUTE)
    owed = await contract.redis.hget(keys.meter(LANE), "tokens")
    await contract.settle(run, usage=meter_of(40))
    assert await contract.redis.hget(keys.meter(LANE), "tokens") == owed


async def test_an_old_place_is_not_given_back(contract: Contract) -> None:
    """A run that made no call had its place more than a minute ago: nobody may start in it now."""
    await limited(contract, jobs=3, rpm=60)
    run = await contract.take_one()
    for _ in range(9):
        contract.later(7_000)
        await contract.renew(run)
    assert len(await contract.taken(9)) == 1
    await contract.settle(run, "released", attempt=b"", usage=meter_of(0))
    assert await contract.taken(9) == []


async def test_debt_is_a_minute_at_most(contract: Contract) -> None:
    """An answer that used far more than was thought stops the model for no longer."""
    await limited(contract, jobs=2, tpm=60_000, estimate="5000/0")
    run = await contract.take_one()
    await contract.settle(run, usage=meter_of(10_000_000))
    contract.later(MINUTE - 1)
    assert await contract.taken(9) == []
    contract.later(1)
    assert len(await contract.taken(9)) == 1


async def test_estimates_learn_from_what_jobs_use(contract: Contract) -> None:
    """After some answers of 250 tokens to prompts of 100 that were thought to be 50, jobs are charged 350."""
    await limited(contract, tpm=600_000, estimate="50")
    for _ in range(30):
        run = await contract.take_one()
        await contract.settle(run, usage=(100, 150, 100, 0, 350, None))
        contract.later(1000)
    run = await contract.take_one()
    assert await contract.field(run.id, "charged") == "350"


async def test_an_answer_is_never_thought_longer_than_it_may_be(contract: Contract) -> None:
    """`max_tokens` is the most, whatever others used; but it does not bound what is thought before the answer."""
    await limited(contract, jobs=20, tpm=600_000, estimate="100/50")
    run = await contract.take_one()
    await contract.settle(run, usage=(100, 200, 700, 0, 1000, None))
    contract.later(MINUTE)
    assert await contract.field((await contract.take_one()).id, "charged") == "850"


@pytest.mark.parametrize("kind", ["released", "cancelled"])
async def test_a_run_without_a_call_gives_its_reservation_back(contract: Contract, kind: Kind) -> None:
    """Of requests and of tokens: another job may start at once."""
    await limited(contract, rpm=60, tpm=60_000)
    run = await contract.take_one()
    assert await contract.taken(9) == []
    await contract.settle(run, kind, attempt=b"", usage=meter_of(0))
    assert len(await contract.taken(9)) == 1


async def test_a_call_that_was_made_stays_charged(contract: Contract) -> None:
    """Nobody knows what it used."""
    await limited(contract, tpm=60_000)
    run = await contract.take_one()
    before = await contract.redis.hget(keys.meter(LANE), "tokens")
    await contract.settle(run, "released", usage=meter_of(0))
    assert await contract.redis.hget(keys.meter(LANE), "tokens") == before


async def test_a_refused_call_used_no_tokens(contract: Contract) -> None:
    """The provider did not take it; only the request counts."""
    await limited(contract, tpm=60_000)
    run = await contract.take_one()
    charged = float(await contract.redis.hget(keys.meter(LANE), "tokens"))
    await contract.settle(run, "throttled", reason="rate_limited", usage=meter_of(0))
    assert float(await contract.redis.hget(keys.meter(LANE), "tokens")) == charged - 100


async def test_calls_in_flight_are_limited(contract: Contract) -> None:
    """Over all workers; the end of one makes room for the next."""
    await limited(contract, jobs=9, in_flight=3)
    runs = await contract.take("w1", slots=2)
    assert len(await contract.taken(9, "w2")) == 1
    claimed = await contract.claim("w3", 9)
    assert (claimed.jobs, claimed.due_in) == ((), 1000)  # the net: who ends a call claims the next
    await contract.settle(runs[0])
    assert len(await contract.taken(9, "w3")) == 1


async def test_a_worker_that_stops_wakes_another_for_its_place(contract: Contract) -> None:
    """It settles without a claim."""
    await limited(contract, jobs=9, in_flight=1)
    run = await contract.take_one()
    await contract.pop_markers()
    await contract.settle(run, wake=True)
    assert LANE in await contract.pop_markers()


async def test_a_saturated_model_holds_up_no_other(contract: Contract) -> None:
    """Its jobs take no slots, and the marker is not put back for them."""
    await limited(contract, rpm=60)
    await contract.accept(*(entry(f"other {number}", lane="grok-3") for number in range(5)))
    await contract.taken(1, serves=(LANE,))
    await contract.pop_markers()
    claimed = await contract.claim(slots=9)
    assert {job.lane for job in claimed.jobs} == {"grok-3"}
    assert len(claimed.jobs) == 5
    assert LANE not in await contract.pop_markers()


async def test_limits_change_while_jobs_run(contract: Contract) -> None:
    """What is owed is worth less time under a higher limit, and workers are woken; none: all may start."""
    await limited(contract, jobs=50, rpm=60)
    await contract.taken(1)
    await contract.pop_markers()
    await scripts.set_limits(contract.redis, LANE, Limits(rpm=600), now=contract.now)
    assert LANE in await contract.pop_markers()
    assert await contract.taken(9) == []
    contract.later(110)
    assert len(await contract.taken(9)) == 1
    await scripts.set_limits(contract.redis, LANE, Limits(), now=contract.now)
    assert len(await contract.taken(100)) == 48
    assert await contract.redis.exists(keys.LIMITS) == 0


@pytest.mark.parametrize("limits", [{"rpm": 60}, {"tpm": 60_000}])
async def test_a_new_limit_is_followed_after_429s_too(contract: Contract, limits: dict[str, int]) -> None:
    """What is owed was charged at the lower rate, so it is worth little time under a limit that has its whole rate."""
    await limited(contract, jobs=9, estimate="900/0", **limits)
    await contract.redis.hset(keys.meter(LANE), mapping={"factor": 1 / 16, "dropped": contract.now})
    await contract.redis.pexpire(keys.meter(LANE), MINUTE)
    assert len(await contract.taken(1)) == 1
    doubled = Limits(**{name: 2 * limit for name, limit in limits.items()})
    await scripts.set_limits(contract.redis, LANE, doubled, now=contract.now)
    contract.later(2000)
    assert len(await contract.taken(1)) == 1


async def test_only_models_without_limits_are_filled(contract: Contract) -> None:
    """A setting of a worker does not undo what an operator has set."""
    assert await scripts.set_limits(contract.redis, LANE, Limits(rpm=60), only_if_none=True)
    assert not await scripts.set_limits(contract.redis, LANE, Limits(tpm=9), only_if_none=True)
    assert await contract.redis.hgetall(keys.LIMITS) == {f"{LANE}:rpm".encode(): b"60"}


async def test_a_claim_sent_again_is_charged_once(contract: Contract) -> None:
    """Its reply was lost; the jobs are the same."""
    await limited(contract, rpm=1200)
    request = contract.request(slots=2)
    await contract.send(request)
    before = await contract.redis.hgetall(keys.meter(LANE))
    assert len((await contract.send(request)).jobs) == 2
    assert await contract.redis.hgetall(keys.meter(LANE)) == before


async def test_an_adopted_job_is_charged_to_its_model(contract: Contract) -> None:
    """It waits in the intake lane, delayed, until its model has room."""
    await limited(contract, jobs=1, rpm=60)
    await contract.plain_enqueue("plain")
    await contract.claim(slots=0)
    await contract.claim(slots=1)
    await contract.adopt(entry("plain"))
    assert await contract.taken(9) == []
    assert await contract.state("plain") is JobStatus.DELAYED
    contract.later(1050)
    assert await contract.taken(9) == ["plain"]


async def test_adopted_jobs_come_again_about_as_fast_as_they_may_start(contract: Contract) -> None:
    """All at once they would be looked at by each claim and sent away again; and a limit that is raised is followed."""
    await limited(contract, jobs=0, rpm=1200)
    for number in range(80):
        await contract.plain_enqueue(f"plain {number}")
        await contract.adopt(entry(f"plain {number}"))
    assert len(await contract.taken(100)) == 5
    due = await contract.redis.zrangebyscore(keys.lane(keys.INTAKE), "-inf", contract.now + 1000, withscores=True)
    delayed = [score for _, score in due if score >= contract.now]
    assert len(delayed) == 75
    assert 5 <= sum(score < contract.now + 500 for score in delayed) <= 20
    assert 30 <= len(await started_within(contract, 2000)) <= 41


async def throttle(contract: Contract, run: Run) -> None:
    """The provider says 429 to a call; then the pause is over."""
    contract.later(10)
    await contract.settle(run, "throttled", reason="rate_limited")
    contract.later(1000)


async def rate(contract: Contract, seconds: int = 2) -> float:
    """Jobs started a second, by a fleet that always has some."""
    return len(await started_within(contract, seconds * 1000)) / seconds


async def test_a_429_takes_a_third_off_the_rate(contract: Contract) -> None:
    """Which climbs by 5 % every half second, and never above the limit."""
    await limited(contract, jobs=140, rpm=1200)
    await throttle(contract, await contract.take_one())  # the pause takes a second: two steps
    assert 14 <= await rate(contract) <= 19
    assert 16 <= await rate(contract) <= 21
    contract.later(5_000)
    assert 19 <= await rate(contract) <= 23


async def test_the_429s_of_one_moment_count_once(contract: Contract) -> None:
    """Only a call that was claimed after the last drop says that the rate is still too high."""
    await limited(contract, jobs=30, rpm=6000)
    runs = await contract.take("w1", slots=20)
    contract.later(10)
    for run in runs:
        await contract.settle(run, "throttled", reason="rate_limited")
    factor = float(await contract.redis.hget(keys.meter(LANE), "factor"))
    assert factor == pytest.approx(2 / 3)


async def test_the_rate_never_falls_below_a_64th(contract: Contract) -> None:
    """Else a provider's bad hour would be slept through."""
    await limited(contract, jobs=50, rpm=6000)
    for _ in range(20):
        contract.later(61_000)  # longer than any pause, and than what a 64th of the rate lets wait
        await contract.redis.hset(keys.meter(LANE), "dropped", contract.now)  # nothing has been climbed back
        run = await contract.take_one()
        contract.later(1)
        await contract.settle(run, "throttled", reason="rate_limited")
    assert float(await contract.redis.hget(keys.meter(LANE), "factor")) >= 1 / 64


async def test_without_a_limit_a_429_teaches_one(contract: Contract) -> None:
    """Of 100 calls that started within a second 20 were let through: then two thirds of these start in a second."""
    await contract.accept(*(entry(f"job {number}", tenant=f"t{number % 7}") for number in range(150)))
    runs = await contract.take("w1", slots=100)
    contract.later(10)
    for run in runs[20:]:
        await contract.settle(run, "throttled", reason="rate_limited")
    contract.later(1000)
    assert 12 <= await rate(contract) <= 16


async def test_what_a_429_taught_outlasts_a_night(contract: Contract) -> None:
    """Nothing was started that could have shown it wrong: the rate is hardly higher in the morning."""
    await contract.accept(*(entry(f"job {number}") for number in range(60)))
    runs = await contract.take("w1", slots=20)
    contract.later(10)
    await contract.settle(runs[0], "throttled", reason="rate_limited")
    contract.later(8 * 3_600_000)
    assert 12 <= await rate(contract, 1) <= 26  # 13 a second, 15 s worth of growth, and a burst


async def test_a_moment_of_429s_alone_teaches_no_standstill(contract: Contract) -> None:
    """All of 100 calls are refused, as by a provider that is overloaded: a 24th of their rate stays."""
    await contract.accept(*(entry(f"job {number}", tenant=f"t{number % 7}") for number in range(100)))
    runs = await contract.take("w1", slots=100)
    contract.later(10)
    for run in runs:
        await contract.settle(run, "throttled", reason="rate_limited")
    assert float(await contract.redis.hget(keys.meter(LANE), "learned")) == pytest.approx(100 * 60 / 24, rel=0.02)


async def test_what_a_429_taught_is_forgotten(contract: Contract) -> None:
    """When it has held jobs back for so long that it is eight times as high, and nobody has said 429 again."""
    await contract.accept(*(entry(f"job {number}") for number in range(120)))
    await throttle(contract, await contract.take_one())  # from then on 40 a minute, at first
    started = []
    for _ in range(50):
        started.append(len(await contract.taken(9)))
        await contract.taken(9)
        contract.later(2000)
    assert max(started[:10]) <= 3
    assert started[-1] == 9


async def test_the_same_limits_again_change_nothing(contract: Contract) -> None:
    """Neither what is used of them, nor what 429s have taught: a deploy may set them as often as it likes."""
    await limited(contract, rpm=1200, tpm=60_000)
    await throttle(contract, await contract.take_one())
    await contract.taken(9)
    before = await contract.redis.hgetall(keys.meter(LANE))
    for _ in range(5):
        await scripts.set_limits(contract.redis, LANE, Limits(rpm=1200, tpm=60_000), now=contract.now)
    assert await contract.redis.hgetall(keys.meter(LANE)) == before


async def test_changing_limits_starts_no_new_burst(contract: Contract) -> None:
    """However often they change, what starts keeps to them."""
    await limited(contract, jobs=150, rpm=1200)
    started = 0
    for step in range(100):
        await scripts.set_limits(contract.redis, LANE, Limits(rpm=1200 + step % 2), now=contract.now)
        started += len(await contract.taken(20))
        contract.later(20)
    assert started <= 2 * 20 + 6


async def test_a_clock_that_is_set_back_holds_nothing_up(contract: Contract) -> None:
    """What was written by a clock an hour ahead neither stops the model nor hides its next 429."""
    await limited(contract, jobs=20, rpm=60, tpm=60_000)
    await throttle(contract, await contract.take_one())
    contract.later(1000)
    await contract.take_one()
    contract.later(-3_600_000)
    run = await contract.take_one()
    contract.later(10)
    assert await contract.settle(run, "throttled", reason="rate_limited") == "pausing"
    contract.later(5)
    assert await contract.taken(9) == []
    contract.later(5000)
    assert len(await contract.taken(9)) == 1
    contract.later(2 * 3_600_000)
