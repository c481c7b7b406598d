"""CSV files: a header, then a prompt a row.

A column that is a field of PromptJob is used as such, `system` is a system message before the prompt, and every other
column goes to the metadata, which comes back with the result. An empty cell says nothing.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import pydantic_core

from promptq.producer.console import CommandError
from promptq.producer.errors import InvalidPayload
from promptq.producer.input_lines import Parsed, decoded, listed, read_line
from promptq.producer.models import PromptJob
from promptq.producer.openai_batch import CUSTOM_ID

DELIMITERS: Final = (",", ";", "\t")
PROMPT: Final = "prompt"

_SYSTEM: Final = "system"
_FIELDS: Final = frozenset(PromptJob.model_fields)
_TEXTS: Final = frozenset({"id", "model", "priority", "tenant", "group", "user", "reasoning_effort"})
"""Fields whose cell is taken as it stands; in the others it is JSON: 5, 0.7, ["END"]."""


@dataclass(frozen=True)
class Table:
    """The header of a CSV file; `prompt` names the column that holds the prompts."""

    header: Sequence[str]
    delimiter: str
    prompt: str

    def parse_rows(self, file: BinaryIO, longest: int) -> Iterator[Parsed]:
        """Every row of the file, by the number of the line on which it begins."""
        rows = _rows(file, longest, self.delimiter)
        next(rows, None)
        for number, row in rows:
            try:
                yield number, row if isinstance(row, InvalidPayload) else self._fields(row)
            except InvalidPayload as error:
                yield number, error

    def _fields(self, row: list[str]) -> dict[str, Any]:
        if len(row) != len(self.header):
            raise InvalidPayload(f"has {len(row)} cells, and the header {len(self.header)}")
        fields: dict[str, Any] = {}
        others: dict[str, str] = {}
        for name, cell in zip(self.header, row, strict=True):
            if name == self.prompt:
                fields[PROMPT] = cell if cell.strip() else ""
            elif not cell.strip():
                continue
            elif name in _FIELDS:
                fields[name] = cell.strip() if name in _TEXTS else _value(cell)
            else:
                others[name] = cell
        if _SYSTEM in others:
            _put_before(fields, others.pop(_SYSTEM))
        if others:
            _join(fields, others)
        return fields


def find_table(file: BinaryIO, longest: int, column: str | None) -> Table:
    """The header, by the delimiter that gives it the wanted column. Raises CommandError if there is none."""
    tables = [Table(names, delimiter, column or PROMPT) for delimiter, names in _headers(file, longest)]
    table = max(tables, key=lambda table: (table.prompt in table.header, len(table.header)), default=None)
    if table is None:
        raise CommandError(f"{_why_no_header(file, longest)}; the first row of a CSV file names its columns, in UTF-8")
    repeated = {name for name in table.header if list(table.header).count(name) > 1}
    if repeated:
        raise CommandError(f"the header names {listed(sorted(repeated))} twice; give each column a name of its own")
    if table.prompt not in table.header and (column or "messages" not in table.header):
        raise CommandError(
            f"the header has no column {table.prompt!r} (it has {listed(list(table.header))}); --field names another"
        )
    return table


def looks_like_header(line: bytes, column: str | None) -> bool:
    """Whether a file that nobody said to be CSV begins like one: with names of fields and nothing else."""
    text = line.decode(errors="replace")
    for delimiter in DELIMITERS:
        names = [name.strip().strip('"') for name in text.split(delimiter)]
        if column in names or (PROMPT in names and len(names) > 1 and _FIELDS.issuperset({*names} - _BESIDE)):
            return True
    return False


_BESIDE: Final = {PROMPT, _SYSTEM, CUSTOM_ID}


def _headers(file: BinaryIO, longest: int) -> Iterator[tuple[str, list[str]]]:
    """The first row, as each delimiter reads it that can."""
    for delimiter in DELIMITERS:
        _, names = next(_rows(file, longest, delimiter), (0, []))
        if names and not isinstance(names, InvalidPayload):
            yield delimiter, [name.strip() or f"column {place}" for place, name in enumerate(names, 1)]


def _why_no_header(file: BinaryIO, longest: int) -> str:
    for number, row in _rows(file, longest, DELIMITERS[0]):
        return f"line {number}: {row}"
    return "the file is empty"


def _rows(file: BinaryIO, longest: int, delimiter: str) -> Iterator[tuple[int, list[str] | InvalidPayload]]:
    """Rows that are not blank, or why one cannot be read, with the number of the line on which each begins."""
    csv.field_size_limit(max(csv.field_size_limit(), longest))  # a prompt may be longer than what csv expects
    physical = _Lines(file, longest)
    rows = csv.reader(physical, delimiter=delimiter, strict=True)
    while True:
        physical.begin_row()
        try:
            row = next(rows)
        except StopIteration:
            return
        except InvalidPayload as error:
            yield physical.first, error
        except csv.Error as error:
            yield physical.first, InvalidPayload(_reason(error))
        else:
            if any(map(str.strip, row)):
                yield physical.first, row


class _Lines:
    """The lines of a file for csv.reader, which takes several for a row whose quotes hold line ends."""

    def __init__(self, file: BinaryIO, longest: int) -> None:
        self._file, self._longest = file, longest
        self._number = 0
        self._size = 0
        self.first = 1
        file.seek(0)

    def begin_row(self) -> None:
        """The next line is the first of a row."""
        self.first, self._size = self._number + 1, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = read_line(self._file, self._longest)
        if not line:
            raise StopIteration
        self._number += 1
        self._size += len(line)
        if self._size >= self._longest:
            raise InvalidPayload(f"is longer than {self._longest} bytes; is a quote never closed?")
        text = decoded(line)
        return text.removeprefix("\ufeff") if self._number == 1 else text


def _reason(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "a quote is never closed"
    return f"is not CSV: {error}; a quote inside quotes is written twice"


def _value(cell: str) -> Any:
    """A cell of a field that is no text."""
    try:
        return pydantic_core.from_json(cell)
    except ValueError:
        return cell


def _put_before(fields: dict[str, Any], system: str) -> None:
    """A system message before the prompt. Raises InvalidPayload."""
    if "messages" in fields:
        raise InvalidPayload("has a system cell beside messages; put it among them")
    prompt = fields.pop(PROMPT, "")
    fields["messages"] = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]


def _join(fields: dict[str, Any], others: dict[str, str]) -> None:
    """The columns that are no fields go beside what the metadata cell says."""
    metadata = fields.get("metadata", {})
    if isinstance(metadata, dict):  # else PromptJob says what is wrong with it
        fields["metadata"] = metadata | others
