"""The provider does not take calls: a model, or the account, pauses for the whole fleet."""

import pytest

from contract import LANE, LEASE, Contract, Run, entries, entry
from promptq.producer import keys, scripts
from promptq.producer.models import JobStatus
from promptq.producer.records import Kind, Payer

pytest_plugins = ["contract_fixture"]

PROBE = 30_000
PROVEN = 5_000
OUTAGE = 10
ACCOUNT = "xai:1a2b3c4d"


async def throttled(contract: Contract, jobs: int = 3, delay: int = 0) -> Run:
    """Jobs of a model that was told 429 just now; the run that was told."""
    await contract.accept(*(entry(f"job {number}") for number in range(jobs)))
    run = await contract.take_one()
    contract.later(10)
    assert await contract.settle(run, "throttled", reason="rate_limited", delay=delay) == "pausing"
    return run


async def until_paused(contract: Contract, jobs: int = OUTAGE + 2) -> None:
    """Jobs of a model whose provider has just failed to take ten calls in a row."""
    await contract.accept(*(entry(f"job {number}", tenant=f"t{number}") for number in range(jobs)))
    runs = await contract.take("w1", slots=OUTAGE)
    contract.later(10)
    said = [await contract.settle(run, "retry", reason="unavailable", delay=1) for run in runs]
    assert said == ["back"] * (OUTAGE - 1) + ["pausing"]


async def refused(contract: Contract, reason: str = "bad_key", delay: int = 0) -> Run:
    """Jobs of two models of an account that was refused just now; the run that was."""
    await contract.accept(*entries("a", "b", "c"), entry("other", lane="grok-3"))
    run = await contract.take_one(account=ACCOUNT)
    contract.later(10)
    assert await contract.settle(run, "throttled", reason=reason, account=ACCOUNT, delay=delay) == "pausing"
    return run


async def test_a_paused_model_is_not_claimed(contract: Contract) -> None:
    """Its jobs stay queued, unspent, until the pause ends; who claims knows when. Other models go on."""
    run = await throttled(contract)
    await contract.accept(entry("other", lane="grok-3"))
    claimed = await contract.claim(slots=9)
    assert ([job.id for job in claimed.jobs], claimed.due_in) == (["other"], 1000)
    assert await contract.state(run.id) is JobStatus.QUEUED
    assert "spent" not in await contract.ledger(run.id)
    assert await contract.redis.hget(keys.meter(LANE), "reason") == b"rate_limited"
    contract.later(999)
    assert await contract.taken(9) == []
    contract.later(1)
    assert await contract.taken(9) == [run.id]


async def test_a_pause_grows_once_a_moment(contract: Contract) -> None:
    """Many calls that were under way when the provider refused the first say nothing new."""
    await contract.accept(*(entry(f"job {number}") for number in range(50)))
    runs = await contract.take("w1", slots=50)
    contract.later(10)
    said = [await contract.settle(run, "throttled", reason="rate_limited") for run in runs]
    assert said == ["pausing"] + ["back"] * 49
    assert (await contract.claim()).due_in == 1000


async def test_pauses_grow_while_there_is_no_answer(contract: Contract) -> None:
    """1, 2, 4, ... seconds, at most a minute; an answer to a later call ends that."""
    await throttled(contract, jobs=1)
    pauses = []
    for _ in range(8):
        pause = int(await contract.redis.hget(keys.meter(LANE), "until")) - contract.now
        pauses.append(pause)
        contract.later(pause)
        while not (runs := await contract.take("w1", slots=1)):
            contract.later(1000)
        contract.later(10)
        await contract.settle(runs[0], "throttled", reason="rate_limited")
    assert pauses == [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]


async def test_a_success_claimed_after_the_pause_ends_it(contract: Contract) -> None:
    """The next pause is a short one again; workers are woken."""
    await throttled(contract)
    contract.later(1000)
    run = await contract.take_one()
    await contract.pop_markers()
    assert await contract.settle(run) == "done"
    assert LANE in await contract.pop_markers()
    assert await contract.redis.hmget(keys.meter(LANE), "until", "strikes", "reason") == [None] * 3


async def test_a_success_claimed_before_the_pause_proves_nothing(contract: Contract) -> None:
    """Its call was let through before the provider refused the other."""
    await contract.accept(*entries("a", "b", "c"))
    early, late = await contract.take("w1", slots=2)
    contract.later(10)
    await contract.settle(late, "throttled", reason="rate_limited")
    contract.later(10)
    await contract.settle(early)
    assert await contract.taken(9) == []


async def test_the_providers_own_delay_is_kept(contract: Contract) -> None:
    """`Retry-After` is the least pause, also when it comes with a call that says nothing new."""
    await contract.accept(*entries("a", "b"))
    first, second = await contract.take("w1", slots=2)
    contract.later(10)
    await contract.settle(first, "throttled", reason="rate_limited")
    await contract.settle(second, "throttled", reason="rate_limited", delay=90_000)
    assert (await contract.claim()).due_in == 90_000
    contract.later(89_999)
    assert await contract.taken(9) == []


async def test_a_short_delay_does_not_shorten_the_pause(contract: Contract) -> None:
    """It is a floor, not the pause itself."""
    await throttled(contract, delay=90_000)
    contract.later(90_000)
    run = await contract.take_one()
    await contract.settle(run, "throttled", reason="rate_limited", delay=1)
    assert (await contract.claim()).due_in == 2000


@pytest.mark.parametrize(("luck", "pause"), [(0, 1000), (0.5, 1125), (1, 1250)])
async def test_jitter_makes_pauses_longer(contract: Contract, luck: float, pause: int) -> None:
    """By a quarter at most, so that fleets do not come back all at once; never shorter."""
    await contract.accept(entry("a"))
    run = await contract.take_one()
    outcome = run.outcome("throttled", reason="rate_limited")
    await scripts.settle(contract.redis, [outcome], wake=False, luck=luck, now=contract.now)
    assert (await contract.claim()).due_in == pause


async def test_a_job_that_is_throttled_again_and_again_fails(contract: Contract) -> None:
    """After ten times between which others of its model were answered: else one job could pause a model for ever."""
    await contract.accept(entry("odd", band=0))
    said = ""
    for number in range(10):
        await contract.accept(entry(f"other {number}"))
        while not (runs := await contract.take("w1", slots=1)):
            contract.later(1000)
        [odd] = runs
        assert odd.id == "odd"
        while not (runs := await contract.take("w1", slots=1)):
            contract.later(1000)
        contract.later(1)
        await contract.settle(runs[0])
        contract.later(1)
        said = await contract.settle(odd, "throttled", reason="rate_limited")
    assert said == "done"
    assert (await contract.result("odd"))["error"]["code"] == "rate_limited"


async def test_a_job_that_is_throttled_like_all_others_waits(contract: Contract) -> None:
    """Where nothing gets through, the job is not at fault."""
    await contract.accept(entry("a"))
    for _ in range(12):
        while not (runs := await contract.take("w1", slots=1)):
            contract.later(20_000)
        contract.later(1)
        await contract.settle(runs[0], "throttled", reason="rate_limited")
    assert await contract.state("a") is JobStatus.QUEUED


async def test_ten_unavailable_in_a_row_pause_the_model(contract: Contract) -> None:
    """The first nine are spent attempts; from the tenth on nothing is, not even a last attempt."""
    await until_paused(contract)
    assert (await contract.claim(slots=9)).jobs == ()
    spent = [(await contract.ledger(f"job {number}")).get("spent") for number in range(OUTAGE)]
    assert spent == ["1"] * (OUTAGE - 1) + [None]
    contract.later(1000)
    probe = await contract.take_one()
    assert await contract.settle(probe, "failed", reason="unavailable") == "pausing"
    assert await contract.state(probe.id) is JobStatus.QUEUED


async def test_a_success_in_between_starts_the_count_anew(contract: Contract) -> None:
    """Failures here and there are retried; the model goes on."""
    await contract.accept(*(entry(f"job {number}") for number in range(3 * OUTAGE)))
    for _ in range(2):
        runs = await contract.take("w1", slots=OUTAGE)
        for run in runs[:-1]:
            assert await contract.settle(run, "retry", reason="unavailable", delay=60_000) == "back"
        await contract.settle(runs[-1])
    assert len(await contract.taken(OUTAGE)) == OUTAGE


async def test_a_probe_that_fails_pauses_the_model_again(contract: Contract) -> None:
    """At once, although a call from before the pause was answered meanwhile, so that no ten failed in a row."""
    await contract.accept(*(entry(f"job {number}", tenant=f"t{number}") for number in range(OUTAGE + 3)))
    *failing, early = await contract.take("w1", slots=OUTAGE + 1)
    for run in failing:
        await contract.settle(run, "retry", reason="unavailable", delay=60_000)
    contract.later(10)
    assert await contract.settle(early) == "done"
    contract.later(1000)
    probe = await contract.take_one(slots=9)
    assert await contract.settle(probe, "retry", reason="unavailable", delay=500) == "pausing"
    assert (await contract.claim(slots=9)).due_in == 2000


async def test_a_probe_that_is_given_back_is_followed_by_another(contract: Contract) -> None:
    """Its worker stopped: nothing was found out, and nobody need wait for half a minute."""
    await until_paused(contract)
    contract.later(1000)
    await contract.settle(await contract.take_one(), "released")
    assert len(await contract.taken(9, "w2")) == 1


async def test_an_outage_ends_with_one_probe(contract: Contract) -> None:
    """One job finds out whether the model is back; while it runs, no other starts for half a minute."""
    await until_paused(contract)
    contract.later(1000)
    [probe] = await contract.taken(9, "w1")
    claimed = await contract.claim("w2", slots=9)
    assert (claimed.jobs, claimed.due_in) == ((), LEASE)  # which ends before the probe does
    contract.later(PROBE - 1)
    assert await contract.taken(9, "w2") == []
    contract.later(1)
    assert await contract.taken(9, "w2") == [probe]


@pytest.mark.parametrize(("kind", "reason"), [("succeeded", ""), ("failed", "invalid_request")])
async def test_an_answer_to_the_probe_lets_all_go_on(contract: Contract, kind: Kind, reason: str) -> None:
    """Also one that refuses the job itself: the provider is there again."""
    await until_paused(contract)
    contract.later(1000)
    probe = await contract.take_one()
    await contract.pop_markers()
    await contract.settle(probe, kind, reason=reason)
    assert LANE in await contract.pop_markers()
    assert len(await contract.taken(99)) == OUTAGE + 1


async def test_a_clock_that_is_set_back_leaves_no_probe_behind(contract: Contract) -> None:
    """The answer came after the pause began, whatever the clock says of it now."""
    await until_paused(contract)
    contract.later(-3_600_000)
    probe = await contract.take_one(slots=9)
    contract.later(10)
    await contract.settle(probe)
    assert len(await contract.taken(9)) > 1


@pytest.mark.parametrize(
    ("kind", "reason"), [("failed", "provider_error"), ("failed", "timeout"), ("cancelled", ""), ("expired", "")]
)
async def test_a_probe_that_ends_otherwise_proves_nothing(contract: Contract, kind: Kind, reason: str) -> None:
    """Another job tries a second later, not when the time of the first one is over."""
    await until_paused(contract)
    contract.later(1000)
    await contract.settle(await contract.take_one(), kind, reason=reason)
    assert await contract.taken(9) == []
    contract.later(1000)
    assert len(await contract.taken(9)) == 1


async def test_refusals_that_come_before_answers_are_no_outage(contract: Contract) -> None:
    """Of 40 calls 15 are refused at once and the others answered later: none of these is spent from the tenth on."""
    await contract.accept(*(entry(f"job {number}") for number in range(60)))
    runs = await contract.take("w1", slots=40)
    for run in runs[:15]:
        assert await contract.settle(run, "retry", reason="unavailable", delay=60_000) == "back"
    assert len(await contract.taken(15, "w2")) == 15
    assert await contract.settle(runs[15]) == "done"
    spent = [(await contract.ledger(run.id)).get("spent") for run in runs[:15]]
    assert spent == ["1"] * 9 + [None] * 6


async def test_a_last_attempt_in_a_long_row_of_failures_is_not_the_last(contract: Contract) -> None:
    """The job comes back, but not at once: it would be called and refused again without end."""
    await contract.accept(*(entry(f"job {number}") for number in range(30)))
    runs = await contract.take("w1", slots=30)
    for run in runs[:10]:
        await contract.settle(run, "failed", reason="unavailable")
    assert await contract.state(runs[9].id) is JobStatus.DELAYED
    contract.later(500)
    assert await contract.taken(9) == [runs[9].id]


async def test_a_provider_that_is_not_reached_spends_nothing(contract: Contract) -> None:
    """Before the pause such a job comes back after its own delay, then it waits with the others."""
    await contract.accept(*(entry(f"job {number}") for number in range(OUTAGE)))
    runs = await contract.take("w1", slots=OUTAGE)
    for run in runs:
        await contract.settle(run, "throttled", reason="unavailable", delay=500, attempt=b"")
    states = [await contract.state(run.id) for run in runs]
    assert states == [JobStatus.DELAYED] * (OUTAGE - 1) + [JobStatus.QUEUED]
    assert {(await contract.ledger(run.id)).get("spent") for run in runs} == {None}
    assert (await contract.claim()).due_in == 500
    assert await contract.taken(9) == []


async def test_one_worker_without_a_network_stops_nobody(contract: Contract) -> None:
    """Others have calls under way: the jobs that did not leave it come back to them."""
    await contract.accept(*(entry(f"job {number}", tenant=f"t{number}") for number in range(3 * OUTAGE)))
    await contract.take("healthy", slots=2)
    runs = await contract.take("broken", slots=2 * OUTAGE)
    for run in runs:
        said = await contract.settle(run, "throttled", reason="unavailable", delay=60_000, attempt=b"")
        assert said == "back"
    assert len(await contract.taken(9, "healthy")) == 8


async def test_a_probe_that_did_not_leave_its_worker_is_followed_by_another(contract: Contract) -> None:
    """While others have calls under way: one without a network must not keep them waiting, longer each time."""
    await until_paused(contract, jobs=OUTAGE + 6)
    await contract.redis.hdel(keys.meter(LANE), "until")
    [first] = await contract.take("broken", slots=1)
    await contract.redis.hdel(keys.meter(LANE), "probe")
    await contract.take("healthy", slots=1)
    await contract.redis.hdel(keys.meter(LANE), "probe")
    said = await contract.settle(first, "throttled", reason="unavailable", delay=500, attempt=b"")
    assert said == "back"
    assert len(await contract.taken(9, "w2")) == 1


async def test_a_probe_that_meets_a_refused_account_is_followed_by_another(contract: Contract) -> None:
    """When the account works again, its model need not wait for the rest of half a minute."""
    await until_paused(contract)
    contract.later(1000)
    await contract.settle(await contract.take_one(), "throttled", reason="bad_key", account=ACCOUNT)
    contract.later(PROBE // 2)
    await scripts.probed(contract.redis, ACCOUNT, "works", now=contract.now)
    assert len(await contract.taken(9, account=ACCOUNT)) == 1


async def test_an_adopted_job_waits_for_its_model(contract: Contract) -> None:
    """It stands in the intake lane, but its model is what pauses; as a probe it counts, too."""
    await until_paused(contract, jobs=OUTAGE)
    for job_id in ("x", "y"):
        await contract.plain_enqueue(job_id)
    await contract.claim()
    for job_id in ("x", "y"):
        await contract.adopt(entry(job_id))
    assert await contract.taken(9) == []
    contract.later(1000)
    assert len(await contract.taken(9)) == 1
    assert await contract.taken(9) == []


async def test_only_a_leased_job_is_a_probe(contract: Contract) -> None:
    """An adopted job that may not be taken does not use up the probe of its model."""
    await contract.plain_enqueue("x")
    await contract.claim()
    await contract.adopt(entry("x"))
    await contract.stall("x", times=2)
    await until_paused(contract)
    contract.later(1000)
    assert await contract.taken(9, serves=(keys.INTAKE,), may_take_poison=False) == []
    assert len(await contract.taken(9, serves=(LANE,))) == 1


@pytest.mark.parametrize("delay", [0, 600_000])
@pytest.mark.parametrize("reason", ["bad_key", "no_credit"])
async def test_a_refused_account_pauses_all_its_models(contract: Contract, reason: str, delay: int) -> None:
    """Nothing is spent, and no job is held back by what it was told. Who calls with another key goes on."""
    run = await refused(contract, reason, delay)
    claimed = await contract.claim(slots=9, account=ACCOUNT)
    assert (claimed.jobs, claimed.due_in, claimed.to_probe) == ((), 1000, "")
    assert await contract.state(run.id) is JobStatus.QUEUED
    assert "spent" not in await contract.ledger(run.id)
    assert len(await contract.taken(9, account="xai:another")) == 4


async def test_one_worker_asks_for_the_fleet(contract: Contract) -> None:
    """When the pause is over, one is told to ask the provider; if it does not tell what it heard, another one is."""
    await refused(contract)
    contract.later(1000)
    first = await contract.claim("w1", 9, account=ACCOUNT)
    second = await contract.claim("w2", 9, account=ACCOUNT)
    assert (first.to_probe, second.to_probe) == (ACCOUNT, "")
    assert (first.jobs, second.jobs) == ((), ())
    contract.later(15_000)
    assert (await contract.claim("w2", account=ACCOUNT)).to_probe == ACCOUNT


async def test_a_refusal_makes_the_pause_longer(contract: Contract) -> None:
    """1, 2, 4, ... seconds, half a minute at most between two questions."""
    await refused(contract)
    pauses = []
    for _ in range(7):
        pause = (await contract.claim(account=ACCOUNT)).due_in
        pauses.append(pause)
        contract.later(pause or 0)
        assert (await contract.claim(account=ACCOUNT)).to_probe == ACCOUNT
        assert await scripts.probed(contract.redis, ACCOUNT, "refused", now=contract.now) == "paused"
    assert pauses == [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]


async def test_an_answer_to_an_older_call_says_nothing_of_the_account(contract: Contract) -> None:
    """It was made before the key was refused."""
    await contract.accept(entry("older", lane="grok-3"))
    older = await contract.take_one(account=ACCOUNT)
    contract.later(10)
    await contract.accept(*entries("a", "b"))
    run = await contract.take_one(account=ACCOUNT)
    await contract.settle(run, "throttled", reason="bad_key", account=ACCOUNT)
    await contract.settle(older, account=ACCOUNT)
    assert await contract.taken(9, account=ACCOUNT) == []


async def test_a_refused_account_stays_so_while_somebody_claims(contract: Contract) -> None:
    """However long nobody changes the key; without its workers it is forgotten."""
    await refused(contract)
    key = keys.account(ACCOUNT)
    await contract.redis.pexpire(key, 5_000)
    await contract.claim(account="xai:another")
    assert await contract.redis.pttl(key) <= 5_000
    await contract.claim(account=ACCOUNT)
    assert await contract.redis.pttl(key) > 100_000


async def reopened(contract: Contract) -> Run:
    """An account that works again, as far as the provider told; the job that tries."""
    await refused(contract)
    contract.later(1000)
    await contract.claim(account=ACCOUNT)
    await contract.pop_markers()
    assert await scripts.probed(contract.redis, ACCOUNT, "works", now=contract.now) == "open"
    assert {LANE, "grok-3"} <= await contract.pop_markers()
    return await contract.take_one(slots=9, account=ACCOUNT)


async def test_an_account_that_works_again_lets_one_job_go_first(contract: Contract) -> None:
    """Its answer lets all others go on, and workers are woken."""
    probe = await reopened(contract)
    assert await contract.taken(9, account=ACCOUNT) == []
    contract.later(1)
    assert await contract.settle(probe, account=ACCOUNT) == "done"
    assert {LANE, "grok-3"} <= await contract.pop_markers()
    assert len(await contract.taken(9, account=ACCOUNT)) == 3


async def test_a_call_that_is_not_refused_is_answer_enough(contract: Contract) -> None:
    """Refusals come at once; a long answer need not be waited for."""
    await reopened(contract)
    assert (await contract.claim(account=ACCOUNT)).due_in == PROVEN
    contract.later(PROVEN)
    assert len(await contract.taken(9, account=ACCOUNT)) == 3


async def test_a_probe_that_is_refused_pauses_the_account_again(contract: Contract) -> None:
    """For longer."""
    probe = await reopened(contract)
    contract.later(1)
    assert await contract.settle(probe, "throttled", reason="no_credit", account=ACCOUNT) == "back"  # told before
    assert (await contract.claim(slots=9, account=ACCOUNT)).due_in == 2000


async def test_an_account_that_nobody_uses_is_forgotten(contract: Contract) -> None:
    """Its key was replaced: its pause is nobody's."""
    await refused(contract)
    assert await scripts.probed(contract.redis, ACCOUNT, "gone", now=contract.now) == "none"
    assert await contract.redis.exists(keys.account(ACCOUNT), keys.ACCOUNTS) == 0


async def test_an_operator_pauses_and_resumes_a_model(contract: Contract) -> None:
    """Until then nothing of it is claimed; what runs goes on. Workers are woken at the end."""
    await contract.accept(*entries("a", "b"), entry("other", lane="grok-3"))
    run = await contract.take_one(serves=(LANE,))
    await scripts.pause(contract.redis, LANE, now=contract.now)
    contract.later(100_000)
    assert await contract.taken(9) == ["other"]
    assert await contract.settle(run) == "done"
    await contract.pop_markers()
    await scripts.resume(contract.redis, LANE, now=contract.now)
    assert LANE in await contract.pop_markers()
    assert await contract.taken(9) == ["b"]


async def test_an_operator_ends_a_providers_pause(contract: Contract) -> None:
    """Who knows that the provider is back need not wait."""
    await until_paused(contract)
    await scripts.resume(contract.redis, LANE, now=contract.now)
    assert len(await contract.taken(99)) == 3


PAYERS = (Payer("openai:gpt-x", "openai:x"), Payer("openai:*", "openai:all"))


async def of_three_accounts(contract: Contract) -> None:
    """One job of each of three accounts, and one of plain arq's for each."""
    models = (LANE, "openai:gpt-x", "openai:gpt-y")
    await contract.accept(*(entry(f"job of {model}", lane=model) for model in models))
    for model in models:
        await contract.plain_enqueue(f"plain of {model}")
        assert await contract.adopt(entry(f"plain of {model}"), model) == "adopted"


@pytest.mark.parametrize(
    ("model", "account"), [(LANE, ACCOUNT), ("openai:gpt-x", "openai:x"), ("openai:gpt-y", "openai:all")]
)
async def test_a_pause_is_of_the_account_that_pays(contract: Contract, model: str, account: str) -> None:
    """A refusal stops the models that its account pays for, plain arq's jobs too; others go on, and end no pause."""
    await of_three_accounts(contract)
    run = await contract.take_one(account=ACCOUNT, payers=PAYERS, serves=(model,))
    contract.later(10)
    said = await contract.settle(run, "throttled", reason="bad_key", account=ACCOUNT, payers=PAYERS)
    assert said == "pausing"
    runs = await contract.take(slots=9, account=ACCOUNT, payers=PAYERS)
    assert len(runs) == 4
    assert model not in {run.job.model for run in runs}
    contract.later(10)
    for other in runs:
        assert await contract.settle(other, account=ACCOUNT, payers=PAYERS) == "done"
    assert await contract.redis.zrange(keys.ACCOUNTS, 0, -1) == [account.encode()]
    contract.later(1000)
    claimed = await contract.claim(slots=9, account=ACCOUNT, payers=PAYERS)
    assert (claimed.to_probe, claimed.jobs) == (account, ())
    assert await scripts.probed(contract.redis, account, "works", now=contract.now) == "open"
    assert len(await contract.taken(9, account=ACCOUNT, payers=PAYERS)) == 1


async def test_of_two_paused_accounts_one_is_asked_about_at_a_time(contract: Contract) -> None:
    """And soon the other one."""
    await of_three_accounts(contract)
    for model in (LANE, "openai:gpt-x"):
        run = await contract.take_one(account=ACCOUNT, payers=PAYERS, serves=(model,))
        await contract.settle(run, "throttled", reason="bad_key", account=ACCOUNT, payers=PAYERS)
    contract.later(1000)
    lanes = (LANE, "openai:gpt-x")
    first = await contract.claim(account=ACCOUNT, payers=PAYERS, serves=lanes)
    assert first.due_in is not None
    contract.later(first.due_in)
    second = await contract.claim(account=ACCOUNT, payers=PAYERS, serves=lanes)
    assert {first.to_probe, second.to_probe} == {ACCOUNT, "openai:x"}


@pytest.mark.parametrize("most", [0, 1, 2])
async def test_a_worker_bounds_what_it_takes_of_an_account(contract: Contract, most: int) -> None:
    """One that cannot reach a vendor leaves its jobs to others; the other vendors' it takes."""
    for lane in (LANE, "openai:gpt-y"):
        await contract.accept(*(entry(f"{lane} {number}", lane=lane) for number in range(4)))
    runs = await contract.take(slots=9, account=ACCOUNT, payers=(Payer("openai:*", "openai:all", most),))
    assert [run.job.model for run in runs].count(LANE) == 4
    assert len(runs) == 4 + most
