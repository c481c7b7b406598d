"""`promptq limits`: what the fleet may use of each model, and does; `set` and `unset`; `promptq pause` and `resume`."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from promptq.producer.commands import holding
from promptq.producer.commands.asking import AsJson, Model, ask, show_table
from promptq.producer.commands.settings import NOTHING, changed
from promptq.producer.console import EXIT_CODES, RedisUrl, note, say
from promptq.producer.models import Limits, ModelLimits
from promptq.producer.queue import PromptQueue

app = typer.Typer(help="Show what the fleet may use of each model, and does; set it.", epilog=EXIT_CODES)

_Requests = Annotated[str | None, typer.Option(metavar="N", help=f"Requests a minute, or {NOTHING}.")]
_Tokens = Annotated[str | None, typer.Option(metavar="N", help=f"Tokens a minute, or {NOTHING}.")]
_Calls = Annotated[str | None, typer.Option(metavar="N", help=f"Calls at once, or {NOTHING}.")]


@app.callback(invoke_without_command=True)
def limits(context: typer.Context, *, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """Show what the fleet may use of each model, and does; set it."""
    if context.invoked_subcommand is not None:
        return
    models = ask(PromptQueue.limits, redis_url)
    if as_json:
        for model in models:
            say(model.model_dump_json())
    elif models:
        show_table(limits_table(models, datetime.now(UTC)))
    else:
        note("no model has limits or jobs, or was used in the last day")


@app.command("set", epilog=EXIT_CODES)
def set_limits(
    model: Model,
    *,
    rpm: _Requests = None,
    tpm: _Tokens = None,
    in_flight: _Calls = None,
    redis_url: RedisUrl = None,
) -> None:
    """Change limits of a model for the whole fleet, at once. Those left out stay."""
    given = {"rpm": rpm, "tpm": tpm, "in_flight": in_flight}

    async def change(queue: PromptQueue) -> Limits:
        now = next((each.limits for each in await queue.limits() if each.model == model), Limits())
        await queue.set_limits(model, **changed(now, given))
        return next((each.limits for each in await queue.limits() if each.model == model), Limits())

    say(f"{model}: {described(ask(change, redis_url))}")


@app.command(epilog=EXIT_CODES)
def unset(model: Model, *, redis_url: RedisUrl = None) -> None:
    """Take all limits of a model away."""
    ask(lambda queue: queue.set_limits(model), redis_url)
    say(f"{model}: {described(Limits())}")


def pause(model: Model, *, redis_url: RedisUrl = None) -> None:
    """Start no job of a model until `promptq resume`; calls under way go on."""
    ask(lambda queue: queue.pause(model), redis_url)
    say(f"{model} is paused; `promptq resume {model}` ends that")


def resume(model: Model, *, redis_url: RedisUrl = None) -> None:
    """End the pause of a model, an operator's or one that the provider caused."""
    ask(lambda queue: queue.resume(model), redis_url)
    say(f"{model} goes on")


def described(chosen: Limits) -> str:
    """The limits, in one line."""
    said = {"requests/min": chosen.rpm, "tokens/min": chosen.tpm, "calls in flight": chosen.in_flight}
    return ", ".join(f"{limit:,} {what}" for what, limit in said.items() if limit is not None) or "no limits"


def limits_table(models: tuple[ModelLimits, ...], now: datetime) -> Table:
    """One row a model: what is used of each limit, and what holds it up."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    for header in ("requests/min", "tokens/min", "in flight"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("state")
    for model in models:
        limits = model.limits
        used = ((model.requests, limits.rpm), (model.tokens, limits.tpm), (model.in_flight, limits.in_flight))
        table.add_row(model.model, *(_share(amount, limit) for amount, limit in used), _state(model, now))
    return table


def _share(used: float, limit: int | None) -> str:
    return f"{used:,.0f}" if limit is None else f"{used:,.0f} of {limit:,}"


def _state(model: ModelLimits, now: datetime) -> str:
    return holding.pause(model, model.model, now) or _throttled(model, now)


def _throttled(model: ModelLimits, now: datetime) -> str:
    """Whether it is slower than its limits, since the provider said 429."""
    less = [
        f"{rate:,.0f} {what}"
        for rate, limit, what in (
            (model.rpm_now, model.limits.rpm, "requests/min"),
            (model.tpm_now, model.limits.tpm, "tokens/min"),
        )
        if rate is not None and (limit is None or rate < limit)
    ]
    if not less or model.throttled_at is None:
        return ""
    return f"at most {' and '.join(less)} just now: the provider said 429 at {holding.clock(model.throttled_at, now)}"
