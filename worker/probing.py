"""Whether an account works again whose key was refused or whose credit was gone: one worker at a time asks.

Called by the engine when a claim says so.
"""

import random

import structlog
from redis.asyncio import Redis

from promptq.producer import scripts
from promptq.producer.records import Probed
from promptq.worker.providers.base import Provider, ProviderError

log = structlog.get_logger("promptq.probing")


async def tell_whether_it_works(redis: Redis, account: str, provider: Provider | None) -> None:
    """Ask the provider of this account, at no cost, and write down what it says. None: it has none here any more.

    Raises redis errors.
    """
    said: Probed = "works"
    try:
        if provider is not None:
            await provider.probe()
    except ProviderError as error:
        said = "refused"
        log.info("provider.refuses", account=account, code=error.code.value, reason=error.message)
    except Exception as error:  # noqa: BLE001 - a provider's bug: no answer, and no word about Redis
        said = "refused"
        log.error("provider.bug", account=account, error=type(error).__name__)  # noqa: TRY400 - its text may hold the key
    if provider is None or provider.account != account:
        said = "gone"
    state = await scripts.probed(redis, account, said, luck=random.random())
    if state != "paused":
        log.info("provider.resumes", account=provider.account if provider else account, state=state)
