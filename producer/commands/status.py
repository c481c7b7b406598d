"""`promptq status [ID]`: where a job is, or what waits, runs and pauses, and why."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table

from promptq.producer.commands import holding
from promptq.producer.commands.asking import AsJson, ask, say_json, show_table
from promptq.producer.commands.holding import lasting
from promptq.producer.console import RedisUrl, note, say
from promptq.producer.models import LaneStats, QueueStats
from promptq.producer.queue import PromptQueue

_TAKEN_WITHIN = timedelta(seconds=2)
"""A worker with a free slot takes a job within milliseconds, and looks again every second."""


def status(
    job_id: Annotated[str | None, typer.Argument(metavar="ID")] = None,
    *,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Say where a job is; without an ID what waits and runs, model by model, and why not."""
    if job_id is not None:
        state = ask(lambda queue: queue.status(job_id), redis_url)
        if as_json:
            say_json({"id": job_id, "status": state})
        else:
            say(state)
        return
    stats = ask(PromptQueue.stats, redis_url)
    if as_json:
        say(stats.model_dump_json())
    else:
        _show(stats, datetime.now(UTC))


def _show(stats: QueueStats, now: datetime) -> None:
    """The table of lanes on stdout, and what else there is to know on stderr."""
    if stats.lanes:
        show_table(lanes_table(stats, now))
    else:
        note("nothing waits and nothing runs")
    for paused in stats.paused_accounts:
        note(holding.account(paused, now), style="yellow")
    note(_workers(stats, now), style="dim")
    if stats.failed:
        note(f"failed, and still kept: {stats.failed:,}; `promptq failed` lists them", style="dim")


def _workers(stats: QueueStats, now: datetime) -> str:
    if stats.workers:
        return f"workers: {stats.workers:,}"
    if stats.worker_seen_at is None:
        return "no worker; start one with `promptq worker`"
    return f"no worker, the last was there {lasting(now - stats.worker_seen_at)} ago; start one with `promptq worker`"


def lanes_table(stats: QueueStats, now: datetime) -> Table:
    """One row a lane: how many wait in each band and how long the next has, how many run, and what holds it up."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    for name in ("high", "normal", "low", "waiting", "delayed", "running"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state")
    for lane in stats.lanes:
        high, normal, low, *others = (
            f"{count:,}" for count in (lane.high, lane.normal, lane.low, lane.delayed, lane.running)
        )
        waiting = "" if lane.waiting_since is None else lasting(now - lane.waiting_since)
        table.add_row(lane.lane, high, normal, low, waiting, *others, _state(lane, stats, now))
    return table


def _state(lane: LaneStats, stats: QueueStats, now: datetime) -> str:
    """What goes on in a lane, or why nothing does and what to do."""
    if paused := holding.pause(lane, lane.lane, now):
        return paused
    if lane.stalled and lane.stalled == lane.running:
        return "its workers are gone; start one with `promptq worker`"
    if limited := holding.limit(lane):
        return f"running; the rest {limited}" if lane.running else limited
    if lane.running:
        return "running"
    if lane.waiting_since is not None and now - lane.waiting_since > _TAKEN_WITHIN:
        return _untaken(stats)
    return "waiting" if lane.queued else "delayed" if lane.delayed else ""


def _untaken(stats: QueueStats) -> str:
    if stats.workers and stats.paused_accounts:
        return "waits for an account that is paused"
    why = "no worker has a free slot for them" if stats.workers else "no worker takes them"
    return f"{why}; start one with `promptq worker`"
