from functools import partial
from pathlib import Path
from typing import Any

import pytest

from prompt_files import Write, asked, bad, jobs, read, write_file
from promptq.producer.console import CommandError
from promptq.producer.inputs import PromptLine
from promptq.producer.models import PromptJob
from promptq.producer.settings import ProducerSettings

pytestmark = pytest.mark.producer


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a CSV file."""
    return partial(write_file, tmp_path, name="p.csv")


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("prompt\none\ntwo\n", ["one", "two"]),
        ("prompt\r\none\r\n\r\n,\r\ntwo", ["one", "two"]),
        (b"\xef\xbb\xbfprompt,id\none,1\n", ["one"]),
        ('prompt,id\n"one, ""quoted""\n\nwith; lines",1\ntwo,2\n', ['one, "quoted"\n\nwith; lines', "two"]),
        ("id;prompt\n1;one, two\n", ["one, two"]),
        ("id\tprompt\n1\tone; two\n", ["one; two"]),
        ('"prompt";"id"\n"one";"1"\n', ["one"]),
        ("\n prompt , id \none,1\n", ["one"]),
        ('a,b;c,prompt\n1,2,"five ""inch"" disk"\n', ['five "inch" disk']),
        ("prompt,note\nnaïve \U0001f600,x\n", ["naïve \U0001f600"]),
        ("prompt\n", []),
    ],
)
def test_tables(write: Write, content: str | bytes, prompts: list[str]) -> None:
    """Quoted line ends, a byte order mark, blank rows, and commas, semicolons or tabs, give their prompts."""
    assert asked(write(content)) == prompts


def test_columns(write: Write) -> None:
    """Fields of a job are used as such, the others come back as metadata, and an empty cell says nothing."""
    path = write(
        "id,prompt,system,model,max_tokens,temperature,stop,priority,tenant,delay,row,metadata,user\n"
        '17,Why?,Be brief.,grok-3,100,0.5,"[""END""]",high,acme,2,r1,"{""a"": ""b""}",4\n'
        "18,Why?,,,,,,,,,,,\n"
    )
    full, bare = jobs(path)
    assert full == PromptJob.model_validate(
        {
            "id": "17",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
            "model": "grok-3",
            "max_tokens": 100,
            "temperature": 0.5,
            "stop": ["END"],
            "priority": "high",
            "tenant": "acme",
            "delay": 2,
            "metadata": {"a": "b", "row": "r1"},
            "user": "4",
        }
    )
    assert bare == PromptJob.model_validate({"id": "18", "prompt": "Why?"})


def test_another_column_is_the_prompt(write: Write) -> None:
    """`field` names it; a column called prompt is then like any other. What has no name goes by its place."""
    [job] = jobs(write(",question,prompt\n0,Why?,old\n"), field="question")
    assert job.messages[0].content == "Why?"
    assert job.metadata == {"column 1": "0", "prompt": "old"}


def test_messages_in_a_column(write: Write) -> None:
    """A whole conversation is a cell of JSON."""
    path = write('messages\n"[{""role"": ""user"", ""content"": ""Hi""}]"\n')
    assert asked(path) == ["Hi"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"secret,1,extra", "has 3 cells, and the header 2"),
        (b"secret", "has 1 cells, and the header 2"),
        (b",5", "prompt: String should have at least 1 character"),
        (b"  ,5", "prompt: String should have at least 1 character"),
        (b"secret,0", "max_tokens: Input should be greater than or equal to 1"),
        (b"secret,many", "max_tokens: Input should be a valid integer"),
        (b"secret \xff,1", "is not UTF-8"),
        (b'"secret"x,1', "is not CSV: ',' expected after '\"'; a quote inside quotes is written twice"),
    ],
)
def test_bad_rows(write: Write, row: bytes, reason: str) -> None:
    """A bad row is known by the line on which it begins; its neighbours are read, and nothing of it is quoted."""
    path = write(b'prompt,max_tokens\n"good\nas gold",1\n' + row + b"\ngood,2\n")
    [(number, why)] = bad(path)
    assert (number, why.startswith(reason)) == (4, True), why
    assert "secret" not in why
    assert [line.number for line in read(path) if isinstance(line, PromptLine)] == [2, 5]


def test_a_quote_that_is_never_closed(write: Write) -> None:
    """The row with the quote is the bad one; it takes no more memory than the longest row may have."""
    assert bad(write('prompt\nfine\n"open\nmore\n')) == [(3, "a quote is never closed")]
    settings = ProducerSettings(max_payload=2000)
    endless = write('prompt\n"open\n' + "more and more\n" * 1000)
    [(number, why), *_] = bad(endless, settings=settings)
    assert (number, why) == (2, "is longer than 12000 bytes; is a quote never closed?")


def test_long_cells(write: Write) -> None:
    """A prompt may be longer than what Python's csv allows by itself."""
    assert asked(write(f"prompt\n{'x' * 200_000}\n")) == ["x" * 200_000]


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        ("", {}, "the file is empty; the first row of a CSV file names its columns"),
        (b"Gr\xf6\xdfe,prompt\n", {}, "line 1: is not UTF-8; the first row of a CSV file names its columns, in UTF-8"),
        ('\n"prompt\n', {}, "line 2: a quote is never closed"),
        ("question,answer\nWhy?,42\n", {}, r"no column 'prompt' \(it has question, answer\); --field names another"),
        ("prompt\nHi\n", {"field": "question"}, r"no column 'question' \(it has prompt\)"),
        ("messages\n[]\n", {"field": "question"}, "no column 'question'"),
        ("prompt,a,a\nHi,1,2\n", {}, "names a twice"),
    ],
)
def test_bad_headers(write: Write, content: str | bytes, options: dict[str, Any], reason: str) -> None:
    """A header without prompts, or with a name twice, refuses the file in one line."""
    with pytest.raises(CommandError, match=reason):
        read(write(content), **options)
