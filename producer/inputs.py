"""The prompts in a file: which format it has, and from each of its lines a job with an id.

A file is read twice, once to check every line before anything is enqueued, and never held in memory; what grows with it
is a number for each prompt, by which repeated ones are told apart, and the ids that were chosen by the caller.
"""

import contextlib
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import pydantic_core

from promptq.producer import codec
from promptq.producer.console import CommandError
from promptq.producer.entries import check, digest_of, job_of
from promptq.producer.errors import InvalidJob, InvalidPayload
from promptq.producer.input_lines import (
    Fields,
    Parse,
    Parsed,
    lines,
    parse_field,
    parse_json,
    parse_lines,
    parse_openai,
    parse_text,
)
from promptq.producer.input_rows import find_table, looks_like_header
from promptq.producer.models import PromptJob
from promptq.producer.openai_batch import CUSTOM_ID
from promptq.producer.settings import ProducerSettings


class Format(StrEnum):
    """How a file of prompts is written."""

    TEXT = "text"
    JSONL = "jsonl"
    OPENAI = "openai"
    CSV = "csv"


STDIN: Final = Path("-")
_JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
_TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".tab"})
_PARSERS: Final[Mapping[Format, Parse]] = {
    Format.TEXT: parse_text,
    Format.JSONL: parse_json,
    Format.OPENAI: parse_openai,
}
_ESCAPES = 6
"""JSON may take six bytes for what Redis gets as one."""


@dataclass(frozen=True, slots=True)
class PromptLine:
    """A job, ready to enqueue, its id included. Lines are counted from 1."""

    number: int
    job: PromptJob


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that holds no job. `reason` never quotes the prompt."""

    number: int
    reason: str


@contextlib.contextmanager
def open_prompts(
    path: Path,
    settings: ProducerSettings,
    *,
    field: str | None = None,
    options: Mapping[str, Any] | None = None,
    file_format: Format | None = None,
) -> Iterator["Prompts"]:
    """The prompts of a file; `-` is stdin. `field` names what the prompt is in; `options` go to all jobs.

    Without `file_format` the suffix tells it, and the first line. Raises OSError, or CommandError for a header without
    prompts.
    """
    with _open_twice_readable(path) as file:
        chosen = file_format or _format_of(file, path, field)
        if field is not None and chosen in (Format.TEXT, Format.OPENAI):
            raise CommandError(f"--field is for JSON lines and CSV, not for --format {chosen}")
        yield Prompts(file, chosen, field, settings, options or {})


class Prompts:
    """What a file holds. Iterating reads it again from its start and gives the same ids."""

    def __init__(
        self,
        file: BinaryIO,
        file_format: Format,
        field: str | None,
        settings: ProducerSettings,
        options: Mapping[str, Any],
    ) -> None:
        self.format = file_format
        self._longest = settings.max_payload * _ESCAPES
        self._read = _reader(file, file_format, field, self._longest)
        self._settings = settings
        self._options = options

    def __iter__(self) -> Iterator[PromptLine | BadLine]:
        names = self._new_names()

        def named(job: PromptJob) -> PromptJob:
            return job.model_copy(update={"id": names.name(job, digest_of(job, self._settings))})

        return self._jobs(named)

    def check(self) -> Iterator[PromptLine | BadLine]:
        """Like iterating, but without ids of our own: only what is needed to find every bad line."""
        names = self._new_names()

        def checked(job: PromptJob) -> PromptJob:
            names.claim(job)
            return job

        return self._jobs(checked)

    def _jobs(self, finish: Callable[[PromptJob], PromptJob]) -> Iterator[PromptLine | BadLine]:
        """Every line, its job as `finish` gives it back."""
        for number, said in self._read():
            try:
                yield PromptLine(number, finish(self._job(said)))
            except InvalidJob as error:
                yield BadLine(number, f"{error.field}: {error.reason}")
            except InvalidPayload as error:
                yield BadLine(number, str(error))

    def _job(self, said: Fields | InvalidPayload) -> PromptJob:
        if isinstance(said, InvalidPayload):
            raise said
        job = job_of(said, self._options)
        check(job, self._settings)
        return job

    def _new_names(self) -> "_Names":
        return _Names(each_custom_id_once=self.format is Format.OPENAI)


class _Names:
    """Ids for the jobs of one reading.

    A job without one is called by a hash of its request, and of its custom_id and its group if it has them, so that
    the same request under another name is another job; from the second on, which occurrence it is.
    """

    def __init__(self, *, each_custom_id_once: bool) -> None:
        self._occurrences: Counter[int] = Counter()
        self._claimed: set[str] = set()
        self._each_custom_id_once = each_custom_id_once

    def claim(self, job: PromptJob) -> None:
        """Raises InvalidJob if an earlier line took what may be taken once."""
        if job.id is not None:
            self._claim("id", job.id)
        elif self._each_custom_id_once:
            self._claim(CUSTOM_ID, job.metadata[CUSTOM_ID])

    def _claim(self, field: str, name: str) -> None:
        if name in self._claimed:
            raise InvalidJob(field, "stands on an earlier line too")
        self._claimed.add(name)

    def name(self, job: PromptJob, digest: str) -> str:
        """Its id. `digest`: of its request. Raises InvalidJob as `claim`."""
        self.claim(job)
        if job.id is not None:
            return job.id
        custom_id = job.metadata.get(CUSTOM_ID)
        if custom_id is not None or job.group is not None:
            whole = codec.dumps([digest, custom_id, job.group])
            digest = hashlib.blake2b(whole, digest_size=16).hexdigest()
        if self._each_custom_id_once:
            return digest[:20]
        key = int(digest[:16], 16)  # a third of the memory of the text
        self._occurrences[key] += 1
        occurrence = self._occurrences[key]
        return digest[:20] if occurrence == 1 else f"{digest[:20]}-{occurrence}"


def _reader(file: BinaryIO, file_format: Format, field: str | None, longest: int) -> Callable[[], Iterator[Parsed]]:
    """What reads the file from its start, line by line."""
    if file_format is Format.CSV:
        return partial(find_table(file, longest, field).parse_rows, file, longest)
    parse = parse_field(field) if field is not None else _PARSERS[file_format]
    return partial(parse_lines, file, longest, parse)


def _format_of(file: BinaryIO, path: Path, field: str | None) -> Format:
    suffix = path.suffix.lower()
    if suffix in _TABLE_SUFFIXES:
        return Format.CSV
    if suffix == ".txt" and field is None:
        return Format.TEXT
    first = next((line.strip() for _, line in lines(file, 1 << 20)), b"")
    if suffix in _JSON_SUFFIXES or first.startswith(b"{"):
        return Format.OPENAI if field is None and _is_batch_request(first) else Format.JSONL
    if looks_like_header(first, field):
        return Format.CSV
    return Format.TEXT if field is None else Format.JSONL


def _is_batch_request(line: bytes) -> bool:
    try:
        said = pydantic_core.from_json(line, allow_partial=True)
    except ValueError:
        return False
    return (
        isinstance(said, dict) and bool({"body", CUSTOM_ID} & said.keys()) and not {"prompt", "messages"} & said.keys()
    )


@contextlib.contextmanager
def _open_twice_readable(path: Path) -> Iterator[BinaryIO]:
    """A regular file as it is; what can be read only once (stdin, a pipe) by way of a temporary file."""
    with contextlib.ExitStack() as stack:
        file: BinaryIO = sys.stdin.buffer if path == STDIN else stack.enter_context(_opened(path))
        if path == STDIN or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            spool = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(file, spool)
            file = spool
        yield file


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        error.add_note("give a file with a prompt a line, or - for stdin")
        raise
