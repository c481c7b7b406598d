import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from command import FakeWorker, Run, json_lines, one_line, queued, settle_all
from promptq.producer import Limits, ModelLimits
from promptq.producer.commands.limits import limits_table

pytest_plugins = ["command_fixture"]
pytestmark = pytest.mark.producer

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def clock(moment: datetime) -> str:
    """The time of the day where the test runs."""
    return f"{moment.astimezone():%H:%M:%S}"


async def test_limits_are_set_in_part(promptq: Run) -> None:
    """What is given changes, `none` takes away, the rest stays; the answer says what they are now."""
    said = [
        (await promptq("limits", "set", "grok-4", *options)).stdout
        for options in (
            ("--rpm", "480", "--tpm", "2000000", "--in-flight", "100"),
            ("--rpm", "600"),
            ("--tpm", "none"),
        )
    ]
    assert said == [
        "grok-4: 480 requests/min, 2,000,000 tokens/min, 100 calls in flight\n",
        "grok-4: 600 requests/min, 2,000,000 tokens/min, 100 calls in flight\n",
        "grok-4: 600 requests/min, 100 calls in flight\n",
    ]
    [model] = json_lines((await promptq("limits", "--json")).stdout)
    assert (model["model"], model["limits"]) == ("grok-4", {"rpm": 600, "tpm": None, "in_flight": 100})
    assert (await promptq("limits", "unset", "grok-4")).stdout == "grok-4: no limits\n"
    shown = await promptq("limits")
    assert (shown.stdout, shown.stderr) == ("", "no model has limits or jobs, or was used in the last day\n")


async def test_limits_are_shown_with_their_use(promptq: Run, redis_url: str) -> None:
    """A row for each model: used of limit."""
    await promptq("limits", "set", "grok-4", "--rpm", "6000", "--in-flight", "9")
    await promptq("enqueue", "-", stdin="one\ntwo\n")
    await promptq("enqueue", "-", "--model", "grok-3", stdin="three\n")
    async with FakeWorker(redis_url) as worker:
        jobs = await worker.claim()
        header, *rows = (await promptq("limits")).stdout.splitlines()
        await worker.settle(jobs)
    assert re.split("  +", header.strip()) == ["model", "requests/min", "tokens/min", "in flight", "state"]
    assert [re.split("  +", row.strip()) for row in rows] == [
        ["grok-3", "6", "0", "1"],
        ["grok-4", "12 of 6,000", "0", "2 of 9"],
    ]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, ""),
        ({"rpm_now": 480, "throttled_at": NOW}, ""),
        (
            {"rpm_now": 320.4, "throttled_at": NOW},
            f"at most 320 requests/min just now: the provider said 429 at {clock(NOW)}",
        ),
        (
            {"limits": Limits(), "rpm_now": 40, "throttled_at": NOW},
            f"at most 40 requests/min just now: the provider said 429 at {clock(NOW)}",
        ),
        (
            {"rpm_now": 320, "paused_until": NOW + timedelta(seconds=30), "pause_reason": "rate_limited"},
            f"paused for 30 s, until {clock(NOW + timedelta(seconds=30))}: rate_limited (",
        ),
        ({"paused_by_operator": True}, "paused by an operator; `promptq resume grok-4` ends that"),
    ],
)
def test_limits_say_what_holds_a_model_up(fields: dict[str, Any], said: str) -> None:
    """A pause, or a rate below the limit since a 429."""
    model = ModelLimits.model_validate({"model": "grok-4", "limits": Limits(rpm=480)} | fields)
    screen = Console(width=200)
    with screen.capture() as captured:
        screen.print(limits_table((model,), NOW))
    row = captured.get().splitlines()[1]
    assert said in row
    assert said or row.split() == ["grok-4", "0", "of", "480", "0", "0"]


async def test_pause_and_resume(promptq: Run, redis_url: str) -> None:
    """Nothing of the model is run meanwhile, and `status` says why."""
    await promptq("enqueue", "-", stdin="one\n")
    paused = await promptq("pause", "grok-4")
    assert paused.stdout == "grok-4 is paused; `promptq resume grok-4` ends that\n"
    assert await settle_all(redis_url) == 0
    assert queued(redis_url) == 1
    assert "paused by an operator; `promptq resume grok-4` ends that" in (await promptq("status")).stdout
    assert json.loads((await promptq("status", "--json")).stdout)["lanes"][0]["paused_by_operator"] is True
    assert (await promptq("resume", "grok-4")).stdout == "grok-4 goes on\n"
    assert await settle_all(redis_url) == 1


async def test_tenants(promptq: Run, redis_url: str) -> None:
    """Weight and cap, set in part; how many jobs wait; one too many is refused with exit code 3."""
    said = [
        (await promptq("tenants", "set", "acme", *options)).stdout
        for options in (("--weight", "3", "--max-queued", "2"), ("--weight", "5"))
    ]
    assert said == [
        "acme: weight 3, at most 2 of its jobs may wait\n",
        "acme: weight 5, at most 2 of its jobs may wait\n",
    ]
    await promptq("enqueue", "-", "--tenant", "acme", stdin="one\ntwo\n")
    refused = await promptq("enqueue", "-", "--tenant", "acme", stdin="three\n")
    assert refused.exit_code == 3
    assert "2 jobs of tenant 'acme' wait, 1 more would pass its cap of 2; enqueue fewer," in refused.stderr
    await promptq("enqueue", "-", stdin="three\n")
    rows = [line.split() for line in (await promptq("tenants")).stdout.splitlines()]
    assert rows == [
        ["tenant", "weight", "waiting", "may", "wait"],
        ["acme", "5", "2", "2"],
        ["default", "1", "1", "any"],
    ]
    acme, _ = json_lines((await promptq("tenants", "--json")).stdout)
    assert acme == {"name": "acme", "weight": 5, "max_queued": 2, "waiting": 2}
    assert (await promptq("tenants", "unset", "acme")).stdout == "acme: weight 1, any number of its jobs may wait\n"
    await settle_all(redis_url)
    assert (await promptq("tenants")).stderr == "no tenant has a weight or a cap, and no job waits\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("limits", "set", "grok-4"), "say what to change: --rpm, --tpm, --in-flight"),
        (("limits", "set", "grok-4", "--in-flight", "many"), "--in-flight: give a whole number, or none"),
        (("limits", "set", "grok-4", "--rpm", "0"), "rpm: Input should be greater than or equal to 1"),
        (("limits", "set", "promptq", "--rpm", "1"), "model: 'promptq' is the intake lane"),
        (("limits", "unset", " "), "model: must be printable"),
        (("pause", " "), "model: must be printable"),
        (("resume", "promptq"), "model: 'promptq' is the intake lane"),
        (("tenants", "set", "acme"), "say what to change: --weight, --max-queued"),
        (("tenants", "set", "acme", "--weight", "101"), "weight: Input should be less than or equal to 100"),
        (("tenants", "unset", ""), "name: "),
    ],
)
async def test_wrong_settings_are_one_line(promptq: Run, args: tuple[str, ...], said: str) -> None:
    """Exit code 2, and nothing is set."""
    run = await promptq(*args)
    assert (run.exit_code, run.stdout) == (2, "")
    assert said in one_line(run.stderr)
    assert (await promptq("limits", "--json")).stdout == (await promptq("tenants", "--json")).stdout == ""
