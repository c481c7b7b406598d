"""What people write without a queue: one SDK client, a semaphore, and all calls gathered."""

import asyncio
import time

from xai_sdk import AsyncClient
from xai_sdk.chat import Response, user

import child
from contenders import MAX_TOKENS, prompts


async def main() -> None:
    """Make all calls once; say how long they took."""
    told = child.options()
    client = AsyncClient(api_key="simulated", api_host=told["host"], timeout=3600, use_insecure_channel=True)
    slots = asyncio.Semaphore(told["at_once"])

    async def ask(prompt: str) -> Response:
        async with slots:
            chat = client.chat.create(model=told["model"], max_tokens=MAX_TOKENS)
            chat.append(user(prompt))
            return await chat.sample()

    texts = prompts(told["count"])
    child.say(ready=True)
    await child.told_to_go()
    before, began = time.process_time(), time.perf_counter()
    responses = await asyncio.gather(*(ask(text) for text in texts))
    child.say(seconds=time.perf_counter() - began, cpu=time.process_time() - before)
    if not all(response.content and response.usage.total_tokens for response in responses):
        raise RuntimeError("an answer is empty")
    await client.close()


if __name__ == "__main__":
    asyncio.run(main())
