"""Which provider answers a model, and whose key pays: `PROMPTQ_ROUTES`, prefixes, and several vendors in one worker."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from promptq.producer import JobStatus, PromptQueue
from promptq.producer.console import wrong_settings
from promptq.producer.errors import ErrorCode
from promptq.producer.models import PromptJob
from promptq.producer.records import Payer
from promptq.worker.engine import PromptWorker
from promptq.worker.providers import api_key
from promptq.worker.providers.api_key import ApiKeyError
from promptq.worker.providers.base import Answer, Provider, ProviderError
from promptq.worker.providers.echo import EchoProvider
from promptq.worker.providers.routes import Deferred, Routes, Rule
from promptq.worker.settings import Settings
from promptq.worker.simulator.control import SimulatorControl
from promptq.worker.simulator.credentials import fingerprint_of
from promptq.worker.simulator.process import SimulatorProcess
from waiting import wait_until
from workers import ScriptedProvider, running_worker

pytest_plugins = ["simulator_fixture"]

SECRET = "xai-AKeyThatMustNeverBeSeen0123456789"
OTHER = "sk-AnotherOne0123456789"
NOWHERE = "http://127.0.0.1:1/v1"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has set does not count here."""
    for name in ("XAI_API_KEY", "XAI_API_KEY_FILE", "PROMPTQ_OPENAI_API_KEY", "PROMPTQ_PROVIDER", "PROMPTQ_ROUTES"):
        monkeypatch.delenv(name, raising=False)


def settings(routes: Mapping[str, Any] | None = None, **others: Any) -> Settings:
    """Of a worker whose other models are echoed."""
    return Settings.model_validate({"provider": "echo", "routes": dict(routes or {})} | others)


def job(model: str = "grok-4") -> PromptJob:
    """Any."""
    return PromptJob.model_validate({"prompt": "Hi", "model": model})


async def refused(provider: Provider) -> ProviderError:
    """The error that a call brings."""
    with pytest.raises(ProviderError) as caught:
        await provider.sample(job(), 60)
    return caught.value


# Which rule


PATTERNS = ("*", "grok-*", "grok-4", "grok-4-*", "openai:*", "openai:gpt-*", "open*")


@pytest.mark.parametrize("patterns", [PATTERNS, PATTERNS[::-1]])
@pytest.mark.parametrize(
    ("model", "pattern"),
    [
        ("grok-4", "grok-4"),
        ("grok-4-fast", "grok-4-*"),
        ("grok-4-", "grok-4-*"),
        ("grok-3", "grok-*"),
        ("openai:gpt-5", "openai:gpt-*"),
        ("openai:o5", "openai:*"),
        ("opencoder", "open*"),
        ("mistral", "*"),
        ("Grok-4", "*"),
    ],
)
async def test_which_rule_answers(patterns: tuple[str, ...], model: str, pattern: str) -> None:
    """The exact name, else the longest beginning, in whatever order the rules are given."""
    providers = {each: EchoProvider() for each in patterns}
    routes = Routes(Rule(each, provider) for each, provider in providers.items())
    assert routes.way(model).provider is providers[pattern]


@pytest.mark.parametrize(
    ("model", "called"),
    [
        ("grok-4", "grok-4"),
        ("openai:gpt-5", "gpt-5"),
        ("xai:grok-4", "grok-4"),
        ("echo:openai:gpt-5", "openai:gpt-5"),
        ("openai:", "openai:"),
        ("ft:gpt-4o:acme", "ft:gpt-4o:acme"),
        ("OpenAI:gpt-5", "OpenAI:gpt-5"),
        ("cheap-1", "llama"),
        ("openai:cheap", "mistral"),
    ],
)
async def test_what_the_vendor_calls_a_model(model: str, called: str) -> None:
    """The name without a provider's prefix, or what the route says."""
    routes = Routes.from_settings(
        settings({"cheap-*": {"model": "llama"}, "openai:cheap": {"provider": "echo", "model": "mistral"}})
    )
    assert routes.way(model).model == called


async def test_a_single_provider_answers_by_any_name() -> None:
    """Built without settings, nothing is taken off and nobody else pays."""
    routes = Routes.to(EchoProvider())
    assert routes.way("openai:gpt-5") == (routes.default, "openai:gpt-5")
    assert routes.payers() == (Payer("*", "echo"),)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("{", "no JSON"),
        ("[]", "Input should be a valid dictionary"),
        ('{"a*b": {}}', "a*b: may have a * at its end alone"),
        ('{"": {}}', "String should have at least 1 character"),
        ('{"a": 1}', "a: Input should be a valid dictionary"),
        ('{"a": {"providr": "xai"}}', "a.providr: Extra inputs"),
        ('{"a": {"provider": "acme"}}', "a.provider: Input should be 'xai', 'openai' or 'echo'"),
        (f'{{"a": {{"key": ["{SECRET}"]}}}}', "a.key: Input should be a valid string"),
        (f'{{"a": {{"key": "{SECRET}", "key_file": "/k"}}}}', "a.key_file: must not stand beside key"),
        (f'{{"a": {{"provider": "openai", "base_url": "{SECRET}"}}}}', "a.base_url: must begin with http"),
        ('{"a": {"provider": "xai", "base_url": "http://b/v1"}}', "a.base_url: is for provider openai"),
        ('{"a": {"base_url": "http://b/v1"}}', "a.base_url: is for provider openai, and this is echo"),
        ('{"openai:*": {"host": "h"}}', "openai:*.host: is for provider xai, and this is openai"),
        ('{"a": {"provider": "openai", "insecure": true}}', "a.insecure: is for provider xai"),
        ('{"a": {"model": ""}}', "a.model: String should have at least 1 character"),
    ],
)
def test_a_bad_route_is_named(monkeypatch: pytest.MonkeyPatch, said: str, reason: str) -> None:
    """By pattern and field; a key is never shown."""
    monkeypatch.setenv("PROMPTQ_PROVIDER", "echo")
    monkeypatch.setenv("PROMPTQ_ROUTES", said)
    with pytest.raises(ValidationError) as caught:
        Settings()
    [(variable, why)] = wrong_settings(caught.value)
    assert variable == "PROMPTQ_ROUTES"
    assert why.startswith(reason)
    assert SECRET not in f"{caught.value}{why}"


def test_routes_do_not_show_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from the environment, a key is nowhere to be seen but where it is asked for."""
    monkeypatch.setenv("PROMPTQ_ROUTES", f'{{"a": {{"key": "{SECRET}"}}}}')
    said = Settings()
    assert said.routed(said.routes["a"]).api_key() == SECRET
    assert SECRET not in f"{said!r} {said} {said.model_dump()} {said.model_dump_json()}"


# Whose key


@pytest.mark.parametrize(
    ("route", "key"),
    [
        ({}, SECRET),
        ({"provider": "openai"}, OTHER),
        ({"provider": "openai", "key": "mine"}, "mine"),
        ({"provider": "openai", "key_file": "FILE"}, "in the file"),
        ({"provider": "xai", "key": "mine"}, "mine"),
        ({"provider": "xai", "key_file": "FILE"}, "in the file"),
        ({"provider": "xai", "base_url": None}, SECRET),
    ],
)
def test_which_key_a_route_has(route: dict[str, Any], key: str, tmp_path: Path) -> None:
    """Its own, or what the ordinary settings say for its provider."""
    path = tmp_path / "key"
    path.write_text("in the file\n")
    said = {field: str(path) if value == "FILE" else value for field, value in route.items()}
    chosen = settings({"a": said}, provider="xai", xai_api_key=SECRET, openai_api_key=OTHER)
    assert chosen.routed(chosen.routes["a"]).api_key() == key


@pytest.mark.parametrize("said", [{"provider": "xai"}, {"provider": "openai", "openai_base_url": NOWHERE}])
async def test_the_account_is_known_before_the_library_is_loaded(said: dict[str, Any], tmp_path: Path) -> None:
    """Claims name the same account before a provider is opened and afterwards."""
    path = tmp_path / "key"
    path.write_text(SECRET)
    for key in ({"xai_api_key": SECRET}, {"xai_api_key_file": path}):
        provider = Deferred(settings(**said, **key))
        before = provider.account
        provider.open_at_start("a")
        assert provider._opened is not None
        assert provider.account == before
        assert before.startswith(f"{said['provider']}:")
        await provider.aclose()


async def test_the_same_vendor_place_and_key_share_a_provider() -> None:
    """And so one account; another place or key is another."""
    key = {"provider": "openai", "key": OTHER}
    routes = Routes.from_settings(
        settings({"a": key, "b": {**key, "model": "c"}, "d": {**key, "base_url": NOWHERE}, "e": {**key, "key": SECRET}})
    )
    assert routes.way("a").provider is routes.way("b").provider
    assert len({id(routes.way(model).provider) for model in "abde"}) == 3
    assert len({routes.account_of(model) for model in "abde"}) == 3
    assert routes.paid_by(routes.account_of("d")) is routes.way("d").provider
    await routes.aclose()


async def test_the_default_provider_needs_its_key_at_start() -> None:
    """Else the worker would do nothing but wait; a route for `*` is the default."""
    with pytest.raises(ApiKeyError, match="set XAI_API_KEY"):
        Routes.from_settings(settings(provider="xai"))
    with pytest.raises(ApiKeyError, match="set PROMPTQ_OPENAI_API_KEY"):
        Routes.from_settings(settings({"*": {"provider": "openai"}}))


async def test_a_route_without_a_key_waits_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses under an account of its own, without an attempt, until the file is there."""
    monkeypatch.setattr(api_key, "LOOK_EVERY", 0.0)
    path = tmp_path / "key"
    routes = Routes.from_settings(settings({"a": {"provider": "openai", "key_file": str(path), "base_url": NOWHERE}}))
    provider = routes.way("a").provider
    error = await refused(provider)
    assert (error.code, error.was_sent, routes.account_of("a")) == (ErrorCode.BAD_KEY, False, "openai:unset")
    with pytest.raises(ProviderError, match="bad_key"):
        await provider.probe()
    path.write_text(SECRET)
    assert routes.account_of("a") != "openai:unset"
    assert (await refused(provider)).code is ErrorCode.UNAVAILABLE  # nobody is there
    await routes.aclose()


async def test_a_library_that_is_not_installed_is_as_a_missing_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job waits for a worker that has it; the refusal says what to install."""
    monkeypatch.setitem(sys.modules, "promptq.worker.providers.openai", None)
    monkeypatch.setattr("promptq.worker.providers.routes.find_spec", lambda _: None)
    routes = Routes.from_settings(settings(xai_api_key=SECRET))
    error = await refused(routes.way("openai:gpt-5").provider)
    assert (error.code, error.message) == (ErrorCode.BAD_KEY, "needs promptq[openai], which is not installed")
    assert routes.account_of("openai:gpt-5") == "openai:unset"


# One worker, several vendors

A, B, C = "xai-KeyA0123456789", "xai-KeyB0123456789", "xai-KeyC0123456789"


@pytest.fixture
def key_of_b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is looked at for each claim."""
    monkeypatch.setattr(api_key, "LOOK_EVERY", 0.0)
    path = tmp_path / "b"
    path.write_text(B)
    return path


@pytest.fixture
def routes(simulator: SimulatorProcess, key_of_b: Path) -> Routes:
    """By gRPC with key A, by REST with key B, and a third key for cheap models, which the vendor calls otherwise."""
    return Routes.from_settings(
        settings(
            {"openai:*": {"key_file": str(key_of_b)}, "cheap-*": {"key": C, "model": "grok-3"}},
            provider="xai",
            xai_api_key=A,
            xai_host=simulator.host,
            xai_insecure=True,
            openai_base_url=simulator.rest_url,
        )
    )


async def keys_by_prompt(control: SimulatorControl) -> dict[str, str]:
    """Which key made which call, as the simulator saw it."""
    names = {fingerprint_of(key): key for key in (A, B, C)}
    return {call.prompt: names[call.key] for call in await control.journal() if call.generation}


def rewrite(path: Path) -> None:
    """The key is replaced."""
    path.write_text(C)


async def test_each_job_goes_its_way(redis_url: str, control: SimulatorControl, routes: Routes) -> None:
    """One process: the lane decides over client, key and the vendor's name of the model; the result tells which."""
    models = {"one": "grok-4", "two": "openai:grok-4", "three": "cheap-1", "four": "xai:grok-4"}
    async with running_worker(redis_url, routes), PromptQueue.connect(redis_url) as queue:
        for prompt, model in models.items():
            await queue.enqueue(prompt, model=model, id=prompt)
        results = {prompt: await queue.wait(prompt, timeout=20) for prompt in models}
    assert {prompt: (result.provider, result.model) for prompt, result in results.items()} == {
        "one": ("xai", "grok-4"),
        "two": ("openai", "grok-4"),
        "three": ("xai", "grok-3"),
        "four": ("xai", "grok-4"),
    }
    assert await keys_by_prompt(control) == {"one": A, "two": B, "three": C, "four": A}


async def test_a_bad_key_stops_its_own_lanes_alone(
    redis_url: str, control: SimulatorControl, routes: Routes, key_of_b: Path
) -> None:
    """Jobs of the other keys run meanwhile; its own wait unspent, and run once its file has a good key."""
    await control.set(keys={B: "incorrect"})
    async with running_worker(redis_url, routes), PromptQueue.connect(redis_url) as queue:
        waiting = await queue.enqueue_many(["b0", "b1", "b2"], model="openai:grok-4")

        async def is_paused() -> bool:
            return [each.reason for each in (await queue.stats()).paused_accounts] == ["bad_key"]

        await wait_until(is_paused)
        others = await queue.enqueue_many(["a", "a again"], model="grok-4")
        others += await queue.enqueue_many(["c"], model="cheap-1")
        for job in others:
            assert (await queue.wait(job.id, timeout=20)).status is JobStatus.SUCCEEDED
        lanes = {lane.lane: lane.queued for lane in (await queue.stats()).lanes}
        assert lanes["openai:grok-4"] == 3
        rewrite(key_of_b)
        for job in waiting:
            result = await queue.wait(job.id, timeout=20)
            assert result.status is JobStatus.SUCCEEDED
            assert {attempt.code for attempt in result.attempts} <= {None, ErrorCode.BAD_KEY}
    assert set((await keys_by_prompt(control)).items()) == {
        ("a", A), ("a again", A), ("c", C), ("b0", C), ("b1", C), ("b2", C)
    }  # fmt: skip


async def test_a_worker_without_the_key_leaves_the_jobs_to_others(
    redis_url: str, control: SimulatorControl, routes: Routes
) -> None:
    """They stay queued, unspent, and what it can do runs; a worker that has the key takes them at once."""
    without = Routes.from_settings(settings())
    async with running_worker(redis_url, without) as worker, PromptQueue.connect(redis_url) as queue:
        job = await queue.enqueue("Hi", model="openai:grok-4")

        async def is_paused() -> bool:
            return [each.account for each in (await queue.stats()).paused_accounts] == ["openai:unset"]

        await wait_until(is_paused)
        assert (await queue.wait((await queue.enqueue("Hi", model="echo:m")).id, timeout=20)).provider == "echo"
        assert await queue.status(job.id) is JobStatus.QUEUED
        assert not worker._reach._cut_off  # nobody was called, so nobody is out of reach
        async with running_worker(redis_url, routes):
            result = await queue.wait(job.id, timeout=20)
    assert (result.provider, len(result.attempts)) == ("openai", 1)


async def test_a_prefixed_model_has_limits_of_its_own(redis_url: str) -> None:
    """Its lane keeps the prefix; a worker that serves that lane alone takes nothing of the bare name's."""
    worker = PromptWorker(
        settings(redis_url=redis_url, drain_timeout=0), Routes.from_settings(settings()), serves=["echo:m"]
    )
    main = asyncio.create_task(worker.main())
    async with PromptQueue.connect(redis_url) as queue:
        await queue.set_limits("echo:m", rpm=1)
        bare = await queue.enqueue("Hi", model="m")
        first, second = await queue.enqueue_many(["one", "two"], model="echo:m")
        await queue.wait(first.id, timeout=20)

        async def is_told() -> bool:
            return {lane.lane: (lane.queued, lane.limited_by) for lane in (await queue.stats()).lanes} == {
                "m": (1, None), "echo:m": (1, "rpm")
            }  # fmt: skip

        await wait_until(is_told)
        assert {each.model: each.limits.rpm for each in await queue.limits()} == {"m": None, "echo:m": 1}
        await queue.set_limits("echo:m")
        await queue.wait(second.id, timeout=20)
        await queue.cancel(bare.id)
    worker.drain()
    await main
    await worker.close()


class Unreached(EchoProvider):
    """Nobody is there."""

    name = "unreached"
    account = "unreached"

    def __init__(self) -> None:
        super().__init__()
        self.running, self.most = 0, 0

    async def sample(self, job: PromptJob, timeout: float, hear: object = None) -> Answer:
        """Takes a moment to find that out."""
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.01)
        self.running -= 1
        raise ProviderError(ErrorCode.UNAVAILABLE, "no route", was_sent=False)


async def test_a_vendor_that_cannot_be_reached_slows_its_own_lanes_alone(redis_url: str) -> None:
    """Its jobs are tried one at a time; those of another vendor run side by side as before."""
    away, there = Unreached(), ScriptedProvider()
    routes = Routes([Rule("away-*", away), Rule("*", there)])
    async with running_worker(redis_url, routes, max_jobs=20) as worker, PromptQueue.connect(redis_url) as queue:
        await queue.enqueue("Hi", model="away-1", id="gone")
        await wait_until(lambda: bool(worker._reach._cut_off))
        gone = await queue.enqueue_many([str(number) for number in range(5)], model="away-1")
        jobs = await queue.enqueue_many([f"hang {number}" for number in range(5)], model="m")
        await wait_until(lambda: len(there.started) == 5)
        there.release.set()
        for job in jobs:
            await queue.wait(job.id, timeout=20)
        for job_id in ["gone", *(job.id for job in gone)]:
            await queue.cancel(job_id)
    assert away.most == 1


async def test_what_a_worker_claims_that_cannot_reach_a_vendor(redis_url: str) -> None:
    """Nothing of that account while it rests, nor is it woken for its lanes; then one job. Of all others any number."""
    routes = Routes([Rule("away-*", Unreached()), Rule("*", EchoProvider())])
    worker = PromptWorker(settings(redis_url=redis_url), routes)
    resting = worker.loop.time() + 60
    for until, room in ((resting, 0), (0.0, 1)):
        worker._reach._cut_off = {"unreached": until}
        assert worker._reach.payers() == (Payer("away-*", "unreached", room), Payer("*", "echo", -1))
        assert worker._reach.has_room_for("away-1") is (room == 1)
        assert (worker._reach.has_room_for("m"), worker._free_slots) == (True, 100)
        worker._reach._cut_off = {"unreached": until, "echo": until}
        assert worker._free_slots == room  # of the only account whose lanes it knows
    await worker.close()
