"""What the jobs of a test are answered with: from what the test gave to one answer per job. No Redis here."""

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from enum import Enum
from functools import partial
from typing import Final

from pydantic import BaseModel

from promptq.producer import codec
from promptq.producer.errors import ErrorCode
from promptq.producer.events import pieces_of
from promptq.producer.models import JobStatus, PromptJob
from promptq.producer.results import (
    InlineCitation,
    JobError,
    JobResult,
    Output,
    OutputFile,
    TokenLogprob,
    ToolCall,
    Usage,
)


class NoAnswer(Enum):
    """The type of `NO_ANSWER`."""

    NO_ANSWER = "no answer"


NO_ANSWER: Final = NoAnswer.NO_ANSWER
"""The job stays running: until `MemoryQueue.answer`, its deadline, or a cancel."""


class Answer(BaseModel, frozen=True, extra="forbid"):
    """All that a result can tell of an answer; see JobResult."""

    content: str = ""
    model: str | None = None
    """None: the job's."""
    usage: Usage | None = None
    """None: a token for every four characters, as the echo provider counts."""
    finish_reason: str = "stop"
    reasoning_content: str = ""
    encrypted_content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    server_tool_calls: tuple[ToolCall, ...] = ()
    citations: tuple[str, ...] = ()
    inline_citations: tuple[InlineCitation, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    outputs: tuple[Output, ...] = ()
    output_files: tuple[OutputFile, ...] = ()
    response_id: str | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None


OneAnswer = str | Answer | JobError | ErrorCode | NoAnswer
"""A text or a whole answer; how the job fails (`cancelled` and `expired` end it as such); or `NO_ANSWER`."""

Choose = Callable[[PromptJob], OneAnswer | Awaitable[OneAnswer]]

Answers = OneAnswer | Mapping[str, OneAnswer] | Iterable[OneAnswer] | Choose
"""One for every job, by prompt (the last message), in the order in which jobs run, or by a function of the job."""


def echo(job: PromptJob) -> str:
    """The last message, as the echo provider answers."""
    return prompt_of(job)


def prompt_of(job: PromptJob) -> str:
    """What was asked last."""
    return job.messages[-1].text


def quoted(text: str) -> str:
    """For a message, on one line."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def chooser(answers: Answers) -> Choose:
    """The function that has an answer for each job. It raises AssertionError for a job without one."""
    if isinstance(answers, str | Answer | JobError | NoAnswer):  # an ErrorCode is a str
        return lambda _: answers
    if isinstance(answers, Mapping):
        return partial(_by_prompt, answers)
    if callable(answers):
        return answers
    return partial(_next_of, iter(answers))


def _by_prompt(answers: Mapping[str, OneAnswer], job: PromptJob) -> OneAnswer:
    prompt = prompt_of(job)
    if prompt not in answers:
        known = ", ".join(map(quoted, answers)) or "no prompt at all"
        raise AssertionError(f"no answer for the prompt {quoted(prompt)}; there are answers for {known}")
    return answers[prompt]


def _next_of(answers: Iterator[OneAnswer], job: PromptJob) -> OneAnswer:
    for answer in answers:
        return answer
    raise AssertionError(f"no answer is left for the prompt {quoted(prompt_of(job))}")


def completed(said: object, job: PromptJob) -> Answer | JobError | NoAnswer:
    """With everything that was left to us. Raises TypeError for what is no answer."""
    if isinstance(said, ErrorCode):
        return JobError(code=said, message="as the test said")
    if isinstance(said, str):
        said = Answer(content=said)
    if isinstance(said, Answer):
        return said.model_copy(update={"model": said.model or job.model, "usage": said.usage or _count(job, said)})
    if not isinstance(said, JobError | NoAnswer):
        kinds = "a str, Answer, ErrorCode, JobError or NO_ANSWER"
        raise TypeError(f"the answer to {quoted(prompt_of(job))} is of type {type(said).__name__}; give {kinds}")
    return said


def batches(answer: Answer) -> list[bytes]:
    """Its stream: the content word by word; of several outputs all at once."""
    told = answer.model_dump(include={"content", "reasoning_content", "tool_calls", "server_tool_calls", "outputs"})
    pieces = pieces_of(JobResult(id="", status=JobStatus.SUCCEEDED, **told))
    if len(pieces) == 1:
        first, *words = re.findall(r"\s*\S+|\s+", answer.content) or [""]
        pieces = [pieces[0] | {"content": first}, *({"content": word} for word in words)]
        return [codec.dumps([piece]) for piece in pieces]
    return [codec.dumps(pieces)] if pieces else []


def _count(job: PromptJob, answer: Answer) -> Usage:
    asked = max(1, sum(len(message.text) for message in job.messages) // 4)
    told = max(1, len(answer.content) // 4)
    return Usage(prompt_tokens=asked, completion_tokens=told, total_tokens=asked + told)
