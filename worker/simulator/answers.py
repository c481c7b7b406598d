"""From a request to its answer, in three steps: read the prompt, plan the answer, compose it.

The plan has the usage, so a generation can be charged before any time is spent on it. All three
depend only on the request, the conversation that it goes on with, and the seed: the same prompt gets
the same answer, whole or in chunks, over gRPC or REST.
"""

import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, Self

from xai_sdk.proto import chat_pb2, sample_pb2, usage_pb2

from promptq.worker.simulator.books import TokenUsage
from promptq.worker.simulator.knobs import Knobs, TokenCost
from promptq.worker.simulator.outputs import Length, is_plain, tokens_of, write_outputs
from promptq.worker.simulator.prose import REASONING, tokens_in, write_answer
from promptq.worker.simulator.searches import cited, tools_run
from promptq.worker.simulator.spread import Spread

TOKENS_PER_ATTACHMENT = 256
SYSTEM_FINGERPRINT = "fp_promptq_simulator"

_KEYS = 1 << 32
_LEAST_REASONING = 40
_PRIORITY_FACTOR = 2

# How many times the tokens of low effort.
_EFFORT = {
    chat_pb2.EFFORT_NONE: 0,
    chat_pb2.EFFORT_LOW: 1,
    chat_pb2.EFFORT_MEDIUM: 2,
    chat_pb2.EFFORT_HIGH: 4,
    chat_pb2.EFFORT_XHIGH: 8,
}


class Prompt(NamedTuple):
    """What a request asks: text of its last user message, tokens of all its messages.

    `image_tokens` are those of all attachments, images and files.
    """

    text: str
    text_tokens: int
    image_tokens: int


class Plan(NamedTuple):
    """What will be answered.

    `key` chooses the words, `length` is that of one output of prose. `outputs` are there, already
    written, if their words decide what they cost.
    """

    key: int
    length: Length
    usage: TokenUsage
    outputs: Sequence[chat_pb2.CompletionOutput] = ()
    citations: Sequence[str] = ()

    def with_cached(self, tokens: int) -> Self:
        """The same with at least so many tokens of the prompt from the cache."""
        cached = max(tokens, self.usage.cached_prompt_text_tokens)
        return self._replace(usage=replace(self.usage, cached_prompt_text_tokens=cached))


def read_prompt(request: chat_pb2.GetCompletionsRequest, earlier: Iterable[chat_pb2.Message] = ()) -> Prompt:
    """Reads the messages, behind those of an earlier conversation.

    If none is a user's, the text of the last one counts as the prompt.
    """
    asked = text = ""
    characters = attachments = 0
    for message in (*earlier, *request.messages) if earlier else request.messages:
        text = "\n".join([part.text for part in message.content if part.text])
        characters += characters_in(message)
        attachments += sum([part.HasField("image_url") or part.HasField("file") for part in message.content])
        if message.role == chat_pb2.ROLE_USER:
            asked = text
    for tool in request.tools:
        characters += len(tool.function.name) + len(tool.function.description) + len(tool.function.parameters)
    return Prompt(asked or text, tokens_in(characters), attachments * TOKENS_PER_ATTACHMENT)


def characters_in(message: chat_pb2.Message) -> int:
    """That count as tokens of text."""
    called = sum([len(call.function.name) + len(call.function.arguments) for call in message.tool_calls])
    return sum([len(part.text) for part in message.content]) + len(message.encrypted_content) + called


def plan_answer(request: chat_pb2.GetCompletionsRequest, prompt: Prompt, knobs: Knobs, size: int | None = None) -> Plan:
    """Decides length and usage. `size` orders about so many bytes of prose, whatever else is asked.

    `max_tokens` bounds the answer, not the reasoning before it.

    Raises:
        Refusal: nobody could answer this request.
    """
    key = zlib.crc32(prompt.text.encode(), (knobs.seed + request.seed) % _KEYS)
    chance = key / _KEYS
    length = _length(request.max_tokens, tokens_in(size) if size else max(1, _draw(knobs.answer_tokens, chance)), size)
    reasoning = _reasoning(request, _draw(knobs.reasoning_tokens, chance))
    if size or is_plain(request):
        return Plan(key, length, _usage(request, prompt, length.tokens * _count(request), reasoning, knobs))
    outputs = write_outputs(request, prompt.text, key, length)
    citations = cited(request)
    usage = replace(
        _usage(request, prompt, tokens_of(outputs), reasoning, knobs),
        num_sources_used=len(citations),
        server_side_tools_used=tuple(tool.used for tool in tools_run(request)),
    )
    return Plan(key, length, usage, outputs, citations)


def compose_answer(
    request: chat_pb2.GetCompletionsRequest, prompt: Prompt, plan: Plan, response_id: str
) -> chat_pb2.GetChatCompletionResponse:
    """Writes the answer as planned."""
    response = chat_pb2.GetChatCompletionResponse(
        id=response_id,
        model=request.model,
        system_fingerprint=SYSTEM_FINGERPRINT,
        service_tier=request.service_tier or usage_pb2.SERVICE_TIER_DEFAULT,
        usage=_on_the_wire(plan.usage),
    )
    response.created.seconds = int(time.time())
    if plan.outputs:
        response.outputs.extend(plan.outputs)
        response.citations.extend(plan.citations)
    else:
        _write_prose(response, _count(request), prompt, plan)
    if plan.usage.reasoning_tokens:
        for output in response.outputs:
            if output.message.role == chat_pb2.ROLE_ASSISTANT:
                output.message.reasoning_content = REASONING
    return response


def _write_prose(response: chat_pb2.GetChatCompletionResponse, count: int, prompt: Prompt, plan: Plan) -> None:
    tokens, is_cut = plan.length
    finish_reason = sample_pb2.REASON_MAX_LEN if is_cut else sample_pb2.REASON_STOP
    for index in range(count):
        message = response.outputs.add(index=index, finish_reason=finish_reason).message
        message.role = chat_pb2.ROLE_ASSISTANT
        message.content = write_answer(prompt.text, tokens, plan.key + index, is_cut=is_cut)


def _count(request: chat_pb2.GetCompletionsRequest) -> int:
    return max(1, request.n)


def _length(most: int, tokens: int, size: int | None) -> Length:
    is_cut = not size and 0 < most < tokens
    return Length(most if is_cut else tokens, is_cut)


def _reasoning(request: chat_pb2.GetCompletionsRequest, tokens: int) -> int:
    if not request.HasField("reasoning_effort"):
        return tokens
    return (tokens or _LEAST_REASONING) * _EFFORT.get(request.reasoning_effort, 1)


def _draw(count: Spread, chance: float) -> int:
    return round(count.at(chance))


def _usage(
    request: chat_pb2.GetCompletionsRequest, prompt: Prompt, completion: int, reasoning: int, knobs: Knobs
) -> TokenUsage:
    prompt_tokens = prompt.text_tokens + prompt.image_tokens
    factor = _PRIORITY_FACTOR if request.service_tier == usage_pb2.SERVICE_TIER_PRIORITY else 1
    return TokenUsage(
        prompt_text_tokens=prompt.text_tokens,
        prompt_image_tokens=prompt.image_tokens,
        cached_prompt_text_tokens=int(prompt.text_tokens * knobs.cached_share),
        completion_tokens=completion,
        reasoning_tokens=reasoning,
        prompt_tokens=prompt_tokens,
        total_tokens=prompt_tokens + completion + reasoning,
        cost_in_usd_ticks=_cost(prompt_tokens, completion + reasoning, knobs.cost_in_usd_ticks, factor),
    )


def _on_the_wire(usage: TokenUsage) -> usage_pb2.SamplingUsage:
    told = usage_pb2.SamplingUsage(
        prompt_text_tokens=usage.prompt_text_tokens,
        prompt_image_tokens=usage.prompt_image_tokens,
        cached_prompt_text_tokens=usage.cached_prompt_text_tokens,
        completion_tokens=usage.completion_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        prompt_tokens=usage.prompt_tokens,
        total_tokens=usage.total_tokens,
        cost_in_usd_ticks=usage.cost_in_usd_ticks,
    )
    if usage.num_sources_used or usage.server_side_tools_used:
        sources, tools = usage.num_sources_used, usage.server_side_tools_used
        told.MergeFrom(usage_pb2.SamplingUsage(num_sources_used=sources, server_side_tools_used=tools))
    return told


def _cost(prompt_tokens: int, generated_tokens: int, cost: TokenCost | None, factor: int) -> int | None:
    if cost is None:
        return None
    return factor * (prompt_tokens * cost.prompt + generated_tokens * cost.completion)
