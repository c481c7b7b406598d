"""What docs/recipes.md shows, run as it stands there: real programs beside real workers, on a real Redis."""

import asyncio
import contextlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from faults.fleet import Fleet, WorkerProcess, environment, xai_settings
from pages import Page
from promptq.producer import GroupNotFound
from promptq.producer.blocking import Group, PromptQueue
from promptq.worker.simulator.books import JournalEntry, Totals
from promptq.worker.simulator.control import SimulatorControl
from promptq.worker.simulator.process import SimulatorProcess, simulator_process

PAGE = Page("docs/recipes.md")
shown = PAGE.shown


def test_each_recipe_has_its_test() -> None:
    """None stands on the page that is not run below."""
    tested = {name.removeprefix("test_").replace("_", " ") for name in globals() if name.startswith("test_")}
    assert PAGE.sections
    assert {heading.lower().replace(",", "") for heading in PAGE.sections} <= tested


def arguments(console: str) -> list[str]:
    """Those of the one `promptq worker` in a block."""
    [said] = re.findall(r"^\$ .*promptq worker(.*)$", console, re.MULTILINE)
    return shlex.split(said)


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """Workers that answer with the prompt, after a while."""
    with Fleet(tmp_path, promptq_redis_url=redis_url, promptq_echo_latency=0.3) as fleet:
        yield fleet


@pytest.fixture
def run(redis_url: str) -> Callable[..., str]:
    """Runs a program of the page, which must end well; returns what it printed."""

    def run(program: str, **settings: object) -> str:
        variables = environment(**{"promptq_redis_url": redis_url} | settings)
        command = (sys.executable, "-W", "error", "-c", program)
        done = subprocess.run(command, env=variables, capture_output=True, check=False, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def begin(worker: WorkerProcess, processes: int = 1) -> WorkerProcess:
    """Wait until it has begun."""
    return asyncio.run(worker.ready(processes))


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[SimulatorProcess]:
    """Takes long enough for calls to be in flight together."""
    with simulator_process(latency="0.1") as simulator:
        yield simulator


@pytest.fixture
def simulator(shared_simulator: SimulatorProcess) -> SimulatorProcess:
    """Its books are empty."""
    totals(shared_simulator)
    return shared_simulator


def books(simulator: SimulatorProcess) -> tuple[Sequence[JournalEntry], Totals]:
    """What the simulator has seen, call by call and in numbers; then its books are empty again."""

    async def ask() -> tuple[Sequence[JournalEntry], Totals]:
        async with SimulatorControl(simulator.host) as control:
            seen = await control.journal(), await control.totals()
            await control.reset()
            return seen

    return asyncio.run(ask())


def totals(simulator: SimulatorProcess) -> Totals:
    """The numbers alone."""
    return books(simulator)[1]


def test_four_prompts_two_at_a_time(
    run: Callable[..., str], redis_url: str, tmp_path: Path, simulator: SimulatorProcess
) -> None:
    """The script and the queue get the same answers to four calls, of which two are in flight at a time."""
    script, program = shown("Four prompts, two at a time")
    [console] = shown("Four prompts, two at a time", "console")
    settings = xai_settings(simulator.host, redis_url)
    by_script = run(script, **settings)
    assert re.fullmatch(r"(Total tokens used for response \d: [1-9]\d*\n){4}", by_script)
    seen = [totals(simulator)]
    with Fleet(tmp_path, **settings) as fleet:
        begin(fleet.launch(*arguments(console)))
        assert run(program) == by_script
    seen.append(totals(simulator))
    assert [(total.generations, total.peak_in_flight) for total in seen] == [(4, 2), (4, 2)]


def imported(program: str, name: str, folder: Path) -> ModuleType:
    """The program as a module."""
    path = folder / f"{name}.py"
    path.write_text(program)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Post = Callable[[Mapping[str, object]], tuple[int, Any]]
Get = Callable[[str], tuple[int, Any]]


def check_backend(post: Post, get: Get) -> None:
    """202 with an id, 202 until there is a result, 200 with it; 404 for an unknown id, 422 for what is no prompt."""
    status, accepted = post({"prompt": "Hello there"})
    assert (status, list(accepted)) == (202, ["id"])
    assert get(accepted["id"]) == (202, accepted)
    deadline = time.monotonic() + 10
    while (answer := get(accepted["id"]))[0] == 202:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    status, result = answer
    assert (status, result["id"], result["content"]) == (200, accepted["id"], "Hello there")
    assert get("unknown")[0] == 404
    assert post({"prompt": ""})[0] == 422


@pytest.fixture
def backend(fleet: Fleet, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker, and an environment in which a backend finds the same Redis."""
    begin(fleet.launch())
    monkeypatch.setenv("PROMPTQ_REDIS_URL", redis_url)


@pytest.mark.usefixtures("backend")
def test_fastapi(tmp_path: Path) -> None:
    """The backend behaves, and `wait` answers as soon as there is a result."""
    [program] = shown("FastAPI")
    app = imported(program, "fastapi_recipe", tmp_path).app
    with asyncio.Runner() as runner:

        def post(json: Mapping[str, object]) -> tuple[int, Any]:
            reply = runner.run(client.post("/prompts", json=json))
            return reply.status_code, reply.json()

        def get(place: str) -> tuple[int, Any]:
            reply = runner.run(client.get(f"/prompts/{place}"))
            return reply.status_code, reply.json()

        stack = contextlib.AsyncExitStack()
        runner.run(stack.enter_async_context(app.router.lifespan_context(app)))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        runner.run(stack.enter_async_context(client))
        check_backend(post, get)
        _, accepted = post({"prompt": "Hello again"})
        assert get(f"{accepted['id']}?wait=20")[1]["content"] == "Hello again"
        runner.run(stack.aclose())


@pytest.mark.usefixtures("backend")
def test_a_stream_to_the_browser(tmp_path: Path) -> None:
    """The words come one by one; behind any of them the stream goes on with the next; an unknown job is 404."""
    [program] = shown("A stream to the browser")
    module = imported(program, "stream_recipe", tmp_path)
    with asyncio.Runner() as runner:
        runner.run(check_streams(module.app))


async def check_streams(app: Any) -> None:
    """The same for each word, and for the end."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        job = (await client.post("/prompts", json={"prompt": "one two three"})).json()

        async def told(last: str | None) -> list[tuple[str, ...]]:
            headers = {"Last-Event-ID": last} if last else {}
            reply = await client.get(f"/prompts/{job['id']}/events", headers=headers)
            assert reply.headers["content-type"].startswith("text/event-stream")
            return re.findall(r"id: (.*)\nevent: (.*)\ndata: (.*)\n\n", reply.text)

        events = await told(None)
        assert [kind for _, kind, _ in events] == ["delta", "delta", "delta", "ended"]
        assert [json.loads(data)["content"] for _, _, data in events[:-1]] == ["one", " two", " three"]
        assert json.loads(events[-1][2])["result"]["content"] == "one two three"
        for number, (last, _, _) in enumerate(events[:-1], 1):
            assert await told(last) == events[number:]
        assert (await client.get("/prompts/unknown/events")).status_code == 404
        assert (await client.get(f"/prompts/{job['id']}/events", headers={"Last-Event-ID": "none"})).status_code == 400
        assert "EventSource" in (await client.get("/")).text


@pytest.mark.usefixtures("backend")
def test_flask(tmp_path: Path) -> None:
    """The backend behaves."""
    [program] = shown("Flask")
    module = imported(program, "flask_recipe", tmp_path)
    client = module.app.test_client()

    def post(json: Mapping[str, object]) -> tuple[int, Any]:
        reply = client.post("/prompts", json=json)
        return reply.status_code, reply.json

    def get(place: str) -> tuple[int, Any]:
        reply = client.get(f"/prompts/{place}")
        return reply.status_code, reply.json

    check_backend(post, get)
    module.queue.close()


@pytest.mark.usefixtures("backend")
def test_django(tmp_path: Path) -> None:
    """The backend behaves."""
    [program] = shown("Django")
    module = imported(program, "django_recipe", tmp_path)
    from django.test import Client  # type: ignore[import-untyped] # it has no types; and it wants to be set up

    client = Client()

    def post(json: Mapping[str, object]) -> tuple[int, Any]:
        reply = client.post("/prompts", json, content_type="application/json")
        return reply.status_code, reply.json()

    def get(place: str) -> tuple[int, Any]:
        reply = client.get(f"/prompts/{place}")
        return reply.status_code, reply.json()

    check_backend(post, get)
    module.queue().close()


@pytest.mark.parametrize("machines", [1, 4], ids=["--processes 4", "four machines"])
def test_four_workers(run: Callable[..., str], fleet: Fleet, machines: int) -> None:
    """Four processes under one supervisor, or four on their own, share the jobs: each runs some of them."""
    together, alone = map(arguments, shown("Four workers", "console"))
    assert "--processes" in together
    assert "--processes" not in alone
    workers = [fleet.launch(*(together if machines == 1 else alone)) for _ in range(machines)]
    names = {name for worker in workers for name in begin(worker, 4 // machines).names}
    [program] = shown("Four workers")
    ran = dict(re.findall(r"^(\S+): (\d+) jobs$", run(program), re.MULTILINE))
    assert ran.keys() == names
    assert len(names) == 4
    assert sum(map(int, ran.values())) == 400


def test_a_nightly_run(run: Callable[..., str], fleet: Fleet) -> None:
    """It reads every result; a second start finds them all, and runs nothing twice."""
    nightly, progress, _ = shown("A nightly run")
    begin(fleet.launch())
    printed = run(nightly)
    assert len(re.findall(r"^reviews-[\d-]+-[012] succeeded In five words: .+$", printed, re.MULTILINE)) == 3
    assert run(nightly) == printed
    assert run(progress) == "100% of 3 jobs, 0 failed\n"


def wait_until_counted(group: Group, queued: int) -> None:
    """Until so many of its jobs wait."""
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(GroupNotFound):
            if group.counts().queued == queued:
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_nightly_run_is_cancelled(run: Callable[..., str], redis_url: str) -> None:
    """With no worker there it waits; then the cancel ends all of it."""
    nightly, progress, cancel = shown("A nightly run")
    with ThreadPoolExecutor(1) as pool, PromptQueue.connect(redis_url) as queue:
        running = pool.submit(run, nightly)
        wait_until_counted(queue.group(f"reviews-{date.today()}"), queued=3)  # noqa: DTZ011 - the program's own day
        assert run(progress) == "0% of 3 jobs, 0 failed\n"
        assert run(cancel) == "3 jobs cancelled\n"
        assert running.result(30).count("cancelled") == 3


@pytest.fixture
def xai_worker(redis_url: str, tmp_path: Path, simulator: SimulatorProcess) -> Iterator[WorkerProcess]:
    """A worker that asks the simulator, which calls tools and keeps to schemas."""
    with Fleet(tmp_path, **xai_settings(simulator.host, redis_url)) as fleet:
        yield begin(fleet.launch())


def test_tools_that_the_model_calls(
    run: Callable[..., str], xai_worker: WorkerProcess, simulator: SimulatorProcess
) -> None:
    """Two calls: one asks for the function, the next one answers with what it said."""
    [program] = shown("Tools that the model calls")
    assert run(program).strip()
    assert totals(simulator).generations == 2


def test_an_answer_in_a_shape(run: Callable[..., str], xai_worker: WorkerProcess) -> None:
    """What comes back is the class itself."""
    [program] = shown("An answer in a shape")
    assert run(program) == "Invoice ['is_paid', 'number', 'total']\n"


def test_a_chat_of_many_turns(run: Callable[..., str], xai_worker: WorkerProcess, simulator: SimulatorProcess) -> None:
    """Its calls are made in the program's order, never two at once, and each finds what it begins with in the cache."""
    [program] = shown("A chat of many turns")
    asked = re.findall(r"^(.+?) \[simulated\]", run(program), re.MULTILINE)
    calls, seen = books(simulator)
    assert [call.prompt for call in calls] == asked
    assert (len(asked), seen.peak_in_flight) == (6, 1)
    cached = [call.usage.cached_prompt_text_tokens for call in calls if call.usage]
    assert cached == sorted(cached)
    assert [tokens > 0 for tokens in cached] == [False, *[True] * 5]
