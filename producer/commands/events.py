"""`promptq events ID`: the answer of one job while it is written."""

from collections.abc import AsyncGenerator
from typing import Annotated

import typer

from promptq.producer.commands.asking import AsJson, JobId, ask
from promptq.producer.console import CommandError, ExitCode, RedisUrl, note, say, write
from promptq.producer.events import Delta, Ended, JobEvent, Restarted
from promptq.producer.models import JobStatus
from promptq.producer.outputs import described, failure
from promptq.producer.queue import PromptQueue

_After = Annotated[
    str | None, typer.Option(metavar="EVENT", help="Only what follows this event, by its id.", show_default=False)
]


def events(job_id: JobId, *, after: _After = None, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """Print the answer of a job while it is written; with --json the events, a line each.

    It comes piece by piece if the job was enqueued with --stream, else when the job has ended.
    """
    screen = _Screen(job_id, as_json=as_json)

    async def follow(queue: PromptQueue) -> None:
        async for event in _told(queue, job_id, after):
            screen.show(event)

    try:
        ask(follow, redis_url)
    except KeyboardInterrupt:
        screen.end_line()
        raise CommandError(
            "interrupted; the job goes on, and the same command shows it again", ExitCode.INTERRUPTED
        ) from None


def _told(queue: PromptQueue, job_id: str, after: str | None) -> AsyncGenerator[JobEvent, None]:
    try:
        return queue.events(job_id, after)
    except ValueError as error:
        raise CommandError(f"--{error}") from None


class _Screen:
    """Where the events of one job are shown."""

    def __init__(self, job_id: str, *, as_json: bool) -> None:
        self._job_id, self._as_json = job_id, as_json
        self._is_in_line = False
        self._output = 0

    def show(self, event: JobEvent) -> None:
        """One more. Raises CommandError for the end of a job that did not succeed."""
        if self._as_json:
            say(event.model_dump_json())
        match event:
            case Delta():
                self._show_piece(event)
            case Restarted():
                self.end_line()
                note("restarted: what stands above is void, the answer begins anew", style="yellow")
            case Ended():
                self._show_end(event)

    def end_line(self) -> None:
        """What follows stands on a line of its own."""
        if self._is_in_line:
            say("")
        self._is_in_line = False

    def _show_piece(self, delta: Delta) -> None:
        if self._as_json or not delta.content:
            return
        if delta.output != self._output:
            self.end_line()
        write(delta.content)
        self._output, self._is_in_line = delta.output, not delta.content.endswith("\n")

    def _show_end(self, ended: Ended) -> None:
        self.end_line()
        if ended.result.status is not JobStatus.SUCCEEDED:
            why = f"job {self._job_id} {ended.result.status}: {failure(ended.result)}"
            raise CommandError(why, ExitCode.FAILED)
        if not self._as_json:
            note(described(ended.result), style="dim")
