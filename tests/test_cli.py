import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import redis
import redis.asyncio
from rich.console import Console

from command import COMMAND, FakeWorker, Run, files, json_lines, one_line, settle_all, text, write
from promptq.producer import AccountPause, ErrorCode, LaneStats, QueueStats, keys
from promptq.producer.commands.holding import account
from promptq.producer.commands.status import lanes_table

pytest_plugins = ["command_fixture"]
pytestmark = pytest.mark.producer


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("enqueue", "nowhere.txt"), 2, "nowhere.txt: No such file or directory; give a file"),
        (("enqueue", "."), 2, "Is a directory; give a file"),
        (("enqueue", "empty.txt"), 2, "no prompts there"),
        (("enqueue", "p.txt", "--output", "no/such/folder"), 2, "No such file or directory; --output takes a file"),
        (("enqueue", "p.txt", "--output", "p.txt"), 2, "p.txt holds the prompts; name another file"),
        (("enqueue", "p.txt.part", "--output", "p.txt"), 2, "p.txt.part holds the prompts; name another file"),
        (("enqueue", "p.txt", "--tenant", " "), 2, "--tenant: must be printable"),
        (("enqueue", "p.txt", "--model", "promptq"), 2, "--model: 'promptq' is the intake lane"),
        (("enqueue", "p.txt", "--redis-url", "redis://127.0.0.1:1"), 3, "no Redis at redis://127.0.0.1:1 within 0.5 s"),
        (("status", "--redis-url", "redis://me:secret/1@host"), 2, "one looks like redis://user:password@host"),
        (("status", "--redis-url", "http://me:secret@host"), 2, "one looks like redis://user:password@host"),
        (("result", "nobody"), 4, "no job 'nobody'"),
        (("result", "nobody", "--wait"), 4, "no job 'nobody'"),
        (("status", "nobody"), 4, "no job 'nobody'"),
    ],
)
async def test_errors_are_one_line(
    promptq: Run, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], code: int, said: str
) -> None:
    """What a user can do wrong ends as one line and a documented exit code, and enqueues nothing."""
    monkeypatch.setenv("PROMPTQ_REDIS_TIMEOUT", "0.5")
    write("p.txt", "Hi")
    write("p.txt.part", "Hi")
    write("empty.txt", "", " ")
    run = await promptq(*args)
    assert (run.exit_code, run.stdout) == (code, "")
    line = one_line(run.stderr)
    assert said in line
    assert "secret" not in line
    assert files() == ["empty.txt", "p.txt", "p.txt.part"]
    assert text("p.txt") == text("p.txt.part") == "Hi\n"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PROMPTQ_REDIS_TIMEOUT", "soon"), ("PROMPTQ_MAX_PAYLOAD", "1"), ("PROMPTQ_DEFAULT_MODEL", "")],
)
async def test_a_wrong_setting_is_named(
    promptq: Run, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """A wrong environment variable ends every command by its name."""
    monkeypatch.setenv(variable, value)
    run = await promptq("status")
    assert run.exit_code == 2
    assert one_line(run.stderr).startswith(f"promptq: {variable}: ")


async def test_result(promptq: Run, redis_url: str) -> None:
    """Nothing but the answer is on stdout; what is known about it is on stderr, or in the JSON."""
    [job_id] = (await promptq("enqueue", "-", stdin="one\n")).stdout.split()
    unfinished = await promptq("result", job_id)
    assert (unfinished.exit_code, unfinished.stdout) == (5, "")
    assert one_line(unfinished.stderr) == f"promptq: job {job_id} is queued; --wait waits for it"
    in_time = await promptq("result", job_id, "--timeout", "0.1")
    assert in_time.exit_code == 5
    assert "no result within 0.1 s; the job goes on" in one_line(in_time.stderr)

    await settle_all(redis_url)
    run = await promptq("result", job_id, "--wait")
    assert (run.exit_code, run.stdout) == (0, "ONE\n")
    assert run.stderr.startswith("grok-4, 3 + 4 tokens, $0.001, ")
    known = json.loads((await promptq("result", job_id, "--json")).stdout)
    assert (known["id"], known["content"], known["attempts"][0]["usage"]["total_tokens"]) == (job_id, "ONE", 7)


async def test_result_of_a_failed_job(promptq: Run, redis_url: str) -> None:
    """Exit code 1 and why, in one line whatever the provider wrote; with --json on stdout too."""
    [job_id] = (await promptq("enqueue", "-", stdin="fail\n")).stdout.split()
    await settle_all(redis_url)
    run = await promptq("result", job_id)
    assert (run.exit_code, run.stdout) == (1, "")
    assert one_line(run.stderr) == f"promptq: job {job_id} failed: moderated: no such thing"
    as_json = await promptq("result", job_id, "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["error"]["code"] == "moderated"


NOTHING = "nothing waits and nothing runs\nno worker; start one with `promptq worker`\n"


async def test_status(promptq: Run, redis_url: str) -> None:
    """Of one job a word; of all a table with a row for each model, and why one is paused."""
    assert (await promptq("status")).stderr == NOTHING
    [job_id] = (await promptq("enqueue", "-", "--priority", "low", stdin="one\n")).stdout.split()
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        client.hset(keys.meter("grok-4"), mapping={"until": (time.time() + 600) * 1000, "reason": "rate_limited"})
        client.expire(keys.meter("grok-4"), 60)
    assert (await promptq("status", job_id)).stdout == "queued\n"
    assert json.loads((await promptq("status", job_id, "--json")).stdout) == {"id": job_id, "status": "queued"}
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        client.zadd(keys.WORKERS, {"w": (time.time() - 300) * 1000})
        client.expire(keys.WORKERS, 60)
    shown = await promptq("status")
    assert shown.stderr == "no worker, the last was there 5 min ago; start one with `promptq worker`\n"
    header, row = shown.stdout.splitlines()
    assert header.split() == ["model", "high", "normal", "low", "waiting", "delayed", "running", "state"]
    assert re.fullmatch(
        r"grok-4 +0 +0 +1 +0 s +0 +0 +paused for 10 min, until .*: rate_limited \(more requests .+\) *", row
    )
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        client.delete(keys.meter("grok-4"))


NOW = datetime(2026, 1, 1, tzinfo=UTC)
LANE = LaneStats(lane="grok-4", high=0, normal=5, low=0, delayed=0, running=0, waiting_since=NOW - timedelta(minutes=3))


@pytest.mark.parametrize(
    ("lane", "said"),
    [
        ({}, "no worker takes them; start one with `promptq worker`"),
        ({"waiting_since": NOW}, "waiting"),
        ({"normal": 0, "waiting_since": None, "delayed": 2}, "delayed"),
        ({"running": 3, "stalled": 1}, "running"),
        ({"running": 3, "stalled": 3}, "its workers are gone; start one with `promptq worker`"),
        (
            {"paused_until": NOW + timedelta(seconds=30), "pause_reason": "rate_limited"},
            "paused for 30 s, until 00:00:30: rate_limited (more requests than the account allows)",
        ),
        (
            {"paused_until": NOW, "pause_reason": "unavailable"},
            "one job tries whether the pause may end: unavailable (the provider cannot be reached)",
        ),
        ({"paused_until": NOW + timedelta(seconds=0.2)}, "paused for 1 s, until 00:00:00: no reason given"),
        ({"paused_until": NOW + timedelta(days=3)}, "paused for 3 d, until 2026-01-04 00:00:00: no reason given"),
        ({"paused_by_operator": True}, "paused by an operator; `promptq resume grok-4` ends that"),
        ({"limited_by": "rpm", "limited_to": 480.0}, "waits for its limit of 480 requests a minute"),
        (
            {"limited_by": "tpm", "limited_to": 1_333_333.3, "running": 3},
            "running; the rest waits for its limit of 1,333,333 tokens a minute",
        ),
        (
            {"limited_by": "in_flight", "limited_to": 2, "running": 2},
            "the rest waits for its limit of 2 calls in flight",
        ),
        ({"limited_by": "in_flight", "limited_to": 2, "running": 2, "normal": 0}, "running"),
    ],
)
def test_status_says_why(utc: None, lane: dict[str, Any], said: str) -> None:
    """What keeps the jobs of a model from running, and what to do."""
    stats = QueueStats(lanes=(LaneStats.model_validate(LANE.model_dump() | lane),), failed=0)
    assert row_of(stats).endswith(said)


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine's clock is that of Greenwich."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def row_of(stats: QueueStats) -> str:
    """The last row of the table."""
    screen = Console(width=200)
    with screen.capture() as captured:
        screen.print(lanes_table(stats, NOW))
    return captured.get().splitlines()[-1].rstrip()


def test_status_tells_busy_workers_from_none() -> None:
    """While workers run another model's jobs, more of them would help; not while they may not call."""
    other = LANE.model_copy(update={"lane": "grok-3", "running": 1})
    stats = QueueStats(lanes=(other, LANE), failed=0, workers=1)
    assert "no worker has a free slot for them; start one" in row_of(stats)
    paused = AccountPause(account="xai:1a2b3c4d", reason=ErrorCode.BAD_KEY, until=NOW)
    assert row_of(stats.model_copy(update={"paused_accounts": (paused,)})).endswith(
        "waits for an account that is paused"
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"until": NOW + timedelta(seconds=8)},
            "account xai:1a2b3c4d is paused, asked again in 8 s: the API key is refused; give the workers another,",
        ),
        (
            {"reason": "no_credit"},
            "paused, asked again as soon as a worker can: the account is out of credit; buy some",
        ),
        ({"is_open": True}, "one job tries whether it works again; it was paused: the API key is refused"),
    ],
)
def test_status_explains_paused_accounts(fields: dict[str, Any], said: str) -> None:
    """Whose, why, when somebody looks again, and what to do."""
    plain = {"account": "xai:1a2b3c4d", "reason": "bad_key", "until": NOW}
    assert said in account(AccountPause.model_validate(plain | fields), NOW)


async def test_status_notes_paused_accounts(promptq: Run, redis_url: str) -> None:
    """On stderr, since they are of no lane."""
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        fields = {"until": 9_999_999_999_999, "reason": "bad_key", "state": "paused"}
        await cast(Any, client).hset(keys.account("xai:1a2b3c4d"), mapping=fields)
        await client.expire(keys.account("xai:1a2b3c4d"), 60)
        await client.zadd(keys.ACCOUNTS, {"xai:1a2b3c4d": 9_999_999_999_999})
        await client.expire(keys.ACCOUNTS, 60)
    run = await promptq("status")
    assert run.stdout == ""
    assert "account xai:1a2b3c4d is paused, asked again in" in run.stderr


async def test_status_sees_the_oldest_and_the_abandoned(promptq: Run, redis_url: str) -> None:
    """How long the next job has waited, and jobs whose workers are gone, are read from Redis."""
    await promptq("enqueue", "-", stdin="one\ntwo\n")
    async with FakeWorker(redis_url) as worker:
        jobs = await worker.claim()
        await promptq("enqueue", "-", stdin="three\n")
        [lane] = json.loads((await promptq("status", "--json")).stdout)["lanes"]
        age = datetime.now(UTC) - datetime.fromisoformat(lane["waiting_since"])
        assert (lane["running"], lane["stalled"], lane["normal"]) == (2, 0, 1)
        assert timedelta(0) <= age < timedelta(seconds=60)
        with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
            client.zadd(keys.running("grok-4"), {jobs[0].id: 1})
        [lane] = json.loads((await promptq("status", "--json")).stdout)["lanes"]
        assert lane["stalled"] == 1
        await worker.settle(jobs)


async def test_cancel(promptq: Run, redis_url: str) -> None:
    """Each id gets its word; unknown ones do not keep the others from being cancelled, and exit with 4."""
    ended, running = (await promptq("enqueue", "-", stdin="one\ntwo\n")).stdout.split()
    async with FakeWorker(redis_url) as worker:
        jobs = {job.id: job for job in await worker.claim()}
        await worker.settle([jobs[ended]])
        waiting = (await promptq("enqueue", "-", stdin="three\n")).stdout.strip()
        run = await promptq("cancel", ended, "nobody", running, waiting)
        assert run.exit_code == 4
        assert run.stdout.splitlines() == [
            f"{ended} had succeeded before",
            f"{running} cancelling",
            f"{waiting} cancelled",
        ]
        assert "no job 'nobody'" in one_line(run.stderr)
        await worker.settle([jobs[running]])


async def test_cancel_as_json(promptq: Run) -> None:
    """One object an id, of no job too."""
    [job_id] = (await promptq("enqueue", "-", stdin="one\n")).stdout.split()
    run = await promptq("cancel", "--json", job_id, "nobody", job_id)
    assert run.exit_code == 4
    assert json_lines(run.stdout) == [
        {"id": job_id, "status": "cancelled", "cancelled": True},
        {"id": "nobody", "status": None, "cancelled": False},
        {"id": job_id, "status": "cancelled", "cancelled": False},
    ]


@pytest.mark.parametrize("command", [(), ("enqueue",), ("group",)])
async def test_help_tells_the_exit_codes(promptq: Run, command: tuple[str, ...]) -> None:
    """The help of all, and of each command, documents them."""
    assert "130 interrupted" in " ".join((await promptq(*command, "--help")).stdout.split())


async def test_answers_are_utf8_in_every_locale(promptq: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is piped is UTF-8, even where Python would write ASCII."""
    [job_id] = (await promptq("enqueue", "-", stdin="caf\u00e9 \U0001f600\n")).stdout.split()
    await settle_all(redis_url)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert subprocess.check_output([*COMMAND, "result", job_id]) == "CAF\u00c9 \U0001f600\n".encode()


async def test_a_reader_that_leaves_is_no_error(promptq: Run, redis_url: str) -> None:
    """`promptq enqueue --wait | head -1` ends without a word."""
    file = write("p.txt", *(f"prompt {number}" for number in range(100)))
    await promptq("enqueue", file)
    await settle_all(redis_url)
    process = subprocess.Popen([*COMMAND, "enqueue", file, "--wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (1, b"")


async def test_on_a_terminal(promptq: Run, redis_url: str) -> None:
    """A person sees one line an answer, cut to the width and unable to steer the terminal, and the totals."""
    file = write("p.txt", f"long\u00a0caf\u00e9 \x1b[2J {'x' * 200}", "fail")
    await promptq("enqueue", file)
    await settle_all(redis_url)
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}
    subprocess.run([*COMMAND, "enqueue", file, "--wait"], stdout=theirs, stderr=theirs, env=environment, check=False)
    screen = os.read(ours, 100_000).decode()
    os.close(ours)
    os.close(theirs)
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).split("\r")[-1] for line in screen.split("\r\n")]
    assert any(re.fullmatch(r" +1  \w{20}  LONG CAFÉ \?\[2J X+…", line) and len(line) == 80 for line in lines)
    assert any(re.fullmatch(r" +2  \w{20}  moderated: no such thing", line) for line in lines)
    assert any(line.startswith("0 accepted, 2 already there, ") for line in lines)
    assert "waiting" in screen


@pytest.mark.parametrize("change", [{}, {"NO_COLOR": "1"}])
def test_colours_are_for_a_terminal_that_wants_them(tmp_path: Path, change: dict[str, str]) -> None:
    """An error is red on a terminal; with NO_COLOR, and in a pipe, it is as it is."""
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    command = [*COMMAND, "enqueue", str(tmp_path / "nowhere")]
    ours, theirs = pty.openpty()
    subprocess.run(command, stderr=theirs, env=environment | change, check=False)
    screen = os.read(ours, 10_000)
    os.close(ours)
    os.close(theirs)
    assert (b"\x1b[" in screen) is (not change)
    piped = subprocess.run(command, stderr=subprocess.PIPE, env=environment | change, check=False)
    assert piped.stderr.startswith(b"promptq: ")
    assert b"\x1b" not in piped.stderr


def test_the_commands_need_no_worker() -> None:
    """A backend's command line loads neither arq, grpc nor xai_sdk."""
    script = "import sys, promptq.producer.cli; print(sorted({'arq', 'grpc', 'xai_sdk', 'openai'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"
