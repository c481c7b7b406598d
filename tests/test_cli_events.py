"""`promptq events`: an answer on the screen while it is written."""

import asyncio
import json
from asyncio.subprocess import PIPE

import pytest
from redis.asyncio import Redis

from command import COMMAND, Run, one_line, settle_all
from contract import Contract
from promptq.producer import codec

pytest_plugins = ["command_fixture"]
pytestmark = pytest.mark.producer


async def test_pieces_are_printed_as_they_come(promptq: Run, redis_client: Redis) -> None:
    """At once; what proves to be void ends with its line, and stderr says so. With --json all that is told."""
    contract = Contract(redis_client)
    [job_id] = (await promptq("enqueue", "-", "--stream", stdin="one\n")).stdout.split()
    run = await contract.take_one()
    assert codec.decode(run.job.payload)["k"]["stream"] is True
    process = await asyncio.create_subprocess_exec(*COMMAND, "events", job_id, stdout=PIPE, stderr=PIPE)
    assert process.stdout
    await contract.tell(run, "one ", "tw")
    assert await asyncio.wait_for(process.stdout.readexactly(6), 10) == b"one tw"
    await contract.tell(run)
    await contract.tell(run, codec.dumps([{"reasoning_content": "hm"}]), "eins\n", "zwei")
    record = {"status": "succeeded", "content": "eins\nzwei", "model": "grok-4", "told": (f"{run.token}/1", 3)}
    await contract.settle(run, attempt=b"", result=codec.dumps({"id": job_id, "s": True, "r": record}))
    stdout, stderr = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, stdout) == (0, b"\neins\nzwei\n")
    restarted, described = stderr.decode().splitlines()
    assert restarted.startswith("restarted: what stands above is void")
    assert described.startswith("grok-4, ")

    told = [json.loads(line) for line in (await promptq("events", job_id, "--json")).stdout.splitlines()]
    assert [event["type"] for event in told] == ["delta", "delta", "delta", "ended"]
    assert [event["content"] for event in told[:-1]] == ["", "eins\n", "zwei"]
    assert told[-1]["result"]["content"] == "eins\nzwei"
    assert (await promptq("events", job_id, "--after", told[1]["id"])).stdout == "zwei\n"


async def test_other_ends_have_their_exit_codes(promptq: Run, redis_url: str) -> None:
    """A job that was not streamed is printed at its end; a failed one is 1, an unknown one 4, no event's id 2."""
    one, fails = (await promptq("enqueue", "-", stdin="one\nfail\n")).stdout.split()
    await settle_all(redis_url)
    assert (await promptq("events", one)).stdout == "ONE\n"
    for args, code, said in (
        ((fails,), 1, f"job {fails} failed: moderated: no such thing"),
        (("nobody",), 4, "no job 'nobody'"),
        ((one, "--after", "nothing"), 2, "--after: not the id of an event; give the `id` of the last one"),
    ):
        run = await promptq("events", *args)
        assert (run.exit_code, run.stdout) == (code, "")
        assert said in one_line(run.stderr)
    as_json = await promptq("events", fails, "--json")
    assert (as_json.exit_code, json.loads(as_json.stdout)["result"]["error"]["code"]) == (1, "moderated")
