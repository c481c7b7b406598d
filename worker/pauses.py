"""What is paused now, and when that makes a worker not ready. Asked by health.py and the doctor."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from redis.asyncio import Redis

from promptq.producer import keys
from promptq.producer.errors import ErrorCode
from promptq.producer.models import from_ms
from promptq.producer.reading import read_accounts


@dataclass(frozen=True, slots=True)
class Pause:
    """No job of `what`, a model or an account, is claimed before `until`. `reason`: an ErrorCode."""

    what: str
    reason: str
    until: datetime
    is_of_the_account: bool = False
    """Whether it goes on until somebody changes the key or buys credit."""

    def __str__(self) -> str:
        return f"{self.reason} until {self.until:%Y-%m-%dT%H:%M:%SZ} ({self.what})"


async def read_pauses(redis: Redis, models: Sequence[str]) -> tuple[Pause, ...]:
    """Those of the accounts and of the models from which a claim would get nothing now, by Redis' clock.

    Raises redis errors.
    """
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        for model in models:
            pipe.hmget(keys.meter(model), ["until", "probe", "reason"])
        (seconds, micros), *meters = await pipe.execute()
    now = seconds * 1000 + micros / 1000
    pauses = [Pause(each.account, each.reason, each.until, True) for each in await read_accounts(redis)]
    for model, (until, probe, reason) in zip(models, meters, strict=True):
        ends = max(float(until or 0), float(probe or 0))  # as `room_of` in meter.lua
        if ends > now:
            pauses.append(Pause(model, (reason or b"?").decode(errors="replace"), from_ms(ends)))
    return tuple(pauses)


def standstill(pauses: Sequence[Pause], models: Sequence[str], account: str) -> Pause | None:
    """The pause for which a worker with jobs of these models is not ready; None: it is ready. Pure.

    A bad key or no credit counts if it is that of its own account; a provider that cannot be reached when it pauses
    all of the models. A rate limit never does: it ends by itself, and fewer workers would not help.
    """
    for pause in pauses:
        if pause.is_of_the_account and pause.what == account:
            return pause
    unreachable = [pause for pause in pauses if pause.reason == ErrorCode.UNAVAILABLE.value]
    return unreachable[0] if unreachable and len(unreachable) == len(models) else None
