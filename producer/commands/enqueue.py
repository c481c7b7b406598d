"""`promptq enqueue FILE`: the prompts of a file into the queue, and with --wait their answers out of it."""

import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from promptq.producer import batch, collect
from promptq.producer.commands.asking import (
    AsJson,
    Output,
    Priority,
    ResultsAs,
    ask,
    interrupted,
    known_models,
    say_json,
)
from promptq.producer.console import CommandError, ExitCode, RedisUrl, note, say, stderr
from promptq.producer.entries import job_of
from promptq.producer.errors import InvalidJob
from promptq.producer.inputs import Format, Prompts, open_prompts
from promptq.producer.outputs import STDOUT, OutputFormat, open_output, refuse_overwriting
from promptq.producer.progress import showing
from promptq.producer.queue import JobHandle, PromptQueue
from promptq.producer.settings import ProducerSettings

_IDS_ON_A_SCREEN = 20

_File = Annotated[
    Path, typer.Argument(metavar="FILE", help="Prompts: text or JSON lines, OpenAI Batch lines, or CSV. - is stdin.")
]
_Format = Annotated[
    Format | None, typer.Option("--format", help="Otherwise the suffix and the first line tell.", show_default=False)
]
_Field = Annotated[str | None, typer.Option(help="The field of a JSON line, or the column, that is the prompt.")]
_Model = Annotated[
    str | None,
    typer.Option(help="For all lines. Otherwise PROMPTQ_DEFAULT_MODEL.", autocompletion=known_models),
]
_Group = Annotated[
    str | None, typer.Option(help="A name for all of them, for `promptq group`. Under another name they run again.")
]


class Order(StrEnum):
    """In which order results come."""

    INPUT = "input"
    COMPLETED = "completed"


def enqueue(
    file: _File,
    *,
    file_format: _Format = None,
    field: _Field = None,
    model: _Model = None,
    priority: Annotated[Priority | None, typer.Option(help="For all lines. Otherwise normal.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose jobs these are; tenants take turns.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The most that an answer may have.")] = None,
    group: _Group = None,
    stream: Annotated[bool, typer.Option("--stream", help="Let `promptq events` follow the answers.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answers and print them.")] = False,
    output: Output = None,
    output_format: ResultsAs = None,
    order: Annotated[Order, typer.Option(help="In which order results come.")] = Order.COMPLETED,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad lines out.")] = False,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Enqueue the prompts of a file and print their ids, or with --wait their answers.

    A JSON line, or a row of a CSV file, has prompt or messages, and any option of a job: id, model, max_tokens, ...
    A bad line refuses the whole file, unless --skip-bad is given.
    The same file again runs nothing again: it finds its jobs, and their answers.
    """
    settings = ProducerSettings()
    options = {
        "model": model,
        "priority": priority and priority.value,
        "tenant": tenant,
        "max_tokens": max_tokens,
        "group": group,
        "stream": stream or None,
    }
    _check_options(options)
    if output is not None:
        refuse_overwriting(file, output)
    tally = batch.Tally()
    with open_prompts(file, settings, field=field, options=options, file_format=file_format) as prompts:
        with showing(stderr()) as progress:
            bad = batch.check(prompts.check(), tally, progress)
        batch.report(bad, tally, skip_bad=skip_bad)

        async def enqueue_only(queue: PromptQueue) -> None:
            with showing(stderr()) as progress:
                await batch.enqueue(queue, prompts, _printer(tally, as_json=as_json), tally, progress)

        async def enqueue_and_wait(queue: PromptQueue) -> None:
            results_as = output_format or _matching(prompts)
            tickets = batch.Tickets()
            with open_output(output, results_as, for_people=not as_json) as take, showing(stderr()) as progress:
                await batch.enqueue(queue, prompts, tickets.add, tally, progress)
                await collect.collect(queue, tickets, take, tally, progress, in_order=order is Order.INPUT)

        try:
            ask(enqueue_and_wait if wait or output else enqueue_only, redis_url, settings)
        except KeyboardInterrupt:
            raise CommandError(_interrupted(tally, output), ExitCode.INTERRUPTED) from None
    _sum_up(tally, output, as_json=as_json)


def _check_options(options: Mapping[str, Any]) -> None:
    """Tell about a wrong option once, not at every line."""
    try:
        job_of("a prompt", options)
    except InvalidJob as error:
        raise CommandError(f"--{error.field.replace('_', '-')}: {error.reason}") from None


def _matching(prompts: Prompts) -> OutputFormat:
    """OpenAI's lines in, OpenAI's lines out."""
    return OutputFormat.OPENAI if prompts.format is Format.OPENAI else OutputFormat.JSONL


def _printer(tally: batch.Tally, *, as_json: bool) -> batch.Accept:
    """Prints each id as it is accepted; to a screen only as many as fit on it."""
    if as_json:
        return _print_handle
    if sys.stdout.isatty() and tally.jobs > _IDS_ON_A_SCREEN:
        note(f"{tally.jobs:,} ids: redirect stdout to have them, or --wait for the answers", style="dim")
        return lambda *_: None
    return lambda _, handle: say(handle.id)


def _print_handle(number: int, handle: JobHandle) -> None:
    say_json({"line": number, "id": handle.id, "created": handle.created, "status": handle.status})


def _interrupted(tally: batch.Tally, output: Path | None) -> str:
    if tally.accepted < tally.jobs:
        sure = f"at least {tally.accepted:,} of {tally.jobs:,} jobs are in"
        return f"interrupted; {sure}; the same command enqueues the rest"
    return interrupted(output, tally.ended.total())


def _sum_up(tally: batch.Tally, output: Path | None, *, as_json: bool) -> None:
    """The totals, and the exit code. With --json they are on stdout if the results are not."""
    if as_json and output not in (None, STDOUT):
        say_json({**tally.as_json(), "output": output})
    else:
        note(f"{tally.summary()}; results in {output}" if output else tally.summary(), style="bold")
    if tally.unsuccessful:
        raise typer.Exit(ExitCode.FAILED)
