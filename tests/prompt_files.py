"""Files of prompts from a test's side: write one, and see what is read from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from promptq.producer.inputs import BadLine, Format, PromptLine, open_prompts
from promptq.producer.models import PromptJob
from promptq.producer.settings import ProducerSettings

Write = Callable[..., Path]
"""The fixture `write`: `write(content, name)` makes a file in the test's folder."""


def write_file(folder: Path, content: str | bytes, name: str = "prompts") -> Path:
    """A file of prompts."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(
    path: Path,
    *,
    field: str | None = None,
    settings: ProducerSettings | None = None,
    file_format: Format | None = None,
    **options: Any,
) -> list[PromptLine | BadLine]:
    """Everything in a file, read as `enqueue` does: the check finds the same bad lines, and readings are the same."""
    chosen = settings or ProducerSettings()
    with open_prompts(path, chosen, field=field, options=options, file_format=file_format) as prompts:
        checked, first, second = list(prompts.check()), list(prompts), list(prompts)
    assert first == second
    assert [line for line in checked if isinstance(line, BadLine)] == [
        line for line in first if isinstance(line, BadLine)
    ]
    return first


def jobs(path: Path, **options: Any) -> list[PromptJob]:
    """The jobs in a file without bad lines."""
    lines = read(path, **options)
    assert not [line for line in lines if isinstance(line, BadLine)]
    return [line.job for line in lines if isinstance(line, PromptLine)]


def bad(path: Path, **options: Any) -> list[tuple[int, str]]:
    """The bad lines in a file."""
    return [(line.number, line.reason) for line in read(path, **options) if isinstance(line, BadLine)]


def asked(path: Path, **options: Any) -> list[str]:
    """What each job in a file asks."""
    return [job.messages[-1].text for job in jobs(path, **options)]
