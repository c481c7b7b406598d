"""What is paused now, and when that makes a worker not ready. Asked by health.py and the doctor."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from redis.asyncio import Redis

from promptq.producer import keys
from promptq.producer.errors import ErrorCode
from promptq.producer.meters import LONGEST_PAUSE, LONGEST_PROBE
from promptq.producer.models import from_ms
from promptq.producer.reading import read_accounts

BY_AN_OPERATOR: Final = "by an operator"


@dataclass(frozen=True, slots=True)
class Pause:
    """No job of `what`, a model or an account, is claimed before `until`; None: before an operator resumes it.

    `reason`: an ErrorCode, or `by an operator`.
    """

    what: str
    reason: str
    until: datetime | None
    is_of_the_account: bool = False
    """Whether it goes on until somebody changes the key or buys credit."""

    def __str__(self) -> str:
        when = f" until {self.until:%Y-%m-%dT%H:%M:%SZ}" if self.until else ""
        return f"{self.reason}{when} ({self.what})"


async def read_pauses(redis: Redis, models: Collection[str]) -> tuple[Pause, ...]:
    """Those of the accounts and of the models from which a claim would get nothing now, by Redis' clock.

    Raises redis errors.
    """
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        for model in models:
            pipe.hmget(keys.meter(model), ["until", "probe", "reason"])
            pipe.hget(keys.LIMITS, f"{model}:paused")
        (seconds, micros), *replies = await pipe.execute()
    now = seconds * 1000 + micros / 1000
    accounts = [each for each in await read_accounts(redis) if not each.is_open]
    pauses = [Pause(each.account, each.reason, each.until, True) for each in accounts]
    for model, (until, probe, reason), held in zip(models, replies[::2], replies[1::2], strict=True):
        ends = max(_ahead(now, until, LONGEST_PAUSE), _ahead(now, probe, LONGEST_PROBE))  # as `room_of` in meter.lua
        if held:
            pauses.append(Pause(model, BY_AN_OPERATOR, None))
        elif ends:
            pauses.append(Pause(model, (reason or b"?").decode(errors="replace"), from_ms(ends)))
    return tuple(pauses)


def _ahead(now: float, moment: bytes | None, longest: int) -> float:
    """The moment, if it is still to come; 0 if not, or if it is of a clock that was set back since."""
    ends = float(moment or 0)
    return ends if now < ends <= now + longest else 0


def standstill(pauses: Sequence[Pause], models: Mapping[str, str], account: str) -> Pause | None:
    """The pause for which a worker is not ready; None: it is ready. Pure.

    `models`: those with jobs, each with the account that pays for it; `account`: of all models that no route names.

    A bad key or no credit counts when all of these accounts are paused; a provider that cannot be reached when nothing
    but what is paused has jobs. A rate limit never does: it ends by itself, and fewer workers would not help; an
    operator's pause neither: it is meant.
    """
    refused = {pause.what: pause for pause in pauses if pause.is_of_the_account}
    if account in refused and refused.keys() >= set(models.values()):
        return refused[account]
    unreachable = {pause.what: pause for pause in pauses if pause.reason == ErrorCode.UNAVAILABLE.value}
    if not unreachable or not all(model in unreachable or payer in refused for model, payer in models.items()):
        return None
    return next(iter(unreachable.values()))
