"""What stands in front of redis-py's connection: commands leave at once, and as redis-py would have packed them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.asyncio.connection import Connection
from redis.exceptions import DataError, ResponseError

from promptq.producer.connection import OUTAGE, close_redis, open_redis
from promptq.producer.wire import Wire, _is_usable, direct, wire_of
from waiting import wait_until

pytestmark = pytest.mark.producer

BIG = b"x" * (32 * 1024 * 1024)

ARGUMENTS = st.lists(st.one_of(st.binary(), st.text(), st.integers(), st.floats()), max_size=20)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client as producers and workers open it."""
    redis: Redis = open_redis(redis_url, timeout=5, max_connections=8)
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


async def kept(wire: Wire) -> Any:
    """The connection that the next call will use."""
    assert await wire.call([("PING",)]) == [b"PONG"]
    [connection] = wire._idle
    return connection


async def killed(wire: Wire, other: Redis) -> Any:
    """The kept connection, which the server has closed, as this side knows."""
    connection = await kept(wire)
    [number] = await wire.call([("CLIENT ID",)])
    await other.client_kill_filter(_id=number)
    await wait_until(lambda: not _is_usable(connection))
    return connection


async def ask(connection: Any, command: str) -> object:
    """Send a command, whatever the connection's state, and read."""
    await connection.send_command(command)
    return await connection.read_response()


async def test_a_call_has_a_reply_for_each_command(redis: Redis) -> None:
    """In their order; an error stands in its place, and the connection is kept for the next call."""
    wire = wire_of(redis)
    connection = await kept(wire)
    said, refused, pinged = await wire.call([("SET", "a", b"1", "EX", 60), ("INCR",), ("PING",)])
    assert (said, type(refused), pinged) == (b"OK", ResponseError, b"PONG")
    assert wire._idle == [connection]


async def test_a_closed_connection_is_made_anew(redis: Redis, redis_client: Redis) -> None:
    """Before a command is sent, so that it does not fail."""
    wire = wire_of(redis)
    await killed(wire, redis_client)
    assert await wire.call([("PING",)]) == [b"PONG"]


def reset(connection: Any) -> None:
    """What the loop does when the other side resets the connection."""
    connection._writer.transport._fatal_error(ConnectionResetError("reset"))


async def test_a_connection_that_was_reset_is_made_anew(redis: Redis) -> None:
    """For the client and for the scripts' own calls: it neither fails nor ends a worker."""
    reset(await idle_connection(redis))
    await asyncio.sleep(0)
    assert await redis.ping()
    wire = wire_of(redis)
    await wire.call([("PING",)])
    reset(wire._idle[0])
    await asyncio.sleep(0)
    assert await wire.call([("PING",)]) == [b"PONG"]


async def test_writing_to_a_connection_that_was_reset_is_an_outage(redis: Redis) -> None:
    """Python 3.12 and later raise AttributeError there."""
    connection = await idle_connection(redis)
    reset(connection)
    await asyncio.sleep(0)
    with pytest.raises(OUTAGE):
        await ask(connection, "PING")


async def test_a_health_check_reads_no_reply_of_another(redis_url: str) -> None:
    """redis-py would ask for it while a long command is on its way."""
    redis: Redis = open_redis(f"{redis_url}?health_check_interval=1", timeout=5)
    try:
        connection = await idle_connection(redis)
        connection.next_health_check = 0
        await redis.set("big", BIG, ex=60)
        assert await redis.strlen("big") == len(BIG)
    finally:
        await close_redis(redis)


async def test_a_reply_that_nobody_read_answers_nothing_else(redis: Redis) -> None:
    """A connection with a reply left over is made anew."""
    wire = wire_of(redis)
    connection = await kept(wire)
    await connection.send_command("ECHO", "left over")
    await wait_until(lambda: not _is_usable(connection))
    assert await wire.call([("PING",)]) == [b"PONG"]


async def test_a_cancelled_call_takes_its_reply_along(redis: Redis, redis_client: Redis) -> None:
    """Whoever calls next gets the answer to its own command."""
    wire = wire_of(redis)
    await kept(wire)
    waiting = asyncio.create_task(wire.call([("BLPOP", "nothing", 5)]))
    await wait_until(lambda: blocked(redis_client))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert wire._idle == []
    assert await wire.call([("PING",)]) == [b"PONG"]


async def blocked(redis: Redis) -> bool:
    """Whether a client waits in a blocking command."""
    return bool((await redis.info("clients"))["blocked_clients"])


async def test_a_connection_that_breaks_under_a_command_is_an_outage(redis: Redis, redis_client: Redis) -> None:
    """Writing into it raises nothing; reading the reply raises what callers try again after."""
    connection = await killed(wire_of(redis), redis_client)
    with pytest.raises(OUTAGE):
        await ask(connection, "PING")


async def test_only_a_few_connections_are_kept(redis: Redis) -> None:
    """However many calls there were at once; the others are the pool's again."""
    wire = wire_of(redis)
    replies = await asyncio.gather(*(wire.call([("PING",)]) for _ in range(20)))
    assert replies == [[b"PONG"]] * 20
    assert len(wire._idle) <= 2
    assert await redis.ping()


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_a_small_pool_is_not_used_up(redis_url: str, most: int) -> None:
    """What scripts keep at hand is for other calls, too, where a URL allows few connections."""
    redis: Redis = open_redis(f"{redis_url}?max_connections={most}", timeout=1)
    await asyncio.gather(*(wire_of(redis).call([("PING",)]) for _ in range(10)))
    assert all(await asyncio.gather(*(redis.ping() for _ in range(10))))
    await close_redis(redis)
