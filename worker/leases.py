"""The leases of one worker process: renewing them, and knowing when not to trust the connection.

A worker that lost Redis may have lost its leases too. It renews before it claims, claims nothing for one renew period
after a reconnect, and takes over the jobs of others only after a whole lease of unbroken connection: else a Redis that
was away, or a replica that missed the claims, would have the fleet start every running call a second time.
"""

import time

import structlog
from redis.asyncio import Redis

from promptq.producer import scripts
from promptq.worker.run import Run
from promptq.worker.settings import Settings

RENEWED_AT_ONCE = 100

log = structlog.get_logger("promptq.leases")


class Leases:
    """Who runs what in this process, by job id."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.runs: dict[str, Run] = {}
        self._redis = redis
        self._settings = settings
        self._renewed_at = self._unbroken_since = time.monotonic()
        self._has_reconnected = False
        self.is_broken = False

    @property
    def may_claim(self) -> bool:
        """Whether Redis' word on what is free can be trusted."""
        settled_for = time.monotonic() - self._unbroken_since
        return not self.is_broken and (not self._has_reconnected or settled_for >= self._settings.renew_period)

    @property
    def may_take_over(self) -> bool:
        """Whether a lease that ran out means that its worker died, not that Redis was away."""
        return not self.is_broken and time.monotonic() - self._unbroken_since >= self._settings.lease

    @property
    def may_take_poison(self) -> bool:
        """At most one job that has stalled twice runs here, so that it takes no neighbours with it."""
        return not any(run.job.stalls >= 2 for run in self.runs.values())

    @property
    def is_late(self) -> bool:
        """Whether the last renewal is so old that the leases may have run out."""
        return bool(self.runs) and time.monotonic() - self._renewed_at > self._settings.lease / 2

    def broke(self, error: BaseException) -> None:
        """A call to Redis failed."""
        if not self.is_broken:
            log.warning("redis.away", reason=f"{type(error).__name__}: {error}", running=len(self.runs))
        self.is_broken = True

    def mended(self) -> None:
        """A call to Redis was answered."""
        if self.is_broken:
            self.is_broken, self._has_reconnected, self._unbroken_since = False, True, time.monotonic()
            log.info("redis.back", running=len(self.runs))

    async def renew(self) -> None:
        """Renew all leases and stop the calls of jobs that are cancelled or over. Raises redis errors."""
        started = time.monotonic()
        ids = list(self.runs)
        for start in range(0, max(1, len(ids)), RENEWED_AT_ONCE):
            runs = [run for job_id in ids[start : start + RENEWED_AT_ONCE] if (run := self.runs.get(job_id))]
            asked = [(run.job.id, run.token, run.job.epoch) for run in runs]
            said = await scripts.renew(
                self._redis, asked, lease=self._settings.lease_ms, result_ttl=self._settings.result_ttl_ms
            )
            for run, word in zip(runs, said, strict=True):
                self._heed(run, word)
        self._renewed_at = started
        self.mended()

    def _heed(self, run: Run, word: str) -> None:
        if self.runs.get(run.job.id) is not run:
            return
        if word == "cancel":
            run.stop("cancelled")
        elif word == "over":
            log.warning("lease.over", job_id=run.job.id, lane=run.job.lane)
            run.stop("over")
        elif word == "taken":
            log.warning("lease.taken", job_id=run.job.id, lane=run.job.lane)
