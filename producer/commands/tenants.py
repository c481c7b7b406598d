"""`promptq tenants`: whose jobs wait, and how tenants share; `set` and `unset`."""

from typing import Annotated

import typer
from rich.table import Table

from promptq.producer.commands.asking import AsJson, ask, show_table
from promptq.producer.commands.settings import NOTHING, changed
from promptq.producer.console import EXIT_CODES, RedisUrl, note, say
from promptq.producer.models import TenantStats
from promptq.producer.queue import PromptQueue

app = typer.Typer(help="Show whose jobs wait, and how tenants share; set it.", epilog=EXIT_CODES)

_Name = Annotated[str, typer.Argument(metavar="NAME")]


@app.callback(invoke_without_command=True)
def tenants(context: typer.Context, *, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """Show whose jobs wait, and how tenants share; set it."""
    if context.invoked_subcommand is not None:
        return
    found = ask(PromptQueue.tenants, redis_url)
    if as_json:
        for tenant in found:
            say(tenant.model_dump_json())
    elif found:
        show_table(tenants_table(found))
    else:
        note("no tenant has a weight or a cap, and no job waits")


@app.command("set", epilog=EXIT_CODES)
def set_tenant(
    name: _Name,
    *,
    weight: Annotated[str | None, typer.Option(metavar="N", help="Turns for one of others, 1 to 100.")] = None,
    max_queued: Annotated[str | None, typer.Option(metavar="N", help=f"Jobs that may wait, or {NOTHING}.")] = None,
    redis_url: RedisUrl = None,
) -> None:
    """Give a tenant more turns than others, or cap how many of its jobs wait. What is left out stays."""
    given = {"weight": weight, "max_queued": max_queued}

    async def change(queue: PromptQueue) -> TenantStats:
        await queue.set_tenant(name, **changed(await _tenant(queue, name), given))
        return await _tenant(queue, name)

    say(described(ask(change, redis_url)))


@app.command(epilog=EXIT_CODES)
def unset(name: _Name, *, redis_url: RedisUrl = None) -> None:
    """Make a tenant one like any other."""
    ask(lambda queue: queue.set_tenant(name), redis_url)
    say(described(TenantStats(name=name)))


async def _tenant(queue: PromptQueue, name: str) -> TenantStats:
    return next((each for each in await queue.tenants() if each.name == name), TenantStats(name=name))


def described(tenant: TenantStats) -> str:
    """In one line."""
    cap = "any number" if tenant.max_queued is None else f"at most {tenant.max_queued:,}"
    return f"{tenant.name}: weight {tenant.weight}, {cap} of its jobs may wait"


def tenants_table(found: tuple[TenantStats, ...]) -> Table:
    """One row a tenant."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tenant", no_wrap=True)
    for header in ("weight", "waiting", "may wait"):
        table.add_column(header, justify="right", no_wrap=True)
    for tenant in found:
        cap = "any" if tenant.max_queued is None else f"{tenant.max_queued:,}"
        table.add_row(tenant.name, str(tenant.weight), f"{tenant.waiting:,}", cap)
    return table
