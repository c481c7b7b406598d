import asyncio
import contextlib
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from command import COMMAND, FakeWorker, Run, files, json_lines, one_line, queued, settle_all, subscribers, text, write
from promptq.producer import JobResult, JobStatus, batch, collect, keys
from promptq.producer.console import CommandError, explain
from promptq.producer.entries import CHUNK_JOBS
from promptq.producer.inputs import BadLine
from promptq.producer.outputs import open_output
from waiting import wait_until

pytest_plugins = ["command_fixture"]
pytestmark = pytest.mark.producer


async def test_the_same_file_twice_runs_nothing_twice(promptq: Run, redis_url: str) -> None:
    """Ids come in the order of the lines; the second run finds the same jobs."""
    file = write("p.txt", "one", "two", "one")
    first, again = await promptq("enqueue", file), await promptq("enqueue", file)
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert len(set(first.stdout.split())) == 3
    assert again.stdout == first.stdout
    assert first.stderr.startswith("3 accepted, ")
    assert again.stderr.startswith("0 accepted, 3 already there, ")
    assert queued(redis_url) == 3


async def test_another_model_is_another_run(promptq: Run, redis_url: str) -> None:
    """Options reach the jobs, and change their ids."""
    file = write("p.txt", "one")
    before = await promptq("enqueue", file)
    after = await promptq("enqueue", file, "--model", "grok-3", "--priority", "high")
    assert before.stdout != after.stdout
    assert queued(redis_url, "grok-3") == 1
    lane = json.loads((await promptq("status", "--json")).stdout)["lanes"][0]
    assert (lane["lane"], lane["high"], lane["normal"]) == ("grok-3", 1, 0)


async def test_wait_prints_results_with_their_lines(promptq: Run, redis_url: str) -> None:
    """Into a pipe: one JSON object a job, with the number of its line, its answer and its usage; totals on stderr."""
    file = write("p.txt", "one", "", "two")
    await promptq("enqueue", file)
    assert await settle_all(redis_url) == 2
    run = await promptq("enqueue", file, "--wait")
    assert run.exit_code == 0
    results = {result["line"]: result for result in json_lines(run.stdout)}
    assert {number: result["content"] for number, result in results.items()} == {1: "ONE", 3: "TWO"}
    assert results[1]["usage"]["total_tokens"] == 7
    assert (results[1]["status"], results[1]["error"]) == ("succeeded", None)
    assert "0 accepted, 2 already there, 2 succeeded, 14 tokens, $0.002, " in run.stderr


async def test_failed_jobs_fail_the_command(promptq: Run, redis_url: str) -> None:
    """A failure is a result like others, counted, and exit code 1."""
    file = write("p.txt", "one", "fail")
    await promptq("enqueue", file)
    await settle_all(redis_url)
    run = await promptq("enqueue", file, "--output", "out.jsonl")
    assert run.exit_code == 1
    assert (run.stdout, files()) == ("", ["out.jsonl", "p.txt"])
    errors = {result["line"]: result["error"] for result in json_lines(text("out.jsonl"))}
    assert errors == {1: None, 2: {"code": "moderated", "message": "no\nsuch   thing"}}
    assert "1 succeeded" in run.stderr
    assert "1 failed" in run.stderr
    assert run.stderr.endswith("; results in out.jsonl\n")


async def test_a_result_that_is_gone_does_not_hold_up_the_rest(
    promptq: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job whose result's time was over before it was read is counted, and the others are waited for."""
    file = write("p.txt", "one", "two")
    gone = (await promptq("enqueue", file)).stdout.split()[0]
    await settle_all(redis_url)

    async def lose_it(*args: Any) -> None:
        await enqueue(*args)
        with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
            client.delete(keys.ledger(gone), keys.result(gone))

    enqueue = batch.enqueue
    monkeypatch.setattr(batch, "enqueue", lose_it)
    run = await promptq("enqueue", file, "--wait")
    assert run.exit_code == 1
    assert [result["line"] for result in json_lines(run.stdout)] == [2]
    assert "1 succeeded, 1 no longer kept" in run.stderr


async def test_many_jobs_are_watched_a_few_at_a_time(
    promptq: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room to wait for fewer jobs than there are, each still gives its result once."""
    monkeypatch.setattr(collect, "WATCHED", CHUNK_JOBS)
    file = write("p.txt", *(f"prompt {number}" for number in range(600)))
    assert len((await promptq("enqueue", file)).stdout.split()) == 600
    assert await settle_all(redis_url) == 600
    results = json_lines((await promptq("enqueue", file, "--output", "-")).stdout)
    assert sorted(result["line"] for result in results) == list(range(1, 601))


async def test_bad_lines_refuse_the_file(promptq: Run, redis_url: str) -> None:
    """Each bad line is reported by its number, none by its text, up to twenty; nothing is enqueued."""
    file = write("p.jsonl", '{"prompt": "good"}', *['{"prompt": "secret", "max_tokens": -1}'] * 25)
    run = await promptq("enqueue", file)
    assert (run.exit_code, run.stdout, queued(redis_url)) == (2, "", 0)
    *lines, more, verdict = run.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"line {number}" for number in range(2, 22)]
    assert more == "... and 5 more"
    assert verdict == "promptq: 25 of 26 lines are bad and nothing was enqueued; correct them, or add --skip-bad"
    assert "secret" not in run.stderr


async def test_skip_bad_enqueues_the_others(promptq: Run, redis_url: str) -> None:
    """With --skip-bad the good lines run, and the bad ones are still reported."""
    run = await promptq("enqueue", "-", "--skip-bad", stdin='{"prompt": "good"}\n{"prompt": 5}\n')
    assert run.exit_code == 0
    report, summary = run.stderr.splitlines()
    assert report.startswith("line 2: prompt: ")
    assert summary.startswith("1 accepted, 1 bad lines left out, ")
    assert queued(redis_url) == 1


def request(custom_id: str, prompt: str, **body: Any) -> str:
    """A line of OpenAI's Batch."""
    body |= {"model": "grok-4", "messages": [{"role": "user", "content": prompt}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body})


async def test_openai_in_openai_out(promptq: Run, redis_url: str) -> None:
    """Batch lines give Batch output lines, errors too; what the file's lines are called is what its results are."""
    file = write("batch.jsonl", request("a", "one"), request("b", "fail"))
    await promptq("enqueue", file)
    await settle_all(redis_url)
    run = await promptq("enqueue", file, "--output", "out.jsonl")
    assert run.exit_code == 1
    lines = {line["custom_id"]: line for line in json_lines(text("out.jsonl"))}
    assert lines["a"]["response"]["body"]["choices"][0]["message"]["content"] == "ONE"
    assert lines["b"]["response"]["body"]["error"]["code"] == "moderated"
    ours = await promptq("enqueue", file, "--wait", "--output-format", "jsonl")
    assert {result["line"]: result["metadata"] for result in json_lines(ours.stdout)} == {
        1: {"custom_id": "a"},
        2: {"custom_id": "b"},
    }


async def test_unsupported_requests_refuse_the_file(promptq: Run, redis_url: str) -> None:
    """By number and field, like every bad line."""
    run = await promptq("enqueue", write("batch.jsonl", request("a", "one"), request("b", "two", stream=True)))
    assert (run.exit_code, queued(redis_url)) == (2, 0)
    assert run.stderr.startswith("line 2: body.stream: not supported; leave it out\n")


async def test_a_table(promptq: Run, redis_url: str) -> None:
    """A CSV file on stdin, and the number of each row's first line with its result."""
    table = 'id,prompt,row\nmine,"one\nand more",x\n,two,y\n'
    run = await promptq("enqueue", "-", "--format", "csv", stdin=table)
    assert run.stdout.startswith("mine\n")
    await settle_all(redis_url)
    results = json_lines((await promptq("enqueue", "-", "--format", "csv", "--wait", stdin=table)).stdout)
    assert {result["line"]: (result["content"], result["metadata"]) for result in results} == {
        2: ("ONE\nAND MORE", {"row": "x"}),
        4: ("TWO", {"row": "y"}),
    }


async def test_a_header_without_prompts(promptq: Run, redis_url: str) -> None:
    """One line says which columns there are."""
    run = await promptq("enqueue", write("p.csv", "question,answer", "Why?,42"))
    assert run.exit_code == 2
    assert "no column 'prompt' (it has question, answer)" in one_line(run.stderr)


async def test_input_order(promptq: Run, redis_url: str) -> None:
    """With --order input results stand in the order of the lines, whatever ended first."""
    file = write("p.txt", "one", "two", "three")
    ids = (await promptq("enqueue", file)).stdout.split()
    async with FakeWorker(redis_url) as worker:
        jobs = {job.id: job for job in await worker.claim()}
        for job_id in reversed(ids):
            await worker.settle([jobs[job_id]])
    run = await promptq("enqueue", file, "--wait", "--order", "input")
    assert [result["line"] for result in json_lines(run.stdout)] == [1, 2, 3]


async def test_a_group_is_a_run_of_its_own(promptq: Run, redis_url: str) -> None:
    """The same file and name find the same jobs; another name runs it again; without one it is as it was."""
    file = write("p.txt", "one", "two")
    runs = [await promptq("enqueue", file, *group) for group in ([], ["--group", "a"], ["--group", "b"])]
    assert len({job_id for run in runs for job_id in run.stdout.split()}) == 6
    assert (await promptq("enqueue", file, "--group", "a")).stdout == runs[1].stdout
    assert queued(redis_url) == 6


async def test_json(promptq: Run, redis_url: str) -> None:
    """With --json a handle a line; with --wait the results; with a file for those, one object of totals."""
    file = write("p.txt", "one", "", "two")
    first, second = json_lines((await promptq("enqueue", file, "--json")).stdout)
    assert first.keys() == {"line", "id", "created", "status"}
    assert (second["line"], second["created"], second["status"]) == (3, True, "queued")
    await settle_all(redis_url)
    results = json_lines((await promptq("enqueue", file, "--wait", "--json")).stdout)
    assert {result["content"] for result in results} == {"ONE", "TWO"}
    [totals] = json_lines((await promptq("enqueue", file, "--output", "out.jsonl", "--json")).stdout)
    assert totals.items() >= {"jobs": 2, "created": 0, "known": 2, "succeeded": 2, "output": "out.jsonl"}.items()
    assert (totals["usage"]["total_tokens"], totals["skipped"], totals["gone"]) == (14, 0, 0)


async def test_a_full_lane(promptq: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 3, how far it came, and that the same command goes on from there."""
    monkeypatch.setenv("PROMPTQ_MAX_QUEUED", str(CHUNK_JOBS + 50))
    file = write("p.txt", *(f"prompt {number}" for number in range(400)))
    run = await promptq("enqueue", file)
    assert run.exit_code == 3
    assert f"{CHUNK_JOBS} of 400 jobs are in, the same command goes on from there" in one_line(run.stderr)
    monkeypatch.delenv("PROMPTQ_MAX_QUEUED")
    again = await promptq("enqueue", file)
    assert again.stderr.startswith(f"{400 - CHUNK_JOBS} accepted, {CHUNK_JOBS} already there, ")


async def test_a_file_that_changes_is_noticed(promptq: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is lost between check and enqueue is not lost in silence."""
    check = batch.check

    def check_and_spoil(*args: Any) -> list[BadLine]:
        bad = check(*args)
        write("p.jsonl", '{"prompt": "one"}', '{"prompt": ""}')
        return bad

    monkeypatch.setattr(batch, "check", check_and_spoil)
    run = await promptq("enqueue", write("p.jsonl", '{"prompt": "one"}', '{"prompt": "two"}'))
    assert run.stderr.startswith("the file changed while it was read; run the same command again\n1 accepted, ")


async def test_a_taken_id_is_found_on_its_line(promptq: Run) -> None:
    """The same id with another request: which line, what is in the queue, and exit code 2."""
    await promptq("enqueue", "-", stdin='{"prompt": "a", "id": "mine"}\n')
    run = await promptq("enqueue", "-", stdin='{"prompt": "b"}\n{"prompt": "c", "id": "mine"}\n')
    assert run.exit_code == 2
    line = one_line(run.stderr)
    assert "'mine' belongs to a job with another request" in line
    assert "it stands on line 2; 1 of 2 jobs are in" in line


async def test_nobody_works(promptq: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits while no job runs is told to start a worker, and still gets the answers."""
    said: list[str] = []
    monkeypatch.setattr(collect, "REMARK_AFTER", 0.05)
    monkeypatch.setattr(collect, "note", lambda text, **_: said.append(text))
    waiting = asyncio.ensure_future(promptq("enqueue", "-", "--wait", stdin="one\n"))
    await wait_until(lambda: said == ["no job is running: start a worker with `promptq worker`"])
    await settle_all(redis_url)
    assert [result["content"] for result in json_lines((await waiting).stdout)] == ["ONE"]


async def test_an_operator_holds_them(promptq: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a paused model is told that, not to start a worker."""
    said: list[str] = []
    monkeypatch.setattr(collect, "REMARK_AFTER", 0.05)
    monkeypatch.setattr(collect, "note", lambda text, **_: said.append(text))
    await promptq("pause", "grok-4")
    waiting = asyncio.ensure_future(promptq("enqueue", "-", "--wait", stdin="one\n"))
    await wait_until(lambda: said == ["grok-4 is paused by an operator: `promptq resume grok-4` ends that"])
    await promptq("resume", "grok-4")
    await settle_all(redis_url)
    assert (await waiting).exit_code == 0


@pytest.mark.parametrize("options", [(), ("--group", "run-42"), ("--order", "input")])
async def test_interrupted_and_run_again(promptq: Run, redis_url: str, options: tuple[str, ...]) -> None:
    """Ctrl-C while waiting: exit code 130, how to go on, an older file stays until the new one is whole."""
    write("out.jsonl", "older")
    command = (*COMMAND, "enqueue", write("p.txt", "one", "two", "three"), "--output", "out.jsonl", *options)
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
    await wait_until(lambda: queued(redis_url) == 3, message="the jobs are queued")
    async with FakeWorker(redis_url) as worker:
        jobs = await worker.claim()
        await worker.settle(jobs[:1])
        await wait_until(lambda: "ONE" in text("out.jsonl.part"), message="the first result is written")
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
        assert process.returncode == 130
        assert one_line(stderr.decode()) == (
            "promptq: interrupted; the jobs go on, and the same command goes on waiting"
            " (1 results so far: out.jsonl.part)"
        )
        assert text("out.jsonl") == "older\n"

        process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
        await wait_until(lambda: subscribers(redis_url) == 1, message="the command waits")
        await worker.settle(jobs[1:])
    _, stderr = await process.communicate()
    assert process.returncode == 0
    assert stderr.startswith(b"0 accepted, 3 already there, 3 succeeded, 21 tokens, ")
    assert {result["content"] for result in json_lines(text("out.jsonl"))} == {"ONE", "TWO", "THREE"}
    assert files() == ["out.jsonl", "p.txt"]


async def test_interrupted_while_enqueueing(promptq: Run, redis_url: str) -> None:
    """Ctrl-C in the middle of a file: how far it came; the same command enqueues the rest, and nothing twice."""
    lines = 20_000
    command = (*COMMAND, "enqueue", write("p.txt", *map(str, range(lines))), "--group", "run-42")
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    await wait_until(lambda: queued(redis_url) > 0, interval=0.001)
    process.send_signal(signal.SIGINT)
    _, stderr = await process.communicate()
    assert process.returncode == 130
    there = queued(redis_url)
    assert 0 < there < lines
    assert "the same command enqueues the rest" in one_line(stderr.decode())
    rest = await promptq("enqueue", "p.txt", "--group", "run-42")
    assert rest.stderr.startswith(f"{lines - there:,} accepted, {there:,} already there, ")
    assert json.loads((await promptq("group", "run-42", "--json")).stdout)["total"] == lines
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        client.flushall()


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    """The second is refused in one line, and the first one's file is whole."""
    path = tmp_path / "out.jsonl"
    result = JobResult(id="a", status=JobStatus.SUCCEEDED, content="Hello")
    with open_output(path) as take:
        take(1, result)
        with pytest.raises(CommandError, match="another run is writing"), open_output(path):
            pass
        take(2, result)
    assert len(path.read_text().splitlines()) == 2


def test_a_backend_without_the_worker_is_told_what_to_install() -> None:
    """`promptq worker` where arq is missing: one line, no traceback."""
    explained = explain(ModuleNotFoundError("No module named 'arq'", name="arq"))
    assert explained is not None
    assert "pip install 'promptq[worker]'" in explained[1]
    explained = explain(ModuleNotFoundError("No module named 'openai'", name="openai"))
    assert explained is not None
    assert "pip install 'promptq[worker,openai]'" in explained[1]
    assert explain(ModuleNotFoundError("No module named 'ours'", name="promptq.nowhere")) is None
