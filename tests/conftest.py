"""Fixtures for every test: a real Redis, a fake one, and the check that nothing is left behind."""

import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, cast

import fakeredis
import pytest
import redis
import redis.asyncio
from hypothesis import settings

from leftovers import assert_no_leftovers
from promptq.worker.embedded import EmbeddedRedisError, PrivateRedis

# A busy machine is no failure.
settings.register_profile("promptq", deadline=None)
settings.load_profile("promptq")

# A shell has what it runs in the background ignore Ctrl-C; the commands that tests interrupt would ignore it, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Opens a synchronous client to each server that the test has used.
_SERVERS = pytest.StashKey[list[Callable[[], Any]]]()
_PASSED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[PrivateRedis]:
    """The real Redis of this run. Without one the run fails; nothing is ever skipped."""
    server = PrivateRedis()
    try:
        server.start()
    except EmbeddedRedisError as error:
        pytest.exit(f"the tests need a real Redis server: {error}", returncode=1)
    yield server
    server.stop()


@pytest.fixture
def redis_url(request: pytest.FixtureRequest, redis_server: PrivateRedis) -> str:
    """The address of a clean database on the real Redis."""
    url = redis_server.url
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        client.flushall()
    _remember(request, lambda: redis.Redis.from_url(url))
    return url


@pytest.fixture
async def redis_client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of that database; answers are bytes."""
    client = redis.asyncio.Redis.from_url(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def fake_server(request: pytest.FixtureRequest) -> fakeredis.FakeServer:
    """A fake Redis of the test's own, for as many fake clients as it wants."""
    server = fakeredis.FakeServer()
    _remember(request, lambda: fakeredis.FakeRedis(server=server))
    return server


@pytest.fixture
async def fake_redis(fake_server: fakeredis.FakeServer) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of that fake Redis, which runs our Lua; answers are bytes."""
    client = fakeredis.FakeAsyncRedis(server=fake_server)
    yield client
    await client.aclose()


@pytest.fixture(params=["fake", "real"])
def any_redis(request: pytest.FixtureRequest) -> redis.asyncio.Redis:
    """A clean Redis; the test runs on the fake one and again on the real one."""
    name = {"fake": "fake_redis", "real": "redis_client"}[request.param]
    return cast(redis.asyncio.Redis, request.getfixturevalue(name))


@pytest.fixture(autouse=True)
def no_leftovers(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test that passed: no key without TTL, unless the test is marked `leaves_keys`."""
    node = request.node
    node.stash[_SERVERS] = []
    yield
    if not node.stash.get(_PASSED, False) or node.get_closest_marker("leaves_keys"):
        return
    for connect in node.stash[_SERVERS]:
        with contextlib.closing(connect()) as client:
            assert_no_leftovers(client)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`leaves_keys` has to say why."""
    for item in items:
        marker = item.get_closest_marker("leaves_keys")
        if marker is not None and not (marker.args and isinstance(marker.args[0], str)):
            raise pytest.UsageError(f"{item.nodeid}: leaves_keys needs its reason")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let `no_leftovers` know how the test went."""
    report = yield
    if report.when == "call":
        item.stash[_PASSED] = report.passed
    return report


def _remember(request: pytest.FixtureRequest, connect: Callable[[], Any]) -> None:
    request.node.stash[_SERVERS].append(connect)
