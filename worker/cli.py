"""The `promptq` command: a producer's commands, and the worker's beside them."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from promptq.producer.cli import app
from promptq.producer.console import RedisUrl
from promptq.worker.doctor.command import doctor as run_doctor
from promptq.worker.settings import Settings
from promptq.worker.simulator.command import simulate as run_simulator
from promptq.worker.supervise import supervise, worker_command

Models = Annotated[
    str | None,
    typer.Option(help="Serve these models alone, separated by commas; plain arq clients' jobs are left to others."),
]
HealthPort = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="Answer /livez and /readyz here; process N of --processes on port + N - 1."),
]


@app.command()
def worker(
    *,
    max_jobs: Annotated[
        int | None, typer.Option(min=1, help="Calls at once in one process. [PROMPTQ_MAX_JOBS, 100]")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes; one that dies is restarted.")] = 1,
    models: Models = None,
    burst: Annotated[bool, typer.Option("--burst", help="Stop when the queue is empty.")] = False,
    health_port: HealthPort = None,
    health_host: Annotated[str, typer.Option(help="0.0.0.0 for probes from other machines.")] = "127.0.0.1",
    provider: Annotated[str | None, typer.Option(help="xai, openai or echo. [PROMPTQ_PROVIDER, xai]")] = None,
    redis_url: RedisUrl = None,
    ends_with_stdin: Annotated[bool, typer.Option("--ends-with-stdin", hidden=True)] = False,
) -> None:
    """Run jobs until SIGTERM or Ctrl-C: then calls finish; a second signal gives them back at once."""
    flags: dict[str, Any] = {"max_jobs": max_jobs, "provider": provider, "redis_url": redis_url}
    settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    serves = [name.strip() for name in (models or "").split(",") if name.strip()]
    health = None if health_port is None else (health_host, health_port)
    if processes > 1:
        common = _options({"models": models, "health-host": health_host}) + (["--burst"] if burst else [])
        ports = [None if health_port is None else health_port + number for number in range(processes)]
        commands = [worker_command([*common, *_options({"health-port": port})]) for port in ports]
        # By the environment, where a password in the URL is for nobody to see.
        said = {f"PROMPTQ_{name.upper()}": str(value) for name, value in flags.items() if value is not None}
        code = supervise(commands, settings, os.environ | said)
    else:
        from promptq.worker.process import run_process  # noqa: PLC0415 - arq, which a backend may lack

        code = run_process(settings, serves=serves, burst=burst, health=health, ends_with_stdin=ends_with_stdin)
    raise typer.Exit(code)


@app.command()
def demo(
    *,
    file: Annotated[Path | None, typer.Argument(help="Prompts as for `enqueue`; about fifty come along.")] = None,
    field: Annotated[str | None, typer.Option(help="The field of each JSON line that is the prompt.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Ask the real API, with XAI_API_KEY; it costs money.")] = False,
) -> None:
    """Send a file of prompts through a private Redis and two workers to a simulated api.x.ai."""
    from promptq.worker.demo import run_demo  # noqa: PLC0415 - grpc and xai_sdk, which a backend may lack

    raise typer.Exit(run_demo(file, field=field, live=live))


app.command(name="simulate")(run_simulator)
app.command(name="doctor")(run_doctor)


def _options(values: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def main() -> None:
    """The console script."""
    app(prog_name="promptq")
