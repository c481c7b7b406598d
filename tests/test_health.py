import asyncio
import contextlib
import http.client
import threading
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest
import redis.asyncio

from contract import Contract, entry
from promptq.producer import PromptQueue, keys, scripts
from promptq.producer.reading import read_clock
from promptq.worker.embedded import PrivateRedis
from promptq.worker.engine import PromptWorker
from promptq.worker.health import Condition, serving_health
from promptq.worker.pauses import BY_AN_OPERATOR, Pause, read_pauses, standstill
from promptq.worker.providers.echo import EchoProvider
from promptq.worker.settings import Settings
from waiting import wait_until
from workers import ScriptedProvider, running_worker


class Worker:
    """What the pages ask."""

    condition = Condition.CLAIMING
    models: Mapping[str, str] = MappingProxyType({"grok-4": "echo"})
    account = "echo"


@pytest.fixture
def worker() -> Worker:
    """A worker that would take a job."""
    return Worker()


@pytest.fixture
def settings(redis_url: str) -> Settings:
    """Those of a worker whose loop may stand still for half a second."""
    return Settings(redis_url=redis_url, lease=0.5, redis_timeout=0.1)  # type: ignore[arg-type] # a str is coerced


@pytest.fixture
async def port(worker: Worker, settings: Settings) -> AsyncIterator[int]:
    """Where it answers."""
    async with serving_health(worker, settings, "127.0.0.1", 0) as port:
        yield port


async def say(port: int, request: bytes) -> str:
    """What is answered to these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    if len(request) < 1000:
        writer.write_eof()
    try:
        answer = await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        answer = b""  # hung up on before it had said all
    writer.close()
    with contextlib.suppress(ConnectionResetError):
        await writer.wait_closed()
    return answer.decode()


async def ask(port: int, page: str) -> tuple[int, str]:
    """Status and text of a page."""
    return await asyncio.to_thread(ask_at_once, port, page)


def ask_at_once(port: int, page: str) -> tuple[int, str]:
    """As `ask`, without an event loop; with the patience of an orchestrator's probe."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    with contextlib.closing(connection):
        connection.request("GET", page)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


async def test_a_worker_that_claims_is_ready(port: int) -> None:
    """Both pages say 200, with a length, so that any probe is content."""
    for path, body in (("/livez", "alive"), ("/readyz", "ready")):
        answer = await say(port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, said = answer.partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 200 OK\r\n")
        assert f"Content-Length: {len(body)}\r\n" in head
        assert said == body


@pytest.mark.parametrize("condition", [Condition.STARTING, Condition.DRAINING, Condition.AWAY, Condition.SETTLING])
async def test_a_worker_that_does_not_claim_is_alive_and_not_ready(
    condition: Condition, worker: Worker, port: int
) -> None:
    """Draining, or without Redis: no new work, the page says why, and it is no reason to kill it."""
    worker.condition = condition

    async def is_told() -> bool:
        return await ask(port, "/readyz") == (503, str(condition))

    await wait_until(is_told)
    assert await ask(port, "/livez") == (200, "alive")


async def test_a_broken_worker_is_not_alive(worker: Worker, port: int) -> None:
    """One whose helpers have ended will not recover: both pages say so."""
    worker.condition = Condition.BROKEN

    async def is_told() -> bool:
        return await ask(port, "/livez") == (503, str(Condition.BROKEN))

    await wait_until(is_told)
    assert await ask(port, "/readyz") == (503, str(Condition.BROKEN))


async def test_a_loop_that_stands_still_is_not_alive(port: int) -> None:
    """Blocked for longer than a lease: the pages answer nevertheless, and say so; afterwards all is well again."""
    refused: list[str] = []

    def watch() -> None:
        while not refused:
            status, text = ask_at_once(port, "/livez")
            if status == 503:
                refused.extend([text, ask_at_once(port, "/readyz")[1]])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    thread.join(10)  # this blocks the loop until the page has noticed
    assert len(refused) == 2
    assert all("the event loop has stood still for " in text for text in refused)

    async def is_alive() -> bool:
        return (await ask(port, "/livez"))[0] == (await ask(port, "/readyz"))[0] == 200

    await wait_until(is_alive)


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1\r\n\r\n", b"\r\n", b"", b"\x00\xff\r\n", b"GET\r\n"])
async def test_whatever_else_is_asked_gets_a_404(request_line: bytes, port: int) -> None:
    """Nonsense ends nothing."""
    assert (await say(port, request_line)).startswith("HTTP/1.1 404 ")
    assert (await say(port, b"GET /livez HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 200 ")


async def test_an_endless_line_is_hung_up_on(port: int) -> None:
    """More than a line's worth of bytes without an end: no answer, and the next one is answered."""
    assert await say(port, b"x" * 200_000) == ""
    assert (await say(port, b"GET /livez HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 200 ")


async def test_it_ends_with_a_client_that_says_nothing(worker: Worker, settings: Settings) -> None:
    """An open connection does not hold up the end of a worker, and nothing answers afterwards."""
    async with serving_health(worker, settings, "127.0.0.1", 0) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await ask(port, "/livez"))[0] == 200
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 2
    assert "promptq health" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(OSError):  # noqa: PT011 - whatever the system says
        await asyncio.open_connection("127.0.0.1", port)
    writer.close()


async def test_a_taken_port_is_refused(worker: Worker, settings: Settings, port: int) -> None:
    """The error comes to whoever starts the pages, not to their thread."""
    with pytest.raises(OSError, match="address already in use"):
        async with serving_health(worker, settings, "127.0.0.1", port):
            pass


async def test_redis_is_read_when_asked_and_once_a_second(port: int, redis_client: redis.asyncio.Redis) -> None:
    """The pulse and /livez cost Redis nothing; twenty quick questions cost it one look."""

    async def looks() -> int:
        stats = await redis_client.info("commandstats")
        return int(stats.get("cmdstat_hmget", {}).get("calls", 0))

    await redis_client.config_resetstat()
    assert await ask(port, "/livez") == (200, "alive")
    assert await looks() == 0
    began = asyncio.get_running_loop().time()
    for answer in await asyncio.gather(*(ask(port, "/readyz") for _ in range(20))):
        assert answer == (200, "ready")
    seconds = asyncio.get_running_loop().time() - began
    assert 1 <= await looks() <= 1 + seconds


async def test_a_redis_that_does_not_answer_is_told_within_the_probes_patience(worker: Worker) -> None:
    """Asked while Redis is frozen or gone, before the worker has noticed: 503 within a second, which says where."""
    with PrivateRedis() as server:
        settings = Settings(redis_url=server.url)  # type: ignore[arg-type] # a str is coerced
        async with serving_health(worker, settings, "127.0.0.1", 0) as port:
            assert (await ask(port, "/readyz"))[0] == 200
            server.kill()

            async def is_told() -> bool:
                status, text = await ask(port, "/readyz")
                return status == 503 and text.startswith(f"Redis is away: no Redis at {server.url}")

            await wait_until(is_told)
            server.restart()

            async def is_ready() -> bool:
                return await ask(port, "/readyz") == (200, "ready")

            await wait_until(is_ready)


LATER = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("pauses", "stops"),
    [
        ({}, None),
        ({"xai:1": "bad_key"}, "xai:1"),
        ({"xai:1": "no_credit"}, "xai:1"),
        ({"xai:2": "no_credit"}, None),
        ({"a": "rate_limited", "xai:1": "bad_key"}, "xai:1"),
        ({"a": "rate_limited"}, None),
        ({"a": "rate_limited", "b": "rate_limited"}, None),
        ({"a": "unavailable"}, None),
        ({"a": "unavailable", "b": "unavailable"}, "a"),
        ({"a": "unavailable", "b": "rate_limited"}, None),
        ({"a": BY_AN_OPERATOR, "b": BY_AN_OPERATOR}, None),
    ],
)
def test_which_pauses_make_a_worker_not_ready(pauses: dict[str, str], stops: str | None) -> None:
    """A pause of the account counts for one of its two models, an unreachable provider for both.

    A limit never does, nor what an operator wanted.
    """
    told = [Pause(what, reason, LATER, what.startswith("xai")) for what, reason in pauses.items()]
    found = standstill(told, dict.fromkeys(("a", "b"), "xai:1"), "xai:1")
    assert (found.what if found else None) == stops


@pytest.mark.parametrize(
    ("pauses", "models", "stops"),
    [
        ({"xai:1": "bad_key"}, {"a": "xai:1", "b": "xai:2"}, None),
        ({"xai:1": "bad_key"}, {"b": "xai:2"}, None),
        ({"xai:1": "bad_key"}, {"a": "xai:1"}, "xai:1"),
        ({"xai:2": "bad_key"}, {"b": "xai:2"}, None),
        ({"xai:1": "bad_key", "xai:2": "no_credit"}, {"a": "xai:1", "b": "xai:2"}, "xai:1"),
        ({"a": "unavailable", "xai:2": "bad_key"}, {"a": "xai:1", "b": "xai:2"}, "a"),
        ({"a": "unavailable"}, {"a": "xai:1", "b": "xai:2"}, None),
    ],
)
def test_a_worker_of_several_accounts(pauses: dict[str, str], models: dict[str, str], stops: str | None) -> None:
    """It is ready as long as one of the accounts in use works: the default one, and those of the models with jobs."""
    told = [Pause(what, reason, LATER, what.startswith("xai")) for what, reason in pauses.items()]
    found = standstill(told, models, "xai:1")
    assert (found.what if found else None) == stops


async def test_an_account_that_may_be_tried_is_no_pause(redis_client: redis.asyncio.Redis) -> None:
    """Without jobs nothing is there to try it with, and a new worker would never be ready."""
    contract = Contract(redis_client)
    await contract.accept(entry("a"))
    run = await contract.take_one(account="xai:1")
    await contract.settle(run, "throttled", reason="no_credit", account="xai:1")
    await contract.cancel("a")
    assert [pause.what for pause in await read_pauses(redis_client, ["grok-4"])] == ["xai:1"]
    assert await scripts.probed(redis_client, "xai:1", "works") == "open"
    assert await read_pauses(redis_client, ["grok-4"]) == ()


@pytest.mark.parametrize("field", ["until", "probe"])
@pytest.mark.parametrize(("ahead", "is_paused"), [(20_000, True), (3_600_000, False)])
async def test_a_clock_that_was_set_back_pauses_nothing(
    field: str, ahead: int, is_paused: bool, redis_client: Any
) -> None:
    """No rule pauses for an hour: a claim does not heed it, so it makes no worker unready."""
    ends = await read_clock(redis_client) + ahead
    await redis_client.hset(keys.meter("grok-4"), mapping={field: ends, "reason": "unavailable"})
    await redis_client.expire(keys.meter("grok-4"), 60)
    assert bool(await read_pauses(redis_client, ["grok-4"])) is is_paused


def test_a_worker_without_jobs_is_ready() -> None:
    """No model, no pause: nothing stands still."""
    assert standstill([], {}, "xai:1") is None


@pytest.mark.parametrize(("code", "is_ready"), [("bad_key", False), ("no_credit", False), ("rate_limited", True)])
async def test_readiness_follows_the_pauses_of_the_fleet(redis_url: str, code: str, is_ready: bool) -> None:
    """A job that the provider refuses pauses its model for all; whether that takes workers out depends on why."""
    async with (
        running_worker(redis_url, ScriptedProvider()) as worker,
        serving_health(worker, worker._settings, "127.0.0.1", 0) as port,
        PromptQueue.connect(redis_url) as queue,
    ):
        job = await queue.enqueue(f"fail {code}")

        async def is_paused() -> bool:
            stats = await queue.stats()
            return bool(stats.paused_accounts) or any(lane.pause_reason for lane in stats.lanes)

        async def is_told() -> bool:
            status, text = await ask(port, "/readyz")
            return status == 503 and text.startswith(f"paused: {code} until 20") and text.endswith("Z (echo)")

        await wait_until(is_paused)
        if is_ready:
            assert await ask(port, "/readyz") == (200, "ready")
        else:
            await wait_until(is_told)
        assert await ask(port, "/livez") == (200, "alive")
        await queue.cancel(job.id)


async def test_how_a_worker_stands(redis_url: str) -> None:
    """Starting until its hook is through, then claiming; draining; and broken when a helper has ended."""
    settings = Settings(redis_url=redis_url, provider="echo")  # type: ignore[arg-type] # a str is coerced
    gate = asyncio.Event()

    async def wait_at_the_gate(ctx: dict[Any, Any]) -> None:
        await gate.wait()

    worker = PromptWorker(settings, EchoProvider(), on_startup=wait_at_the_gate)

    def stands() -> str:
        return worker.condition

    main = asyncio.create_task(worker.main())
    assert stands() == Condition.STARTING
    gate.set()
    await wait_until(lambda: stands() == Condition.CLAIMING)
    worker.leases.broke(ConnectionError("gone"))
    assert stands() == Condition.AWAY
    worker.leases.mended()
    assert stands() == Condition.SETTLING
    worker.drain()
    assert stands() == Condition.DRAINING
    await main
    worker._helpers[1].cancel()
    await wait_until(lambda: stands() == Condition.BROKEN)
    await worker.close()
