"""What an account may do at the simulator: rate limits, single keys and credit, called by the real SDK."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from xai_sdk import AsyncClient

from promptq.producer.errors import ErrorCode
from promptq.producer.models import PromptJob
from promptq.worker.providers.base import ProviderError
from promptq.worker.providers.xai import XaiProvider
from promptq.worker.simulator.control import SimulatorControl
from promptq.worker.simulator.knobs import Knobs
from promptq.worker.simulator.process import SimulatorProcess
from simulator_calls import Connect, ask, failure_of

pytest_plugins = ["simulator_fixture"]

KEY = "xai-Zq8tR2mWv5Lk0Ns7Yb3HcJd6"
OTHER_KEY = "xai-0th3rKeyW1thN0Limits"
ONE_A_MINUTE = {"*": {"rpm": 1}}


@pytest.fixture
async def provider(simulator: SimulatorProcess) -> AsyncIterator[XaiProvider]:
    """The worker's way to the simulator."""
    provider = XaiProvider(api_key=KEY, host=simulator.host, insecure=True)
    yield provider
    await provider.aclose()


async def sampled(provider: XaiProvider, model: str = "grok-4") -> None:
    """A call that must succeed."""
    await provider.sample(PromptJob.model_validate({"prompt": "Why?", "model": model}), 60)


async def refused(provider: XaiProvider, model: str = "grok-4") -> ProviderError:
    """What the worker makes of a call that must be refused."""
    with pytest.raises(ProviderError) as caught:
        await sampled(provider, model)
    return caught.value


# --- rate limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [{"rpm": 1}, {"tpm": 1}], ids=["requests", "tokens"])
@pytest.mark.parametrize("mode", ["smooth", "per_minute"])
@pytest.mark.parametrize("hint", ["none", "retry_after", "retry_info"])
async def test_a_rate_limit_reaches_the_worker(
    provider: XaiProvider, control: SimulatorControl, limit: dict[str, int], mode: str, hint: str
) -> None:
    """The refusal is `rate_limited` for the worker, with the wait if it is told."""
    await control.set(limits={"grok-4": {**limit, "mode": mode}}, retry_hint=hint, answer_tokens=1)
    await sampled(provider)
    error = await refused(provider)
    assert error.code is ErrorCode.RATE_LIMITED
    if hint == "none":
        assert error.retry_after is None
    else:
        most = 60 if "rpm" in limit or mode == "per_minute" else 600
        assert error.retry_after is not None
        assert 50 < error.retry_after <= most
        assert error.retry_after.is_integer() == (hint == "retry_after")
    await sampled(provider, "grok-3")


async def test_the_refusal_has_xais_words(client: AsyncClient, control: SimulatorControl) -> None:
    """It names team, model, and what was used of which limit."""
    team = (await client.auth.get_api_key_info()).team_id
    await control.set(limits={"*": {"rpm": 2, "tpm": 300, "mode": "per_minute"}}, answer_tokens=175)
    await ask(client, "x" * 100)
    await ask(client, "x" * 100, model="grok-3")
    await ask(client, "x" * 100)
    error = await failure_of(ask(client))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == (
        f"Too many requests for team {team} and model grok-4. Requests per Minute (actual/limit): 2/2"
    )
    await control.set(limits={"*": {"tpm": 300, "mode": "per_minute"}})
    assert (await failure_of(ask(client))).details() == (
        f"Too many tokens for team {team} and model grok-4. Tokens per Minute (actual/limit): 400/300"
    )


async def test_what_is_refused_is_not_charged(client: AsyncClient, control: SimulatorControl) -> None:
    """A call over the limit starts no generation, costs no credit, and is on the books as refused."""
    await control.set(limits=ONE_A_MINUTE, credit_in_usd_ticks=10**12)
    await ask(client)
    paid = (await control.totals()).credit_in_usd_ticks
    await failure_of(ask(client))
    totals = await control.totals()
    assert (totals.generations, totals.ended) == (1, {"OK": 1, "RESOURCE_EXHAUSTED": 1})
    assert totals.credit_in_usd_ticks == paid


async def test_a_burst_over_the_wire_stays_within_the_limit(client: AsyncClient, control: SimulatorControl) -> None:
    """Of many calls at the same moment the limit's pass, also while they are being answered."""
    await control.set(limits={"*": {"rpm": 20, "mode": "per_minute"}}, latency=0.05)
    outcomes = await asyncio.gather(*(ask(client) for _ in range(200)), return_exceptions=True)
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 20
    assert (await control.totals()).generations == 20


async def test_limits_are_by_key(
    simulator: SimulatorProcess, client: AsyncClient, control: SimulatorControl, connect: Connect
) -> None:
    """What one key has used up, another one has."""
    await control.set(limits=ONE_A_MINUTE)
    await ask(client)
    await ask(connect(simulator.host, key=OTHER_KEY))
    await failure_of(ask(client))


async def test_limits_change_while_it_runs(client: AsyncClient, control: SimulatorControl) -> None:
    """To set the same limits again is no new burst; without them calls pass; a reset begins anew."""
    await control.set(limits=ONE_A_MINUTE)
    await ask(client)
    await control.set(limits=ONE_A_MINUTE)
    await failure_of(ask(client))
    await control.reset(keep_knobs=True)
    await failure_of(ask(client))
    await control.set(limits={})
    await ask(client)
    await control.reset()
    await control.set(limits=ONE_A_MINUTE)
    await ask(client)


async def test_a_failed_call_uses_up_no_limit(client: AsyncClient, control: SimulatorControl) -> None:
    """Only generations count: a call that a fault or its key ends before is not one."""
    fault = {"kind": "status", "code": "INTERNAL", "times": 2}
    await control.set(limits=ONE_A_MINUTE, faults=[fault])
    assert (await failure_of(ask(client))).code() is grpc.StatusCode.INTERNAL
    assert (await failure_of(ask(client))).code() is grpc.StatusCode.INTERNAL
    await ask(client)
    await failure_of(ask(client))


# --- single keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["expired", "incorrect", "blocked", "team_blocked", "disabled"])
async def test_one_key_goes_bad(
    simulator: SimulatorProcess, provider: XaiProvider, control: SimulatorControl, connect: Connect, state: str
) -> None:
    """A key's own state counts, for calls and for the Auth service; other keys stay good."""
    await sampled(provider)
    await control.set(keys={KEY: state})
    assert (await refused(provider)).code is ErrorCode.BAD_KEY
    assert not await is_usable(connect(simulator.host, key=KEY))
    other = connect(simulator.host, key=OTHER_KEY)
    assert await is_usable(other)
    await ask(other)
    await control.set(keys={})
    await sampled(provider)


async def is_usable(client: AsyncClient) -> bool:
    """What the Auth service says."""
    try:
        info = await client.auth.get_api_key_info()
    except grpc.aio.AioRpcError:
        return False
    return not any((info.api_key_blocked, info.team_blocked, info.disabled))


async def test_one_key_stays_good(simulator: SimulatorProcess, control: SimulatorControl, connect: Connect) -> None:
    """A key's own state goes over the one of all keys; the fingerprint of the journal names it as well."""
    good, bad = connect(simulator.host, key=KEY), connect(simulator.host, key=OTHER_KEY)
    await ask(good)
    (entry,) = await control.journal()
    await control.set(key="expired", keys={entry.key: "good"})
    await ask(good)
    assert (await failure_of(ask(bad))).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_keys_are_not_told(control: SimulatorControl) -> None:
    """Neither the knobs nor an error about them have a key in them, on both sides of the wire."""
    await control.set(keys={KEY: "expired"})
    assert KEY not in (await control.knobs()).model_dump_json()
    with pytest.raises(ValueError, match="keys") as caught:
        Knobs.model_validate({"keys": {KEY: "lost"}})
    assert KEY not in str(caught.value)
    error = await failure_of(control._call("PatchKnobs", {"keys": {KEY: "lost"}}))
    assert KEY not in (error.details() or "")
    assert (await control.knobs()).keys == Knobs.model_validate({"keys": {KEY: "expired"}}).keys


# --- credit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "PERMISSION_DENIED"])
async def test_credit_ends_and_is_paid_in(provider: XaiProvider, control: SimulatorControl, code: str) -> None:
    """Each generation is paid from it; at zero every key is refused, until there is credit again."""
    cost = await cost_of_one(provider, control)
    await control.set(credit_in_usd_ticks=2 * cost, no_credit_code=code)
    await sampled(provider)
    assert (await control.totals()).credit_in_usd_ticks == cost
    await sampled(provider)
    error = await refused(provider)
    assert error.code is ErrorCode.NO_CREDIT
    assert error.message.startswith(code)
    totals = await control.totals()
    assert (totals.credit_in_usd_ticks, totals.generations) == (0, 3)
    await control.set(credit_in_usd_ticks=2 * cost)
    await sampled(provider)
    await control.set(credit_in_usd_ticks=None)
    await sampled(provider)
    assert (await control.totals()).credit_in_usd_ticks is None


async def test_the_last_generation_may_cost_more_than_is_left(provider: XaiProvider, control: SimulatorControl) -> None:
    """It starts while anything is left, and what is left is then below zero."""
    cost = await cost_of_one(provider, control)
    await control.set(credit_in_usd_ticks=1)
    await sampled(provider)
    assert (await control.totals()).credit_in_usd_ticks == 1 - cost
    assert (await refused(provider)).code is ErrorCode.NO_CREDIT


async def test_a_refused_call_for_want_of_credit_uses_up_no_limit(
    provider: XaiProvider, control: SimulatorControl
) -> None:
    """Out of credit goes before a rate limit, and takes nothing from it."""
    await control.set(limits=ONE_A_MINUTE, credit_in_usd_ticks=0)
    assert (await refused(provider)).code is ErrorCode.NO_CREDIT
    await control.set(credit_in_usd_ticks=10**12)
    await sampled(provider)
    assert (await refused(provider)).code is ErrorCode.RATE_LIMITED


async def test_a_reset_restores_credit_with_the_knobs(provider: XaiProvider, control: SimulatorControl) -> None:
    """What was spent stays spent if the knobs are kept; otherwise all is as at the start."""
    await control.set(credit_in_usd_ticks=1)
    await sampled(provider)
    await control.reset(keep_knobs=True)
    assert (await refused(provider)).code is ErrorCode.NO_CREDIT
    await control.reset()
    assert (await control.totals()).credit_in_usd_ticks is None


async def cost_of_one(provider: XaiProvider, control: SimulatorControl) -> int:
    """Ticks of one `sampled`."""
    await sampled(provider)
    (entry,) = await control.journal()
    assert entry.usage is not None
    assert entry.usage.cost_in_usd_ticks
    return entry.usage.cost_in_usd_ticks
