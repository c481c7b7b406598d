import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from prompt_files import Write, bad, jobs, write_file
from promptq.producer import ErrorCode, JobError, JobResult, JobStatus, Output, PromptJob, TokenLogprob, ToolCall, Usage
from promptq.producer.openai_batch import completion, output_line

pytestmark = pytest.mark.producer

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a batch file."""
    return partial(write_file, tmp_path, name="batch.jsonl")


def line(custom_id: Any = "a", **body: Any) -> str:
    """One request line."""
    whole = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps({**whole, "body": {"model": "grok-3", "messages": MESSAGES, **body}}) + "\n"


def test_a_request_becomes_a_job(write: Write) -> None:
    """Every field that a job has is taken over; what says only what is so anyway is no obstacle."""
    body = {
        "max_completion_tokens": 50, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": "END", "user": "me",
        "reasoning_effort": "low", "metadata": {"row": "1"},
        "n": 1, "stream": False, "tools": [], "response_format": {"type": "text"}, "logprobs": None,
    }  # fmt: skip
    [job] = jobs(write(line(**body)))
    assert job == PromptJob.model_validate(
        {
            "id": job.id,
            "messages": MESSAGES,
            "model": "grok-3",
            "max_tokens": 50,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 7,
            "stop": ["END"],
            "user": "me",
            "reasoning_effort": "low",
            "metadata": {"row": "1", "custom_id": "a"},
        }
    )


def test_parts_of_text_are_one_text(write: Write) -> None:
    """OpenAI's other way to write the content of a message."""
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]
    [job] = jobs(write(line(messages=[{"role": "user", "content": parts}])))
    assert job.messages[0].content == "Hello there"


def test_ids_live_in_one_namespace(write: Write) -> None:
    """A custom_id of another file is another job unless it asks the same; the same line again is the same job."""
    [first], [again], [other] = (jobs(write(line("a", seed=seed))) for seed in (1, 1, 2))
    [renamed] = jobs(write(line("b", seed=1)))
    assert first.id == again.id
    assert len({first.id, other.id, renamed.id}) == 3


def test_a_custom_id_stands_once(write: Write) -> None:
    """The second line that has it is bad, even if it asks something else."""
    assert bad(write(line("a") + line("b") + line("a", seed=1))) == [(3, "custom_id: stands on an earlier line too")]


GOOD = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": MESSAGES}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"custom_id": None}, "custom_id: each line needs one"),
        ({"custom_id": 7}, "custom_id: each line needs one"),
        ({"custom_id": ""}, "custom_id: each line needs one"),
        ({"method": "GET"}, "method: only POST"),
        ({"url": "/v1/embeddings"}, "url: only /v1/chat/completions"),
        ({"body": "secret"}, "body: must be an object"),
        ({"priority": "high"}, "priority: no such field"),
        ({"body": {}}, "body.messages: each line needs them"),
        ({"body": {"messages": []}}, "messages: Tuple should have at least 1 item"),
    ],
)
def test_bad_lines(write: Write, change: dict[str, Any], reason: str) -> None:
    """A line that OpenAI would refuse is refused, and its neighbour is read."""
    [(number, why)] = bad(write(line("first") + json.dumps(GOOD | change)))
    assert (number, why.startswith(reason)) == (2, True), why


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"stream": True}, "body.stream: not supported"),
        ({"n": 0}, "n: Input should be greater than or equal to 1"),
        ({"web_search_options": {"secret": 1}}, "body.web_search_options: not supported; leave it out"),
        ({"logit_bias": {"1": 2}}, "body.logit_bias: not supported"),
        ({"timeout": 5}, "body.timeout: not supported"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "body.max_completion_tokens: is not what max_tokens says"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2"),
        ({"metadata": {"custom_id": "secret"}}, "body.metadata: must be an object, without another custom_id"),
        ({"metadata": "secret"}, "body.metadata: must be an object"),
        ({"messages": "secret"}, "messages: Input should be a valid tuple"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "?secret"}}]}]},
            "messages.0.content.0.image_url: is neither a URL nor base64",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "secret"}]}]}, "messages.0.content.0: must be a part"),
        ({"messages": [{"role": "bot", "content": "secret"}]}, "messages.0.role: "),
    ],
)
def test_what_a_job_cannot_say_is_refused(write: Write, body: dict[str, Any], reason: str) -> None:
    """Nothing of a request is dropped in silence, and nothing of it is quoted."""
    [(_, why)] = bad(write(line(**body)))
    assert why.startswith(reason)
    assert "secret" not in why


AT = datetime(2026, 1, 1, tzinfo=UTC)
ANSWER: dict[str, Any] = {
    "id": "j1",
    "status": JobStatus.SUCCEEDED,
    "content": "Hello",
    "finish_reason": "stop",
    "model": "grok-3",
    "response_id": "r1",
    "usage": Usage(prompt_tokens=3, completion_tokens=4, reasoning_tokens=5, total_tokens=12, cost_in_usd_ticks=6),
    "metadata": {"custom_id": "a"},
    "finished_at": AT,
}


def test_an_answer_is_a_chat_completion() -> None:
    """The whole line as OpenAI's output file has it, with xAI's cost."""
    assert json.loads(output_line(JobResult(**ANSWER))) == {
        "id": "batch_req_j1",
        "custom_id": "a",
        "response": {
            "status_code": 200,
            "request_id": "r1",
            "body": {
                "id": "r1",
                "object": "chat.completion",
                "created": 1767225600,
                "model": "grok-3",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "Hello", "refusal": None},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": {
                    "prompt_tokens": 3,
                    "completion_tokens": 4,
                    "total_tokens": 12,
                    "prompt_tokens_details": {"cached_tokens": 0},
                    "completion_tokens_details": {"reasoning_tokens": 5},
                    "cost_in_usd_ticks": 6,
                },
            },
        },
        "error": None,
    }


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("length", "length"), ("context", "length"), ("time_limit", "length"), ("unknown", "stop"), (None, "stop")],
)
def test_finish_reasons(ours: str | None, theirs: str) -> None:
    """A cut answer is seen to be cut."""
    body = json.loads(output_line(JobResult(**ANSWER | {"finish_reason": ours})))["response"]["body"]
    assert body["choices"][0]["finish_reason"] == theirs


def test_what_else_an_answer_has() -> None:
    """Tool calls, reasoning and citations are not lost; without a custom_id the job's id stands for it."""
    more = {
        "tool_calls": (ToolCall(id="t1", name="look", arguments="{}"),),
        "reasoning_content": "Hm",
        "citations": ("https://example.org",),
        "metadata": {},
    }
    said = json.loads(output_line(JobResult(**ANSWER | more)))
    body = said["response"]["body"]
    message = body["choices"][0]["message"]
    function = {"name": "look", "arguments": "{}"}
    assert said["custom_id"] == "j1"
    assert message["tool_calls"] == [{"id": "t1", "type": "function", "function": function}]
    assert (message["reasoning_content"], body["citations"]) == ("Hm", ["https://example.org"])


@pytest.mark.parametrize(
    ("code", "status"), [("invalid_request", 400), ("rate_limited", 429), ("moderated", 403), ("stalled", 500)]
)
def test_a_failure_is_an_http_error(code: str, status: int) -> None:
    """As in OpenAI's error file."""
    failed = JobResult(id="j1", status=JobStatus.FAILED, error=JobError(code=ErrorCode(code), message="why"))
    said = json.loads(output_line(failed))
    assert said["error"] is None
    assert said["response"]["status_code"] == status
    assert said["response"]["body"]["error"].items() >= {"message": "why", "param": None, "code": code}.items()


@pytest.mark.parametrize(
    ("status", "code"), [(JobStatus.CANCELLED, "batch_cancelled"), (JobStatus.EXPIRED, "batch_expired")]
)
def test_what_never_ran_has_no_response(status: JobStatus, code: str) -> None:
    """It says why."""
    said = json.loads(output_line(JobResult(id="j1", status=status)))
    assert said["response"] is None
    assert said["error"] == {"code": code, "message": f"the job is {status}"}


def test_a_whole_request_is_a_job(write: Write) -> None:
    """Images, tools and schemas are taken as OpenAI writes them."""
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "https://a.example"}}]
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": parts}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
    }
    [job] = jobs(write(line(**asked, store=True)))
    said = job.payload()
    assert {name: said[name] for name in asked} == asked
    assert job.store_messages is True


def test_a_whole_answer_is_a_completion() -> None:
    """Alternatives are choices, each with its logprobs; what xAI ran itself stands apart from the caller's calls."""
    told = TokenLogprob(token="H", logprob=-0.5)
    result = JobResult(
        **ANSWER | {"finish_reason": "length"},
        outputs=(Output(content="Hello", finish_reason="length"), Output(index=1, content="Hi", logprobs=(told,))),
        system_fingerprint="fp",
        service_tier="priority",
    )
    body = json.loads(output_line(result))["response"]["body"]
    assert (body["system_fingerprint"], body["service_tier"]) == ("fp", "priority")
    first, second = body["choices"]
    assert (first["message"]["content"], first["finish_reason"], first["logprobs"]) == ("Hello", "length", None)
    assert (second["index"], second["message"]["content"]) == (1, "Hi")
    assert second["logprobs"]["content"][0]["token"] == "H"
    ran = ToolCall(id="1", name="s", arguments="{}", type="web_search", status="completed")
    [choice] = (body := completion(result.model_copy(update={"server_tool_calls": (ran,)})))["choices"]
    assert "tool_calls" not in choice["message"]
    assert [call["type"] for call in body["server_tool_calls"]] == ["web_search"]
