"""`promptq group NAME`: how far the jobs are that were enqueued under one name, and their results."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from promptq.producer.batch import Tally
from promptq.producer.collect import collect_group
from promptq.producer.commands.asking import AsJson, Output, ResultsAs, ask, interrupted, say_json
from promptq.producer.console import CommandError, ExitCode, RedisUrl, note, say, stderr
from promptq.producer.models import GroupCounts, JobStatus
from promptq.producer.outputs import STDOUT, OutputFormat, open_output
from promptq.producer.progress import showing
from promptq.producer.queue import PromptQueue


def group(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all have ended, and print their results.")] = False,
    output: Output = None,
    output_format: ResultsAs = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel all that have not ended.")] = False,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Say how far the jobs of a group are; with --wait print their results as they end."""
    tally = Tally()

    async def count(queue: PromptQueue) -> GroupCounts:
        return await queue.group(name).counts()

    async def cancel_all(queue: PromptQueue) -> int:
        return await queue.group(name).cancel()

    async def collect(queue: PromptQueue) -> GroupCounts:
        results_as = output_format or OutputFormat.JSONL
        with open_output(output, results_as, for_people=not as_json) as take, showing(stderr()) as progress:
            return await collect_group(queue, queue.group(name), take, tally, progress)

    if cancel:
        told = ask(cancel_all, redis_url)
        note(f"{told:,} jobs cancelled; those that run end within seconds" if told else "nothing to cancel")
    if not (wait or output):
        _show(ask(count, redis_url), as_json=as_json)
        return
    try:
        counts = ask(collect, redis_url)
    except KeyboardInterrupt:
        raise CommandError(interrupted(output, tally.ended.total()), ExitCode.INTERRUPTED) from None
    if as_json and output not in (None, STDOUT):
        _show(counts, as_json=True)
    else:
        note(f"{tally.ended_summary()}; results in {output}" if output else tally.ended_summary(), style="bold")
    if tally.unsuccessful:
        raise typer.Exit(ExitCode.FAILED)


def _show(counts: GroupCounts, *, as_json: bool) -> None:
    """One row of counts, or one object."""
    by_status = {status.value: getattr(counts, status) for status in JobStatus}
    if as_json:
        whole = {"total": counts.total, "ended": counts.ended, "open": counts.open, "progress": counts.progress}
        say_json({"name": counts.name, **by_status, **whole})
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in by_status:
        table.add_column(header, justify="right")
    table.add_row(*(f"{count:,}" for count in by_status.values()))
    say(f"{counts.name}: {counts.ended:,} of {counts.total:,} ended, {counts.progress:.0%}")
    Console(highlight=False, markup=False).print(table)
