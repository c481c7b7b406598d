"""One call, from its request to its end on the books, whatever it came over."""

import asyncio
import itertools
import time
import zlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from xai_sdk.proto import chat_pb2

from promptq.worker.simulator.answers import Plan, Prompt, compose_answer, plan_answer, read_prompt
from promptq.worker.simulator.books import CANCELLED, FAILED, OK, Books, Call, TokenUsage
from promptq.worker.simulator.caches import Place
from promptq.worker.simulator.chunks import cut
from promptq.worker.simulator.knobs import Fault
from promptq.worker.simulator.refusals import (
    Refusal,
    bad_request,
    fail_after_start,
    no_credit,
    no_key,
    not_found,
    refuse_before_start,
    refuse_key,
    throttled,
)
from promptq.worker.simulator.state import State


class Caller(NamedTuple):
    """Who calls: the fingerprint of the API key, the connection, and the conversation; empty without one."""

    key: str
    peer: str
    conversation: str = ""


class _Booked(NamedTuple):
    """A call on the books; `earlier` is the conversation that it goes on with, None if nobody knows it."""

    call: Call
    books: Books
    request: chat_pb2.GetCompletionsRequest
    earlier: Sequence[chat_pb2.Message] | None
    prompt: Prompt


class _Generation(NamedTuple):
    """What was started and charged, and what goes wrong with it."""

    request: chat_pb2.GetCompletionsRequest
    earlier: Sequence[chat_pb2.Message]
    prompt: Prompt
    plan: Plan
    fault: Fault | None


class Generations:
    """Answers requests, or raises Refusal. The books know how a call ended before its caller does."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._numbers = itertools.count(1)
        # The loop itself holds tasks only weakly.
        self._under_way: set[asyncio.Task[chat_pb2.GetChatCompletionResponse | None]] = set()

    async def answer(
        self, request: chat_pb2.GetCompletionsRequest, caller: Caller
    ) -> chat_pb2.GetChatCompletionResponse:
        """The answer, whole."""
        with self._booked(request, caller) as booked:
            return await self._finish(self._begin(booked))

    async def stream(
        self, request: chat_pb2.GetCompletionsRequest, caller: Caller
    ) -> AsyncGenerator[chat_pb2.GetChatCompletionChunk, None]:
        """The same answer in chunks. To close it before its end is to cancel the call."""
        with self._booked(request, caller) as booked:
            generation = self._begin(booked)
            await _pause(self._state.draw_latency())
            fault = generation.fault
            is_oversized = fault is not None and fault.kind == "oversized"
            chunks = cut(self._compose(generation), 0 if is_oversized else self._state.knobs.tokens_per_chunk)
            began = time.monotonic()
            period = self._seconds_to_write(generation.plan.usage) / len(chunks)
            for number, chunk in enumerate(chunks):
                if fault and number == min(fault.after_chunks, len(chunks) - 1):
                    await fail_after_start(fault)
                await _pause(began + (number + 1) * period - time.monotonic())
                yield chunk

    def defer(self, request: chat_pb2.GetCompletionsRequest, caller: Caller) -> str:
        """Starts an answer that is read later, under the id that this returns. What is refused is refused now."""
        if request.guidelines:
            raise bad_request("A deferred request cannot use guidelines.")
        with ExitStack() as stack:
            generation = self._begin(stack.enter_context(self._booked(request, caller)))
            booking = stack.pop_all()
        request_id = f"deferred-{self._new_id()}"
        answer = asyncio.create_task(self._finish_later(generation, booking))
        self._under_way.add(answer)
        answer.add_done_callback(self._under_way.discard)
        self._state.conversations.defer(request_id, answer)
        return request_id

    async def compact(self, request: chat_pb2.CompactContextRequest, caller: Caller) -> chat_pb2.CompactContextResponse:
        """The messages in one opaque text; it takes and costs what an answer to them would."""
        asked = chat_pb2.GetCompletionsRequest(model=request.model, messages=request.input)
        with self._booked(asked, caller) as booked:
            response = await self._finish(self._begin(booked))
        return chat_pb2.CompactContextResponse(
            id=f"cmp_{response.id}",
            encrypted_content=f"simulated-{zlib.crc32(asked.SerializeToString(deterministic=True)):08x}",
            dropped_message_count=len(request.input),
            usage=response.usage,
        )

    async def aclose(self) -> None:
        """Cancels the deferred answers that are still to come."""
        for answer in self._under_way:
            answer.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _finish_later(
        self, generation: _Generation, booking: ExitStack
    ) -> chat_pb2.GetChatCompletionResponse | None:
        try:
            with booking:
                return await self._finish(generation)
        except Refusal:
            return None

    @contextmanager
    def _booked(self, request: chat_pb2.GetCompletionsRequest, caller: Caller) -> Iterator[_Booked]:
        """Opens the call on the books, and closes it with the block."""
        earlier = self._state.conversations.messages_until(request.previous_response_id)
        prompt = read_prompt(request, earlier or ())
        books = self._state.books
        call = books.open(
            model=request.model,
            prompt=prompt.text,
            key=caller.key,
            peer=caller.peer,
            conversation=caller.conversation,
        )
        try:
            yield _Booked(call, books, request, earlier, prompt)
        except Refusal as refusal:
            books.close(call, refusal.code.name)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            books.close(call, CANCELLED)
            raise
        except Exception:
            books.close(call, FAILED)
            raise
        books.close(call, OK)

    def _begin(self, booked: _Booked) -> _Generation:
        """Starts the generation, or refuses it, free of charge."""
        call, books, request, earlier, prompt = booked
        if not call.key:
            raise no_key()
        refuse_key(self._state.knobs.state_of(call.key))
        fault = self._state.faults.pick(prompt.text)
        if fault:
            refuse_before_start(fault)
        if earlier is None:
            raise not_found("Response", request.previous_response_id)
        size = fault.size if fault and fault.kind == "oversized" else None
        plan = plan_answer(request, prompt, self._state.knobs, size)
        place, said = Place(call.key, call.model, call.conversation), (*earlier, *request.messages)
        plan = plan.with_cached(self._state.cache.tokens(place, said))
        self._charge(books, call, plan.usage)
        self._state.cache.keep(place, said)
        return _Generation(request, earlier, prompt, plan, fault)

    def _charge(self, books: Books, call: Call, usage: TokenUsage) -> None:
        """Charges credit, limits and books, or nothing at all if the call is refused."""
        knobs = self._state.knobs
        if not self._state.has_credit():
            raise no_credit(knobs.no_credit_code)
        shortage = self._state.meters.admit(call.key, call.model, usage.total_tokens)
        if shortage:
            books.throttle(call)
            raise throttled(shortage, call.model, knobs.retry_hint)
        self._state.spend(usage.cost_in_usd_ticks)
        books.start(call, usage)

    async def _finish(self, generation: _Generation) -> chat_pb2.GetChatCompletionResponse:
        await _pause(self._state.draw_latency() + self._seconds_to_write(generation.plan.usage))
        if generation.fault:
            await fail_after_start(generation.fault)
        return self._compose(generation)

    def _compose(self, generation: _Generation) -> chat_pb2.GetChatCompletionResponse:
        request = generation.request
        response = compose_answer(request, generation.prompt, generation.plan, self._new_id())
        if request.store_messages:
            self._state.conversations.store(response, (*generation.earlier, *request.messages))
        return response

    def _seconds_to_write(self, usage: TokenUsage) -> float:
        pace = self._state.knobs.tokens_per_second
        return (usage.reasoning_tokens + usage.completion_tokens) / pace if pace else 0.0

    def _new_id(self) -> str:
        return f"sim-{self._state.id}-{next(self._numbers)}"


async def _pause(seconds: float) -> None:
    if seconds > 0:
        await asyncio.sleep(seconds)
