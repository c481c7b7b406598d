"""What a long command shows on stderr while it works: a bar on a terminal, a plain line now and then elsewhere."""

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

LINE_EVERY = 10.0
_NARROW = 72


class Progress(Protocol):
    """Counts jobs through one stage after another."""

    def begin(self, stage: str, total: int | None = None) -> None:
        """A stage starts; `total` jobs go through it, None: nobody knows."""

    def advance(self, jobs: int = 1, tokens: int = 0) -> None:
        """Jobs have gone through the stage, and have used tokens."""


@contextlib.contextmanager
def showing(console: Console) -> Iterator[Progress]:
    """Progress on this console; the bar goes away at the end."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = _columns(is_narrow=console.width < _NARROW)
    with RichProgress(*columns, console=console, transient=True, redirect_stdout=_is_same_screen()) as bar:
        yield _Bar(bar)


class _Bar:
    def __init__(self, bar: RichProgress) -> None:
        self._bar = bar
        self._task = bar.add_task("", visible=False)
        self._tokens = 0

    def begin(self, stage: str, total: int | None = None) -> None:
        self._bar.remove_task(self._task)
        self._task = self._bar.add_task(stage, total=total, tokens=0)

    def advance(self, jobs: int = 1, tokens: int = 0) -> None:
        self._tokens += tokens
        self._bar.update(self._task, advance=jobs, tokens=self._tokens)


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._begin_counting("", None)

    def _begin_counting(self, stage: str, total: int | None) -> None:
        self._stage, self._total, self._jobs, self._tokens = stage, total, 0, 0
        self._started = self._said = time.monotonic()

    def begin(self, stage: str, total: int | None = None) -> None:
        self._begin_counting(stage, total)

    def advance(self, jobs: int = 1, tokens: int = 0) -> None:
        self._jobs += jobs
        self._tokens += tokens
        now = time.monotonic()
        if now - self._said < LINE_EVERY:
            return
        self._said = now
        of = "" if self._total is None else f" of {self._total:,}"
        used = f", {self._tokens:,} tokens" if self._tokens else ""
        rate = speed(self._jobs, now - self._started)
        self._console.print(f"{self._stage}: {self._jobs:,}{of} jobs, {rate}{used}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if not task.speed else f"{task.speed:,.3g}/s" if task.speed < 100 else f"{task.speed:,.0f}/s")


class _Tokens(ProgressColumn):
    def render(self, task: Task) -> Text:
        tokens = task.fields.get("tokens")
        return Text(f"{tokens:,} tokens" if tokens else "", style="dim")


def speed(jobs: int, seconds: float) -> str:
    """Jobs a second, as precise as a reader wants it."""
    rate = jobs / seconds if seconds > 0 else 0.0
    return f"{rate:,.0f} jobs/s" if rate >= 100 else f"{rate:.3g} jobs/s"


def _columns(*, is_narrow: bool) -> list[ProgressColumn]:
    whole = Column(no_wrap=True)
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), MofNCompleteColumn(), _Rate(whole)]
    if is_narrow:
        return columns
    columns.insert(1, BarColumn(bar_width=24))
    return [*columns, _Tokens(whole), TimeRemainingColumn(compact=True)]


def _is_same_screen() -> bool:
    """Whether answers on stdout would land in the middle of the bar: then rich prints them above it."""
    return Console().is_terminal
