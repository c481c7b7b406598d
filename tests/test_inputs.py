import io
import json
import os
import threading
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from prompt_files import Write, asked, bad, jobs, read, write_file
from promptq.producer.console import CommandError
from promptq.producer.inputs import STDIN, BadLine, Format, PromptLine, open_prompts
from promptq.producer.settings import ProducerSettings

pytestmark = pytest.mark.producer

HI = '{"role": "user", "content": "Hi"}'


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of prompts."""
    return partial(write_file, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("p.txt", "one\ntwo\n", ["one", "two"]),
        ("p.txt", "one\ntwo", ["one", "two"]),
        ("p.txt", "one\r\n\r\n  \t\r\n  two  \r\n", ["one", "two"]),
        ("p.txt", b"\xef\xbb\xbfone\ntwo\n", ["one", "two"]),
        ("p.txt", "naïve \U0001f600\u2028same line\n", ["naïve \U0001f600\u2028same line"]),
        ("p.txt", '{"prompt": "as it stands"}\n', ['{"prompt": "as it stands"}']),
        ("p.md", "one {\n{two}\n", ["one {", "{two}"]),
        ("p.jsonl", '{"prompt": "one"}\n\n{"prompt": "two\\nlines"}', ["one", "two\nlines"]),
        ("p.jsonl", f'{{"messages": [{HI}]}}\r\n', ["Hi"]),
        ("p.jsonl", f'{{"prompt": [{HI}]}}\n', ["Hi"]),
        ("p", b'\xef\xbb\xbf{"prompt": "looks like JSON"}\n', ["looks like JSON"]),
        ("p.txt", "", []),
    ],
)
def test_formats(write: Write, name: str, content: str | bytes, prompts: list[str]) -> None:
    """Text and JSON lines, with any line ends, blank lines and a byte order mark, give their prompts."""
    assert asked(write(content, name)) == prompts


def test_options_on_a_json_line(write: Write) -> None:
    """A JSON line may hold any field of PromptJob."""
    fields = {"prompt": "Hi", "model": "grok-3", "max_tokens": 5, "id": "mine", "metadata": {"row": "7"}, "delay": 2}
    [job] = jobs(write(json.dumps(fields), "p.jsonl"))
    assert (job.model, job.max_tokens, job.id, job.metadata) == ("grok-3", 5, "mine", {"row": "7"})
    assert job.delay is not None
    assert job.delay.total_seconds() == 2


def test_command_line_goes_over_the_line(write: Write) -> None:
    """What is asked for all lines is so for all lines; what is not asked stays as the line has it."""
    path = write('{"prompt": "a", "model": "grok-3", "max_tokens": 5}\n{"prompt": "b"}', "p.jsonl")
    assert [(job.model, job.max_tokens) for job in jobs(path, model="grok-4", max_tokens=None)] == [
        ("grok-4", 5),
        ("grok-4", None),
    ]


def test_field_takes_the_prompt_and_nothing_else(write: Write) -> None:
    """With `field` the other fields of a line are ignored, even those that would be options."""
    path = write('{"question": "Why?", "answer": "42", "model": 7, "id": []}\n', "p.txt")
    [job] = jobs(path, field="question")
    assert job.messages[0].content == "Why?"
    assert job.model is None


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("p.txt", b"\xff\xfesecret", "is not UTF-8"),
        ("p.jsonl", b'{"prompt": "secret \xff"}', "is not UTF-8"),
        ("p.jsonl", b'{"prompt": "secret"', "is not JSON: EOF while parsing an object at column 19"),
        ("p.jsonl", b'["secret"]', "is not a JSON object"),
        ("p.jsonl", b"secret", "is not JSON: expected value at column 1"),
        ("p.jsonl", b'{"question": "secret"}', "has neither prompt nor messages; --field takes another"),
        ("p.jsonl", b'{"prompt": ""}', "prompt: String should have at least 1 character"),
        ("p.jsonl", b'{"prompt": null, "user": "secret"}', "prompt: Input should be a valid tuple"),
        ("p.jsonl", b'{"prompt": "secret", "max_tokens": 0}', "max_tokens: Input should be greater than or equal to 1"),
        ("p.jsonl", b'{"prompt": "secret", "tokens": 5}', "tokens: no such option"),
        ("p.jsonl", b'{"prompt": "secret", "temperature": NaN}', "temperature: "),
        ("p.jsonl", b'{"prompt": "a", "messages": [{"role": "user", "content": "secret"}]}', "prompt: give prompt or"),
        ("p.jsonl", b'{"messages": [{"role": "robot", "content": "secret"}]}', "messages.0.role: Input should be"),
        ("p.jsonl", b'{"prompt": "secret", "id": " a"}', "id: must be printable"),
        ("p.jsonl", b'{"prompt": "secret \\ud800"}', "is not JSON: "),
    ],
)
def test_bad_lines(write: Write, name: str, line: bytes, reason: str) -> None:
    """A bad line is known by its number and a reason that does not quote the prompt; its neighbours are read."""
    good = b"good" if name.endswith("txt") else b'{"prompt": "good"}'
    path = write(b"\n".join((good, b"", line, good)), name)
    [(number, why)] = bad(path)
    assert number == 3
    assert why.startswith(reason)
    assert "secret" not in why
    assert [line.number for line in read(path) if isinstance(line, PromptLine)] == [1, 4]


def test_missing_field_is_a_bad_line(write: Write) -> None:
    """The reason names the fields that the line has."""
    path = write('{"question": "Why?"}\n{"text": "a", "n": 1}\n')
    assert bad(path, field="question") == [(2, "has no field 'question' (it has text, n)")]


def test_too_large_lines_are_bad(write: Write) -> None:
    """Neither a prompt over PROMPTQ_MAX_PAYLOAD nor an endless line is accepted, and the next line is read."""
    settings = ProducerSettings(max_payload=2000)
    path = write(f"{'x' * 3000}\nfine\n{'y' * 100_000}\nfine too", "p.txt")
    lines = read(path, settings=settings)
    reasons = [(line.number, line.reason) for line in lines if isinstance(line, BadLine)]
    assert [number for number, _ in reasons] == [1, 3]
    assert reasons[0][1].endswith("bytes encoded, 2000 allowed")
    assert reasons[1][1] == "is longer than 12000 bytes"


def test_repeated_prompts_are_jobs_of_their_own(write: Write) -> None:
    """Each occurrence of a request has an id of its own, the same one wherever it stands in a file."""
    first, other, second = (job.id for job in jobs(write("same\nother\nsame\n", "a.txt")))
    assert len({first, other, second}) == 3
    assert [job.id for job in jobs(write("new\nsame\nsame\n", "b.txt"))][1:] == [first, second]
    assert [job.id for job in jobs(write('{"prompt": "same"}', "c.jsonl"))] == [first]


@pytest.mark.parametrize("change", [{"model": "grok-3"}, {"max_tokens": 7}])
def test_another_request_has_another_id(write: Write, change: dict[str, Any]) -> None:
    """Model and parameters are part of the id."""
    path = write("same\n", "p.txt")
    [[before], [after]] = jobs(path), jobs(path, **change)
    assert before.id != after.id


@pytest.mark.parametrize("change", [{"model": "grok-4"}, {"priority": "high"}, {"tenant": "acme"}])
def test_delivery_is_not_part_of_the_id(write: Write, change: dict[str, Any]) -> None:
    """The default model by its name, another priority or tenant: the same request, the same id."""
    path = write("same\n", "p.txt")
    [[before], [after]] = jobs(path, settings=ProducerSettings(default_model="grok-4")), jobs(path, **change)
    assert before.id == after.id


def test_the_custom_id_and_the_group_are_part_of_the_id(write: Write) -> None:
    """The same request is a job of its own under each custom_id and in each group, and the same one again there."""
    path = write('{"prompt": "a", "metadata": {"custom_id": "x"}}\n{"prompt": "a"}', "p.jsonl")
    ids = [[job.id for job in jobs(path, group=group)] for group in (None, "run-1", "run-2")]
    assert len({job_id for some in ids for job_id in some}) == 6
    assert [job.id for job in jobs(path, group="run-1")] == ids[1]


def test_an_id_stands_once(write: Write) -> None:
    """A line's own id is kept; the second line that has it is bad, since it would not be a job of its own."""
    line = '{"prompt": "a", "id": "mine"}\n'
    path = write(line * 2, "p.jsonl")
    assert bad(path) == [(2, "id: stands on an earlier line too")]
    assert [line.job.id for line in read(path) if isinstance(line, PromptLine)] == ["mine"]


REQUEST = json.dumps({"body": {"messages": [json.loads(HI)]}, "custom_id": "a", "url": "/v1/chat/completions"})


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("p.csv", "prompt\nHi", Format.CSV),
        ("p.TSV", "prompt\tid\nHi\t1", Format.CSV),
        ("p", "id;prompt\n1;Hi", Format.CSV),
        ("p", "prompt, please answer\n", Format.TEXT),
        ("p", "prompt\nHi", Format.TEXT),
        ("p.txt", "prompt,id\nHi,1", Format.TEXT),
        ("p", HI, Format.JSONL),
        ("p.jsonl", '{"prompt": "Hi", "metadata": {"custom_id": "a", "body": "b"}}', Format.JSONL),
        ("p.jsonl", f"\n{REQUEST}", Format.OPENAI),
        ("p", REQUEST, Format.OPENAI),
        ("p.jsonl", REQUEST.replace('"custom_id": "a", ', ""), Format.OPENAI),
        ("p.jsonl", "{broken", Format.JSONL),
    ],
)
def test_the_format_is_found(write: Write, name: str, content: str, found: Format) -> None:
    """By the suffix and the first line; a text that only looks a little like a table stays text."""
    with open_prompts(write(content, name), ProducerSettings()) as prompts:
        assert prompts.format is found


def test_the_format_can_be_said(write: Write) -> None:
    """What is said goes over what the file looks like."""
    path = write("prompt,id\nHi,1\n", "p.txt")
    assert asked(path) == ["prompt,id", "Hi,1"]
    assert [job.id for job in jobs(path, file_format=Format.CSV)] == ["1"]
    with pytest.raises(CommandError, match="--field is for JSON lines and CSV, not for --format openai"):
        read(path, file_format=Format.OPENAI, field="prompt")


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` is stdin, which can be read only once and is still read twice."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "one"}\n{"prompt": "two"}\n')))
    assert asked(STDIN) == ["one", "two"]


def test_named_pipe(tmp_path: Path) -> None:
    """So is a pipe, such as the shell's <(command)."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("one\ntwo\n",))
    writer.start()
    assert asked(path) == ["one", "two"]
    writer.join()


def test_a_file_is_not_held_in_memory(write: Write) -> None:
    """Reading 20 MB of prompts takes less than 2 MB."""
    path = write("".join(f"{number} {'x' * 100_000}\n" for number in range(200)), "p.txt")
    with open_prompts(path, ProducerSettings()) as prompts:
        tracemalloc.start()
        assert sum(1 for _ in prompts) == 200
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2_000_000
