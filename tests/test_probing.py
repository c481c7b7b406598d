"""What a worker writes down of a paused account, when its claim has told it to ask the provider."""

import pytest

from contract import Contract, entry
from promptq.producer import ErrorCode, keys
from promptq.worker.probing import tell_whether_it_works
from promptq.worker.providers.base import ProviderError
from promptq.worker.providers.echo import EchoProvider

pytest_plugins = ["contract_fixture"]

ACCOUNT = "xai:1"


class Asked(EchoProvider):
    """Of an account that may change, and whose probe may fail."""

    account = ACCOUNT

    def __init__(self, error: Exception | None = None, then: str = ACCOUNT) -> None:
        super().__init__()
        self._error, self._then = error, then

    async def probe(self) -> None:
        """As told."""
        self.account = self._then
        if self._error:
            raise self._error


async def refuse(contract: Contract) -> None:
    """The account is paused, and a job waits for it."""
    await contract.accept(entry("a"))
    run = await contract.take_one(account=ACCOUNT)
    assert await contract.settle(run, "throttled", reason="bad_key", account=ACCOUNT) == "pausing"


async def test_an_account_that_works_again_is_open(contract: Contract) -> None:
    """The next claim gets one job."""
    await refuse(contract)
    await tell_whether_it_works(contract.redis, ACCOUNT, Asked())
    assert await contract.redis.hget(keys.account(ACCOUNT), "state") == b"open"


@pytest.mark.parametrize(
    "error",
    [
        ProviderError(ErrorCode.BAD_KEY, "blocked"),
        ProviderError(ErrorCode.UNAVAILABLE, "away"),
        OSError("a bug of the provider, no outage of Redis"),
        KeyError("a bug"),
    ],
)
async def test_without_an_answer_the_pause_goes_on(contract: Contract, error: Exception) -> None:
    """For longer; whatever kept the provider from an answer, nothing is raised: that would be Redis' own trouble."""
    await refuse(contract)
    await tell_whether_it_works(contract.redis, ACCOUNT, Asked(error))
    assert await contract.redis.hmget(keys.account(ACCOUNT), "state", "strikes") == [b"paused", b"2"]


@pytest.mark.parametrize("error", [None, ProviderError(ErrorCode.BAD_KEY, "blocked")])
async def test_the_pause_of_a_replaced_key_ends(contract: Contract, error: Exception | None) -> None:
    """Whatever is said of the new one: its first call tells."""
    await refuse(contract)
    await tell_whether_it_works(contract.redis, ACCOUNT, Asked(error, then="xai:2"))
    assert await contract.redis.exists(keys.account(ACCOUNT)) == 0


async def test_the_pause_of_an_account_that_nobody_uses_ends(contract: Contract) -> None:
    """The key was replaced between the claim that said to ask and the asking."""
    await refuse(contract)
    await tell_whether_it_works(contract.redis, ACCOUNT, None)
    assert await contract.redis.exists(keys.account(ACCOUNT)) == 0
