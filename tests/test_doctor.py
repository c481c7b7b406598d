import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis.asyncio
from redis.exceptions import NoPermissionError, ResponseError
from typer.testing import CliRunner

import promptq.worker.cli  # noqa: F401 - adds the worker's commands
from faults.fleet import environment
from promptq.producer import ErrorCode, PromptQueue
from promptq.producer.cli import app
from promptq.worker.doctor import examine as examination
from promptq.worker.doctor import on_redis, on_settings
from promptq.worker.doctor.examine import examine
from promptq.worker.doctor.findings import Finding, Report, Verdict, examined
from promptq.worker.doctor.on_settings import load
from promptq.worker.embedded import PrivateRedis
from promptq.worker.providers.xai import KeyInfo, XaiProvider
from promptq.worker.settings import Route
from promptq.worker.simulator.control import SimulatorControl
from promptq.worker.simulator.process import SimulatorProcess, simulator_process
from waiting import wait_until
from workers import ScriptedProvider, running_worker

OK, WARNING, PROBLEM, NOT_CHECKED = Verdict.OK, Verdict.WARNING, Verdict.PROBLEM, Verdict.NOT_CHECKED
KEY = "xai-AKeyThatMustNeverBeSeen0123456789"
PASSWORD = "hunter2-and-more"
OF_THE_README = ("~arq:*", "~promptq:*", "&promptq:*", "+@all", "-@dangerous")
OF_REDIS = (
    "Redis version", "Redis kind", "eviction", "memory", "persistence", "replicas", "clock",
    "workers", "pauses", "permissions", "channels",
)  # fmt: skip
NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    """The API."""
    with simulator_process() as process:
        yield process


@pytest.fixture
async def api(simulator: SimulatorProcess) -> AsyncIterator[SimulatorControl]:
    """Its knobs, as at its start."""
    async with SimulatorControl(simulator.host) as control:
        yield control
        await control.reset()


@pytest.fixture
def server() -> Iterator[PrivateRedis]:
    """A Redis as it should be."""
    with PrivateRedis(appendonly=True) as server:
        yield server


@pytest.fixture
async def client(server: PrivateRedis) -> AsyncIterator[redis.asyncio.Redis]:
    """Its administrator."""
    client = redis.asyncio.Redis.from_url(server.url)
    yield client
    await client.aclose()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, server: PrivateRedis, simulator: SimulatorProcess) -> None:
    """The environment of a worker that is set up well, and nothing else of ours."""
    good = environment(
        promptq_redis_url=server.url,
        promptq_provider=None,
        promptq_lease=None,
        promptq_redis_timeout=None,
        promptq_log_format=None,
        promptq_xai_host=simulator.host,
        promptq_xai_insecure="1",
        xai_api_key=KEY,
    )
    for name in set(os.environ) - set(good):
        monkeypatch.delenv(name)
    for name, value in good.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody answers, half a second is tried."""
    monkeypatch.setattr(examination, "LIMIT", 1.0)


async def report(**given: Any) -> Report:
    """What the doctor finds."""
    return await examine(load(given))


def verdicts(report: Report, verdict: Verdict) -> list[str]:
    """The checks that came out so."""
    return [name for name, finding in report.items() if finding.verdict is verdict]


async def test_all_is_well(redis_client: redis.asyncio.Redis, server: PrivateRedis) -> None:
    """A Redis as documented, a worker, a good key: every check is ok, there is no advice."""
    async with running_worker(server.url), running_worker(server.url):

        async def are_there() -> bool:
            return (await report())["workers"].found == "2 worker processes, 0 jobs waiting"

        await wait_until(are_there)
        found = await report()
    assert {name: finding for name, finding in found.items() if finding.verdict is not OK or finding.advice} == {}
    assert set(OF_REDIS) < set(found)


async def test_it_leaves_nothing_behind(client: redis.asyncio.Redis) -> None:
    """What it tries in Redis is taken away again, and no job is touched."""
    await report()
    assert await client.dbsize() == 0


async def test_jobs_without_a_worker(server: PrivateRedis) -> None:
    """They wait, which is worth a warning; the command does not fail for it."""
    async with PromptQueue.connect(server.url) as queue:
        await queue.enqueue_many(["one", "two"])
    found = (await report())["workers"]
    assert found == Finding(WARNING, "no worker processes, 2 jobs waiting", "start one: promptq worker")


BAD_CONFIGURATIONS: dict[str, tuple[dict[str, str], str, Verdict, str]] = {
    "evicts": (
        {"maxmemory": "1gb", "maxmemory-policy": "allkeys-lru"}, "eviction", PROBLEM, "throws jobs and results away"
    ),
    "would evict": ({"maxmemory-policy": "volatile-ttl"}, "eviction", WARNING, "volatile-ttl"),
    "no file": ({"appendonly": "no"}, "persistence", PROBLEM, "a restart of Redis loses accepted jobs"),
    "no fsync": ({"appendfsync": "no"}, "persistence", WARNING, "half a minute"),
    "always fsync": ({"appendfsync": "always"}, "persistence", OK, "appendfsync always"),
    "full": ({"maxmemory": "100kb"}, "memory", PROBLEM, "nothing can be enqueued"),
    "nearly full": ({"maxmemory": "{used}"}, "memory", WARNING, "MiB used (9"),
    "room": ({"maxmemory": "1gb"}, "memory", OK, "maxmemory is 1,024.0 MiB"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CONFIGURATIONS)
async def test_a_redis_that_is_configured_otherwise(case: str, client: redis.asyncio.Redis) -> None:
    """Each setting that loses jobs is a problem or a warning with what to do; nothing else is affected."""
    settings, check, verdict, says = BAD_CONFIGURATIONS[case]
    await client.setrange("jobs", 50_000_000, "!")  # beside which our connections are nothing
    used = int((await client.info("memory"))["used_memory"] * 1.08)
    for name, value in settings.items():
        await client.config_set(name, value.format(used=used))
    found = await report()
    assert found[check].verdict is verdict
    assert says in found[check].found
    assert bool(found[check].advice) is (verdict is not OK)
    others = {"full": ["permissions"]}.get(case, [])
    assert verdicts(found, PROBLEM) == ([check] if verdict is PROBLEM else []) + others


async def allow(client: Any, *rights: str) -> None:
    """Make the user `app`."""
    await client.execute_command("ACL", "SETUSER", "app", "on", f">{PASSWORD}", *rights)


async def test_what_the_documented_user_may_not_ask(server: PrivateRedis, client: redis.asyncio.Redis) -> None:
    """The ACL of the README: version, cluster and permissions are told, the rest could not be checked; no problem."""
    await allow(client, *OF_THE_README)
    found = await report(redis_url=server.url.replace("//", f"//app:{PASSWORD}@"))
    assert verdicts(found, NOT_CHECKED) == ["eviction", "memory", "persistence"]
    assert all("no permissions" in found[name].found for name in verdicts(found, NOT_CHECKED))
    assert (verdicts(found, WARNING), verdicts(found, PROBLEM)) == (["workers"], [])


@pytest.mark.parametrize(
    ("rights", "check", "verdict"),
    [
        (("~promptq:*", "&promptq:*", "+@all", "-@dangerous"), "permissions", PROBLEM),
        (("~arq:*", "&promptq:*", "+@all", "-@dangerous"), "permissions", PROBLEM),
        ((*OF_THE_README, "-@scripting"), "permissions", PROBLEM),
        ((*OF_THE_README, "-@blocking"), "permissions", PROBLEM),
        ((*OF_THE_README, "-pexpire"), "permissions", PROBLEM),
        ((*OF_THE_README, "resetchannels"), "channels", WARNING),
        ((*OF_THE_README, "-publish"), "channels", WARNING),
    ],
)
async def test_a_user_with_too_few_rights(
    rights: tuple[str, ...], check: str, verdict: Verdict, server: PrivateRedis, client: redis.asyncio.Redis
) -> None:
    """What the queue needs and the user may not do is refused here first, with the rights to give."""
    await allow(client, *rights)
    found = (await report(redis_url=server.url.replace("//", f"//app:{PASSWORD}@")))[check]
    assert found.verdict is verdict
    assert "refused: " in found.found
    assert "+@all -@dangerous" in found.advice


async def test_a_wrong_password(server: PrivateRedis, client: redis.asyncio.Redis) -> None:
    """Redis refuses the login: one problem, and where to put the right one."""
    await client.config_set("requirepass", "another")
    found = await report(redis_url=server.url.replace("//", f"//:{PASSWORD}@"))
    assert "refuses the login" in found["Redis"].found
    assert "set its user and password in PROMPTQ_REDIS_URL" in found["Redis"].advice
    assert verdicts(found, PROBLEM) == ["Redis"]


async def test_a_replica(server: PrivateRedis) -> None:
    """It takes no writes; its primary, seen from an enqueue that waits for it, is well."""
    args = ["--replicaof", "127.0.0.1", str(server.port)]
    with PrivateRedis(appendonly=True, args=args) as copy:

        async def is_connected() -> bool:
            return (await report(enqueue_replicas=1))["replicas"] == Finding(OK, "1 connected, 1 needed")

        await wait_until(is_connected)
        found = await report(redis_url=copy.url)
        assert "a replica" in found["Redis kind"].found
        assert found["Redis kind"].verdict is found["permissions"].verdict is PROBLEM
    assert (await report(enqueue_replicas=2))["replicas"].verdict is PROBLEM


async def test_a_cluster() -> None:
    """Redis Cluster is not supported."""
    with PrivateRedis(args=["--cluster-enabled", "yes"]) as node:
        found = (await report(redis_url=node.url))["Redis kind"]
    assert (found.verdict, found.found) == (PROBLEM, "a node of a Redis Cluster")


def greeting(**said: str) -> Any:
    """A server that says this of itself in answer to HELLO, or is too old for it."""

    async def hello(_: str) -> dict[str, str]:
        if said["version"] < "6.2":
            raise ResponseError("unknown command 'HELLO'")
        return {"server": "redis", "mode": "standalone", "role": "master", **said}

    async def info() -> dict[str, str]:
        return {"redis_version": said["version"], "redis_mode": "standalone", "role": "master"}

    return cast(redis.asyncio.Redis, SimpleNamespace(execute_command=hello, info=info))


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"version": "5.0.14"}, Finding(PROBLEM, "Redis 5.0.14", "promptq needs Redis 6.2 or later, or Valkey")),
        ({"version": "6.0.20"}, Finding(PROBLEM, "Redis 6.0.20", "promptq needs Redis 6.2 or later, or Valkey")),
        ({"version": "6.2.0"}, Finding(OK, "Redis 6.2.0")),
        ({"version": "8.1.1", "server": "valkey"}, Finding(OK, "Valkey 8.1.1")),
    ],
)
async def test_versions(said: dict[str, str], found: Finding) -> None:
    """6.2 or later, by number, and Valkey by its own name."""
    assert await on_redis.server_version(greeting(**said)) == found


async def test_a_sentinel_is_not_the_redis() -> None:
    """Its address belongs into another kind of URL."""
    found = await on_redis.kind(greeting(version="7.2.0", mode="sentinel"))
    assert found.verdict is PROBLEM
    assert "redis+sentinel://" in found.advice


@pytest.mark.parametrize(
    ("ahead", "verdict", "says"),
    [(0.0, OK, "within 0.1 s"), (90.0, WARNING, "90.0 s ahead of Redis"), (-90.0, WARNING, "90.0 s behind Redis")],
)
async def test_the_clock(
    ahead: float, verdict: Verdict, says: str, client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that differs from Redis' by seconds is a warning that says which way."""
    monkeypatch.setattr(on_redis, "time", SimpleNamespace(time=lambda: time.time() + ahead))
    found = await on_redis.clock(client)
    assert found.verdict is verdict
    assert says in found.found


@pytest.mark.parametrize(("code", "verdict"), [("bad_key", PROBLEM), ("rate_limited", WARNING)])
async def test_a_paused_model(code: str, verdict: Verdict, server: PrivateRedis) -> None:
    """Why the fleet holds a model back, and whether somebody has to do something."""
    async with running_worker(server.url, ScriptedProvider()), PromptQueue.connect(server.url) as queue:
        await queue.enqueue(f"fail {ErrorCode(code)}")

        async def is_told() -> bool:
            found = (await report())["pauses"]
            return found.verdict is verdict and found.found.startswith(f"paused: {code} until 20")

        await wait_until(is_told)


async def test_a_model_that_an_operator_holds(server: PrivateRedis) -> None:
    """Nothing of it runs, and the advice is how that ends."""
    async with PromptQueue.connect(server.url) as queue:
        await queue.enqueue("hi", model="grok-3", id="held")
        await queue.pause("grok-3")
        found = (await report())["pauses"]
        await queue.resume("grok-3")
        await queue.cancel("held")
    assert found == Finding(WARNING, "paused: by an operator (grok-3)", "when it may go on: promptq resume grok-3")


@pytest.mark.usefixtures("impatient")
async def test_without_redis_the_key_is_checked(simulator: SimulatorProcess) -> None:
    """One problem; what cannot be asked is not checked; the key and the API are."""
    found = await report(redis_url=f"redis://:{PASSWORD}@{NOBODY}")
    assert f"no Redis at redis://{NOBODY}" in found["Redis"].found
    assert verdicts(found, NOT_CHECKED) == list(OF_REDIS)
    assert found["API"] == Finding(OK, f"{simulator.host} takes the key")


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("blocked", "the key is blocked"),
        ("disabled", "the key is disabled"),
        ("team_blocked", "the key is of a blocked team"),
        ("incorrect", "bad_key: INVALID_ARGUMENT: Incorrect API key provided"),
    ],
)
async def test_a_key_that_xai_refuses(state: str, says: str, api: SimulatorControl) -> None:
    """The API says how the key is; no generation is started for it."""
    await api.set(key=state)
    found = await report()
    assert found["API"].verdict is PROBLEM
    assert says in found["API"].found
    assert "console.x.ai" in found["API"].advice
    assert verdicts(found, PROBLEM) == ["API"]
    assert (await api.totals()).calls == 0


@pytest.mark.parametrize(
    ("acls", "verdict"),
    [
        (["api-key:endpoint:*"], OK),
        (["api-key:model:*"], OK),
        (["api-key:model:grok-3", "api-key:model:grok-4"], OK),
        (["api-key:model:grok-3"], WARNING),
    ],
)
async def test_a_key_for_other_models(acls: list[str], verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that may not use the default model is a warning that names those it may."""

    async def key_info(self: XaiProvider) -> KeyInfo:
        return KeyInfo("key", is_blocked=False, is_team_blocked=False, is_disabled=False, acls=tuple(acls))

    monkeypatch.setattr(XaiProvider, "key_info", key_info)
    found = (await report())["API"]
    assert found.verdict is verdict
    assert (verdict is OK) or "may not use grok-4, only grok-3" in found.found


@pytest.mark.parametrize(
    ("host", "is_insecure", "advice"),
    [
        (NOBODY, "1", "start it (promptq simulate)"),
        (None, "0", "PROMPTQ_XAI_INSECURE=1"),
        ("no-such-host.invalid", "0", "see whether this machine may reach it"),
    ],
)
async def test_an_api_that_is_not_there(
    host: str | None, is_insecure: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to look at depends on where it should be."""
    if host:
        monkeypatch.setenv("PROMPTQ_XAI_HOST", host)
    monkeypatch.setenv("PROMPTQ_XAI_INSECURE", is_insecure)
    found = (await report())["API"]
    assert found.verdict is PROBLEM
    assert "unavailable: " in found.found
    assert advice in found.advice


@pytest.fixture
def rest_url(simulator: SimulatorProcess, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a worker calls that speaks REST."""
    monkeypatch.setenv("PROMPTQ_PROVIDER", "openai")
    monkeypatch.setenv("PROMPTQ_OPENAI_BASE_URL", simulator.rest_url)
    return simulator.rest_url


async def test_a_worker_over_rest(rest_url: str, api: SimulatorControl, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is xAI's or its own, and the API is asked about it, at no cost."""
    found = await report()
    assert found["key"] == Finding(OK, "set by XAI_API_KEY")
    assert found["API"] == Finding(OK, f"{rest_url} takes the key")
    monkeypatch.setenv("PROMPTQ_OPENAI_API_KEY", PASSWORD)
    await api.set(keys={PASSWORD: "blocked"})
    found = await report()
    assert found["key"] == Finding(OK, "set by PROMPTQ_OPENAI_API_KEY")
    assert found["API"].verdict is PROBLEM
    assert found["API"].found == f"{rest_url}: bad_key: HTTP 403: This API key is blocked."
    assert PASSWORD not in str(found)
    assert (await api.totals()).calls == 0


@pytest.mark.usefixtures("rest_url")
async def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to look at is said."""
    monkeypatch.setenv("PROMPTQ_OPENAI_BASE_URL", f"http://{NOBODY}/v1")
    found = (await report())["API"]
    assert (found.verdict, "unavailable: " in found.found) == (PROBLEM, True)
    assert "correct PROMPTQ_OPENAI_BASE_URL" in found.advice


async def test_a_worker_over_rest_without_its_library(rest_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install, and asks nobody."""
    monkeypatch.setattr(f"{on_settings.__name__}.find_spec", lambda name: None if name == "openai" else find_spec(name))
    found = await report()
    assert found["installation"].found.endswith("but openai missing")
    assert found["installation"].advice == "pip install 'promptq[worker,openai]'"
    assert found["API"].verdict is NOT_CHECKED


def unreadable(tmp_path: Path) -> Path:
    """A file that is none."""
    return tmp_path


def written(text: str) -> Callable[[Path], Path]:
    """A file that holds this."""

    def write(folder: Path) -> Path:
        (folder / "key").write_text(text)
        return folder / "key"

    return write


KEYS: dict[str, tuple[str | None, Callable[[Path], Path] | None, Verdict, str]] = {
    "variable": (KEY, None, OK, "set by XAI_API_KEY"),
    "file": (None, written(f"{KEY}\n"), OK, "set by XAI_API_KEY_FILE (/"),
    "both": (KEY, written(KEY), WARNING, "goes before XAI_API_KEY"),
    "none": (None, None, PROBLEM, "no xAI API key"),
    "empty": (None, written("\n"), PROBLEM, "no xAI API key"),
    "words": (f"my key: {KEY}", None, PROBLEM, "by its characters"),
    "folder": (None, unreadable, PROBLEM, "Is a directory"),
    "nowhere": (None, lambda folder: folder / "key", PROBLEM, "No such file"),
    "the key as a file": (None, lambda _: Path(KEY), PROBLEM, "cannot read the key's file, ***: "),
}


@pytest.mark.parametrize("case", KEYS)
async def test_where_the_key_is(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the variable or the file; if there is none that can be one, the API is not asked."""
    key, file, verdict, says = KEYS[case]
    monkeypatch.delenv("XAI_API_KEY")
    if key:
        monkeypatch.setenv("XAI_API_KEY", key)
    if file:
        monkeypatch.setenv("XAI_API_KEY_FILE", str(file(tmp_path)))
    found = await report()
    assert found["key"].verdict is verdict
    assert says in found["key"].found
    if verdict is PROBLEM:
        assert found["API"] == Finding(NOT_CHECKED, "there is no key to ask with")
    else:
        assert found["API"].verdict is OK
    assert KEY not in str(found)


async def test_each_route_is_asked_about(
    simulator: SimulatorProcess, api: SimulatorControl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key at its own place, named by its pattern; the keys of routes are secrets, too."""
    routes = {
        "openai:*": {"key": PASSWORD, "base_url": simulator.rest_url},
        "cheap-*": {"key_file": str(tmp_path / "none")},
        "mine": {},
        "there": {"provider": "openai", "base_url": simulator.rest_url},
    }
    monkeypatch.setenv("PROMPTQ_ROUTES", json.dumps(routes))
    await api.set(keys={PASSWORD: "blocked"})
    found = await report()
    assert "PROMPTQ_ROUTES=openai:*, cheap-*, mine, there" in found["environment"].found
    assert found["key of openai:*"] == Finding(OK, "set by PROMPTQ_ROUTES")
    assert found["API of openai:*"].found == f"{simulator.rest_url}: bad_key: HTTP 403: This API key is blocked."
    assert found["API of openai:*"].advice.startswith("in PROMPTQ_ROUTES, or for all: set XAI_API_KEY")
    assert found["key of cheap-*"].found.startswith(f"cannot read the key's file, {tmp_path}")
    assert found["API"] == found["API of mine"] == Finding(OK, f"{simulator.host} takes the key")
    assert verdicts(found, PROBLEM) == ["API of openai:*", "key of cheap-*"]
    assert found["key of there"].verdict is WARNING  # not every server is to know the key of another
    assert found["key of there"].found == f"XAI_API_KEY goes to {simulator.rest_url}, too"
    assert PASSWORD not in str(found)


async def test_a_strange_key_for_xai(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not look like xAI's is a warning, where xAI itself would get it."""
    monkeypatch.setenv("XAI_API_KEY", "sk-another-vendors")
    assert (await on_settings.key(load({}).settings, Route())).verdict is OK
    monkeypatch.setenv("PROMPTQ_XAI_HOST", "api.x.ai")
    assert (await on_settings.key(load({}).settings, Route())).verdict is WARNING


@pytest.mark.parametrize("variable", ["PROMPTQ_ROUTES", "PROMPTQ_LIMITS"])
async def test_a_refused_json_leaves_the_other_checks(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go on without it."""
    monkeypatch.setenv(variable, '{"a": {"keyy": 1}}')
    found = await report()
    assert found["settings"].found.startswith(f"{variable}: a.keyy: Extra inputs")
    assert verdicts(found, PROBLEM) == ["settings"]


async def test_settings_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are named at once, without their values; the checks go on with the defaults."""
    monkeypatch.setenv("PROMPTQ_MAX_JOBS", PASSWORD)
    monkeypatch.setenv("PROMPTQ_LEASE", "1")
    monkeypatch.setenv("PROMPTQ_PROVIDER", "oracle")
    found = await report()
    assert verdicts(found, PROBLEM) == ["settings"]
    for name in ("PROMPTQ_MAX_JOBS: ", "PROMPTQ_PROVIDER: ", "PROMPTQ_LEASE must be more than 7.5 s"):
        assert name in found["settings"].found
    assert "PROMPTQ_MAX_JOBS=(refused)" in found["environment"].found
    assert PASSWORD not in str(found)


async def test_a_url_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and no other Redis is asked in its place."""
    monkeypatch.setenv("PROMPTQ_REDIS_URL", f"http://:{PASSWORD}@host")
    found = await report()
    assert found["settings"].found.startswith("PROMPTQ_REDIS_URL: not a Redis URL")
    assert verdicts(found, NOT_CHECKED) == ["Redis", *OF_REDIS]
    assert PASSWORD not in str(found)


async def test_misspelt_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no effect, so the doctor says so, with the name that was meant; their values are not shown."""
    monkeypatch.setenv("PROMPTQ_MAX_JOB", "3")
    monkeypatch.setenv("PROMPTQ_XAI_API_KEY", PASSWORD)
    monkeypatch.setenv("PROMPTQ_SOMETHING", PASSWORD)
    found = (await report())["environment"]
    assert found.verdict is WARNING
    assert "PROMPTQ_MAX_JOB: do you mean PROMPTQ_MAX_JOBS?" in found.advice
    assert "PROMPTQ_XAI_API_KEY: do you mean XAI_API_KEY?" in found.advice
    assert "unset PROMPTQ_SOMETHING" in found.advice
    assert PASSWORD not in str(found)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://no-such-host.invalid", "no address for the host of redis://no-such-host.invalid"),
        ("redis+sentinel://no-such-host.invalid,127.0.0.1:1/main", "No master found for 'main'"),
        ("unix:///no/such/socket", "no Redis at unix:///no/such/socket"),
    ],
)
async def test_where_no_redis_is(url: str, says: str) -> None:
    """A name without an address is told as that, unless another of the hosts has one."""
    found = (await report(redis_url=url))["Redis"]
    assert found.verdict is PROBLEM
    assert says in found.found


async def test_a_value_cannot_steer_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others have said stands on one line, without control characters."""
    monkeypatch.setenv("PROMPTQ_XAI_HOST", "a\nb\x1b[2J")
    assert "PROMPTQ_XAI_HOST=a b?[2J" in (await report())["environment"].found


def run(*arguments: str) -> Any:
    """The command, as a user sees it."""
    return CliRunner().invoke(app, ["doctor", *arguments], prog_name="promptq")


@pytest.mark.parametrize(("host", "code", "says"), [(None, 0, "ok "), (NOBODY, 1, "problem ")])
def test_one_line_a_check(host: str | None, code: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each begins with its verdict; warnings do not make the command fail, a problem does, with 1."""
    if host:
        monkeypatch.setenv("PROMPTQ_XAI_HOST", host)
    ended = run()
    assert ended.exit_code == code, ended.output
    lines = ended.stdout.splitlines()
    assert len(lines) == len(OF_REDIS) + 6
    assert all(line.startswith(tuple(f"{verdict:<13}" for verdict in Verdict)) for line in lines)
    assert lines[-1].startswith(says)
    assert "1 warning" in ended.stderr  # no worker


@pytest.mark.usefixtures("impatient")
def test_a_report_for_programs() -> None:
    """--json: one object with every check, its verdict as a word, and whether all is well."""
    told = json.loads(run("--json", "--redis-url", f"redis://{NOBODY}").stdout)
    assert told["ok"] is False
    assert {check["verdict"] for check in told["checks"]} == {"ok", "problem", "not_checked"}
    assert all(set(check) == {"check", "verdict", "found", "advice"} for check in told["checks"])


@pytest.mark.parametrize("arguments", [(), ("--json",)])
@pytest.mark.parametrize("host", [None, NOBODY])
def test_secrets_are_not_shown(
    arguments: tuple[str, ...], host: str | None, server: PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key and the password of Redis stand nowhere in a report, whether or not they are taken."""
    monkeypatch.setenv("PROMPTQ_REDIS_URL", f"redis://me:{PASSWORD}@127.0.0.1:{server.port}?password={PASSWORD}")
    monkeypatch.setenv("REDIS_URL", f"redis://:{PASSWORD}@elsewhere")
    if host:
        monkeypatch.setenv("PROMPTQ_XAI_HOST", host)
    said = run(*arguments).output
    assert "XAI_API_KEY=***" in said
    assert KEY not in said
    assert PASSWORD not in said


async def test_a_secret_that_redis_quotes_is_hidden(server: PrivateRedis) -> None:
    """An old Redis quotes what it does not understand, AUTH with its password too."""

    async def quote(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            writer.write(f"-ERR unknown command `AUTH`, with args beginning with: `{PASSWORD}`\r\n".encode())
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(quote, "127.0.0.1", 0) as strange:
        port = strange.sockets[0].getsockname()[1]
        found = (await report(redis_url=f"redis://:{PASSWORD}@127.0.0.1:{port}"))["Redis"]
    assert found.verdict is PROBLEM
    assert "`***`" in found.found
    assert PASSWORD not in str(found)


async def test_nothing_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis and an API that take the connection and say nothing, a key file that never ends: problems, in time."""
    monkeypatch.setattr(examination, "LIMIT", 0.5)
    monkeypatch.setattr(examination, "API_LIMIT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("PROMPTQ_XAI_HOST", place)
        began = time.monotonic()
        found = await report(redis_url=f"redis://{place}")
        assert time.monotonic() - began < 5
    assert verdicts(found, PROBLEM) == ["Redis", "API"]
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv("XAI_API_KEY_FILE", str(tmp_path / "pipe"))
    assert (await report())["key"] == Finding(
        PROBLEM, "no answer within 0.5 s", "see whether what is asked here is overloaded or unreachable"
    )
    (tmp_path / "pipe").write_text("xai-now-it-says-something")  # lets the reader's thread end


def python(script: str, **settings: object) -> "subprocess.CompletedProcess[str]":
    """A script in a process of its own."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment(**settings), capture_output=True, text=True, timeout=30, check=False)


SLOW_NAMES = """
import socket, sys, threading
socket.getaddrinfo = lambda *_, **__: threading.Event().wait()
from promptq.worker.doctor import examine
examine.LIMIT = 0.5
from promptq.worker.cli import main
sys.argv[1:] = ["doctor"]
main()
"""


def test_a_name_that_is_looked_up_for_ever_does_not_hold_up_the_end() -> None:
    """A dead DNS: the report is there in time, and the process ends, though the lookup does not."""
    ended = python(SLOW_NAMES, promptq_redis_url="redis://somewhere:6379")
    assert ended.returncode == 1, ended.stderr
    assert "no answer within 0.5 s" in ended.stdout


A_BACKEND = """
import sys
from importlib.machinery import PathFinder

class WithoutTheWorker(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {"arq", "grpc", "xai_sdk"} else super().find_spec(name, path, target)

sys.meta_path = [WithoutTheWorker if finder is PathFinder else finder for finder in sys.meta_path]
from promptq.worker.cli import main
sys.argv[1:] = ["doctor", "--json"]
main()
"""


@pytest.mark.parametrize("key", [None, KEY])
def test_a_backends_installation(key: str | None, server: PrivateRedis) -> None:
    """Without arq, grpc and xai_sdk: Redis is checked all the same, a key if there is one, the API is not."""
    ended = python(A_BACKEND, promptq_redis_url=server.url, promptq_provider=None, xai_api_key=key)
    assert ended.returncode == 0, ended.stderr
    found = {check["check"]: (check["verdict"], check["found"]) for check in json.loads(ended.stdout)["checks"]}
    assert found["installation"][1].endswith("for a backend (a worker needs promptq[worker])")
    assert found["permissions"][0] == "ok"
    assert found["key"][0] == ("not_checked" if key is None else "ok")
    assert found["API"] == ("not_checked", "needs promptq[worker], which a backend does without")


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (NoPermissionError("no permissions to run the 'info' command"), NOT_CHECKED),
        (ResponseError(f"unknown command `CONFIG`, with args beginning with: `{PASSWORD}`"), NOT_CHECKED),
        (ResponseError("LOADING"), PROBLEM),
        (ConnectionResetError("gone"), PROBLEM),
        (redis.exceptions.TimeoutError("slow"), PROBLEM),
        (KeyError("redis_version"), NOT_CHECKED),
    ],
)
async def test_a_check_that_fails_is_a_finding(error: Exception, verdict: Verdict) -> None:
    """Whatever keeps a check from its answer, the others go on; what may not be asked is no problem."""

    async def check() -> Finding:
        raise error

    found = await examined(check, 1)
    assert found.verdict is verdict
    assert PASSWORD not in found.found
