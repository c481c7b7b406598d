"""What a worker exchanges with Redis at each turn: outcomes of what has ended against jobs for its free slots.

Outcomes wait here, through an outage too, until Redis has taken them; a claim is repeated until it is answered.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from promptq.producer import scripts
from promptq.producer.connection import OUTAGE
from promptq.producer.scripts import Claimed, ClaimRequest, Settlement
from promptq.worker.leases import Leases
from promptq.worker.settings import Settings

SETTLED_AT_ONCE = 200

log = structlog.get_logger("promptq.exchange")


class Exchange:
    """What Redis has not taken yet, and the number of the next claim. Its methods raise redis errors."""

    def __init__(self, redis: Redis, settings: Settings, worker: str, serves: Sequence[str]) -> None:
        self.unsettled: list[Settlement] = []
        self.lanes: tuple[str, ...] = tuple(serves)
        self.counts: Counter[str] = Counter()
        """Jobs by the kind of outcome that was written."""
        self._redis, self._settings, self._worker, self._serves = redis, settings, worker, serves
        self._seq = 1

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be written that no more must be begun."""
        return len(self.unsettled) > self._settings.max_jobs + SETTLED_AT_ONCE

    async def settle(self) -> None:
        """Write outcomes; wake others for the jobs that go back."""
        batch = self.unsettled[:SETTLED_AT_ONCE]
        if not batch:
            return
        try:
            self._take_note(batch, await scripts.settle(self._redis, batch, wake=True))
        except OUTAGE:
            raise
        except RedisError:
            await self._settle_singly(batch)

    async def settle_and_claim(self, slots: int, leases: Leases) -> tuple[str, Claimed]:
        """Write outcomes and take jobs for `slots`, in one round trip; returns the token of the jobs, too."""
        request = self._request(slots, leases)
        batch = self.unsettled[:SETTLED_AT_ONCE]
        if batch:
            claimed = await self._settle_then_claim(batch, request)
        else:
            claimed = await scripts.claim(self._redis, request)
        self._seq += 1
        self.lanes = claimed.lanes
        return request.token, claimed

    async def _settle_then_claim(self, batch: Sequence[Settlement], request: ClaimRequest) -> Claimed:
        try:
            said, claimed = await scripts.settle_and_claim(self._redis, batch, request)
        except OUTAGE:
            raise
        except RedisError:
            await self._settle_singly(batch)
            return await scripts.claim(self._redis, request)
        self._take_note(batch, said)
        return claimed

    async def _settle_singly(self, batch: Sequence[Settlement]) -> None:
        """One bad outcome must not keep the others from being written."""
        for settlement in batch:
            try:
                said = await scripts.settle(self._redis, [settlement], wake=True)
            except OUTAGE:
                raise
            except RedisError as error:
                said = [f"error: {error}"]
            self._take_note([settlement], said)

    def _take_note(self, batch: Iterable[Settlement], said: Iterable[str]) -> None:
        """The batch is the head of the unsettled."""
        for settlement, word in zip(batch, said, strict=True):
            del self.unsettled[0]
            if word in {"done", "back"}:
                self.counts[settlement.kind] += 1
            elif word.startswith("error"):
                log.error("settle.refused", job_id=settlement.id, kind=settlement.kind, reason=word)
            else:
                log.info("settle.late", job_id=settlement.id, kind=settlement.kind, said=word)

    def _request(self, slots: int, leases: Leases) -> ClaimRequest:
        return ClaimRequest(
            worker=self._worker,
            seq=self._seq,
            slots=slots,
            lease=self._settings.lease_ms,
            may_take_over=leases.may_take_over,
            may_take_poison=leases.may_take_poison,
            failure_ttl=self._settings.failure_ttl_ms,
            known_lanes=self.lanes,
            serves=self._serves,
        )
