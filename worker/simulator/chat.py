"""The Chat service: generations over gRPC, whole, in chunks, stored or deferred."""

from contextlib import aclosing

from xai_sdk.proto import chat_pb2, chat_pb2_grpc, deferred_pb2

from promptq.worker.simulator.context import CallContext, StreamContext
from promptq.worker.simulator.credentials import conversation_in, fingerprint_in
from promptq.worker.simulator.generations import Caller, Generations
from promptq.worker.simulator.refusals import Refusal, no_key, refuse_key, send
from promptq.worker.simulator.state import State


class ChatService(chat_pb2_grpc.ChatServicer):
    """Answers all of it. To look after stored and deferred answers costs nothing and is not on the books."""

    def __init__(self, state: State, generations: Generations) -> None:
        self._state = state
        self._generations = generations

    async def GetCompletion(  # noqa: N802 - the protocol's name
        self, request: chat_pb2.GetCompletionsRequest, context: CallContext
    ) -> chat_pb2.GetChatCompletionResponse:
        """Answers, or fails as a fault says."""
        try:
            return await self._generations.answer(request, _caller(context))
        except Refusal as refusal:
            await send(refusal, context)

    async def GetCompletionChunk(  # noqa: N802
        self, request: chat_pb2.GetCompletionsRequest, context: StreamContext
    ) -> None:
        """Answers in chunks, or fails before or between them as a fault says."""
        try:
            async with aclosing(self._generations.stream(request, _caller(context))) as chunks:
                async for chunk in chunks:
                    await context.write(chunk)
        except Refusal as refusal:
            await send(refusal, context)

    async def StartDeferredCompletion(  # noqa: N802
        self, request: chat_pb2.GetCompletionsRequest, context: CallContext
    ) -> deferred_pb2.StartDeferredResponse:
        """Starts an answer that is asked for later."""
        try:
            request_id = self._generations.defer(request, _caller(context))
        except Refusal as refusal:
            await send(refusal, context)
        return deferred_pb2.StartDeferredResponse(request_id=request_id)

    async def GetDeferredCompletion(  # noqa: N802
        self, request: deferred_pb2.GetDeferredRequest, context: CallContext
    ) -> chat_pb2.GetDeferredCompletionResponse:
        """Gives such an answer once, when it is there."""
        try:
            self._check_key(context)
            answer = self._state.conversations.deferred(request.request_id)
        except Refusal as refusal:
            await send(refusal, context)
        if not answer.done():
            return chat_pb2.GetDeferredCompletionResponse(status=deferred_pb2.PENDING)
        response = answer.result()
        status = deferred_pb2.DONE if response else deferred_pb2.FAILED
        return chat_pb2.GetDeferredCompletionResponse(status=status, response=response)

    async def GetStoredCompletion(  # noqa: N802
        self, request: chat_pb2.GetStoredCompletionRequest, context: CallContext
    ) -> chat_pb2.GetChatCompletionResponse:
        """Gives a stored answer again."""
        try:
            self._check_key(context)
            return self._state.conversations.stored(request.response_id)
        except Refusal as refusal:
            await send(refusal, context)

    async def DeleteStoredCompletion(  # noqa: N802
        self, request: chat_pb2.DeleteStoredCompletionRequest, context: CallContext
    ) -> chat_pb2.DeleteStoredCompletionResponse:
        """Forgets a stored answer."""
        try:
            self._check_key(context)
            self._state.conversations.delete(request.response_id)
        except Refusal as refusal:
            await send(refusal, context)
        return chat_pb2.DeleteStoredCompletionResponse(response_id=request.response_id)

    async def CompactContext(  # noqa: N802
        self, request: chat_pb2.CompactContextRequest, context: CallContext
    ) -> chat_pb2.CompactContextResponse:
        """Makes one opaque text of many messages, or fails as a fault says."""
        try:
            return await self._generations.compact(request, _caller(context))
        except Refusal as refusal:
            await send(refusal, context)

    def _check_key(self, context: CallContext) -> None:
        key = fingerprint_in(context.invocation_metadata())
        if not key:
            raise no_key()
        refuse_key(self._state.knobs.state_of(key))


def _caller(context: CallContext) -> Caller:
    metadata = tuple(context.invocation_metadata())
    return Caller(fingerprint_in(metadata), context.peer(), conversation_in(metadata))
