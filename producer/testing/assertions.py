"""What `MemoryQueue` asserts: which jobs are meant, and what a failure says."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from promptq.producer.entries import Prompt, job_of
from promptq.producer.models import PromptJob
from promptq.producer.testing.answers import prompt_of, quoted

_NOT_SHOWN = frozenset({"messages", "id"})


def matching(jobs: Iterable[PromptJob], prompt: Prompt | None, fields: Mapping[str, Any]) -> list[PromptJob]:
    """Those with these fields, and with this prompt: a text is the last message, messages are all of them.

    Raises InvalidJob for a field that no job could have.
    """
    wanted = job_of("any" if prompt is None else prompt, fields)
    named = [*fields] if prompt is None or isinstance(prompt, str) else [*fields, "messages"]
    return [
        job
        for job in jobs
        if all(getattr(job, name) == getattr(wanted, name) for name in named)
        and (not isinstance(prompt, str) or prompt_of(job) == prompt)
    ]


def description(prompt: Prompt | None, fields: Mapping[str, Any]) -> str:
    """What was looked for."""
    asked = [] if prompt is None else [quoted(prompt) if isinstance(prompt, str) else f"messages={list(prompt)!r}"]
    return ", ".join([*asked, *(f"{name}={value!r}" for name, value in fields.items())])


def listing(jobs: Sequence[PromptJob], fields: Iterable[str] = ()) -> str:
    """What was enqueued, a line for each job: the prompt, these fields, and whatever is not ordinary."""
    if not jobs:
        return "nothing was enqueued"
    shown = set(fields)
    lines = "".join(f"\n  {number}. {_line(job, shown)}" for number, job in enumerate(jobs, 1))
    return f"enqueued {'was' if len(jobs) == 1 else 'were'}:{lines}"


def _line(job: PromptJob, shown: AbstractSet[str]) -> str:
    ordinary = {name: field.get_default(call_default_factory=True) for name, field in PromptJob.model_fields.items()}
    told = {
        name: getattr(job, name)
        for name, value in ordinary.items()
        if name in shown or (name not in _NOT_SHOWN and getattr(job, name) != value)
    }
    return description(prompt_of(job), told)
