"""Whose key the calls carry: the present account, and those replaced since whose last calls still run."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from pydantic import SecretStr

from promptq.worker.providers.xai_key import KeyFile
from promptq.worker.providers.xai_pool import ClientPool

log = structlog.get_logger("promptq.account")

OpenPool = Callable[[SecretStr], ClientPool]


@dataclass(frozen=True, slots=True)
class Account:
    """A key, and the connections that carry it."""

    key: SecretStr
    pool: ClientPool

    @property
    def name(self) -> str:
        """As `Provider.account`. Without the host: one account pays, by whichever endpoint it is called."""
        return f"xai:{hashlib.sha256(self.key.get_secret_value().encode()).hexdigest()[:8]}"


class Accounts:
    """Follows the key's file, if there is one. The connections of a replaced account close after its last call."""

    def __init__(self, key: str, open_pool: OpenPool, key_file: KeyFile | None) -> None:
        self._open_pool, self._key_file = open_pool, key_file
        self._present = self._open(key)
        self._replaced: list[Account] = []

    def present(self) -> Account:
        """The one for a new call. Looks once a second at most whether the file has another key."""
        return self._with(self._key_file.changed() if self._key_file else None)

    def reread(self) -> Account:
        """The same, after a look at the file in any case."""
        return self._with(self._key_file.now() if self._key_file else None)

    def is_replaced(self, account: Account) -> bool:
        """Whether there is another key by now than this account's."""
        return account.key != self._present.key or account.key != self.reread().key

    def keys(self) -> list[str]:
        """The present key, the one before it, and all with which calls are under way."""
        return [account.key.get_secret_value() for account in (self._present, *self._replaced)]

    async def aclose(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(account.pool.aclose() for account in (self._present, *self._replaced)))

    def _with(self, key: str | None) -> Account:
        if key is not None and key != self._present.key.get_secret_value():
            self._replace(self._open(key))
        return self._present

    def _replace(self, new: Account) -> None:
        old, self._present = self._present, new
        self._replaced = [*(account for account in self._replaced if not account.pool.is_closed), old]
        old.pool.retire()
        log.info("key.replaced", account=new.name, was=old.name)

    def _open(self, key: str) -> Account:
        secret = SecretStr(key)
        return Account(secret, self._open_pool(secret))
