"""The test suite's own tools."""

from typing import Any, cast

import fakeredis
import pytest
import redis.asyncio

from leftovers import assert_no_leftovers
from waiting import wait_until

pytestmark = pytest.mark.producer


def test_leftovers_are_named() -> None:
    """A key without TTL fails by name; one with a TTL does not."""
    client = fakeredis.FakeRedis()
    client.set("goes", "1", ex=60)
    assert_no_leftovers(client)
    client.set("stays", "1")
    with pytest.raises(AssertionError, match="1 keys were left without TTL: stays"):
        assert_no_leftovers(client)


async def test_any_redis_runs_lua(any_redis: redis.asyncio.Redis) -> None:
    """Fake and real Redis are clean at the start and run scripts."""
    assert await any_redis.dbsize() == 0
    assert await cast(Any, any_redis).eval("return redis.call('TIME')[1]", 0)
    await any_redis.set("for the next test", "1", ex=60)


@pytest.mark.leaves_keys("shows that the mark works")
async def test_marked_tests_may_leave_keys(any_redis: redis.asyncio.Redis) -> None:
    """`leaves_keys` switches the check off for one test."""
    await any_redis.set("left", "1")


async def test_wait_until_takes_both_kinds_of_predicate() -> None:
    """Sync and async predicates; the failure says what was waited for."""

    async def never() -> bool:
        return False

    await wait_until(lambda: True)
    with pytest.raises(AssertionError, match=r"not true within 0\.05 s: pigs fly \(last: False\)"):
        await wait_until(never, timeout=0.05, message="pigs fly")
