"""A simulator whose streamed answers say when they were sent: every chunk of text is the time in ns, and a space."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from xai_sdk.proto import chat_pb2

import child
from promptq.worker.simulator import server
from promptq.worker.simulator.generations import Caller, Generations
from promptq.worker.simulator.knobs import Knobs


class StampingGenerations(Generations):
    """Its streams tell the time, right before it is written to the socket."""

    async def stream(
        self, request: chat_pb2.GetCompletionsRequest, caller: Caller
    ) -> AsyncGenerator[chat_pb2.GetChatCompletionChunk, None]:
        """As Generations."""
        async with aclosing(super().stream(request, caller)) as chunks:
            async for chunk in chunks:
                for output in chunk.outputs:
                    if output.delta.content:
                        output.delta.content = f"{time.time_ns()} "
                yield chunk


async def main() -> None:
    """Serve until the measure has seen enough."""
    told = child.options()
    vars(server)["Generations"] = StampingGenerations  # the server makes its own
    async with server.serving(Knobs.model_validate(told["knobs"])) as serving:
        before = time.process_time()
        child.say(host=serving.host)
        await child.told_to_end()
        child.say(cpu=time.process_time() - before)


if __name__ == "__main__":
    asyncio.run(main())
