import asyncio
import contextlib
import socket
import subprocess
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions
from redis.asyncio import Redis

from hand import Hand
from promptq.producer import (
    JobStatus,
    ProducerSettings,
    PromptqError,
    PromptQueue,
    QueueFull,
    QueueUnavailable,
)
from promptq.producer.connection import open_redis, public_url, try_until
from promptq.worker.embedded import PrivateRedis, find_server
from proxy import proxied
from waiting import wait_until

pytestmark = pytest.mark.producer

TIMEOUT = 1.0
# What a busy machine may add to it.
GRACE = 1.0


def settings_for(url: str) -> ProducerSettings:
    """With a short timeout."""
    return ProducerSettings(redis_url=url, redis_timeout=TIMEOUT)  # type: ignore[arg-type] # a str is coerced


@contextlib.contextmanager
def within_the_timeout() -> Iterator[None]:
    """Fail if the block takes longer than the Redis timeout."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < TIMEOUT + GRACE


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Nobody listens here, and nobody else can begin to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[PromptQueue]:
    """Connected to a clean Redis."""
    async with PromptQueue.connect(settings=settings_for(redis_url)) as queue:
        yield queue


async def is_alone(client: Redis) -> bool:
    """Whether nobody but `client`, and perhaps a sentinel, is connected."""
    names = [each["name"] for each in await client.client_list()]
    pool = client.connection_pool
    its_own = len(pool._available_connections) + len(pool._in_use_connections)
    return sum(not name.startswith("sentinel") for name in names) <= its_own


async def test_connect_is_entered_or_awaited(redis_url: str, redis_client: Redis) -> None:
    """`async with connect()`, `await connect()` and both together; closing leaves no connection."""
    settings = settings_for(redis_url)
    async with PromptQueue.connect(settings=settings) as entered:
        assert await entered.results(["x"]) == {}
    awaited = await PromptQueue.connect(settings=settings)
    assert await awaited.results(["x"]) == {}
    await awaited.aclose()
    async with await PromptQueue.connect(settings=settings) as both:
        assert await both.results(["x"]) == {}
    await wait_until(lambda: is_alone(redis_client))


async def test_the_address_comes_from_the_environment(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without arguments it is PROMPTQ_REDIS_URL, then REDIS_URL; an argument goes before both."""
    monkeypatch.setenv("PROMPTQ_REDIS_TIMEOUT", "0.1")
    monkeypatch.setenv("REDIS_URL", redis_url)
    async with PromptQueue.connect() as queue:
        assert await queue.results([]) == {}
    monkeypatch.setenv("PROMPTQ_REDIS_URL", "redis://127.0.0.1:1/0")
    with pytest.raises(QueueUnavailable, match=r"127\.0\.0\.1:1/0"):
        await PromptQueue.connect()
    async with PromptQueue.connect(redis_url) as queue:
        assert await queue.results([]) == {}


@pytest.mark.parametrize(
    "option", ["protocol=3", "decode_responses=True", "socket_timeout=30", "health_check_interval=1"]
)
async def test_options_in_the_address_change_nothing_that_we_rely_on(redis_url: str, option: str) -> None:
    """A REDIS_URL that was written for another library's needs works here, too."""
    async with PromptQueue.connect(settings=settings_for(f"{redis_url}?{option}")) as queue:
        job = await queue.enqueue("Hello", metadata={"a": "b"})
        assert (await queue.enqueue("Hello", id=job.id)).created is False
        assert await queue.status(job.id) is JobStatus.QUEUED
        assert (await queue.stats()).lanes[0].queued == 1
        waiting = asyncio.create_task(job.wait(timeout=5))
        async with Redis.from_url(redis_url) as plain:
            await Hand(plain).answer_all()
        assert (await waiting).metadata == {"a": "b"}


async def test_a_unix_socket_works(tmp_path: Path) -> None:
    """`unix://` is an address like any other."""
    path = tmp_path / "redis.sock"
    server, settings = PrivateRedis(args=["--unixsocket", str(path)]), settings_for(f"unix://{path}")
    async with server, PromptQueue.connect(settings=settings) as queue:
        job = await queue.enqueue("Hello")
        assert await queue.cancel(job.id)


@pytest.fixture
def sentinel_url(redis_url: str, tmp_path: Path) -> Iterator[str]:
    """A sentinel that watches the Redis of this run under the name `main`."""
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        own = probe.getsockname()[1]
    config = tmp_path / "sentinel.conf"
    config.write_text(f"bind 127.0.0.1\nport {own}\nsentinel monitor main 127.0.0.1 {port} 1\n")
    process = subprocess.Popen(
        [find_server(), config, "--sentinel"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    yield f"redis+sentinel://127.0.0.1:1,127.0.0.1:{own}/main/0"
    process.kill()
    process.wait()


async def test_sentinels_are_asked_for_the_primary(sentinel_url: str, redis_client: Redis) -> None:
    """`redis+sentinel://` finds the primary, past a sentinel that is down, and leaves no connection."""
    async with PromptQueue.connect(settings=settings_for(sentinel_url)) as queue:
        job = await queue.enqueue("Hello")
        waiting = asyncio.create_task(job.wait(timeout=5))
        await Hand(redis_client).answer_all()
        assert (await waiting).content == "done"
    await wait_until(lambda: is_alone(redis_client))


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://127.0.0.1/",
        "redis+sentinel:///main",
        "http://127.0.0.1",
        "127.0.0.1:6379",
        "",
        "redis://h/staging",
        "redis://h/0?colour=red",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """ValueError says what an address looks like."""
    with pytest.raises(ValueError, match="redis"):
        open_redis(url, timeout=1)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379", "redis://localhost:6379"),
        ("redis://:secret@host:1/2", "redis://host:1/2"),
        ("rediss://user:sec@ret@host/0?password=secret", "rediss://host/0"),
        ("redis+sentinel://u:secret@a:1,b:2/main/0", "redis+sentinel://a:1,b:2/main/0"),
        ("unix://u:secret@/run/redis.sock?password=secret", "unix:///run/redis.sock"),
    ],
)
def test_what_is_shown_of_an_address(url: str, shown: str) -> None:
    """All but user, password and query."""
    assert public_url(url) == shown


@pytest.mark.parametrize("mark", "/#?@:%")
def test_an_unescaped_password_is_not_shown(mark: str) -> None:
    """Somebody forgot to escape the password: no part of it is taken for the host or the path."""
    shown = public_url(f"redis://bob:s3{mark}cr3t@host:1/2")
    assert "s3" not in shown
    assert "cr3t" not in shown


@pytest.mark.parametrize("mark", "/#?@:%")
async def test_no_error_shows_the_password(redis_url: str, mark: str) -> None:
    """Whatever is wrong with an address, neither the message nor the traceback of the error holds its password."""
    url = redis_url.replace("redis://", f"redis://bob:s3{mark}cr3t@")
    with pytest.raises((QueueUnavailable, ValueError)) as caught:
        await PromptQueue.connect(settings=settings_for(url))
    told = "".join(traceback.format_exception(caught.value, limit=0))
    assert "cr3t" not in told
    assert "s3" not in told


CALLS: dict[str, Callable[[PromptQueue], Any]] = {
    "enqueue": lambda queue: queue.enqueue("Hello"),
    "enqueue_many": lambda queue: queue.enqueue_many(["Hello", "Goodbye"]),
    "status": lambda queue: queue.status("any"),
    "result": lambda queue: queue.result("any"),
    "cancel": lambda queue: queue.cancel("any"),
    "stats": lambda queue: queue.stats(),
}


async def test_a_closed_port_is_unavailable(closed_port: int) -> None:
    """`connect` to where nobody listens says so within the timeout, with the address."""
    with within_the_timeout(), pytest.raises(QueueUnavailable, match=f"127.0.0.1:{closed_port}.*running"):
        await PromptQueue.connect(settings=settings_for(f"redis://127.0.0.1:{closed_port}"))


async def test_a_server_that_never_answers_is_unavailable(redis_url: str) -> None:
    """`connect` to what takes connections and says nothing gives up within the timeout."""
    async with proxied(redis_url) as proxy:
        proxy.freeze()
        with within_the_timeout(), pytest.raises(QueueUnavailable, match=r"within 1 s"):
            await PromptQueue.connect(settings=settings_for(proxy.url))


@pytest.mark.parametrize("how", ["killed", "silent"])
async def test_every_call_gives_up_within_the_timeout(how: str) -> None:
    """A Redis that dies or goes silent under an open queue: every call is QueueUnavailable in time, all at once too."""
    async with (
        PrivateRedis() as server,
        proxied(server.url) as proxy,
        PromptQueue.connect(settings=settings_for(proxy.url)) as queue,
    ):
        await queue.stats()
        if how == "killed":
            server.kill()
        else:
            proxy.freeze()
        with within_the_timeout():
            said = await asyncio.gather(*(call(queue) for call in CALLS.values()), return_exceptions=True)
        kinds = dict(zip(CALLS, map(type, said), strict=True))
        assert kinds == dict.fromkeys(CALLS, QueueUnavailable)


async def test_a_queue_outlives_any_number_of_failures() -> None:
    """Two hundred calls that failed in an outage cost no connection: with Redis back all calls work."""
    async with PrivateRedis() as server, PromptQueue.connect(settings=settings_for(server.url)) as queue:
        server.kill()
        said = await asyncio.gather(*(queue.status("any") for _ in range(200)), return_exceptions=True)
        assert {type(each) for each in said} == {QueueUnavailable}
        server.restart()
        assert set(await asyncio.gather(*(queue.stats() for _ in range(200)))) == {await queue.stats()}


async def test_a_short_outage_is_not_noticed() -> None:
    """A Redis that comes back within the timeout: the call that met the outage succeeds."""
    async with PrivateRedis() as server, PromptQueue.connect(settings=settings_for(server.url)) as queue:
        server.kill()
        calling = asyncio.create_task(queue.enqueue("Hello", id="job"))
        await asyncio.sleep(0.2)
        assert not calling.done()
        server.restart()
        assert (await calling).created


async def test_a_pooled_connection_that_went_silent_costs_no_call(redis_url: str, redis_client: Redis) -> None:
    """What a firewall does to idle connections: the call is made again on a fresh one, within the timeout."""
    async with proxied(redis_url) as proxy, PromptQueue.connect(settings=settings_for(proxy.url)) as queue:
        await asyncio.gather(*(queue.stats() for _ in range(5)))
        proxy.freeze(new_ones=False)
        with within_the_timeout():
            job = await queue.enqueue("Hello")
        assert job.created
        await Hand(redis_client).answer_all()


async def test_a_wrong_password_is_said(redis_url: str, redis_client: Redis) -> None:
    """A login that is refused is no outage: it is said at once, and without the password."""
    await redis_client.acl_setuser("bob", enabled=True, passwords=["+right"], keys=["*"], commands=["+@all"])
    try:
        async with PromptQueue.connect(settings=settings_for(redis_url.replace("//", "//bob:right@"))):
            pass
        started = time.monotonic()
        with pytest.raises(QueueUnavailable, match="refuses the login") as caught:
            await PromptQueue.connect(settings=settings_for(redis_url.replace("//", "//bob:wr0ng@")))
        assert time.monotonic() - started < TIMEOUT / 2
        assert "wr0ng" not in "".join(traceback.format_exception(caught.value, limit=0))
    finally:
        await redis_client.acl_deluser("bob")


async def test_a_missing_password_is_said() -> None:
    """NOAUTH is a refused login, too."""
    async with PrivateRedis() as server, Redis.from_url(server.url) as admin:
        await admin.config_set("requirepass", "right")
        with pytest.raises(QueueUnavailable, match="refuses the login"):
            await PromptQueue.connect(settings=settings_for(server.url))


async def test_missing_rights_are_said(redis_url: str, redis_client: Redis) -> None:
    """An ACL user who may not run scripts is told so, instead of being sent to look for an outage."""
    await redis_client.acl_setuser("eve", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-evalsha"])
    try:
        async with PromptQueue.connect(settings=settings_for(redis_url.replace("//", "//eve:x@"))) as queue:
            with pytest.raises(QueueUnavailable, match="no permissions"):
                await queue.enqueue("Hello")
    finally:
        await redis_client.acl_deluser("eve")


async def test_a_redis_without_memory_is_full(queue: PromptQueue, redis_client: Redis) -> None:
    """Out of memory is QueueFull, writes nothing, hides no job that is there, and passes."""
    job = await queue.enqueue("Hello", id="job")
    keys_before = await redis_client.dbsize()
    await redis_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(QueueFull, match="out of memory"):
            await queue.enqueue("Hello again")
        assert await redis_client.dbsize() == keys_before
        assert await queue.status(job.id) is JobStatus.QUEUED
        assert (await queue.enqueue("Hello", id="job")).created is False
    finally:
        await redis_client.config_set("maxmemory", 0)
    assert (await queue.enqueue("Hello again")).created
    await Hand(redis_client).answer_all()


@pytest.mark.parametrize(
    "outage",
    [
        redis.exceptions.ConnectionError("gone"),
        redis.exceptions.TimeoutError("slow"),
        redis.exceptions.BusyLoadingError("loading"),
        redis.exceptions.ReadOnlyError("a replica"),
        ConnectionResetError("reset"),
        TimeoutError("too few replicas"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_outages_are_tried_again(outage: Exception) -> None:
    """What passes by itself is tried again until it is answered."""
    said = [outage, outage, outage]

    async def call() -> str:
        if said:
            raise said.pop()
        return "answer"

    assert await try_until(1, call, "here") == "answer"


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (redis.exceptions.ResponseError("ERR no"), QueueUnavailable),
        (redis.exceptions.ResponseError("Error running script: -OOM command not allowed"), QueueFull),  # Redis 6
        (redis.exceptions.OutOfMemoryError("command not allowed"), QueueFull),
        (redis.exceptions.NoPermissionError("no permissions"), QueueUnavailable),
        (redis.exceptions.DataError("no"), QueueUnavailable),
        (redis.exceptions.AuthenticationError("no"), QueueUnavailable),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_refusals_are_final(refusal: Exception, kind: type[PromptqError]) -> None:
    """What will not pass by itself is raised at once, as one of ours."""
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        raise refusal

    with pytest.raises(kind):
        await try_until(1, call, "here")
    assert calls == 1


async def test_a_bug_is_not_an_outage() -> None:
    """Errors that are not Redis' pass through."""

    async def call() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        await try_until(1, call, "here")


async def test_the_callers_own_timeout_is_the_callers() -> None:
    """A caller's `asyncio.timeout` and cancel pass through as they are."""
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.05):
            await try_until(5, asyncio.Event().wait, "here")
    assert not isinstance(caught.value, PromptqError)


async def test_a_swallowed_cancel_is_raised() -> None:
    """Python 3.11's `wait_for` inside redis-py may lose a cancel and return; the caller is cancelled all the same."""
    calling = asyncio.Event()

    async def swallow() -> str:
        calling.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(5)
        return "answer"

    task = asyncio.create_task(try_until(5, swallow, "here"))
    await calling.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_calls_cancelled_in_a_storm_cost_no_connection(queue: PromptQueue, redis_client: Redis) -> None:
    """A thousand calls cancelled at every possible step: every one ends as cancelled, and the pool is whole."""
    for steps in range(10):
        calls = [asyncio.create_task(queue.stats()) for _ in range(100)]
        for _ in range(3 * steps):
            await asyncio.sleep(0)
        unfinished = [call for call in calls if not call.done()]
        for call in unfinished:
            call.cancel()
        await asyncio.wait(calls)
        assert all(call.cancelled() for call in unfinished)
    with within_the_timeout():
        await asyncio.gather(*(queue.stats() for _ in range(100)))
