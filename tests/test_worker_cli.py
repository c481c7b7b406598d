import asyncio
import os
import re
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

import promptq.worker.cli  # noqa: F401 - adds the worker's commands
from faults.bookkeeping import results_of
from faults.fleet import API_KEY, Fleet, environment
from promptq.producer import JobStatus, PromptQueue
from promptq.producer.cli import app
from promptq.worker.embedded import PrivateRedis
from waiting import wait_until

NO_REDIS = "redis://127.0.0.1:1"
SHORT_OF_PATIENCE = """
import sys
from promptq.worker import process
from promptq.worker.cli import main
process.GIVE_UP_AFTER = 0
sys.argv[1:] = ["worker", *sys.argv[1:]]
main()
"""


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[PromptQueue]:
    """What a backend holds."""
    async with PromptQueue.connect(redis_url) as queue:
        yield queue


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """Workers that answer by themselves."""
    with Fleet(tmp_path, promptq_redis_url=redis_url) as fleet:
        yield fleet


async def refusal(*arguments: str, **settings: object) -> tuple[int, str]:
    """Exit code and output of a worker that does not wait long for Redis, and must refuse to start."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SHORT_OF_PATIENCE, *arguments),
        env=environment(**{"promptq_redis_url": NO_REDIS, "promptq_log_level": "error"} | settings),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(20):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()
        raise
    return int(process.returncode or 0), said.decode()


WRONG: dict[str, tuple[list[str], dict[str, str], str]] = {
    "a number": ([], {"PROMPTQ_MAX_JOBS": "many"}, "PROMPTQ_MAX_JOBS"),
    "a number for two": (["--processes", "2"], {"PROMPTQ_MAX_JOBS": "many"}, "PROMPTQ_MAX_JOBS"),
    "a word": ([], {"PROMPTQ_PROVIDER": "oracle"}, "PROMPTQ_PROVIDER"),
    "a flag": (["--provider", "oracle"], {}, "PROMPTQ_PROVIDER"),
    "a lease": ([], {"PROMPTQ_LEASE": "1", "PROMPTQ_REDIS_TIMEOUT": "1"}, "PROMPTQ_LEASE must be more than 1.5 s"),
    "a URL": ([], {"PROMPTQ_REDIS_URL": "over there"}, "REDIS_URL: "),
    "a port": ([], {"PROMPTQ_REDIS_URL": "redis://:hunter2@host:99999"}, "REDIS_URL: "),
    "a sentinel URL": ([], {"PROMPTQ_REDIS_URL": "redis+sentinel://:hunter2@host"}, "REDIS_URL: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_is_one_line_that_names_it(case: str) -> None:
    """A worker that is told nonsense says which in one line, without a traceback or a secret."""
    arguments, settings, naming = WRONG[case]
    ended = CliRunner().invoke(app, ["worker", *arguments], env=settings)
    assert ended.exit_code == 2, ended.exception
    assert naming in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "hunter2" not in ended.output


async def test_without_redis_it_says_where_it_looked() -> None:
    """No Redis for a while: one line beside the log, and an error."""
    code, said = await refusal()
    assert "Traceback" not in said
    assert "no Redis at redis://127.0.0.1:1" in said
    assert len(said.strip().splitlines()) == 1
    assert code == 3


async def test_without_a_key_it_says_which_variable_to_set(redis_url: str) -> None:
    """The xai provider and no XAI_API_KEY: one line, and an error."""
    code, said = await refusal(promptq_redis_url=redis_url, promptq_provider="xai", xai_api_key=None)
    assert "Traceback" not in said
    assert "XAI_API_KEY" in said
    assert len(said.strip().splitlines()) == 1
    assert code == 2


def test_arq_refuses_in_one_line() -> None:
    """`arq promptq.worker.WorkerSettings` names the command to use instead."""
    arq = Path(sys.executable).with_name("arq")
    ended = subprocess.run(
        [arq, "promptq.worker.WorkerSettings"], capture_output=True, check=False, text=True, env=dict(os.environ)
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 1
    assert "Traceback" not in said
    assert "`promptq worker`" in said
    assert len(said.strip().splitlines()) == 1


async def test_burst_ends_when_the_queue_is_empty(fleet: Fleet, queue: PromptQueue) -> None:
    """`--burst` runs what is queued, delayed jobs too, and ends with exit code 0."""
    soon = await queue.enqueue("later", model="b", delay=0.5)
    ids = [soon.id, *(handle.id for handle in await queue.enqueue_many(["a", "b", "c"], model="a"))]
    worker = await fleet.start("--burst", "--max-jobs", "2")
    assert await worker.wait() == 0
    assert {result.status for result in (await results_of(queue, ids)).values()} == {JobStatus.SUCCEEDED}
    assert worker.said("worker.stopped")[0]["succeeded"] == 4
    assert worker.said("worker.started")[0]["max_jobs"] == 2


async def test_models_limits_what_is_served(fleet: Fleet, queue: PromptQueue) -> None:
    """`--models a, b` serves these two lanes; a job for another model stays queued, and does not keep a burst going."""
    served = [(await queue.enqueue("q", model=model)).id for model in ("a", "b")]
    other = await queue.enqueue("q", model="c", deadline=30)
    worker = await fleet.start("--burst", "--models", "a, b")
    assert await worker.wait() == 0
    assert {result.status for result in (await results_of(queue, served)).values()} == {JobStatus.SUCCEEDED}
    assert await queue.status(other.id) is JobStatus.QUEUED
    assert await queue.cancel(other.id)


async def test_health_follows_redis(tmp_path: Path, unused_tcp_port: int) -> None:
    """`/livez` answers while the loop turns; `/readyz` says 503 while Redis is gone, and 200 again afterwards."""
    with PrivateRedis() as server, Fleet(tmp_path, promptq_redis_url=server.url) as fleet:
        worker = await fleet.start("--health-port", str(unused_tcp_port))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{unused_tcp_port}", trust_env=False) as client:

            async def ready_is(code: int) -> bool:
                return (await client.get("/readyz")).status_code == code

            await wait_until(lambda: ready_is(200))
            server.kill()
            await wait_until(lambda: ready_is(503))
            assert (await client.get("/livez")).status_code == 200
            await asyncio.to_thread(server.restart)
            await wait_until(lambda: ready_is(200))
            assert (await client.get("/anything")).status_code == 404
        worker.terminate()
        assert await worker.wait() == 0


def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that has nothing to say."""
    writer.close()


async def test_a_taken_health_port_is_one_line(redis_url: str) -> None:
    """The port belongs to somebody else: one line, and an error; Redis is left as it was."""
    server = await asyncio.start_server(hang_up, "0.0.0.0", 0)  # noqa: S104 - as the worker
    async with server:
        port = server.sockets[0].getsockname()[1]
        code, said = await refusal("--health-port", str(port), promptq_redis_url=redis_url)
    assert "Traceback" not in said
    assert str(port) in said
    assert code == 2


async def test_the_environment_is_not_shown(fleet: Fleet) -> None:
    """Neither key nor password is in what a worker says of itself, at the loudest level."""
    worker = await fleet.start("--burst", promptq_log_level="debug", promptq_log_format="console")
    assert await worker.wait() == 0
    assert API_KEY not in worker.log
    assert re.search(r"worker\.started", worker.log)
