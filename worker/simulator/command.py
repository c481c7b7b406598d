"""`promptq simulate`: the simulator from the command line."""

from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from pydantic_core import from_json

from promptq.worker.simulator.addresses import LOOPBACK
from promptq.worker.simulator.knobs import ANY_MODEL, Knobs
from promptq.worker.simulator.spread import SPECS

DEFAULT_PORT = 50051
LAST_PORT = 65535

_FAULT_HELP = 'What goes wrong, as JSON; repeatable. Example: {"kind": "drop_call", "rate": 0.1}'


def simulate(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on; only loopback keeps other machines out.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=LAST_PORT, help="0 picks a free one.")] = DEFAULT_PORT,
    rest_port: Annotated[
        int | None, typer.Option(min=0, max=LAST_PORT, help="Of the REST API; the port after --port by default.")
    ] = None,
    latency: Annotated[str | None, typer.Option(help=f"Seconds until an answer: {SPECS}.")] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="Pace at which an answer is written after that; at once by default.")
    ] = None,
    tokens_per_chunk: Annotated[int | None, typer.Option(help="Of text in each chunk of a streamed answer.")] = None,
    answer_tokens: Annotated[str | None, typer.Option(help="Tokens of an answer: NUMBER or uniform:LOW,HIGH.")] = None,
    reasoning_tokens: Annotated[
        str | None, typer.Option(help="Tokens thought before it: NUMBER or uniform:LOW,HIGH.")
    ] = None,
    max_streams: Annotated[int | None, typer.Option(help="Calls that one connection may have at a time.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes draws repeatable.")] = None,
    cost: Annotated[
        str | None,
        typer.Option(help="Ticks (10^10 are 1 USD) a token costs: PROMPT,COMPLETION, or none to not tell."),
    ] = None,
    rpm: Annotated[float | None, typer.Option(help="Requests a minute that each API key has for each model.")] = None,
    tpm: Annotated[float | None, typer.Option(help="Tokens a minute that each API key has for each model.")] = None,
    per_minute: Annotated[
        bool, typer.Option("--per-minute", help="A minute's quota may be spent at once; the next comes a minute later.")
    ] = False,
    retry_hint: Annotated[
        str | None, typer.Option(help="What a refused call is told of the wait: none, retry_after or retry_info.")
    ] = None,
    fault: Annotated[list[str] | None, typer.Option(help=_FAULT_HELP)] = None,
    knobs: Annotated[str | None, typer.Option(help="All knobs as a JSON object; other options go over it.")] = None,
    ready_json: Annotated[
        bool, typer.Option("--ready-json", help="Print JSON lines: the address, later the totals.")
    ] = False,
    die_with_stdin: Annotated[bool, typer.Option("--die-with-stdin", help="Stop when standard input ends.")] = False,
) -> None:
    """Run a local stand-in for api.x.ai until Ctrl-C. Its answers say that they are simulated."""
    options = {
        "latency": latency,
        "tokens_per_second": tokens_per_second,
        "tokens_per_chunk": tokens_per_chunk,
        "answer_tokens": answer_tokens,
        "reasoning_tokens": reasoning_tokens,
        "max_concurrent_streams": max_streams,
        "seed": seed,
        "cost_in_usd_ticks": cost,
        "limits": _limits(rpm, tpm, per_minute=per_minute),
        "retry_hint": retry_hint,
        "faults": [_parsed("--fault", text) for text in fault] if fault else None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    chosen = _checked(_parsed("--knobs", knobs or "{}"), given)

    # grpc and xai_sdk take half a second to load: not for the help of other commands.
    from promptq.worker.simulator.foreground import run  # noqa: PLC0415

    try:
        ports = (port, _port_after(port) if rest_port is None else rest_port)
        run(chosen, address=host, ports=ports, as_json=ready_json, die_with_stdin=die_with_stdin)
    except OSError as error:
        _fail(str(error), exit_code=1)


def main() -> None:
    """Runs `simulate` as a program of its own."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(simulate)
    app(prog_name="python -m promptq.worker.simulator")


def _port_after(port: int) -> int:
    """The next port; 0, any free one, after any or the last."""
    return port + 1 if 0 < port < LAST_PORT else 0


def _limits(rpm: float | None, tpm: float | None, *, per_minute: bool) -> dict[str, Any] | None:
    """The same for every model; what a knob may not be is found when all are checked."""
    if rpm is None and tpm is None:
        if per_minute:
            _fail("--per-minute needs --rpm or --tpm", exit_code=2)
        return None
    return {ANY_MODEL: {"rpm": rpm, "tpm": tpm, "mode": "per_minute" if per_minute else "smooth"}}


def _parsed(option: str, text: str) -> dict[str, Any]:
    try:
        value = from_json(text)
    except ValueError as error:
        _fail(f"{option} is not JSON: {error}", exit_code=2)
    if not isinstance(value, dict):
        _fail(f"{option} must be a JSON object", exit_code=2)
    return value


def _checked(base: dict[str, Any], options: dict[str, Any]) -> Knobs:
    try:
        return Knobs.model_validate(base | options)
    except ValidationError as error:
        _fail("; ".join(_in_words(problem) for problem in error.errors()), exit_code=2)


def _in_words(problem: Any) -> str:
    field = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{field}: {message}, but is {problem['input']!r}"


def _fail(message: str, *, exit_code: int) -> NoReturn:
    typer.echo(f"promptq simulate: {message}", err=True)
    raise typer.Exit(exit_code)
