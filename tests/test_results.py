from typing import Any

import pytest
from pydantic import BaseModel

from promptq.producer import InvalidAnswer, JobFailed, JobResult, JobStatus, Message, ToolCall, codec
from promptq.producer.entries import job_of
from promptq.producer.results import TokenLogprob

pytestmark = pytest.mark.producer


class Weather(BaseModel):
    """What was asked for."""

    city: str
    degrees: float


def answered(**fields: Any) -> JobResult:
    """A job that succeeded."""
    return JobResult(id="a", status=JobStatus.SUCCEEDED, **fields)


def test_a_structured_answer_is_parsed() -> None:
    """Into the class that was its format."""
    assert answered(content='{"city": "Bern", "degrees": 7}').parse(Weather) == Weather(city="Bern", degrees=7)


@pytest.mark.parametrize(
    ("content", "reason", "why"),
    [
        ("secret", "stop", "a: not a Weather: the answer: json_invalid"),
        ('{"city": "Be', "length", "it was cut short (length)"),
        ('{"city": "Bern", "degrees": "secret"}', "stop", "degrees: float_parsing"),
        ('{"secret": 1}', "stop", "city: missing"),
    ],
)
def test_an_answer_that_is_something_else(content: str, reason: str, why: str) -> None:
    """Is an error of ours, which does not quote it."""
    with pytest.raises(InvalidAnswer) as caught:
        answered(content=content, finish_reason=reason).parse(Weather)
    assert why in str(caught.value)
    assert "secret" not in str(caught.value)


def test_only_answers_are_parsed_and_sent_back() -> None:
    """Of a job that failed its failure is raised."""
    failed = JobResult(id="a", status=JobStatus.FAILED)
    for use in (lambda: failed.parse(Weather), failed.to_message, failed.to_messages):
        with pytest.raises(JobFailed):
            use()


@pytest.mark.parametrize(("reason", "is_cut"), [("stop", False), ("length", True), ("context", True), (None, False)])
def test_cut_short(reason: str | None, is_cut: bool) -> None:
    """Told by the finish reason."""
    assert answered(finish_reason=reason).is_cut_short is is_cut


def test_an_answer_goes_into_the_next_job() -> None:
    """With its calls, its reasoning and what only xAI can read of it; a tool's answer follows."""
    result = answered(
        tool_calls=(ToolCall(id="1", name="look", arguments='{"at": 1}'),),
        reasoning_content="hm",
        encrypted_content="==",
    )
    message = result.to_message()
    answer = Message(role="tool", tool_call_id="1", content="rain")
    job = job_of([Message(role="user", content="Hi"), message, answer], {})
    sent = job.payload()["messages"][1]
    assert sent == {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}],
        "reasoning_content": "hm",
        "encrypted_content": "==",
        "content": "",
    }
    assert answered(content="Hi").to_messages() == (Message(role="assistant", content="Hi"),)


@pytest.mark.parametrize(
    "result", [answered(), answered(tool_calls=(ToolCall(id="1", name="a", arguments="", type="newer"),))]
)
def test_what_cannot_go_back(result: JobResult) -> None:
    """Nothing at all, or a tool that this version does not know."""
    with pytest.raises(InvalidAnswer, match="cannot go back as a message"):
        result.to_message()


@pytest.mark.parametrize("logprob", [float("-inf"), float("nan")])
def test_a_log_probability_that_json_has_no_number_for(logprob: float) -> None:
    """It is written as one that can be read again: the whole result would else be lost to its readers."""
    token = TokenLogprob(token="a", logprob=logprob)
    assert token.logprob == -9999
    assert TokenLogprob.model_validate_json(codec.dumps(token)) == token
