import json
import re

import pytest

from command import Run, json_lines, one_line, queued, settle_all

pytest_plugins = ["command_fixture"]
pytestmark = pytest.mark.producer


async def failed_jobs(promptq: Run, redis_url: str, count: int = 1, model: str = "grok-4") -> list[str]:
    """The ids of jobs that have failed."""
    prompts = "".join(f"fail {model} {number}\n" for number in range(count))
    ids: list[str] = (await promptq("enqueue", "-", "--model", model, stdin=prompts)).stdout.split()
    await settle_all(redis_url)
    return ids


async def test_failed_jobs_are_listed(promptq: Run, redis_url: str) -> None:
    """A line each, oldest first: id, when, model, attempts and why; by error and model; as JSON the whole results."""
    nothing = await promptq("failed")
    assert (nothing.stdout, nothing.stderr) == ("", "no failed job is kept\n")
    [first] = await failed_jobs(promptq, redis_url)
    [second] = await failed_jobs(promptq, redis_url, model="grok-3")
    run = await promptq("failed")
    assert run.stderr == "2 failed; `promptq requeue` runs them again\n"
    lines = run.stdout.splitlines()
    assert re.fullmatch(rf"{first}  \d\d:\d\d:\d\d  grok-4  1 attempt  moderated: no such thing", lines[0])
    assert [line.split()[0] for line in lines] == [first, second]
    assert [line.split()[0] for line in (await promptq("failed", "--model", "grok-3")).stdout.splitlines()] == [second]
    assert (await promptq("failed", "--code", "timeout")).stdout == ""
    assert [result["id"] for result in json_lines((await promptq("failed", "--json")).stdout)] == [first, second]
    assert "failed, and still kept: 2; `promptq failed` lists them" in (await promptq("status")).stderr


async def test_requeue_by_id(promptq: Run, redis_url: str) -> None:
    """Each id gets its word; unknown ones do not keep the others from running again, and exit with 4."""
    [failed] = await failed_jobs(promptq, redis_url)
    [ended] = (await promptq("enqueue", "-", stdin="one\n")).stdout.split()
    await settle_all(redis_url)
    [waiting] = (await promptq("enqueue", "-", stdin="two\n")).stdout.split()
    run = await promptq("requeue", failed, "nobody", ended, waiting)
    assert run.exit_code == 4
    assert run.stdout.splitlines() == [
        f"{failed} requeued",
        f"{ended} has succeeded: only a failed job is requeued",
        f"{waiting} is queued: only a failed job is requeued",
    ]
    assert "no job 'nobody'" in one_line(run.stderr)
    assert await settle_all(redis_url) == 2
    assert len(json.loads((await promptq("result", failed, "--json")).stdout)["attempts"]) == 2


async def test_requeue_as_json(promptq: Run, redis_url: str) -> None:
    """One object an id, of no job too."""
    [failed] = await failed_jobs(promptq, redis_url)
    run = await promptq("requeue", "--json", failed, "nobody", failed)
    assert run.exit_code == 4
    assert json_lines(run.stdout) == [
        {"id": failed, "status": "queued", "requeued": True},
        {"id": "nobody", "status": None, "requeued": False},
    ]


@pytest.mark.parametrize(
    ("options", "found"),
    [(("--all",), 3), (("--model", "grok-4"), 2), (("--code", "moderated", "--model", "grok-3"), 1)],
)
async def test_requeue_what_is_found(promptq: Run, redis_url: str, options: tuple[str, ...], found: int) -> None:
    """All, or those of a model and an error: their ids, and how many."""
    ids = await failed_jobs(promptq, redis_url, 2) + await failed_jobs(promptq, redis_url, model="grok-3")
    run = await promptq("requeue", *options)
    assert run.stderr == f"{found} requeued\n"
    assert {line.removesuffix(" requeued") for line in run.stdout.splitlines()} <= set(ids)
    assert queued(redis_url) + queued(redis_url, "grok-3") == len(run.stdout.splitlines()) == found
    assert (await promptq("requeue", "--code", "timeout")).stderr == "no such failed job is kept\n"


async def test_more_are_requeued_than_a_call_takes(promptq: Run, redis_url: str) -> None:
    """Any number, each once."""
    ids = await failed_jobs(promptq, redis_url, 230)
    run = await promptq("requeue", "--all", "--json")
    assert sorted(line["id"] for line in json_lines(run.stdout)) == sorted(ids)
    assert run.stderr == "230 requeued\n"


@pytest.mark.parametrize("args", [(), ("job", "--all"), ("job", "--model", "grok-4")])
async def test_ids_or_a_search(promptq: Run, args: tuple[str, ...]) -> None:
    """Not both, not nothing."""
    run = await promptq("requeue", *args)
    assert run.exit_code == 2
    assert one_line(run.stderr) == "promptq: give ids, or --code, --model or --all"
