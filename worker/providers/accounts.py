"""Whose key the calls carry: the present account, and those replaced since whose last calls still run.

For every provider whose key may be in a file. Loads no vendor's library: what carries the calls is the provider's own.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar
from urllib.parse import urlsplit

import structlog
from pydantic import SecretStr

from promptq.worker.providers.api_key import KeyFile

log = structlog.get_logger("promptq.account")


def account_name(vendor: str, key: str, place: str = "") -> str:
    """As `Provider.account`: the vendor and eight hex digits of a digest. `place` as `Accounts` takes it."""
    return f"{vendor}:{hashlib.sha256(f'{place}{key}'.encode()).hexdigest()[:8]}"


def place_of(base_url: str) -> str:
    """The place of a server that is one of many: its host and port."""
    return f"{urlsplit(base_url).netloc.lower()} "


class Pool(Protocol):
    """Connections that carry one key."""

    async def aclose(self) -> None:
        """Close them all; calls still in flight are cancelled."""
        ...


PoolT = TypeVar("PoolT", bound=Pool)


class Account(Generic[PoolT]):
    """A key, and the connections that carry it. `name` as `Provider.account`."""

    def __init__(self, name: str, key: SecretStr, pool: PoolT) -> None:
        self.name, self.key, self.pool = name, key, pool
        self.is_closed = False
        self._in_flight = 0
        self._is_replaced = False
        self._closing: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def lend(self) -> Iterator[PoolT]:
        """The connections, for one call. What the call raises comes through."""
        self._in_flight += 1
        try:
            yield self.pool
        finally:
            self._in_flight -= 1
            self._close_if_done()

    def retire(self) -> None:
        """To be called last, on the event loop: close the connections once no call is in flight."""
        self._is_replaced = True
        self._close_if_done()

    async def aclose(self) -> None:
        """Close the connections; calls still in flight are cancelled."""
        await self.pool.aclose()
        self.is_closed = True

    def _close_if_done(self) -> None:
        """In a task of its own: the last call has its answer, which no cancel while we close may take from it."""
        if self._is_replaced and not self._in_flight:
            self._closing = asyncio.create_task(self.aclose(), name="promptq close replaced connections")


class Accounts(Generic[PoolT]):
    """Follows the key's file, if there is one. The connections of a replaced account close after its last call.

    Args:
        vendor: The word before the colon in the accounts' names.
        key: The present one.
        open_pool: Makes the connections for a key.
        key_file: Where the key is looked for again.
        place: What tells two accounts with the same key apart; empty: one key is one account, wherever it is used.
    """

    def __init__(
        self,
        vendor: str,
        key: str,
        open_pool: Callable[[SecretStr], PoolT],
        key_file: KeyFile | None,
        *,
        place: str = "",
    ) -> None:
        self._vendor, self._place = vendor, place
        self._open_pool, self._key_file = open_pool, key_file
        self._present = self._open(key)
        self._replaced: list[Account[PoolT]] = []

    def present(self) -> Account[PoolT]:
        """The one for a new call. Looks once a second at most whether the file has another key."""
        return self._with(self._key_file.changed() if self._key_file else None)

    def reread(self) -> Account[PoolT]:
        """The same, after a look at the file in any case."""
        return self._with(self._key_file.now() if self._key_file else None)

    def is_replaced(self, account: Account[PoolT]) -> bool:
        """Whether there is another key by now than this account's."""
        return account.key != self._present.key or account.key != self.reread().key

    def keys(self) -> list[str]:
        """The present key, the one before it, and all with which calls are under way."""
        return [account.key.get_secret_value() for account in (self._present, *self._replaced)]

    async def aclose(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(account.aclose() for account in (self._present, *self._replaced)))

    def _with(self, key: str | None) -> Account[PoolT]:
        if key is not None and key != self._present.key.get_secret_value():
            self._replace(self._open(key))
        return self._present

    def _replace(self, new: Account[PoolT]) -> None:
        old, self._present = self._present, new
        self._replaced = [*(account for account in self._replaced if not account.is_closed), old]
        old.retire()
        log.info("key.replaced", account=new.name, was=old.name)

    def _open(self, key: str) -> Account[PoolT]:
        secret = SecretStr(key)
        return Account(account_name(self._vendor, key, self._place), secret, self._open_pool(secret))
