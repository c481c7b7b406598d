"""Which providers this process can reach at all: of the others it takes one job at a time, to find out.

Used by the engine. Other workers may reach them, so it must not take all of their jobs only to give them back.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Final

import structlog

from promptq.producer.records import Payer, Settlement
from promptq.worker.leases import Leases
from promptq.worker.providers.base import OF_THE_ACCOUNT
from promptq.worker.providers.routes import Routes

REST: Final = 1.0
"""Seconds between two tries to reach a provider that this process cannot reach."""
ANY: Final = -1
"""How many jobs may be taken of an account whose provider can be reached."""

log = structlog.get_logger("promptq.worker")


class Reach:
    """Goes by what ended in this process. `on_rested`: it is time to try again."""

    def __init__(self, routes: Routes, leases: Leases, on_rested: Callable[[], None]) -> None:
        self._routes, self._leases, self._on_rested = routes, leases, on_rested
        self._cut_off: dict[str, float] = {}
        """Accounts whose provider cannot be reached, and when the next job of theirs may try."""

    def slots(self, free: int, accounts: Callable[[], Collection[str]]) -> int:
        """How many to claim for; if all accounts with jobs are cut off, one at most for each."""
        if not self._cut_off:
            return free
        rooms = [self._room(account) for account in accounts()]
        return free if ANY in rooms else min(free, sum(rooms))

    def payers(self) -> tuple[Payer, ...]:
        """Who pays for what, and how much of it this process takes."""
        payers = self._routes.payers()
        if not self._cut_off:
            return payers
        return tuple(payer._replace(most=self._room(payer.account)) for payer in payers)

    def has_room_for(self, lane: str) -> bool:
        """Whether to be woken for it: a marker that is taken by a worker without room wakes nobody else."""
        return not self._cut_off or self._room(self._routes.account_of(lane)) != 0

    def note(self, model: str, settlement: Settlement) -> None:
        """A run of this model has ended: whether its provider could be asked at all."""
        if not (settlement.was_unreached or self._cut_off):
            return
        account = self._routes.account_of(model)
        if not settlement.was_unreached or settlement.reason in OF_THE_ACCOUNT:
            self._cut_off.pop(account, None)
            return
        if account not in self._cut_off:
            log.warning(
                "provider.unreachable",
                account=account,
                help="jobs are tried one at a time; other workers take the rest",
            )
        loop = asyncio.get_running_loop()
        self._cut_off[account] = loop.time() + REST
        loop.call_later(REST, self._on_rested)

    def _room(self, account: str) -> int:
        """One job at a time, after a rest, for an account that is cut off."""
        if account not in self._cut_off:
            return ANY
        running = sum(self._routes.account_of(run.job.model) == account for run in self._leases.runs.values())
        return 1 if asyncio.get_running_loop().time() >= self._cut_off[account] and not running else 0
