"""The first minute: a private Redis, a simulated api.x.ai, two workers, and a file of prompts through them all.

Takes nothing from `PROMPTQ_*` and `REDIS_URL`, so that no production job ever gets a simulated answer.
"""

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from importlib.resources import as_file, files
from pathlib import Path
from typing import IO, Any, Final

from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from promptq.producer import JobResult, JobStatus, ProducerSettings, PromptJob, PromptQueue, Usage
from promptq.producer.console import CommandError, ExitCode
from promptq.producer.inputs import BadLine, open_prompts
from promptq.worker.embedded import EmbeddedRedisError, PrivateRedis
from promptq.worker.simulator.process import running_simulator
from promptq.worker.supervise import worker_command

WORKERS: Final = 2
MAX_JOBS: Final = 8
LATENCY: Final = "lognormal:0.5,0.5"
"""How long the simulator takes to answer, in seconds."""

_NOT_OURS = ("PROMPTQ_", "REDIS_URL", "XAI_API_KEY")
_KEYS = ("XAI_API_KEY", "XAI_API_KEY_FILE")


def run_demo(file: Path | None, *, field: str | None, live: bool) -> ExitCode:
    """Run it all and end it all. Raises CommandError, or OSError for a file that cannot be read."""
    if live and not any(os.environ.get(name) for name in _KEYS):
        raise CommandError("--live asks the real API: set XAI_API_KEY; without --live no key is needed")
    key = {name: os.environ[name] for name in _KEYS if os.environ.get(name)}
    for name in [name for name in os.environ if name.startswith(_NOT_OURS)]:
        del os.environ[name]
    jobs = _jobs(file, field)
    try:
        return asyncio.run(_demo(jobs, Console(), key if live else None))
    except EmbeddedRedisError as error:
        raise CommandError(str(error)) from None
    except asyncio.CancelledError:
        return ExitCode.INTERRUPTED


def _jobs(file: Path | None, field: str | None) -> list[PromptJob]:
    with contextlib.ExitStack() as stack:
        if file is None:
            file, field = (
                stack.enter_context(as_file(files("promptq.worker") / "data" / "demo-prompts.jsonl")),
                "question",
            )
        lines = list(
            stack.enter_context(open_prompts(file, ProducerSettings(redis_url=SecretStr("redis://")), field=field))
        )
    bad = [line for line in lines if isinstance(line, BadLine)]
    if bad:
        raise CommandError(f"{file} line {bad[0].number}: {bad[0].reason}")
    if not lines:
        raise CommandError(f"{file} holds no prompt")
    return [line.job for line in lines if not isinstance(line, BadLine)]


async def _demo(jobs: list[PromptJob], console: Console, key: dict[str, str] | None) -> ExitCode:
    """`key`: the environment that holds the real API's key; None: simulate."""
    _cancel_on_signals()
    async with contextlib.AsyncExitStack() as stack:
        redis = await stack.enter_async_context(PrivateRedis())
        environment = await stack.enter_async_context(_provider(key))
        log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        workers = await stack.enter_async_context(_workers(redis.url, environment, log))
        settings = ProducerSettings(redis_url=SecretStr(redis.url))
        queue = await stack.enter_async_context(PromptQueue.connect(settings=settings))
        answers = "the real api.x.ai" if key else "a simulated api.x.ai"
        way = f"Redis on port {redis.port} -> {WORKERS} workers of {MAX_JOBS} slots -> {answers}"
        console.print(f"[bold]promptq demo[/]: {len(jobs)} prompts -> {way}\n", highlight=False)
        tally = await _run_watched(_run_jobs(queue, jobs, console), workers, redis, log)
    _sum_up(tally, console, live=key is not None)
    return ExitCode.OK if set(tally.by_status) == {JobStatus.SUCCEEDED} else ExitCode.FAILED


def _cancel_on_signals() -> None:
    """End as Ctrl-C does, with everything that was started."""
    demo = asyncio.current_task()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signum, lambda: demo and demo.cancel())


@contextlib.asynccontextmanager
async def _provider(key: dict[str, str] | None) -> AsyncIterator[dict[str, str]]:
    """What answers, as the environment that points a worker at it."""
    if key:
        yield key
        return
    async with running_simulator(latency=LATENCY) as simulator:
        yield {"XAI_API_KEY": "simulated", "PROMPTQ_XAI_HOST": simulator.host, "PROMPTQ_XAI_INSECURE": "1"}


@contextlib.asynccontextmanager
async def _workers(redis_url: str, environment: dict[str, str], log: IO[bytes]) -> AsyncIterator[list[Process]]:
    """Worker processes; they stop claiming and end with the block."""
    settings = {
        "PROMPTQ_REDIS_URL": redis_url,
        "PROMPTQ_MAX_JOBS": str(MAX_JOBS),
        "PROMPTQ_LOG_LEVEL": "warning",
        # Nobody waits for them when the demo is gone.
        "PROMPTQ_DRAIN_TIMEOUT": "0",
        "PROMPTQ_REDIS_TIMEOUT": "1",
    }
    started = [
        await asyncio.create_subprocess_exec(
            *worker_command([]),
            env=os.environ | settings | environment,
            stdin=PIPE,
            stderr=log,
            start_new_session=True,
        )
        for _ in range(WORKERS)
    ]
    try:
        yield started
    finally:
        try:
            for process in started:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            await asyncio.wait([asyncio.create_task(_all_end(started))], timeout=5)
        finally:
            for process in started:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()


async def _all_end(workers: list[Process]) -> None:
    await asyncio.gather(*(process.wait() for process in workers))


async def _run_watched(
    running: Coroutine[Any, Any, "_Tally"], workers: list[Process], redis: PrivateRedis, log: IO[bytes]
) -> "_Tally":
    """What `running` returns. Raises CommandError if nobody is left to answer."""
    jobs, deaths = asyncio.create_task(running), asyncio.create_task(_all_end(workers))
    try:
        while not jobs.done():
            await asyncio.wait([jobs, deaths], timeout=1, return_when=asyncio.FIRST_COMPLETED)
            if deaths.done():
                raise CommandError(f"the workers ended: {_last_line(log)}", ExitCode.FAILED)
            if not redis.running:
                raise CommandError("the private Redis ended; run the demo again", ExitCode.FAILED)
        return jobs.result()
    finally:
        jobs.cancel()
        deaths.cancel()


async def _run_jobs(queue: PromptQueue, jobs: list[PromptJob], console: Console) -> "_Tally":
    """Enqueue, and show each answer as it comes."""
    prompts = {str(job.id): job.messages[-1].text for job in jobs}
    tally = _Tally()
    with _progress(console) as progress:
        bar = progress.add_task("starting", total=len(prompts), tokens=0, rate=0.0)
        await queue.enqueue_many(jobs)
        async for result in queue.as_completed(prompts):
            tally.add(result)
            progress.console.print(_line(prompts[result.id], result, console.width), highlight=False)
            progress.update(bar, advance=1, description="answered", tokens=tally.usage.total_tokens, rate=tally.rate)
    return tally


class _Tally:
    """What has been answered so far. The clock starts when the first call did."""

    def __init__(self) -> None:
        self.usage = Usage()
        self.by_status: Counter[JobStatus] = Counter()
        self.by_worker: Counter[str] = Counter()
        self._began: float | None = None
        self.seconds = 0.0

    def add(self, result: JobResult) -> None:
        """Count one result."""
        self.usage += result.usage
        self.by_status[result.status] += 1
        self.by_worker[result.worker or "none"] += 1
        if self._began is None:
            self._began = result.started_at.timestamp() if result.started_at else time.time()
        self.seconds = max(time.time() - self._began, 0.001)

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.by_status.total() / self.seconds


def _progress(console: Console) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} jobs/s  {task.fields[tokens]:,} tokens"),
    )
    return Progress(*columns, console=console, transient=True)


def _line(prompt: str, result: JobResult, width: int) -> str:
    """Question and answer, cut to one line of the terminal."""
    mark = "[green]✓[/]" if result.status is JobStatus.SUCCEEDED else "[red]✗[/]"
    answer = result.content or (result.error.message if result.error else "")
    tokens = f"{result.usage.total_tokens} tokens"
    room = max(20, width - len(tokens) - 9)
    question, said = _cut(prompt, room // 2), _cut(answer, room - room // 2)
    return f"{mark} {escape(question)} [dim]->[/] {escape(said)}  [cyan]{tokens}[/]"


def _cut(text: str, length: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"


def _sum_up(tally: _Tally, console: Console, *, live: bool) -> None:
    usage, cost = tally.usage, tally.usage.cost_usd
    counts = ", ".join(f"{count} {status.value}" for status, count in tally.by_status.items())
    workers = " and ".join(str(count) for count in tally.by_worker.values())
    console.print(
        f"\n[bold]{counts}[/] in {tally.seconds:.1f} s, {tally.rate:.1f} jobs/s; the workers took {workers}\n"
        f"usage: {usage.prompt_tokens:,} prompt + {usage.completion_tokens:,} answer = {usage.total_tokens:,} tokens"
        + (f", ${cost:.4f}" if cost is not None else "")
        + ("" if live else " [dim](simulated)[/]"),
        highlight=False,
    )
    if not live:
        console.print(
            "[dim]next: XAI_API_KEY=... ./scripts/demo --live, or the five lines in README.md[/]", highlight=False
        )


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "they said nothing"
