"""What a worker exchanges with Redis at each step: outcomes of what has ended against jobs for its free slots.

Outcomes wait here, through an outage too, until Redis has taken them; a claim is repeated until it is answered.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, islice

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from promptq.producer import keys, scripts
from promptq.producer.connection import OUTAGE
from promptq.producer.errors import ErrorCode
from promptq.producer.records import Claimed, ClaimRequest, Payer, Settlement
from promptq.worker.leases import Leases
from promptq.worker.settings import Settings
from promptq.worker.telling import Teller

SETTLED_AT_ONCE = 100
CLAIMED_AT_ONCE = 100
MOST_BYTES = 4 * 1024 * 1024
"""Of results in one call: an outage must not begin because a call is too long for its timeout."""
MOST_LANES = 100
"""To wait for; more are found by the slow poll."""
MOST_REFUSALS = 3
"""Of one outcome, by a Redis that takes renewals in between: then the outcome is at fault."""

_HELP: dict[str, str] = {
    ErrorCode.BAD_KEY: "set XAI_API_KEY, or the key of the route, or write a new one to its file; the jobs wait",
    ErrorCode.NO_CREDIT: "buy credit, or raise the spending limit; the jobs wait",
}
"""Nothing runs any more until somebody acts."""

log = structlog.get_logger("promptq.exchange")


class Exchange:
    """What Redis has not taken yet, and the number of the next claim. Its methods raise redis errors.

    `payers`: who pays for what, as of now (`Routes.payers`); the last is for all other models.
    """

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        worker: str,
        serves: Sequence[str],
        *,
        payers: Callable[[], tuple[Payer, ...]],
        teller: Teller,
    ) -> None:
        self.unsettled: list[Settlement] = []
        self.lanes: tuple[str, ...] = ()
        """Those that hold jobs now."""
        self.known: dict[str, None] = dict.fromkeys(serves)
        """Those to wait for: also what is empty and may fill again."""
        self.has_met_new = False
        """Whether the last claim found a lane that was not known here."""
        self.counts: Counter[str] = Counter()
        """Jobs by the kind of outcome that was written."""
        self._redis, self._settings, self._worker, self._serves = redis, settings, worker, serves
        self._payers, self._teller = payers, teller
        self._refusals: Counter[Settlement] = Counter()
        self._seq = 1
        self._answered_at = 0
        """When Redis answered the last claim, by its clock."""

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be written that no more must be begun."""
        return len(self.unsettled) > self._settings.max_jobs + SETTLED_AT_ONCE

    def _head(self) -> list[Settlement]:
        """The next outcomes to write: at least one, if there is any."""
        sizes = accumulate(len(settlement.result) for settlement in self.unsettled)
        fitting = sum(size <= MOST_BYTES for size in islice(sizes, SETTLED_AT_ONCE))
        return self.unsettled[: max(1, fitting)]

    async def settle(self) -> None:
        """Write outcomes; wake others for the jobs that go back."""
        batch = self._head()
        if not batch:
            return
        await self._teller.finish(batch)
        try:
            self._take_note(batch, await self._send(batch))
        except OUTAGE:
            raise
        except RedisError:
            await self._settle_singly(batch)

    async def _send(self, batch: Sequence[Settlement]) -> list[str]:
        account, payers = self._who_pays()
        return await scripts.settle(self._redis, batch, wake=True, account=account, payers=payers, luck=random.random())

    def _who_pays(self) -> tuple[str, tuple[Payer, ...]]:
        """The account, and those of some models: none for one that pays for all, which may start any number."""
        payers = self._payers()
        others = payers if len(payers) > 1 or payers[-1].most >= 0 else ()
        return payers[-1].account, others

    async def settle_and_claim(self, slots: int, leases: Leases) -> tuple[str, Claimed]:
        """Write outcomes and take jobs for `slots`, in one round trip; returns the token of the jobs, too."""
        request = self._request(slots, leases)
        batch = self._head()
        if batch:
            await self._teller.finish(batch)
            claimed = await self._settle_then_claim(batch, request)
        else:
            claimed = await scripts.claim(self._redis, request)
        self._seq += 1
        self._answered_at = claimed.now
        self.has_met_new = not self.known.keys() | {keys.INTAKE} >= set(claimed.lanes)
        self._learn(claimed.lanes)
        return request.token, claimed

    def _learn(self, lanes: tuple[str, ...]) -> None:
        self.lanes = lanes
        for lane in lanes:
            self.known.pop(lane, None)
            self.known[lane] = None
        for lane in list(self.known)[:-MOST_LANES]:
            if lane not in self._serves:
                del self.known[lane]

    async def _settle_then_claim(self, batch: Sequence[Settlement], request: ClaimRequest) -> Claimed:
        try:
            said, claimed = await scripts.settle_and_claim(self._redis, batch, request, luck=random.random())
        except OUTAGE:
            raise
        except RedisError:
            await self._settle_singly(batch)
            return await scripts.claim(self._redis, request)
        self._take_note(batch, said)
        return claimed

    async def _settle_singly(self, batch: Sequence[Settlement]) -> None:
        """One bad outcome must not hold up the others: it waits behind them. Raises the last refusal."""
        refusal: RedisError | None = None
        for settlement in batch:
            try:
                self._take_note([settlement], await self._send([settlement]))
            except OUTAGE:
                raise
            except RedisError as error:
                refusal = error
                self._set_aside(settlement, error)
        if refusal is not None:
            raise refusal

    def _set_aside(self, settlement: Settlement, error: RedisError) -> None:
        """It is the first of the unsettled."""
        del self.unsettled[0]
        self._refusals[settlement] += 1
        if self._refusals[settlement] < MOST_REFUSALS:
            self.unsettled.append(settlement)
        else:
            del self._refusals[settlement]
            log.error("settle.refused", job_id=settlement.id, kind=settlement.kind, reason=str(error))

    def _take_note(self, batch: Iterable[Settlement], said: Iterable[str]) -> None:
        """The batch is the head of the unsettled."""
        for settlement, word in zip(batch, said, strict=True):
            del self.unsettled[0]
            if self._refusals:
                self._refusals.pop(settlement, None)
            if word in {"done", "back", "pausing"}:
                self.counts[settlement.kind] += 1
                if word == "pausing":
                    _tell_pause(settlement)
            elif word.startswith("error"):
                log.error("settle.refused", job_id=settlement.id, kind=settlement.kind, reason=word)
            else:
                log.info("settle.late", job_id=settlement.id, kind=settlement.kind, said=word)

    def _request(self, slots: int, leases: Leases) -> ClaimRequest:
        account, payers = self._who_pays()
        return ClaimRequest(
            worker=self._worker,
            seq=self._seq,
            slots=min(slots, CLAIMED_AT_ONCE, max(1, self._settings.max_jobs // 2)),  # while the other half runs
            lease=self._settings.lease_ms,
            take_over_until=self._take_over_until if leases.may_take_over else 0,
            may_take_poison=leases.may_take_poison,
            failure_ttl=self._settings.failure_ttl_ms,
            result_ttl=self._settings.result_ttl_ms,
            known_lanes=tuple(self.known),
            serves=self._serves,
            account=account,
            payers=payers,
        )

    @property
    def _take_over_until(self) -> int:
        """When to stop trusting that a lease which ran out was not renewed, in ms by Redis' clock.

        Redis itself may have stood still, with this claim waiting in its socket, and the renewals of others behind it.
        """
        return self._answered_at + self._settings.lease_ms - round(self._settings.renew_period * 1000)


def _tell_pause(settlement: Settlement) -> None:
    """One line for the whole fleet: of all that were refused, the script names one."""
    if settlement.reason in _HELP:
        log.error("provider.paused", reason=settlement.reason, job_id=settlement.id, help=_HELP[settlement.reason])
    else:
        log.warning("model.paused", reason=settlement.reason, job_id=settlement.id)
