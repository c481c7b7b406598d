"""`promptq status [ID]`: where a job is, or what waits, runs and pauses, and why."""

import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from promptq.producer.commands.asking import AsJson, ask, say_json
from promptq.producer.console import RedisUrl, note, say
from promptq.producer.errors import ErrorCode
from promptq.producer.models import LaneStats, QueueStats
from promptq.producer.queue import PromptQueue

_PIPE_WIDTH = 200
_TAKEN_WITHIN = timedelta(seconds=2)
"""A worker with a free slot takes a job within milliseconds, and looks again every second."""
_REASONS: Final = {
    ErrorCode.RATE_LIMITED: "more requests than the account allows",
    ErrorCode.NO_CREDIT: "the account is out of credit",
    ErrorCode.BAD_KEY: "the API key is refused",
    ErrorCode.UNAVAILABLE: "the provider cannot be reached",
}


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
        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        Console(highlight=False, markup=False, width=width).print(lanes_table(stats, now))
    else:
        note("nothing waits and nothing runs")
    note(_workers(stats, now), style="dim")
    if stats.failed:
        note(f"failed, and still kept: {stats.failed:,}", style="dim")


def _workers(stats: QueueStats, now: datetime) -> str:
    if stats.workers:
        return f"workers: {stats.workers:,}"
    if stats.worker_seen_at is None:
        return "no worker; start one with `promptq worker`"
    return f"no worker, the last was there {_lasting(now - stats.worker_seen_at)} ago; start one with `promptq worker`"


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
        waiting = "" if lane.waiting_since is None else _lasting(now - lane.waiting_since)
        table.add_row(lane.lane, high, normal, low, waiting, *others, _state(lane, now, has_workers=stats.workers > 0))
    return table


def _state(lane: LaneStats, now: datetime, *, has_workers: bool) -> str:
    """What goes on in a lane, or why nothing does and what to do."""
    if lane.paused_until is not None:
        why = _why(lane.pause_reason)
        if lane.paused_until > now:
            return f"paused for {_lasting(lane.paused_until - now)}: {why}"
        return f"one job tries whether the pause may end: {why}"
    if lane.stalled and lane.stalled == lane.running:
        return "its workers are gone; start one with `promptq worker`"
    if lane.running:
        return "running"
    if lane.waiting_since is not None and now - lane.waiting_since > _TAKEN_WITHIN:
        why = "no worker has a free slot for them" if has_workers else "no worker takes them"
        return f"{why}; start one with `promptq worker`"
    return "waiting" if lane.queued else "delayed" if lane.delayed else ""


def _why(reason: ErrorCode | None) -> str:
    if reason is None:
        return "no reason given"
    return f"{reason} ({_REASONS[reason]})" if reason in _REASONS else reason.value


def _lasting(span: timedelta) -> str:
    """A time span in its largest unit."""
    seconds = max(0.0, span.total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
