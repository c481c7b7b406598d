"""The REST API: the same generations as over gRPC, as JSON or as server-sent events.

aiohttp is there already: xai_sdk needs it.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from aiohttp import web
from pydantic_core import to_json
from xai_sdk.proto import chat_pb2

from promptq.worker.simulator.addresses import bound
from promptq.worker.simulator.credentials import conversation_in, fingerprint_in
from promptq.worker.simulator.generations import Caller, Generations
from promptq.worker.simulator.knobs import MIB
from promptq.worker.simulator.refusals import Dropped, Refusal, no_key, not_found, refuse_key
from promptq.worker.simulator.rest_answers import chunk_json, error_json, http_headers, http_status, response_json
from promptq.worker.simulator.rest_requests import Asked, UnreadableBody, read_body
from promptq.worker.simulator.state import State

MODELS = ("grok-3", "grok-4", "grok-4.3", "grok-4.5", "grok-4.6")
"""What `/v1/models` lists; any other model is answered too."""

_LARGEST_BODY = 64 * MIB
_MODELS_SINCE = 1_750_000_000

Chunks = AsyncGenerator[chat_pb2.GetChatCompletionChunk, None]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving_rest(
    state: State, generations: Generations, *, address: str, port: int, grace: float
) -> AsyncIterator[int]:
    """Serves inside the block, and yields the port. At its end, calls in flight get `grace` seconds.

    Raises:
        OSError: the address is taken, or not one of this machine's.
    """
    app = web.Application(middlewares=[_with_errors], client_max_size=_LARGEST_BODY)
    api = RestApi(state, generations)
    app.router.add_post("/v1/chat/completions", api.complete)
    app.router.add_get("/v1/chat/deferred-completion/{id}", api.show_deferred)
    app.router.add_get("/v1/models", api.list_models)
    app.router.add_get("/v1/models/{model}", api.show_model)
    # Without handler_cancellation a call whose client has gone away would go on.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=grace)
    await runner.setup()
    try:
        listener = bound(address, port)
        await web.SockSite(runner, listener).start()
        yield listener.getsockname()[1]
    finally:
        await runner.cleanup()


class RestApi:
    """The handlers. They raise Refusal, which becomes xAI's error."""

    def __init__(self, state: State, generations: Generations) -> None:
        self._state = state
        self._generations = generations

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`."""
        asked = read_body(await request.read())
        caller = _caller(request)
        if asked.is_deferred:
            return _json({"request_id": self._generations.defer(asked.request, caller)})
        if asked.is_streamed:
            async with aclosing(self._generations.stream(asked.request, caller)) as chunks:
                return await _stream(request, asked, chunks)
        response = await self._generations.answer(asked.request, caller)
        return _json(response_json(response))

    async def show_deferred(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/chat/deferred-completion/{id}`: 202 without a body until the answer is there; then that, once."""
        self._check_key(request)
        answer = self._state.conversations.deferred(request.match_info["id"])
        if not answer.done():
            return web.Response(status=202)
        response = answer.result()
        if response is None:
            raise Refusal(grpc.StatusCode.INTERNAL, "The deferred completion has failed.")
        return _json(response_json(response))

    async def list_models(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models`: free, and not on the books."""
        self._check_key(request)
        return _json({"object": "list", "data": [_model(name) for name in MODELS]})

    async def show_model(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models/{model}`."""
        self._check_key(request)
        name = request.match_info["model"]
        if name not in MODELS:
            raise not_found("Model", name)
        return _json(_model(name))

    def _check_key(self, request: web.Request) -> None:
        key = _caller(request).key
        if not key:
            raise no_key()
        refuse_key(self._state.knobs.state_of(key))


@web.middleware
async def _with_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Dropped:
        return _broken(request)
    except Refusal as refusal:
        return _json(error_json(refusal), http_status(refusal.code), http_headers(refusal))
    except UnreadableBody as error:
        return _json({"code": "invalid-argument", "error": str(error)}, 422)
    except web.HTTPException as error:
        return _json({"code": error.reason.lower().replace(" ", "-"), "error": error.reason}, error.status)


async def _stream(request: web.Request, asked: Asked, chunks: Chunks) -> web.StreamResponse:
    """Sends the events. What goes wrong before the first chunk is an error with its own HTTP status."""
    first = await anext(chunks)
    response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
    try:
        await response.prepare(request)
        await _send(response, chunk_json(first, asked))
        async for chunk in chunks:
            await _send(response, chunk_json(chunk, asked))
        await response.write(b"data: [DONE]\n\n")
    except Dropped:
        return _broken(request, response)
    except Refusal as refusal:
        await _send(response, error_json(refusal))
    except ConnectionError:
        return response
    await response.write_eof()
    return response


async def _send(response: web.StreamResponse, event: dict[str, Any] | None) -> None:
    if event is not None:
        await response.write(b"data: " + to_json(event) + b"\n\n")


def _broken(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
    """The connection ends without another byte; what is returned is not sent."""
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response()


def _json(body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=to_json(body), status=status, headers=headers, content_type="application/json")


def _caller(request: web.Request) -> Caller:
    key = fingerprint_in([("authorization", request.headers.get("authorization", ""))])
    peer = request.transport.get_extra_info("peername") if request.transport else None
    place = f"rest:{peer[0]}:{peer[1]}" if peer else "rest"
    return Caller(key, place, conversation_in(request.headers.items()))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _MODELS_SINCE, "owned_by": "xai"}
