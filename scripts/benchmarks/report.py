"""One run as it is told: a table on the terminal, JSON with every sample, and docs/benchmarks.md."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from figures import Figure
from plan import Plan
from rig import HERE
from steps import Step

PAGE = HERE.parent.parent / "docs" / "benchmarks.md"
FINDINGS = "\n## Findings\n"
"""What follows it on the page is written by hand, and kept."""

COLUMNS = ("measure", "what", "figure", "beside it", "ratio", "target", "reached")


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run found. `taken_at` in ISO 8601."""

    taken_at: str
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: Plan
    figures: Sequence[Figure]
    steps: Sequence[Step]
    raw: dict[str, list[float]]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with every sample."""
        figures = [asdict(figure) | {"reached": figure.is_reached} for figure in self.figures]
        return asdict(self) | {"figures": figures}

    def show(self, console: Console) -> None:
        """The tables for a terminal."""
        table = Table(*COLUMNS)
        for measure, figures in groupby(self.figures, lambda figure: figure.measure):
            for number, figure in enumerate(figures):
                style = "red" if figure.is_reached is False else None
                table.add_row("" if number else measure, *_cells(figure)[1:], style=style)
            table.add_section()
        console.print(table)
        if self.steps:
            table = Table("where", "step", "us a job")
            for step in self.steps:
                table.add_row(step.where, step.what, f"{step.microseconds:.1f}")
            console.print(table)

    def publish(self) -> None:
        """Write docs/benchmarks.md anew, but for its findings."""
        _, _, findings = (PAGE.read_text() if PAGE.exists() else "").partition(FINDINGS)
        PAGE.write_text(self._page() + FINDINGS + findings)

    def _page(self) -> str:
        return "\n".join(
            [
                "# Benchmarks",
                "",
                "Written by `./scripts/bench --publish`, but for the findings at the end, which it keeps.",
                "",
                _HOW,
                "",
                "## Machine and versions",
                "",
                *_table(("", ""), [("taken at", self.taken_at), *self.machine.items(), *self.versions.items()]),
                "",
                "## Figures",
                "",
                *_table(COLUMNS, map(_cells, self.figures)),
                "",
                *_notes(self.figures),
                "## Microseconds a job, by step",
                "",
                "Each step alone, in one process, over and over; Redis' share is what it counts itself.",
                "",
                *_table(("where", "step", "us a job"), _steps(self.steps)),
                "",
                "## Sizes",
                "",
                *_table(("setting", "value"), asdict(self.settings).items()),
                "",
            ]
        )


_HOW = """\
```console
$ ./scripts/bench                    # everything, about 25 minutes
$ ./scripts/bench drain calls        # some of it
$ ./scripts/bench limits             # limits, seven or eight minutes of it; limits:requests is a part
$ ./scripts/bench --quick            # small sizes: whether it runs, not how fast
$ ./scripts/bench --json bench.json  # with every sample
```

Machines are noisy, so what counts is a ratio inside one run: contenders take turns in every round, each with a fresh
private Redis (nothing is written to disk) and with worker processes of its own; medians of the rounds are shown, and
the median of the rounds' ratios (ours to what is beside it). The beginning of the processes and the reading back of
every result, which is checked, are outside the clock. The log level is `warning`.

- `drain`: jobs are queued, the worker is connected; from its start until the last result stands. Plain arq runs a
  coroutine that returns the prompt, with pydantic's JSON instead of pickle.
- `calls`: the same with the `xai` provider and the simulator, without latency, in a process of its own; beside it the
  script that one would write without a queue: one `AsyncClient`, a semaphore, `asyncio.gather`.
- `pickup`: one idle worker, jobs one by one; from before `enqueue` to the first line of the provider, and to the
  return of `wait`.
- `scale`: all jobs are queued, all workers are connected, then all start at once; the clock ends with the last
  result, so the last round counts in full.
- `idle`: commands by `MONITOR`, which tells those of clients from those of scripts; the worker has had work before.
- `recover`: from the SIGKILL, at a random moment, to the next start of the call, in another worker that has been up
  for a lease.
- `million`: how fast the first jobs leave a very long queue, beside the whole of a short one.
- `latency`: a proxy that holds every byte back for so long, each way, without making one wait for another; the target
  is that of a millisecond a round trip.
- `limits`: four workers of twenty slots with the real SDK, and the simulator in a process of its own, which refuses
  what is over its limits (1,200 requests and 300,000 tokens a minute, smoothly, with a burst of one second) and counts
  by itself, second by second: every figure is made of what it saw. Its answers take a lognormal second.
  - `requests`, `tokens`: a deep backlog, limits configured as they are. One of them is the tighter one: for `tokens`
    answers are long, though much shorter than their `max_tokens`. The window begins five seconds after the first call.
  - `learned`: the same with nothing configured, and plain arq with the same processes and slots, whose jobs `Retry`
    after 1 s, 2 s, 4 s and so on up to a minute, with jitter.
  - `changes`: 50 calls a second, then 25, 100, paused, resumed, six seconds each. From before the call that changes it
    to the moment from which on every second, wherever it begins, holds as many starts as it should, give or take a
    tenth and two; for a pause, to the last start.
  - `neighbour`: from before `enqueue` to the start of the call as the simulator sees it; there are free slots.
  - `tenant`: one worker of ten slots, jobs of 0.1 s; from before `enqueue_many` to the last result.
  - `priority`, `retry`: one worker of ten slots, all of them taken. Slots that were free when the job was accepted, or
    when its backoff was over, may be others'; one that became free later must not.
  - `ledgers`: the simulator's journal beside the attempts in the results, job by job.
  - `sizes`: the burst of the limit is 200 tokens.
- `slow`: the longest script of ours in all of Redis' slow logs (from 1 ms on). Redis counts what it waits for the
  processor, too; so calls as long as promptq ever makes them (100 jobs, 150 to enqueue) are repeated by themselves."""


def _cells(figure: Figure) -> tuple[str, ...]:
    reached = {None: "", True: "yes", False: "no"}[figure.is_reached]
    beside = "" if figure.beside is None else f"{_number(figure.beside)}, {figure.contender}"
    ratio = "" if figure.ratio is None else f"{_number(figure.ratio)}x"
    target = str(figure.target or "")
    said = f"{_number(figure.value)} {figure.unit}"
    return (figure.measure, figure.what, said, beside, ratio, target, reached)


def _notes(figures: Iterable[Figure]) -> Iterator[str]:
    for figure in figures:
        if figure.note:
            yield from (f"`{figure.measure}`: {figure.note}.", "")


def _steps(steps: Sequence[Step]) -> Iterator[tuple[str, str, str]]:
    for where in dict.fromkeys(step.where for step in steps):
        its = [step for step in steps if step.where == where]
        yield from ((where, step.what, f"{step.microseconds:.1f}") for step in its)
        yield where, "**all of these**", f"**{sum(step.microseconds for step in its):.1f}**"


def _number(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
