"""What stands in front of redis-py's connection: commands leave at once, and as redis-py would have packed them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.asyncio.connection import Connection
from redis.exceptions import DataError

from promptq.producer.connection import OUTAGE, close_redis, open_redis
from promptq.producer.wire import direct
from waiting import wait_until

pytestmark = pytest.mark.producer

BIG = b"x" * (32 * 1024 * 1024)

ARGUMENTS = st.lists(st.one_of(st.binary(), st.text(), st.integers(), st.floats()), max_size=20)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client as producers and workers open it."""
    redis: Redis = open_redis(redis_url, timeout=5, max_connections=2)
    yield redis
    await close_redis(redis)


@given(arguments=ARGUMENTS)
@pytest.mark.parametrize("name", ["EVALSHA", "SCRIPT LOAD", b"GET"])
def test_commands_are_packed_as_by_redis_py(name: str | bytes, arguments: list[Any]) -> None:
    """Byte for byte, whatever the arguments; alone and in a pipeline."""
    ours, theirs = direct(Connection)(), Connection()
    packed = b"".join(theirs.pack_command(name, *arguments))
    assert b"".join(ours.pack_command(name, *arguments)) == packed
    assert b"".join(ours.pack_commands([(name, *arguments)] * 3)) == packed * 3


@pytest.mark.parametrize("argument", [None, True, {}, object()], ids=["none", "true", "dict", "object"])
def test_what_redis_cannot_take_is_refused(argument: Any) -> None:
    """With redis-py's own error."""
    with pytest.raises(DataError):
        direct(Connection)().pack_command("SET", "a", argument)


async def test_a_command_is_written_before_anything_else_runs(redis: Redis) -> None:
    """What was scheduled earlier on the loop finds the command in the socket already: Redis works meanwhile."""
    order: list[str] = []
    connection = await idle_connection(redis)
    send = connection._writer.writelines

    def noting(data: list[bytes]) -> None:
        order.append("written")
        send(data)

    connection._writer.writelines = noting
    asyncio.get_running_loop().call_soon(order.append, "something else")
    await redis.ping()
    assert order == ["written", "something else"]


async def test_what_the_socket_does_not_take_is_waited_for(redis: Redis) -> None:
    """A value of many megabytes arrives whole."""
    await redis.set("big", BIG, ex=60)
    assert await redis.strlen("big") == len(BIG)


async def idle_connection(redis: Redis) -> Any:
    """The one that the client has used, and will use next."""
    await redis.ping()
    [connection] = redis.connection_pool._available_connections
    return connection


async def kill(redis: Redis, other: Redis) -> Any:
    """Have the server close the client's connection; returns it when this side knows."""
    number = await redis.client_id()
    connection = await idle_connection(redis)
    await other.client_kill_filter(_id=number)
    await wait_until(connection.can_read_destructive)
    return connection


async def ask(connection: Any, command: str) -> object:
    """Send a command, whatever the connection's state, and read."""
    await connection.send_command(command)
    return await connection.read_response()


async def test_a_closed_connection_is_made_anew(redis: Redis, redis_client: Redis) -> None:
    """Before a command is sent, so that it does not fail."""
    await kill(redis, redis_client)
    assert await redis.ping()


async def test_a_reply_that_nobody_read_answers_nothing_else(redis: Redis) -> None:
    """A connection with a reply left over is made anew."""
    await redis.set("a", "1", ex=60)
    connection = await idle_connection(redis)
    await connection.send_command("PING")
    await wait_until(connection.can_read_destructive)
    assert await redis.get("a") == b"1"


async def test_a_connection_that_breaks_under_a_command_is_an_outage(redis: Redis, redis_client: Redis) -> None:
    """Writing into it raises nothing; reading the reply raises what callers try again after."""
    connection = await kill(redis, redis_client)
    with pytest.raises(OUTAGE):
        await ask(connection, "PING")
