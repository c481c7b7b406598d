import asyncio
import json
import signal
import subprocess

import pytest

from command import COMMAND, FakeWorker, Run, files, json_lines, one_line, queued, settle_all, subscribers, text, write
from waiting import wait_until

pytest_plugins = ["command_fixture"]
pytestmark = pytest.mark.producer


async def test_counts_and_progress(promptq: Run, redis_url: str) -> None:
    """How many jobs of the group are where, as one object and as one row; jobs of others are not among them."""
    await promptq("enqueue", "-", stdin="other\n")
    await promptq("enqueue", write("p.txt", "one", "two", "fail"), "--group", "run-42")
    async with FakeWorker(redis_url) as worker:
        jobs = {job.id: job for job in await worker.claim()}
        ids = (await promptq("enqueue", "p.txt", "--group", "run-42")).stdout.split()
        await worker.settle([jobs.pop(ids[0]), jobs.pop(ids[2])])
        counts = json.loads((await promptq("group", "run-42", "--json")).stdout)
        headline, header, row = (await promptq("group", "run-42")).stdout.splitlines()
        await worker.settle(list(jobs.values()))
    assert counts == {
        "name": "run-42",
        "queued": 0,
        "delayed": 0,
        "running": 1,
        "succeeded": 1,
        "failed": 1,
        "cancelled": 0,
        "expired": 0,
        "total": 3,
        "ended": 2,
        "open": 1,
        "progress": pytest.approx(2 / 3),
    }
    assert headline == "run-42: 2 of 3 ended, 67%"
    assert dict(zip(header.split(), row.split(), strict=True))["running"] == "1"


async def test_results_of_a_group(promptq: Run, redis_url: str) -> None:
    """All of them, into a file in either format, with the totals and the exit code of a failure."""
    await promptq("enqueue", write("p.txt", "one", "fail"), "--group", "run-42")
    await settle_all(redis_url)
    printed = await promptq("group", "run-42", "--wait")
    assert printed.exit_code == 1
    assert {result["content"] for result in json_lines(printed.stdout)} == {"ONE", ""}
    assert all("line" not in result for result in json_lines(printed.stdout))
    assert "1 succeeded" in printed.stderr
    assert "14 tokens" in printed.stderr
    written = await promptq("group", "run-42", "--output", "out.jsonl", "--output-format", "openai", "--json")
    assert written.exit_code == 1
    assert json.loads(written.stdout)["ended"] == 2
    assert sorted(line["response"]["status_code"] for line in json_lines(text("out.jsonl"))) == [200, 403]
    assert files() == ["out.jsonl", "p.txt"]


async def test_cancel_a_group(promptq: Run, redis_url: str) -> None:
    """What waits ends at once, and its counts say so; jobs of other groups go on."""
    await promptq("enqueue", write("p.txt", "one", "two"), "--group", "run-42")
    await promptq("enqueue", "p.txt", "--group", "run-43")
    run = await promptq("group", "run-42", "--cancel", "--json")
    assert (run.exit_code, json.loads(run.stdout)["cancelled"]) == (0, 2)
    assert queued(redis_url) == 2
    assert (await promptq("group", "run-42", "--cancel")).stderr == "nothing to cancel\n"


async def test_an_unknown_group(promptq: Run) -> None:
    """Exit code 4 and one line, whatever was asked; no file is left."""
    for options in ([], ["--wait"], ["--cancel"], ["--json"], ["--output", "out.jsonl"]):
        run = await promptq("group", "nobody", *options)
        assert (run.exit_code, run.stdout) == (4, "")
        assert "no group 'nobody'" in one_line(run.stderr)
    assert files() == []


async def test_interrupted_and_run_again(promptq: Run, redis_url: str) -> None:
    """Ctrl-C while a group is waited for: exit code 130 and how to go on; the same command gives all results."""
    await promptq("enqueue", write("p.txt", "one", "two", "three"), "--group", "run-42")
    command = (*COMMAND, "group", "run-42", "--output", "out.jsonl")
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
    async with FakeWorker(redis_url) as worker:
        jobs = await worker.claim()
        await worker.settle(jobs[:1])
        await wait_until(lambda: "out.jsonl.part" in files() and "ONE" in text("out.jsonl.part"))
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
        assert process.returncode == 130
        assert "the same command goes on waiting (1 results so far: out.jsonl.part)" in one_line(stderr.decode())

        process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
        await wait_until(lambda: subscribers(redis_url) == 1, message="the command waits")
        await worker.settle(jobs[1:])
    await process.communicate()
    assert process.returncode == 0
    assert {result["content"] for result in json_lines(text("out.jsonl"))} == {"ONE", "TWO", "THREE"}
    assert files() == ["out.jsonl", "p.txt"]
