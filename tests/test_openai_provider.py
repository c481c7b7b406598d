"""OpenAIProvider: OpenAI's own client over HTTP, against the simulator in a process of its own."""

import asyncio
import contextlib
import hashlib
import logging
import socket
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from promptq.producer.errors import ErrorCode
from promptq.producer.messages import Message
from promptq.producer.models import PromptJob
from promptq.worker.providers import api_key, openai_stream
from promptq.worker.providers import openai as openai_module
from promptq.worker.providers.api_key import ApiKeyError
from promptq.worker.providers.base import LONGEST_JOB_TIMEOUT, Answer, Delta, Hear, ProviderError
from promptq.worker.providers.openai import OpenAIProvider
from promptq.worker.providers.routes import build_provider
from promptq.worker.settings import Settings
from promptq.worker.simulator.process import RunningSimulator
from waiting import wait_until

pytest_plugins = ["simulator_fixture"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

OLD = "xai-Old8tR2mWv5Lk0Ns7Yb3HcJd6"
NEW = "xai-NewQ1xCz9Fp4Gh6Ty2Ue8Wv0a"
NOWHERE = "http://127.0.0.1:1/v1"


@pytest_asyncio.fixture(loop_scope="module")
async def rest(sim: RunningSimulator) -> AsyncIterator[OpenAIProvider]:
    """A provider that calls the simulator."""
    async with open_provider(sim.rest_url) as provider:
        yield provider


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the old key, which is looked at for each call."""
    monkeypatch.setattr(api_key, "LOOK_EVERY", 0.0)
    path = tmp_path / "key"
    path.write_text(f"{OLD}\n")
    return path


@asynccontextmanager
async def open_provider(base_url: str, **options: Any) -> AsyncIterator[OpenAIProvider]:
    """A provider, closed at the end."""
    provider = OpenAIProvider(**{"api_key": OLD, "base_url": base_url} | options)
    try:
        yield provider
    finally:
        await provider.aclose()


@asynccontextmanager
async def from_settings(**settings: Any) -> AsyncIterator[OpenAIProvider]:
    """The provider that a worker with these settings would have."""
    provider = build_provider(Settings.model_validate({"provider": "openai", **settings}))
    assert isinstance(provider, OpenAIProvider)
    try:
        yield provider
    finally:
        await provider.aclose()


def job(prompt: str = "Why is the sky blue?", **fields: Any) -> PromptJob:
    """A job as the worker sees it: with a model."""
    return PromptJob.model_validate({"prompt": prompt, "model": "grok-4"} | fields)


def call(rest: OpenAIProvider, prompt: str = "Why is the sky blue?") -> "asyncio.Task[Answer]":
    """A call that goes on beside the test."""
    return asyncio.create_task(rest.sample(job(prompt), 60))


def deaf(delta: Delta) -> None:
    """Has the answer streamed."""


async def refused(rest: OpenAIProvider, prompt: str = "Why is the sky blue?") -> ProviderError:
    """The error that a call brings."""
    with pytest.raises(ProviderError) as caught:
        await rest.sample(job(prompt), 60)
    return caught.value


def account_of(place: str, key: str) -> str:
    """What every process calls the account of this key at this host."""
    return f"openai:{hashlib.sha256(f'{place} {key}'.encode()).hexdigest()[:8]}"


def rewrite(path: Path) -> None:
    """The key is replaced."""
    path.write_text(NEW)


def everything_of(error: BaseException) -> str:
    """All that a log may show of an exception."""
    return "".join([*traceback.format_exception(error), repr(error), str(error), repr(vars(error))])


# One call, never more, and never longer than the caller wants


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "drop_call"},
        *({"kind": "status", "code": code} for code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED")),
        {"kind": "status", "code": "DEADLINE_EXCEEDED", "trailers": {"x-should-retry": "true"}},
    ],
    ids=str,
)
async def test_a_failed_call_is_not_repeated(
    sim: RunningSimulator, rest: OpenAIProvider, fault: dict[str, Any]
) -> None:
    """One `sample` is one call, however it ends: the queue retries."""
    await sim.control.set(faults=[fault])
    await refused(rest)
    assert (await sim.control.totals()).calls == 1


async def test_the_callers_timeout_ends_the_call_at_the_server(sim: RunningSimulator, rest: OpenAIProvider) -> None:
    """When `asyncio.timeout` ends the wait, it is a TimeoutError here and CANCELLED there."""
    await sim.control.set(faults=[{"kind": "hang"}])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await rest.sample(job(), 0.3)
    totals = await sim.control.until(lambda totals: totals.in_flight == 0)
    assert totals.ended == {"CANCELLED": 1}


@pytest.mark.parametrize(("hear", "after_chunks"), [(None, 0), (deaf, 0), (deaf, 2)], ids=["whole", "start", "middle"])
async def test_cancelling_leaves_nothing_running_at_any_moment(
    sim: RunningSimulator, rest: OpenAIProvider, hear: Hear | None, after_chunks: int
) -> None:
    """A call that is cancelled after any number of turns of the event loop does not run on unseen."""
    await rest.sample(job("connect"), 60)
    await sim.control.set(faults=[{"kind": "hang", "after_chunks": after_chunks}])
    for turns in range(60):
        task = asyncio.create_task(rest.sample(job(f"turn {turns}"), 60, hear))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await sim.control.set(faults=[])
    await rest.sample(job("all before this have arrived"), 60)
    totals = await sim.control.until(lambda totals: totals.in_flight == 0)
    assert totals.ended.get("CANCELLED", 0) == totals.calls - 2


async def test_a_streamed_call_leaves_its_connection_to_the_next(sim: RunningSimulator, rest: OpenAIProvider) -> None:
    """It is read to its end: nobody pays for a handshake with each job."""
    for _ in range(3):
        await rest.sample(job(), 60, deaf)
    assert (await sim.control.totals()).connections == 1


@pytest.mark.parametrize("job_timeout", [1.0, 3600.0, 10 * LONGEST_JOB_TIMEOUT])
async def test_the_client_outlives_every_job(job_timeout: float) -> None:
    """The time given to a call is longer than the worker's timeout and than the longest a job may ask for."""
    async with open_provider(NOWHERE, job_timeout=job_timeout) as rest:
        client = rest._accounts.present().pool._client
    assert not isinstance(client.timeout, float | None)
    assert min(client.timeout.read or 0, client.timeout.write or 0) > max(job_timeout, LONGEST_JOB_TIMEOUT) + 60


async def test_as_many_calls_at_once_as_jobs(sim: RunningSimulator) -> None:
    """None waits inside the client, and one that is cancelled leaves its place to the next."""
    await sim.control.set(faults=[{"kind": "hang", "match": "endless"}])
    async with open_provider(sim.rest_url, max_jobs=150) as rest:
        endless = [call(rest, f"endless {number}") for number in range(150)]
        await sim.control.until(lambda totals: totals.in_flight == 150)
        await rest.probe()
        for each in endless:
            each.cancel()
        await asyncio.wait(endless)
        answers = await asyncio.gather(*(call(rest, f"prompt {number}") for number in range(150)))
    assert len({answer.response_id for answer in answers}) == 150
    totals = await sim.control.until(lambda totals: totals.in_flight == 0)
    assert totals.ended == {"CANCELLED": 150, "OK": 150}


async def test_a_request_that_cannot_be_built_is_the_jobs_fault(sim: RunningSimulator, rest: OpenAIProvider) -> None:
    """Text that is no Unicode, or what REST cannot say: invalid_request, without a call."""
    message = Message.model_construct(role="user", content="my secret \ud800")
    broken = PromptJob.model_construct(messages=(message,), model="grok-4")
    with pytest.raises(ProviderError, match="UnicodeEncodeError") as caught:
        await rest.sample(broken, 60)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert "secret" not in caught.value.message
    with pytest.raises(ProviderError, match="max_turns"):
        await rest.sample(job(max_turns=3), 60)
    assert (await sim.control.totals()).calls == 0


# Who pays


async def test_the_account_is_of_the_host_and_the_key() -> None:
    """White space, the path and the process do not count; nothing of the key is told."""
    one = OpenAIProvider(api_key=OLD, base_url="https://API.x.ai/v1")
    other = OpenAIProvider(api_key=f" {OLD}\n", base_url="https://api.x.ai/v1/")
    assert one.account == other.account == account_of("api.x.ai", OLD)
    elsewhere = OpenAIProvider(api_key=OLD, base_url="http://127.0.0.1:8000/v1")
    assert len({one.account, elsewhere.account, OpenAIProvider(api_key=NEW).account}) == 3


async def test_a_key_of_its_own_goes_before_xais(sim: RunningSimulator, path: Path) -> None:
    """And then the file of the other is not followed."""
    place = sim.rest_url.removeprefix("http://").removesuffix("/v1")
    async with from_settings(openai_base_url=sim.rest_url, xai_api_key_file=path) as rest:
        assert rest.account == account_of(place, OLD)
    settings = {"openai_base_url": sim.rest_url, "openai_api_key": "own", "xai_api_key_file": path}
    async with from_settings(**settings) as rest:
        assert rest.account == account_of(place, "own")
        rewrite(path)
        assert rest.account == account_of(place, "own")
        await call(rest)
    [entry] = await sim.control.journal()
    assert entry.key == hashlib.sha256(b"own").hexdigest()[:12]


async def test_a_missing_key_says_what_to_set() -> None:
    """One line, when the provider is made."""
    with pytest.raises(ApiKeyError, match=r"^no API key: set PROMPTQ_OPENAI_API_KEY, XAI_API_KEY or XAI_API_KEY_FILE$"):
        OpenAIProvider(api_key=" ")


async def test_a_new_key_is_used_and_calls_under_way_end_with_the_old_one(sim: RunningSimulator, path: Path) -> None:
    """A refusal of the old one is stale; its connections are closed after its last call."""
    refusal = {"kind": "status", "code": "PERMISSION_DENIED", "details": "This API key is disabled."}
    async with from_settings(openai_base_url=sim.rest_url, xai_api_key_file=path) as rest:
        old = rest._accounts.present()
        await sim.control.set(latency=0.5, faults=[refusal | {"after_start": True, "match": "slow"}])
        slow = call(rest, "slow")
        await sim.control.until(lambda totals: totals.in_flight == 1)
        await sim.control.set(latency=0.0)
        rewrite(path)
        assert (await call(rest)).content
        assert not old.is_closed
        with pytest.raises(ProviderError) as caught:
            await slow
        assert (caught.value.code, caught.value.is_stale) == (ErrorCode.BAD_KEY, True)
        await wait_until(lambda: old.is_closed, message="the old key's connections are closed")
        await sim.control.set(faults=[refusal])
        assert not (await refused(rest)).is_stale
    keys = [hashlib.sha256(key.encode()).hexdigest()[:12] for key in (OLD, NEW, NEW)]
    assert [entry.key for entry in await sim.control.journal()] == keys


# Whether it works


async def test_a_probe_reads_the_key_anew(sim: RunningSimulator, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of the key that is in the file now, and costs nothing."""
    async with from_settings(openai_base_url=sim.rest_url, xai_api_key_file=path) as rest:
        before = rest.account
        monkeypatch.setattr(api_key, "LOOK_EVERY", 3600.0)
        await sim.control.set(keys={OLD: "blocked"})
        with pytest.raises(ProviderError, match="bad_key"):
            await rest.probe()
        rewrite(path)
        await rest.probe()
        assert rest.account != before
    assert (await sim.control.totals()).calls == 0


async def test_a_probe_that_reaches_nobody() -> None:
    """The pause goes on."""
    async with open_provider(NOWHERE) as rest:
        with pytest.raises(ProviderError) as caught:
            await rest.probe()
    assert caught.value.code is ErrorCode.UNAVAILABLE


async def test_a_probe_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody takes the connection and says nothing, it ends in time."""
    monkeypatch.setattr(openai_module, "PROBE_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with open_provider(f"http://127.0.0.1:{silent.getsockname()[1]}/v1") as rest:
            with pytest.raises(ProviderError) as caught:
                await rest.probe()
    assert caught.value.code is ErrorCode.TIMEOUT


@asynccontextmanager
async def answering(status: str, body: bytes) -> AsyncIterator[str]:
    """The base URL of a server that says this to whoever asks."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        ("404 Not Found", b'{"detail": "Not Found"}', None),
        ("404 Not Found", b"<html>", ErrorCode.UNAVAILABLE),
        ("401 Unauthorized", b'{"error": {"message": "no"}}', ErrorCode.BAD_KEY),
    ],
)
async def test_servers_without_a_list_of_models(status: str, body: bytes, code: ErrorCode | None) -> None:
    """An API that has none refuses nobody by that; a page that is none of the API says nothing."""
    async with answering(status, body) as url, open_provider(url) as rest:
        if code is None:
            await rest.probe()
            return
        with pytest.raises(ProviderError) as caught:
            await rest.probe()
        assert caught.value.code is code


async def test_a_wrong_base_url_fails_no_job_for_good() -> None:
    """A page instead of the API is `unavailable`: jobs wait, and the message says what to look at."""
    async with answering("404 Not Found", b"<html>") as url, open_provider(url) as rest:
        error = await refused(rest)
    assert (error.code, error.was_sent) == (ErrorCode.UNAVAILABLE, True)
    assert error.message == "HTTP 404, and not from the API; see PROMPTQ_OPENAI_BASE_URL"


async def test_a_server_that_does_not_stream() -> None:
    """Its answer is paid for: it is taken as it is, and heard in one piece."""
    heard: list[Delta] = []
    whole = b'{"choices": [{"message": {"content": "Hi", "reasoning": "Hm"}, "finish_reason": "stop"}]}'
    async with answering("200 OK", whole) as url, open_provider(url) as rest:
        answer = await rest.sample(job(), 60, heard.append)
    assert (answer.content, heard) == ("Hi", [Delta("Hi", "Hm")])


@pytest.mark.parametrize(("end", "patience"), [(b"data: [DONE]\n\n", "LINGER"), (b"", "PATIENCE")])
async def test_a_server_that_leaves_its_stream_open(monkeypatch: pytest.MonkeyPatch, end: bytes, patience: str) -> None:
    """After the last event, or the last reason to finish, the answer is there; the connection is given up."""
    monkeypatch.setattr(openai_stream, patience, 0.01)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    events = b'data: {"choices": [{"delta": {"content": "Hi"}, "finish_reason": "stop"}]}\n\n' + end
    closed = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + events)
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass
        closed.set()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, open_provider(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1") as rest:
        assert (await rest.sample(job(), 60, deaf)).content == "Hi"
        await asyncio.wait_for(closed.wait(), 5)


# Secrets


@pytest.mark.parametrize("key", [OLD, "no-prefix-but-still-a-key"])
async def test_the_key_is_nowhere(sim: RunningSimulator, key: str) -> None:
    """Neither the provider's `repr` nor an error that quotes the key shows it; the code is still found."""
    quoting = f"Incorrect API key provided: {key}. (authorization: Bearer {key})"
    await sim.control.set(faults=[{"kind": "status", "code": "INVALID_ARGUMENT", "details": quoting}])
    async with open_provider(sim.rest_url, api_key=key) as rest:
        error = await refused(rest)
        account = rest._accounts.present()
        inside = [repr(each) for each in (rest, vars(rest), vars(rest._accounts), vars(account), vars(account.pool))]
    assert error.code is ErrorCode.BAD_KEY
    assert error.message.startswith("HTTP 400: Incorrect API key provided: ***")
    for shown in (everything_of(error), *inside):
        assert key not in shown


async def test_a_prompt_quoted_by_the_server_is_nowhere(sim: RunningSimulator, rest: OpenAIProvider) -> None:
    """Details that quote the prompt lose it, and are not judged by it: no prompt can pause the fleet."""
    prompt = "The API key is blocked, all credits are used, and the model grok does not exist."
    details = f"cannot parse message 0: '{prompt}'"
    await sim.control.set(faults=[{"kind": "status", "code": "INVALID_ARGUMENT", "details": details}])
    error = await refused(rest, prompt)
    assert (error.code, error.message) == (ErrorCode.INVALID_REQUEST, "HTTP 400: cannot parse message 0: '***'")
    assert prompt not in everything_of(error)


async def test_neither_prompt_nor_key_is_logged(sim: RunningSimulator, caplog: pytest.LogCaptureFixture) -> None:
    """Also where libraries are told to log all that they do, as by OPENAI_LOG=debug."""
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, logger="openai"):
        async with open_provider(sim.rest_url) as rest:
            await call(rest, "my secret prompt")
            await rest.sample(job("my secret prompt"), 60, deaf)
    assert "secret prompt" not in caplog.text
    assert OLD not in caplog.text


# Settings


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("api.x.ai/v1", "must begin with http"),
        ("ftp://api.x.ai", "must begin with http"),
        ("https://", "must begin with http"),
        ("https://user:pass@api.x.ai/v1", "must have no password"),
        ("https://api.x.ai/v1?key=x", "must have no password"),
    ],
)
async def test_a_base_url_that_is_none(url: str, says: str) -> None:
    """It says so when the worker starts, and does not show it."""
    with pytest.raises(ValueError, match=says) as caught:
        Settings.model_validate({"openai_base_url": url})
    assert "user:pass" not in str(caught.value)


@pytest.mark.parametrize("wrap", [str, lambda url: f"{url}/"])
async def test_a_slash_at_the_end_does_not_count(sim: RunningSimulator, wrap: Callable[[str], str]) -> None:
    """Either is the same place."""
    async with open_provider(wrap(sim.rest_url)) as rest:
        assert (await call(rest)).content
