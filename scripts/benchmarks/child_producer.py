"""One producer process, promptq's or plain arq's, that enqueues when told and says how long it took."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from arq.connections import ArqRedis

import child
from contenders import MAX_TOKENS, MODEL, arq_pool, enqueue_arq, producer_settings, prompts
from promptq.producer import PromptQueue

Way = Callable[[], Awaitable[Any]]


def ways_of(queue: PromptQueue, texts: Sequence[str]) -> dict[str, Way]:
    """How promptq is told of the same jobs."""
    fields = {"model": MODEL, "max_tokens": MAX_TOKENS}
    dicts = [{"prompt": text, "id": f"order-{number}", **fields} for number, text in enumerate(texts)]

    async def single() -> None:
        for text in texts:
            await queue.enqueue(text, model=MODEL, max_tokens=MAX_TOKENS)

    return {
        "strings": lambda: queue.enqueue_many(texts, **fields),
        "dicts": lambda: queue.enqueue_many(dicts),
        "single": single,
    }


async def by_arq(pool: ArqRedis, texts: Sequence[str]) -> None:
    """One after the other."""
    for text in texts:
        await enqueue_arq(pool, text)


async def timed(enqueue: Way) -> None:
    """When told, once."""
    child.say(ready=True)
    await child.told_to_go()
    began = time.perf_counter()
    await enqueue()
    child.say(seconds=time.perf_counter() - began)


async def main() -> None:
    """Enqueue all jobs once."""
    told = child.options()
    texts = prompts(told["count"])
    if told["contender"] == "arq":
        pool = await arq_pool(told["url"])
        await timed(lambda: by_arq(pool, texts))
        await pool.aclose()
    else:
        async with PromptQueue.connect(settings=producer_settings(told["url"])) as queue:
            await timed(ways_of(queue, texts)[told["way"]])


if __name__ == "__main__":
    asyncio.run(main())
