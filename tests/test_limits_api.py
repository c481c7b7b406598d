import time
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis

from contract import DAY, LANE, Contract, entries, entry, usage_key
from promptq.producer import ErrorCode, Limits, ModelLimits, keys, scripts
from promptq.producer.limits import read_limits
from promptq.producer.reading import read_stats

pytestmark = pytest.mark.producer

ACCOUNT = "xai:1a2b3c4d"


@pytest.fixture
def contract(redis_client: Redis) -> Contract:
    """The scripts, at the time of the server."""
    contract = Contract(redis_client)
    contract.now = time.time_ns() // 1_000_000
    return contract


async def limits_of(contract: Contract, model: str = LANE) -> ModelLimits:
    """What a reader gets of one model."""
    return {each.model: each for each in await read_limits(contract.redis)}[model]


async def test_what_is_used_of_the_limits(contract: Contract) -> None:
    """Requests started and tokens used a minute, by the last ten seconds, and calls that run."""
    await scripts.set_limits(contract.redis, LANE, Limits(rpm=6000, tpm=9_000_000), now=contract.now)
    await contract.accept(*(entry(f"job {number}") for number in range(10)))
    runs = await contract.take("w1", slots=10)
    for run in runs[:8]:
        await contract.settle(run, usage=(100, 150, 0, 0, 250, None))
    read = await limits_of(contract)
    assert read.limits == Limits(rpm=6000, tpm=9_000_000)
    assert (read.in_flight, read.rpm_now, read.tpm_now, read.throttled_at) == (2, 6000, 9_000_000, None)
    assert 40 < read.requests <= 60
    assert 8 * 250 * 4 < read.tokens <= 8 * 250 * 6
    for run in runs[8:]:
        await contract.settle(run)


@pytest.mark.parametrize("limited", [True, False])
async def test_a_429_shows_in_the_rate(contract: Contract, limited: bool) -> None:
    """Less than the limit starts then, and without a limit there is a rate; with the time, and the pause."""
    if limited:
        await scripts.set_limits(contract.redis, LANE, Limits(rpm=6000), now=contract.now)
    await contract.accept(*entries("a", "b"))
    run = await contract.take_one()
    await contract.settle(run, "throttled", reason="rate_limited")
    read = await limits_of(contract)
    assert read.rpm_now == pytest.approx(4000 if limited else 40, rel=0.02)
    assert read.limits.rpm == (6000 if limited else None)
    moment = datetime.fromtimestamp(contract.now / 1000, UTC)
    assert read.throttled_at == moment
    assert (read.paused_until, read.pause_reason) == (moment + timedelta(seconds=1), ErrorCode.RATE_LIMITED)
    await contract.drain()


async def test_the_models_that_are_listed(contract: Contract) -> None:
    """Those with limits, those with jobs, and those that were used in the last day; not the intake lane."""
    await scripts.set_limits(contract.redis, "limited:1", Limits(in_flight=3))
    await scripts.pause(contract.redis, "held")
    await contract.accept(entry("waits", lane="busy"), entry("ran", lane="used"))
    await contract.plain_enqueue("plain")
    await contract.claim("w0", slots=0)
    [run] = await contract.take("w1", slots=1, serves=("used",))
    await contract.settle(run)
    await contract.redis.copy(keys.meter("used"), keys.meter("yesterday"))
    await contract.redis.hset(usage_key(contract.now - DAY), "yesterday:attempts", 1)
    await contract.redis.expire(usage_key(contract.now - DAY), 60)
    found = await read_limits(contract.redis)
    assert [each.model for each in found] == ["busy", "held", "limited:1", "used", "yesterday"]
    assert [each.limits.in_flight for each in found] == [None, None, 3, None, None]
    assert [each.paused_by_operator for each in found] == [False, True, False, False, False]
    await contract.redis.delete(keys.meter("used"))
    assert "used" not in [each.model for each in await read_limits(contract.redis)]
    await contract.drain()


async def test_stats_say_which_limit_holds_a_lane_up(contract: Contract) -> None:
    """The one that is used up, and how much of it there is."""
    await scripts.set_limits(contract.redis, LANE, Limits(rpm=30, in_flight=9), now=contract.now)
    await scripts.set_limits(contract.redis, "grok-3", Limits(in_flight=1), now=contract.now)
    await contract.accept(*entries("a", "b"), *entries("c", "d", lane="grok-3"), entry("e", lane="free"))
    await contract.take("w1", slots=9)
    free, grok_3, grok_4 = (await read_stats(contract.redis)).lanes
    assert (free.limited_by, free.limited_to) == (None, None)
    assert (grok_3.limited_by, grok_3.limited_to) == ("in_flight", 1)
    assert (grok_4.limited_by, grok_4.limited_to) == ("rpm", 30)
    contract.later(600_000)
    await contract.drain()


async def test_stats_tell_the_pauses_of_accounts(contract: Contract) -> None:
    """Whose, why, and until when; the lanes themselves are not paused."""
    await contract.accept(*entries("a", "b"))
    run = await contract.take_one(account=ACCOUNT)
    await contract.settle(run, "throttled", reason="bad_key", account=ACCOUNT)
    stats = await read_stats(contract.redis)
    [paused] = stats.paused_accounts
    assert (paused.account, paused.reason, paused.is_open) == (ACCOUNT, ErrorCode.BAD_KEY, False)
    assert paused.until == datetime.fromtimestamp(contract.now / 1000 + 1, UTC)
    assert stats.lanes[0].paused_until is None
    await scripts.probed(contract.redis, ACCOUNT, "works", now=contract.now)
    assert (await read_stats(contract.redis)).paused_accounts[0].is_open
    await scripts.probed(contract.redis, ACCOUNT, "gone", now=contract.now)
    assert (await read_stats(contract.redis)).paused_accounts == ()
    await contract.drain()
