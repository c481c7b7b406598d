"""XaiProvider's account: who it is, whether it works, and how one key takes over from another."""

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from promptq.producer.errors import ErrorCode
from promptq.producer.models import PromptJob
from promptq.worker.providers import api_key
from promptq.worker.providers import xai as xai_module
from promptq.worker.providers.base import Answer, Provider, ProviderError
from promptq.worker.providers.echo import EchoProvider
from promptq.worker.providers.xai import XaiProvider
from promptq.worker.settings import Settings
from promptq.worker.simulator.process import RunningSimulator
from proxy import Proxy
from waiting import wait_until

pytest_plugins = ["simulator_fixture"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

OLD = "xai-Old8tR2mWv5Lk0Ns7Yb3HcJd6"
NEW = "xai-NewQ1xCz9Fp4Gh6Ty2Ue8Wv0a"
NOBODY = "127.0.0.1:1"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the old key, which is looked at for each call."""
    monkeypatch.setattr(api_key, "LOOK_EVERY", 0.0)
    path = tmp_path / "key"
    path.write_text(f"{OLD}\n")
    return path


@asynccontextmanager
async def open_provider(host: str, path: Path) -> AsyncIterator[XaiProvider]:
    """A provider whose key is in that file, closed at the end."""
    settings = {"xai_host": host, "xai_insecure": True, "xai_api_key_file": path}
    provider = XaiProvider.from_settings(Settings.model_validate(settings))
    try:
        yield provider
    finally:
        await provider.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def xai(sim: RunningSimulator, path: Path) -> AsyncIterator[XaiProvider]:
    """A provider that calls the simulator with the key of the file."""
    async with open_provider(sim.host, path) as provider:
        yield provider


def account_of(key: str) -> str:
    """What every process calls the account of this key."""
    return f"xai:{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def call(xai: XaiProvider, prompt: str = "Why is the sky blue?") -> "asyncio.Task[Answer]":
    """A call that goes on beside the test."""
    job = PromptJob.model_validate({"prompt": prompt, "model": "grok-4"})
    return asyncio.create_task(xai.sample(job, 60))


async def refused(task: "asyncio.Task[Answer]") -> ProviderError:
    """The error that a call brings."""
    with pytest.raises(ProviderError) as caught:
        await task
    return caught.value


async def under_way(sim: RunningSimulator, xai: XaiProvider, **knobs: Any) -> "asyncio.Task[Answer]":
    """A call that takes half a second, and what these knobs say; later ones are answered at once."""
    await sim.control.set(latency=0.5, **knobs)
    task = call(xai, "slow")
    await sim.control.until(lambda totals: totals.in_flight == 1)
    await sim.control.set(latency=0.0, faults=[])
    return task


async def keys_of_calls(sim: RunningSimulator) -> list[str]:
    """The key of each call, as the simulator knows it, in their order."""
    names = {hashlib.sha256(key.encode()).hexdigest()[:12]: key for key in (OLD, NEW)}
    return [names[entry.key] for entry in await sim.control.journal()]


def rewrite(path: Path, key: str = NEW) -> None:
    """The file itself is written."""
    path.write_text(key)


def rename(path: Path) -> None:
    """Another file is put in its place."""
    (path.parent / "next").write_text(NEW)
    (path.parent / "next").rename(path)


def swap_symlink(path: Path) -> None:
    """A link to another file is."""
    (path.parent / "new").write_text(NEW)
    (path.parent / "link").symlink_to("new")
    (path.parent / "link").rename(path)


# Who


async def test_the_account_is_the_same_in_every_process_and_tells_no_key(path: Path) -> None:
    """It depends on the key alone: white space, the endpoint and the process do not count."""
    one = XaiProvider(api_key=OLD, host="us-east-1.api.x.ai")
    other = XaiProvider(api_key=f" {OLD}\n", host="api.x.ai")
    assert one.account == other.account == account_of(OLD)
    assert XaiProvider(api_key=NEW, host="api.x.ai").account == account_of(NEW) != account_of(OLD)
    assert not any(OLD[start : start + 6] in one.account for start in range(len(OLD) - 5))
    assert EchoProvider().account == "echo"


# Whether it works


async def test_a_probe_of_a_good_key_costs_nothing(sim: RunningSimulator, xai: XaiProvider) -> None:
    """It does not raise, and no generation was asked for."""
    provider: Provider = xai
    await provider.probe()
    await EchoProvider().probe()
    assert (await sim.control.totals()).calls == 0


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("blocked", "the key is blocked"),
        ("disabled", "the key is disabled"),
        ("team_blocked", "the key is of a blocked team"),
        ("incorrect", "INVALID_ARGUMENT: Incorrect API key provided"),
    ],
)
async def test_a_probe_of_a_key_that_is_refused(sim: RunningSimulator, xai: XaiProvider, state: str, says: str) -> None:
    """`bad_key` with what is wrong, until it works again."""
    await sim.control.set(key=state)
    for _ in range(2):
        with pytest.raises(ProviderError) as caught:
            await xai.probe()
        assert (caught.value.code, caught.value.is_stale) == (ErrorCode.BAD_KEY, False)
        assert caught.value.message.startswith(says)
    await sim.control.set(key="good")
    await xai.probe()
    assert (await sim.control.totals()).calls == 0


async def test_a_probe_that_reaches_nobody(path: Path) -> None:
    """What error_of makes of it: the pause goes on."""
    async with open_provider(NOBODY, path) as xai:
        with pytest.raises(ProviderError) as caught:
            await xai.probe()
    assert caught.value.code is ErrorCode.UNAVAILABLE


async def test_a_probe_does_not_hang(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody takes the connection and says nothing, it ends in time, and its call with it."""
    monkeypatch.setattr(xai_module, "PROBE_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with open_provider(f"127.0.0.1:{silent.getsockname()[1]}", path) as xai:
            with pytest.raises(ProviderError) as caught:
                await xai.probe()
        assert caught.value.code is ErrorCode.TIMEOUT
        assert not any(seat.in_flight for seat in xai._accounts.present().pool._seats)


async def test_a_probe_reads_the_key_anew(
    sim: RunningSimulator, xai: XaiProvider, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short ago the file was looked at: the probe is of the key that is in it now."""
    assert xai.account == account_of(OLD)
    monkeypatch.setattr(api_key, "LOOK_EVERY", 3600.0)
    rewrite(path)
    assert xai.account == account_of(OLD)
    await xai.probe()
    assert xai.account == account_of(NEW)


# How one takes over from another


@pytest.mark.parametrize("change", [rewrite, rename, swap_symlink])
async def test_a_new_key_is_used_and_calls_under_way_end_with_the_old_one(
    sim: RunningSimulator, xai: XaiProvider, path: Path, change: Callable[[Path], None]
) -> None:
    """The account changes with the file, and each call keeps the key that it began with, to its answer."""
    assert xai.account == account_of(OLD)
    slow = await under_way(sim, xai)
    with capture_logs() as logged:
        change(path)
        assert xai.account == account_of(NEW)
    assert logged == [
        {"event": "key.replaced", "account": account_of(NEW), "was": account_of(OLD), "log_level": "info"}
    ]
    assert (await call(xai)).content
    assert not slow.done()
    assert (await slow).content
    assert await keys_of_calls(sim) == [OLD, NEW]
    assert (await sim.control.totals()).ended == {"OK": 2}


async def test_a_call_alone_finds_the_new_key(sim: RunningSimulator, xai: XaiProvider, path: Path) -> None:
    """Nobody needs to ask for the account first."""
    await call(xai)
    rewrite(path)
    await call(xai)
    assert await keys_of_calls(sim) == [OLD, NEW]


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("")])
async def test_without_a_readable_key_the_old_one_stays(
    sim: RunningSimulator, xai: XaiProvider, path: Path, spoil: Callable[[Path], object]
) -> None:
    """A file that is gone or half-written for a moment stops no call."""
    await call(xai)
    spoil(path)
    with capture_logs() as logged:
        await asyncio.gather(call(xai), call(xai))
        await xai.probe()
        assert xai.account == account_of(OLD)
    assert [entry["event"] for entry in logged] == ["key.unreadable"]
    rename(path)
    await call(xai)
    assert await keys_of_calls(sim) == [OLD, OLD, OLD, NEW]


class Counter(Proxy):
    """Passes bytes on, and counts the connections that are open."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.open += 1
        try:
            await super().serve(reader, writer)
        finally:
            self.open -= 1


@asynccontextmanager
async def counted(host: str) -> AsyncIterator[tuple[str, Counter]]:
    """An address that leads to this host, and the count of the connections over it."""
    counter = Counter(int(host.rpartition(":")[2]))
    server = await asyncio.start_server(counter.serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", counter
    finally:
        server.close()
        await counter.close()


async def test_connections_of_an_old_key_close_after_its_last_call(sim: RunningSimulator, path: Path) -> None:
    """Not before, and also if no call was under way; with the provider the rest is closed."""
    async with counted(sim.host) as (host, counter):
        async with open_provider(host, path) as xai:
            slow = await under_way(sim, xai)
            rewrite(path)
            await call(xai)
            assert (counter.open, slow.done()) == (2, False)
            await slow
            await wait_until(lambda: counter.open == 1, message="the old key's connection is closed")
            rewrite(path, OLD)
            assert xai.account == account_of(OLD)
            await wait_until(lambda: counter.open == 0, message="and the unused one of the key after it")
            await call(xai)
            assert counter.open == 1
        await wait_until(lambda: counter.open == 0, message="all are closed")


async def test_keys_that_are_done_with_are_let_go(sim: RunningSimulator, xai: XaiProvider, path: Path) -> None:
    """Only the one before the present is kept, to be hidden in messages, however many there were."""
    for number in range(5):
        rewrite(path, f"{NEW}{number}")
        await call(xai)
        await asyncio.sleep(0)  # the connections of the last one are closed
    assert xai._accounts.keys() == [f"{NEW}4", f"{NEW}3"]


async def test_closing_ends_calls_of_an_old_key_too(sim: RunningSimulator, path: Path) -> None:
    """After `aclose` nothing of the provider is left at the server."""
    await sim.control.set(faults=[{"kind": "hang"}])
    async with counted(sim.host) as (host, counter):
        async with open_provider(host, path) as xai:
            hanging = call(xai)
            await sim.control.until(lambda totals: totals.in_flight == 1)
            rewrite(path)
            assert xai.account == account_of(NEW)
        with contextlib.suppress(ProviderError, asyncio.CancelledError):
            await hanging
        await sim.control.until(lambda totals: totals.ended == {"CANCELLED": 1})
        del hanging
        await wait_until(lambda: counter.open == 0, message="all are closed")


# A refusal of an old key


def refusal(details: str) -> dict[str, Any]:
    """A fault: the call runs its time, and is then refused."""
    return {"kind": "status", "code": "PERMISSION_DENIED", "details": details, "after_start": True}


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("This API key is disabled.", ErrorCode.BAD_KEY),
        ("Your team has used all available credits.", ErrorCode.NO_CREDIT),
    ],
)
async def test_a_refusal_of_a_replaced_key_is_stale(
    sim: RunningSimulator, xai: XaiProvider, path: Path, said: str, code: ErrorCode
) -> None:
    """It says so, since it says nothing of the present account."""
    slow = await under_way(sim, xai, faults=[refusal(said)])
    rewrite(path)
    assert xai.account == account_of(NEW)
    error = await refused(slow)
    assert (error.code, error.is_stale) == (code, True)


async def test_a_refusal_looks_whether_the_key_is_still_the_same(
    sim: RunningSimulator, xai: XaiProvider, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short ago the file was looked at: a key is often switched off right after it was replaced."""
    slow = await under_way(sim, xai, faults=[refusal("This API key is disabled.")])
    monkeypatch.setattr(api_key, "LOOK_EVERY", 3600.0)
    rewrite(path)
    assert xai.account == account_of(OLD)
    assert (await refused(slow)).is_stale
    assert xai.account == account_of(NEW)


@pytest.mark.parametrize("back_and_forth", [False, True])
async def test_a_refusal_of_the_present_key_is_not_stale(
    sim: RunningSimulator, xai: XaiProvider, path: Path, back_and_forth: bool
) -> None:
    """Nor if another one was there in between."""
    slow = await under_way(sim, xai, faults=[refusal("This API key is disabled.")])
    if back_and_forth:
        rewrite(path)
        assert xai.account == account_of(NEW)
        rewrite(path, OLD)
        assert xai.account == account_of(OLD)
    error = await refused(slow)
    assert (error.code, error.is_stale) == (ErrorCode.BAD_KEY, False)


async def test_what_has_nothing_to_do_with_the_key_is_never_stale(
    sim: RunningSimulator, xai: XaiProvider, path: Path
) -> None:
    """A moderated prompt, for one, is moderated under any key."""
    slow = await under_way(sim, xai, faults=[refusal("Content violates usage guidelines.")])
    rewrite(path)
    error = await refused(slow)
    assert (error.code, error.is_stale) == (ErrorCode.MODERATED, False)


async def test_a_stale_probe_is_told(sim: RunningSimulator, xai: XaiProvider, path: Path) -> None:
    """The key is replaced while xAI is asked about it: what it says is of the old one."""
    await sim.control.set(key="blocked")
    probe = asyncio.create_task(xai.probe())
    await asyncio.sleep(0)  # it has read the key, and asks
    rewrite(path)
    with pytest.raises(ProviderError) as caught:
        await probe
    assert (caught.value.code, caught.value.is_stale) == (ErrorCode.BAD_KEY, True)


# Secrets


async def test_neither_key_is_told(sim: RunningSimulator, xai: XaiProvider, path: Path) -> None:
    """An error that quotes the old key and the new one, the log of the change, and every repr are without them."""
    said = f"This API key is disabled: {OLD.removeprefix('xai-')}, {NEW.removeprefix('xai-')}"
    with capture_logs() as logged:
        slow = await under_way(sim, xai, faults=[refusal(said)])
        rewrite(path)
        assert xai.account == account_of(NEW)
        old = await refused(slow)
        await sim.control.set(faults=[refusal(said)])
        new = await refused(call(xai))
    for error in (old, new):
        assert error.message == "PERMISSION_DENIED: This API key is disabled: ***, ***"
    accounts = xai._accounts
    shown = [old, vars(old), new, xai, vars(xai), vars(accounts), *(vars(each.pool) for each in accounts._replaced)]
    for key in (OLD, NEW):
        assert key.removeprefix("xai-") not in f"{logged} {shown}"
