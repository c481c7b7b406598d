"""Files with a prompt a line: text, JSON objects with the fields of PromptJob, OpenAI's Batch requests."""

import codecs
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, Final

from promptq.producer import codec, openai_batch
from promptq.producer.errors import InvalidPayload

Fields = str | Mapping[str, Any]
"""A prompt, or fields of PromptJob."""

Parse = Callable[[bytes], Fields]
"""One line. Raises InvalidPayload, which never quotes the prompt."""

Parsed = tuple[int, Fields | InvalidPayload]
"""Number of the line, and what it says or why it says nothing."""

_SHOWN_FIELDS: Final = 10


def parse_lines(file: BinaryIO, longest: int, parse: Parse) -> Iterator[Parsed]:
    """Every line of a file, from its start."""
    for number, line in lines(file, longest):
        said: Fields | InvalidPayload
        try:
            said = parse(line) if len(line) < longest else InvalidPayload(f"is longer than {longest} bytes")
        except InvalidPayload as error:
            said = error
        yield number, said


def lines(file: BinaryIO, longest: int) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers; of longer ones the first `longest` bytes."""
    file.seek(0)
    number = 0
    while line := read_line(file, longest):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.isspace() and line:
            yield number, line


def read_line(file: BinaryIO, longest: int) -> bytes:
    """The next line; of a longer one the first `longest` bytes, and the rest is passed over."""
    line = rest = file.readline(longest)
    while len(rest) == longest and not rest.endswith(b"\n"):
        rest = file.readline(longest)
    return line


def parse_text(line: bytes) -> str:
    """The line is the prompt."""
    return decoded(line).strip()


def decoded(line: bytes) -> str:
    """Raises InvalidPayload."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise InvalidPayload("is not UTF-8") from None


def parse_json(line: bytes) -> dict[str, Any]:
    """The line is an object with the fields of PromptJob."""
    fields = _object(line)
    if "prompt" not in fields and "messages" not in fields:
        raise InvalidPayload(f"has neither prompt nor messages; --field takes another field (it has {listed(fields)})")
    return fields


def parse_openai(line: bytes) -> dict[str, Any]:
    """The line is a request of OpenAI's Batch."""
    return openai_batch.job_fields(_object(line))


def parse_field(field: str) -> Parse:
    """The line is an object; one field of it is the prompt, and nothing else is looked at."""

    def parse(line: bytes) -> dict[str, Any]:
        fields = _object(line)
        if field not in fields:
            raise InvalidPayload(f"has no field {field!r} (it has {listed(fields)})")
        return {"prompt": fields[field]}

    return parse


def listed(names: Mapping[str, Any] | list[str]) -> str:
    """The first of the names, for a message."""
    shown = [name[:40] for name in names]
    return ", ".join(shown[:_SHOWN_FIELDS]) + (", ..." if len(shown) > _SHOWN_FIELDS else "") or "none"


def _object(line: bytes) -> dict[str, Any]:
    decoded(line)
    try:
        return codec.decode(line.strip())
    except InvalidPayload as error:
        raise InvalidPayload(str(error).replace(" at line 1 column ", " at column ")) from None
