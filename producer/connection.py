"""Connections to Redis: how a URL becomes a client, what counts as an outage, and how long a call may try.

Used by the producer and the worker. URLs: redis, rediss, unix, and redis+sentinel://host:port,host:port/service/db.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from promptq.producer.errors import QueueFull, QueueUnavailable
from promptq.producer.wire import direct

T = TypeVar("T")
ClientT = TypeVar("ClientT", bound=Redis)

OUTAGE: Final = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, ReadOnlyError, OSError)
"""What a Redis that is away, starting, or no longer the primary looks like: worth trying again."""

SENTINEL_SCHEME: Final = "redis+sentinel"
_EXAMPLES = "redis://host:6379/0, rediss://..., unix:///path, redis+sentinel://host:port,host:port/service/db"
_PAUSES = (0.0, 0.05, 0.1, 0.2, 0.4)


def open_redis(
    url: str,
    *,
    timeout: float,
    max_connections: int = 50,
    client: type[ClientT] = Redis,  # type: ignore[assignment]
) -> ClientT:
    """A client whose every connect, send and receive takes `timeout` seconds at most. Connects when first used.

    Raises ValueError for a URL that is none.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "protocol": 2,  # which all redis-py speak; with 3, the default from 8 on, a pool hands out closed connections
        "retry": Retry(NoBackoff(), 0),
    }
    try:
        if urlsplit(url).scheme != "unix":
            options["socket_keepalive"] = True
        if urlsplit(url).scheme == SENTINEL_SCHEME:
            return _open_by_sentinel(url, options, client)
        _check_database(url)
        pool = BlockingConnectionPool.from_url(url, max_connections=max_connections, timeout=timeout, **options)
        pool.connection_class(**pool.connection_kwargs)  # connects to nothing; refuses unknown options
    except (ValueError, TypeError):  # whose text may quote the password
        raise ValueError(f"not a Redis URL; such are {_EXAMPLES}") from None
    pool.connection_kwargs["decode_responses"] = False  # whatever the URL says
    pool.connection_class = direct(pool.connection_class)
    redis = client(connection_pool=pool)
    redis.auto_close_connection_pool = True
    return redis


def _check_database(url: str) -> None:
    """Where redis-py would silently take database 0. Raises ValueError."""
    parts = urlsplit(url)
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        raise ValueError("a database is a number")


def _open_by_sentinel(url: str, options: dict[str, Any], client: type[ClientT]) -> ClientT:
    parts = urlsplit(url)
    _, _, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    if not hosts or not service:
        raise ValueError("hosts and service are needed")
    addresses = [(host, int(port or 26379)) for host, _, port in (each.partition(":") for each in hosts.split(","))]
    login = {"username": parts.username, "password": parts.password}
    credentials = {name: unquote(value) for name, value in login.items() if value}
    sentinel: Any = Sentinel(addresses, sentinel_kwargs=options, **options)  # type: ignore[no-untyped-call] # redis-py's own
    named: dict[str, Any] = {**credentials, **dict(parse_qsl(parts.query)), "db": int(db or 0)}
    redis: ClientT = sentinel.master_for(service, redis_class=client, **named)
    redis.connection_pool.connection_class = direct(redis.connection_pool.connection_class)
    return redis


async def close_redis(redis: Redis) -> None:
    """Close a client of `open_redis` with all its connections, those to sentinels too."""
    await redis.aclose()
    manager = getattr(redis.connection_pool, "sentinel_manager", None)
    for sentinel in manager.sentinels if manager else ():
        await sentinel.aclose()


def public_url(url: str) -> str:
    """The URL without its user and password, for messages."""
    parts = urlsplit(url)
    if "@" in parts.path + parts.query + parts.fragment:
        return f"{parts.scheme}://***"  # a password that should have been escaped
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


async def try_until(timeout: float, call: Callable[[], Awaitable[T]], where: str) -> T:
    """Call Redis, and again after an outage, for `timeout` seconds in all. The call must bear being sent twice.

    Raises QueueUnavailable naming `where`, or QueueFull if Redis is out of memory.
    """
    task = asyncio.current_task()
    cancels = task.cancelling() if task else 0
    reply = await _try_until(timeout, call, where)
    if task and task.cancelling() > cancels:
        raise asyncio.CancelledError  # Python 3.11's wait_for, inside redis-py, may have swallowed it
    return reply


async def _try_until(timeout: float, call: Callable[[], Awaitable[T]], where: str) -> T:
    problem: BaseException | None = None
    try:
        async with asyncio.timeout(timeout):
            attempt = 0
            while True:
                try:
                    return await call()
                except AuthenticationError as error:
                    raise QueueUnavailable(f"Redis at {where} refuses the login: {error}") from None
                except OUTAGE as error:
                    problem = error
                await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
                attempt += 1
    except TimeoutError as error:
        why = str(problem or error).rstrip(".") or "no answer"
        raise QueueUnavailable(f"no Redis at {where} within {timeout:g} s: {why}; is it running?") from problem
    except ResponseError as error:
        if isinstance(error, OutOfMemoryError) or "-OOM" in str(error):  # the latter from a script in Redis 6
            raise QueueFull(
                f"Redis at {where} is out of memory; wait for jobs to be read and expire, or raise maxmemory"
            ) from error
        raise QueueUnavailable(f"Redis at {where} refused the call: {error}") from error
    except RedisError as error:
        raise QueueUnavailable(f"Redis at {where}: {error}") from error
