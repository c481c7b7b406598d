from contract import Contract, entries, entry
from promptq.producer import TenantStats, scripts
from promptq.producer.limits import read_tenants

pytest_plugins = ["contract_fixture"]


async def test_what_waits_of_each_tenant(contract: Contract) -> None:
    """Over all lanes and bands, queued or delayed; what runs and what has ended does not wait."""
    await contract.accept(*entries("1", "2", "3"), entry("4", lane="grok-3", band=2, delay=1000))
    await contract.accept(entry("5", tenant="eu:acme"))
    [run] = await contract.take("w1", slots=1)
    assert await read_tenants(contract.redis) == (
        TenantStats(name="anna", waiting=3),
        TenantStats(name="eu:acme", waiting=1),
    )
    await contract.settle(run)
    await contract.cancel("2", "3", "4", "5")
    assert await read_tenants(contract.redis) == ()


async def test_settings_stand_without_jobs(contract: Contract) -> None:
    """Each by itself, whatever is in the name, until both are taken away."""
    await scripts.set_tenant(contract.redis, "eu:acme", weight=3, max_queued=None)
    await scripts.set_tenant(contract.redis, "zoe", weight=None, max_queued=0)
    assert await read_tenants(contract.redis) == (
        TenantStats(name="eu:acme", weight=3),
        TenantStats(name="zoe", max_queued=0),
    )
    for tenant in ("eu:acme", "zoe"):
        await scripts.set_tenant(contract.redis, tenant, weight=None, max_queued=None)
    assert await read_tenants(contract.redis) == ()
