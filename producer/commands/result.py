"""`promptq result ID`: the answer of one job."""

from typing import Annotated

import typer

from promptq.producer.commands.asking import AsJson, JobId, ask
from promptq.producer.console import CommandError, ExitCode, RedisUrl, note, say
from promptq.producer.errors import WaitTimeout
from promptq.producer.models import JobStatus
from promptq.producer.outputs import described, failure
from promptq.producer.queue import PromptQueue
from promptq.producer.results import JobResult


def result(
    job_id: JobId,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the job to end.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0, help="Wait so many seconds at most.")] = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Print the answer of a job; with --json everything that is known about it."""

    async def read(queue: PromptQueue) -> JobResult:
        if wait or timeout is not None:
            return await queue.wait(job_id, timeout)
        found = await queue.result(job_id)
        if found is None:
            state = await queue.status(job_id)
            raise CommandError(f"job {job_id} is {state}; --wait waits for it", ExitCode.TIMEOUT)
        return found

    try:
        found = ask(read, redis_url)
    except WaitTimeout:
        line = f"no result within {timeout:g} s; the job goes on, ask again later"
        raise CommandError(line, ExitCode.TIMEOUT) from None
    except KeyboardInterrupt:
        raise CommandError("interrupted; the job goes on, ask again later", ExitCode.INTERRUPTED) from None
    succeeded = found.status is JobStatus.SUCCEEDED
    if as_json:
        say(found.model_dump_json())
    elif succeeded:
        say(found.content)
        note(described(found), style="dim")
    if not succeeded:
        raise CommandError(f"job {job_id} {found.status}: {failure(found)}", ExitCode.FAILED)
