"""From a request to its answer, in three steps: read the prompt, plan the answer, compose it.

The plan has the usage, so a generation can be charged before any time is spent on it. All three
depend only on the request and the seed: the same prompt gets the same answer.
"""

import time
import zlib
from typing import NamedTuple

from xai_sdk.proto import chat_pb2, sample_pb2, usage_pb2

from promptq.worker.simulator.books import TokenUsage
from promptq.worker.simulator.knobs import Knobs, TokenCost
from promptq.worker.simulator.prose import REASONING, tokens_in, write_answer
from promptq.worker.simulator.spread import Spread

TOKENS_PER_IMAGE = 256
SYSTEM_FINGERPRINT = "fp_promptq_simulator"

_KEYS = 1 << 32


class Prompt(NamedTuple):
    """What a request asks: text of its last user message, tokens of all its messages."""

    text: str
    text_tokens: int
    image_tokens: int


class Plan(NamedTuple):
    """What will be answered: `key` chooses the words, `tokens` is the length of one output."""

    key: int
    tokens: int
    is_cut: bool
    usage: TokenUsage


def read_prompt(request: chat_pb2.GetCompletionsRequest) -> Prompt:
    """Reads the messages; if none is a user's, the text of the last one counts as the prompt."""
    asked = text = ""
    characters = images = 0
    for message in request.messages:
        text = "\n".join([part.text for part in message.content if part.text])
        characters += len(text)
        images += sum([part.HasField("image_url") for part in message.content])
        if message.role == chat_pb2.ROLE_USER:
            asked = text
    return Prompt(asked or text, tokens_in(characters), images * TOKENS_PER_IMAGE)


def plan_answer(request: chat_pb2.GetCompletionsRequest, prompt: Prompt, knobs: Knobs, size: int | None = None) -> Plan:
    """Decides length and usage. `size` orders about so many bytes, whatever the knobs say.

    `max_tokens` bounds the answer, not the reasoning before it.
    """
    key = zlib.crc32(prompt.text.encode(), (knobs.seed + request.seed) % _KEYS)
    chance = key / _KEYS
    tokens = tokens_in(size) if size else max(1, _draw(knobs.answer_tokens, chance))
    is_cut = not size and 0 < request.max_tokens < tokens
    if is_cut:
        tokens = request.max_tokens
    usage = _usage(prompt, tokens * _outputs(request), _draw(knobs.reasoning_tokens, chance), knobs)
    return Plan(key, tokens, is_cut, usage)


def compose_answer(
    request: chat_pb2.GetCompletionsRequest, prompt: Prompt, plan: Plan, response_id: str
) -> chat_pb2.GetChatCompletionResponse:
    """Writes the answer as planned."""
    response = chat_pb2.GetChatCompletionResponse(
        id=response_id,
        model=request.model,
        system_fingerprint=SYSTEM_FINGERPRINT,
        service_tier=usage_pb2.SERVICE_TIER_DEFAULT,
        usage=_on_the_wire(plan.usage),
    )
    response.created.seconds = int(time.time())
    finish_reason = sample_pb2.REASON_MAX_LEN if plan.is_cut else sample_pb2.REASON_STOP
    for index in range(_outputs(request)):
        output = response.outputs.add(index=index, finish_reason=finish_reason)
        message = output.message
        message.role = chat_pb2.ROLE_ASSISTANT
        message.content = write_answer(prompt.text, plan.tokens, plan.key + index, is_cut=plan.is_cut)
        if plan.usage.reasoning_tokens:
            message.reasoning_content = REASONING
    return response


def _outputs(request: chat_pb2.GetCompletionsRequest) -> int:
    return max(1, request.n)


def _draw(count: Spread, chance: float) -> int:
    return round(count.at(chance))


def _usage(prompt: Prompt, completion: int, reasoning: int, knobs: Knobs) -> TokenUsage:
    prompt_tokens = prompt.text_tokens + prompt.image_tokens
    return TokenUsage(
        prompt_text_tokens=prompt.text_tokens,
        prompt_image_tokens=prompt.image_tokens,
        cached_prompt_text_tokens=int(prompt.text_tokens * knobs.cached_share),
        completion_tokens=completion,
        reasoning_tokens=reasoning,
        prompt_tokens=prompt_tokens,
        total_tokens=prompt_tokens + completion + reasoning,
        cost_in_usd_ticks=_cost(prompt_tokens, completion + reasoning, knobs.cost_in_usd_ticks),
    )


def _on_the_wire(usage: TokenUsage) -> usage_pb2.SamplingUsage:
    return usage_pb2.SamplingUsage(
        prompt_text_tokens=usage.prompt_text_tokens,
        prompt_image_tokens=usage.prompt_image_tokens,
        cached_prompt_text_tokens=usage.cached_prompt_text_tokens,
        completion_tokens=usage.completion_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        prompt_tokens=usage.prompt_tokens,
        total_tokens=usage.total_tokens,
        cost_in_usd_ticks=usage.cost_in_usd_ticks,
    )


def _cost(prompt_tokens: int, generated_tokens: int, cost: TokenCost | None) -> int | None:
    if cost is None:
        return None
    return prompt_tokens * cost.prompt + generated_tokens * cost.completion
