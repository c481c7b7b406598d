"""`promptq cancel ID ...`: cancel jobs."""

from typing import Annotated

import typer

from promptq.producer.commands.asking import AsJson, ask, say_json
from promptq.producer.console import RedisUrl, say
from promptq.producer.errors import JobNotFound
from promptq.producer.models import JobStatus
from promptq.producer.queue import PromptQueue


def cancel(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID")],
    *,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Cancel jobs: queued ones at once, running ones within seconds."""
    unknown = ask(lambda queue: _cancel_all(queue, job_ids, as_json=as_json), redis_url)
    if unknown:
        raise JobNotFound(", ".join(unknown))


async def _cancel_all(queue: PromptQueue, job_ids: list[str], *, as_json: bool) -> list[str]:
    """Cancel what there is to cancel and tell; the ids of no job are returned."""
    unknown: list[str] = []
    for job_id in job_ids:
        has_effect, state = False, None
        try:
            has_effect, state = await queue.cancel(job_id), await queue.status(job_id)
        except JobNotFound:
            unknown.append(job_id)
        if as_json:
            say_json({"id": job_id, "status": state, "cancelled": has_effect})
        elif state:
            say(f"{job_id} {_word(has_effect, state)}")
    return unknown


def _word(has_effect: bool, state: JobStatus) -> str:
    if not has_effect:
        return f"had {state} before"
    return "cancelling" if state is JobStatus.RUNNING else str(state)
