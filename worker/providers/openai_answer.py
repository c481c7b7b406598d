"""From the JSON of a chat completion to an Answer. Reads the JSON itself: servers differ in what they leave out."""

from typing import Annotated, Any, Final, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from promptq.producer.errors import ErrorCode
from promptq.producer.models import PromptJob
from promptq.producer.results import Output, OutputFile, TokenLogprob, ToolCall, TopLogprob, Usage
from promptq.worker.providers.base import LARGEST_ANSWER, Answer, ProviderError

UNKNOWN: Final = "unknown"
_FINISH_REASONS: Final = {
    "stop": "stop",
    "end_turn": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
}
_SERVER_TOOLS: Final = {"code_interpreter": "code_execution"}
"""Where xAI's REST has another name than its gRPC."""


def none_is_empty(default: Any) -> BeforeValidator:
    """Null is read as this."""
    return BeforeValidator(lambda given: default if given is None else given)


Count = Annotated[int, none_is_empty(0)]
Words = Annotated[str, none_is_empty("")]


class Read(BaseModel):
    """Null is the same as left out; what is new to us is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _PromptDetails(Read):
    cached_tokens: Count = 0
    text_tokens: Count = 0
    image_tokens: Count = 0


class _CompletionDetails(Read):
    reasoning_tokens: Count = 0


class _Usage(Read):
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    num_sources_used: Count = 0
    cost_in_usd_ticks: int | None = None

    def told(self) -> Usage:
        prompt = self.prompt_tokens_details or _PromptDetails()
        completion = self.completion_tokens_details or _CompletionDetails()
        total = self.prompt_tokens + self.completion_tokens if self.total_tokens is None else self.total_tokens
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            reasoning_tokens=completion.reasoning_tokens,
            cached_prompt_tokens=prompt.cached_tokens,
            total_tokens=total,
            cost_in_usd_ticks=self.cost_in_usd_ticks,
            prompt_text_tokens=prompt.text_tokens,
            prompt_image_tokens=prompt.image_tokens,
            num_sources_used=self.num_sources_used,
        )


class CalledFunction(Read):
    """What is called, and with what."""

    name: str
    arguments: Words = ""


class CalledTool(Read):
    """One call."""

    id: Words = ""
    type: Words = ""
    function: CalledFunction

    def told(self) -> ToolCall:
        """As it stands in results."""
        kind = (self.type or "function").removesuffix("_call")
        kind = _SERVER_TOOLS.get(kind, kind)
        return ToolCall(id=self.id, name=self.function.name, arguments=self.function.arguments, type=kind)


class Said(Read):
    """A message, or a piece of one."""

    content: Words = ""
    refusal: Words = ""
    # vLLM and others call it `reasoning`.
    reasoning_content: Words = Field("", validation_alias=AliasChoices("reasoning_content", "reasoning"))
    tool_calls: Annotated[tuple[CalledTool, ...], none_is_empty(())] = ()

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """As they stand in results."""
        return tuple(call.told() for call in self.tool_calls)


class _TopLogprob(Read):
    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None


class _Logprob(_TopLogprob):
    top_logprobs: Annotated[tuple[_TopLogprob, ...], none_is_empty(())] = ()


class Logprobs(Read):
    """Of the tokens of one output, or of some of them."""

    content: Annotated[tuple[_Logprob, ...], none_is_empty(())] = ()

    def told(self) -> tuple[TokenLogprob, ...] | None:
        """As they stand in results; None if there are none: a stream does not tell whether they were only empty."""
        told = (
            TokenLogprob(**_token(each), top_logprobs=tuple(TopLogprob(**_token(top)) for top in each.top_logprobs))
            for each in self.content
        )
        return tuple(told) or None


def _token(token: _TopLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": token.bytes or None}


class Choice(Read):
    """One of the answers."""

    index: Count = 0
    message: Said
    finish_reason: str | None = None
    logprobs: Logprobs | None = None

    @property
    def reason(self) -> str:
        """Why it ended, in our words."""
        return _FINISH_REASONS.get(self.finish_reason or "", UNKNOWN)

    @property
    def content(self) -> str:
        """A refusal stands for the answer: it is what the model said instead."""
        return self.message.content or self.message.refusal

    def told(self) -> Output:
        """As it stands in results, one of several."""
        return Output(
            index=self.index,
            content=self.content,
            reasoning_content=self.message.reasoning_content,
            finish_reason=self.reason if self.finish_reason else None,
            tool_calls=self.message.calls,
            logprobs=self.logprobs.told() if self.logprobs else None,
        )


class _OutputFile(Read):
    file_id: str
    name: Words = ""


class Head(Read):
    """What an answer has beside its outputs, whole or in each chunk."""

    id: Words = ""
    model: Words = ""
    usage: _Usage | None = None
    citations: Annotated[tuple[str, ...], none_is_empty(())] = ()
    output_files: Annotated[tuple[_OutputFile, ...], none_is_empty(())] = ()
    system_fingerprint: str | None = None
    service_tier: str | None = None


class Completion(Head):
    """All of it."""

    choices: Annotated[tuple[Choice, ...], none_is_empty(())] = ()


ReadT = TypeVar("ReadT", bound=Read)


def answer_of(read: Completion, job: PromptJob) -> Answer:
    """The answer. Raises ProviderError if there is none in it."""
    usage = read.usage.told() if read.usage else Usage()
    if not read.choices:
        raise ProviderError(ErrorCode.PROVIDER_ERROR, "an answer without any output", usage=usage)
    outputs = tuple(choice.told() for choice in read.choices)
    first = min(read.choices, key=lambda choice: choice.index)
    chosen = first.told()
    return Answer(
        content=chosen.content,
        model=read.model or str(job.model),
        usage=usage,
        finish_reason=first.reason,
        reasoning_content=chosen.reasoning_content,
        tool_calls=tuple(call for call in chosen.tool_calls if call.type == "function"),
        server_tool_calls=tuple(call for output in outputs for call in output.tool_calls if call.type != "function"),
        citations=read.citations,
        logprobs=chosen.logprobs,
        outputs=outputs if len(outputs) > 1 else (),
        output_files=tuple(OutputFile(file_id=file.file_id, name=file.name) for file in read.output_files),
        response_id=read.id or None,
        system_fingerprint=read.system_fingerprint or None,
        service_tier=read.service_tier or None,
    )


def completion_of(body: bytes) -> Completion:
    """What came. Raises ProviderError if that is something else, or too much of it; the error quotes nothing of it."""
    if len(body) > LARGEST_ANSWER:
        raise too_large()
    return read_as(Completion, body)


def read_as(kind: type[ReadT], body: bytes) -> ReadT:
    """JSON as this model. Raises ProviderError, as `completion_of`."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "all of it"
        said = f"what came is no chat completion: {where}: {first['type']}; see PROMPTQ_OPENAI_BASE_URL"
        raise ProviderError(ErrorCode.PROVIDER_ERROR, said) from None


def too_large() -> ProviderError:
    """An answer, whole or streamed, that nobody takes."""
    return ProviderError(ErrorCode.TOO_LARGE, f"the answer is larger than {LARGEST_ANSWER:,} bytes")
