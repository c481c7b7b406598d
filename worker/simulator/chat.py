"""The Chat service: one call, from its request to its end on the books."""

import asyncio
import itertools

from xai_sdk.proto import chat_pb2, chat_pb2_grpc

from promptq.worker.simulator.answers import Prompt, compose_answer, plan_answer, read_prompt
from promptq.worker.simulator.books import CANCELLED, FAILED, OK, Books, Call, TokenUsage
from promptq.worker.simulator.context import CallContext
from promptq.worker.simulator.credentials import fingerprint_in
from promptq.worker.simulator.refusals import (
    Refusal,
    fail_after_start,
    no_credit,
    no_key,
    refuse_before_start,
    refuse_key,
    send,
    throttled,
)
from promptq.worker.simulator.state import State


class ChatService(chat_pb2_grpc.ChatServicer):
    """Answers `GetCompletion`. The other methods are inherited and answer UNIMPLEMENTED."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._numbers = itertools.count(1)

    async def GetCompletion(  # noqa: N802 - the protocol's name
        self, request: chat_pb2.GetCompletionsRequest, context: CallContext
    ) -> chat_pb2.GetChatCompletionResponse:
        """Answers, or fails as a fault says. The books know how it ended before the client does."""
        prompt = read_prompt(request)
        key = fingerprint_in(context.invocation_metadata())
        books = self._state.books
        call = books.open(model=request.model, prompt=prompt.text, key=key, peer=context.peer())
        try:
            response = await self._answer(request, prompt, books, call)
        except Refusal as refusal:
            books.close(call, refusal.code.name)
            await send(refusal, context)
        except asyncio.CancelledError:
            books.close(call, CANCELLED)
            raise
        except Exception:
            books.close(call, FAILED)
            raise
        books.close(call, OK)
        return response

    async def _answer(
        self, request: chat_pb2.GetCompletionsRequest, prompt: Prompt, books: Books, call: Call
    ) -> chat_pb2.GetChatCompletionResponse:
        if not call.key:
            raise no_key()
        refuse_key(self._state.knobs.state_of(call.key))
        fault = self._state.faults.pick(prompt.text)
        if fault:
            refuse_before_start(fault)
        size = fault.size if fault and fault.kind == "oversized" else None
        plan = plan_answer(request, prompt, self._state.knobs, size)
        self._start(books, call, plan.usage)
        await self._wait()
        if fault:
            await fail_after_start(fault)
        return compose_answer(request, prompt, plan, self._new_id())

    def _start(self, books: Books, call: Call, usage: TokenUsage) -> None:
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

    async def _wait(self) -> None:
        latency = self._state.draw_latency()
        if latency > 0:
            await asyncio.sleep(latency)

    def _new_id(self) -> str:
        return f"sim-{self._state.id}-{next(self._numbers)}"
