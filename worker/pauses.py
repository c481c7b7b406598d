"""Which models are paused now, and when that makes a worker not ready. Asked by health.py and the doctor."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from redis.asyncio import Redis

from promptq.producer import keys
from promptq.producer.errors import ErrorCode
from promptq.producer.models import from_ms

_OF_THE_ACCOUNT = frozenset({ErrorCode.BAD_KEY.value, ErrorCode.NO_CREDIT.value})


@dataclass(frozen=True, slots=True)
class Pause:
    """No job of `model` is claimed before `until`. `reason`: an ErrorCode, as settle wrote it."""

    model: str
    reason: str
    until: datetime

    @property
    def is_of_the_account(self) -> bool:
        """Whether it goes on until somebody changes the key or buys credit."""
        return self.reason in _OF_THE_ACCOUNT

    def __str__(self) -> str:
        return f"{self.reason} until {self.until:%Y-%m-%dT%H:%M:%SZ} ({self.model})"


async def read_pauses(redis: Redis, models: Sequence[str]) -> tuple[Pause, ...]:
    """Those of the models from which a claim would get nothing now, by Redis' clock; one round trip.

    Raises redis errors.
    """
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        for model in models:
            pipe.hmget(keys.meter(model), ["until", "probe", "reason"])
        (seconds, micros), *meters = await pipe.execute()
    now = seconds * 1000 + micros / 1000
    pauses = []
    for model, (until, probe, reason) in zip(models, meters, strict=True):
        ends = max(float(until or 0), float(probe or 0))  # as `admits` in common.lua
        if ends > now:
            pauses.append(Pause(model, (reason or b"?").decode(errors="replace"), from_ms(ends)))
    return tuple(pauses)


def standstill(pauses: Sequence[Pause], models: Sequence[str]) -> Pause | None:
    """The pause for which a worker with jobs of these models is not ready; None: it is ready. Pure.

    A bad key or no credit counts when it pauses one model, since it is the account's; a provider that cannot be
    reached when it pauses all of them. A rate limit never does: it ends by itself, and fewer workers would not help.
    """
    for pause in pauses:
        if pause.is_of_the_account:
            return pause
    unreachable = [pause for pause in pauses if pause.reason == ErrorCode.UNAVAILABLE.value]
    return unreachable[0] if unreachable and len(unreachable) == len(models) else None
