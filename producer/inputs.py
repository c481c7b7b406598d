"""The prompts in a file, line by line: text, or JSON objects with the fields of PromptJob.

A file is read twice, once to check every line before anything is enqueued, and never held in memory; what grows with it
is a number for each prompt, by which repeated ones are told apart.
"""

import codecs
import contextlib
import os
import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from promptq.producer import codec
from promptq.producer.entries import entry_of, job_of
from promptq.producer.errors import InvalidJob, InvalidPayload
from promptq.producer.models import PromptJob
from promptq.producer.settings import ProducerSettings

STDIN: Final = Path("-")
_JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
_SHOWN_FIELDS = 10
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


Parse = Callable[[bytes], str | Mapping[str, Any]]


@contextlib.contextmanager
def open_prompts(
    path: Path, settings: ProducerSettings, *, field: str | None = None, options: Mapping[str, Any] | None = None
) -> Iterator["Prompts"]:
    """The prompts of a file; `-` is stdin. `field` of each JSON line is the prompt; `options` go to all jobs.

    Raises OSError.
    """
    with _open_twice_readable(path) as file:
        yield Prompts(file, _parser(file, path, field), settings, options or {})


class Prompts:
    """What a file holds. Iterating reads it again from its start and gives the same ids."""

    def __init__(self, file: BinaryIO, parse: Parse, settings: ProducerSettings, options: Mapping[str, Any]) -> None:
        self._file = file
        self._parse = parse
        self._settings = settings
        self._options = options

    def __iter__(self) -> Iterator[PromptLine | BadLine]:
        names = _Names()
        longest = self._settings.max_payload * _ESCAPES
        for number, line in _lines(self._file, longest):
            try:
                job = self._job(line, names, longest)
            except InvalidJob as error:
                yield BadLine(number, f"{error.field}: {error.reason}")
            except InvalidPayload as error:
                yield BadLine(number, str(error))
            else:
                yield PromptLine(number, job)

    def _job(self, line: bytes, names: "_Names", longest: int) -> PromptJob:
        if len(line) >= longest:
            raise InvalidPayload(f"is longer than {longest} bytes")
        job = job_of(self._parse(line), self._options)
        digest = entry_of(job, self._settings).digest
        return job.model_copy(update={"id": names.name(job, digest)})


class _Names:
    """Ids for the jobs of one reading: the digest of the request and, from the second on, which occurrence it is."""

    def __init__(self) -> None:
        self._occurrences: Counter[int] = Counter()
        self._chosen: set[str] = set()

    def name(self, job: PromptJob, digest: str) -> str:
        if job.id is not None:
            if job.id in self._chosen:
                raise InvalidJob("id", "stands on an earlier line too")
            self._chosen.add(job.id)
            return job.id
        key = int(digest[:16], 16)  # a third of the memory of the text
        self._occurrences[key] += 1
        occurrence = self._occurrences[key]
        return digest[:20] if occurrence == 1 else f"{digest[:20]}-{occurrence}"


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


def _lines(file: BinaryIO, longest: int) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers; of longer ones the first `longest` bytes."""
    file.seek(0)
    number = 0
    while line := file.readline(longest):
        number += 1
        rest = line
        while len(rest) == longest and not rest.endswith(b"\n"):
            rest = file.readline(longest)
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.isspace() and line:
            yield number, line


def _parser(file: BinaryIO, path: Path, field: str | None) -> Parse:
    if field is not None:
        return _picking(field)
    suffix = path.suffix.lower()
    if suffix in _JSON_SUFFIXES:
        return _json
    first = next((line for _, line in _lines(file, 4096)), b"")
    return _json if suffix != ".txt" and first.lstrip().startswith(b"{") else _text


def _text(line: bytes) -> str:
    try:
        return line.decode().strip()
    except UnicodeDecodeError:
        raise InvalidPayload("is not UTF-8") from None


def _object(line: bytes) -> dict[str, Any]:
    _text(line)
    try:
        return codec.decode(line.strip())
    except InvalidPayload as error:
        raise InvalidPayload(str(error).replace(" at line 1 column ", " at column ")) from None


def _json(line: bytes) -> dict[str, Any]:
    fields = _object(line)
    if "prompt" not in fields and "messages" not in fields:
        raise InvalidPayload(f"has neither prompt nor messages; --field takes another field ({_names_of(fields)})")
    return fields


def _picking(field: str) -> Parse:
    def parse(line: bytes) -> dict[str, Any]:
        fields = _object(line)
        if field not in fields:
            raise InvalidPayload(f"has no field {field!r} ({_names_of(fields)})")
        return {"prompt": fields[field]}

    return parse


def _names_of(fields: Mapping[str, Any]) -> str:
    names = [name[:40] for name in fields]
    return "it has " + (", ".join(names[:_SHOWN_FIELDS]) + (", ..." if len(names) > _SHOWN_FIELDS else "") or "none")
