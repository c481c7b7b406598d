"""`promptq doctor`: the report for a person, one line a check, or with --json for a program."""

import asyncio
from collections import Counter
from typing import Annotated, Any

import pydantic_core
import typer
from rich.console import Console
from rich.text import Text

from promptq.producer.console import ExitCode, RedisUrl, note, say
from promptq.worker.doctor.findings import Finding, Report, Verdict

_STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "bold red", Verdict.NOT_CHECKED: "dim"}
_WIDEST = max(map(len, Verdict))


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    redis_url: RedisUrl = None,
) -> None:
    """Check Redis, the settings, the key and the API, and say what to do. Exits 1 if there is a problem.

    It changes nothing and costs no tokens. Warnings, and what could not be checked, do not make it fail.
    """
    from promptq.worker.doctor.examine import examine  # noqa: PLC0415 - not for the help of other commands
    from promptq.worker.doctor.on_settings import load  # noqa: PLC0415

    report = asyncio.run(examine(load({} if redis_url is None else {"redis_url": redis_url})))
    if as_json:
        say(pydantic_core.to_json(_as_object(report)).decode())
    else:
        _show(report)
    if _has_problem(report):
        raise typer.Exit(ExitCode.FAILED)


def _has_problem(report: Report) -> bool:
    return any(finding.verdict is Verdict.PROBLEM for finding in report.values())


def _as_object(report: Report) -> dict[str, Any]:
    rows = [
        {"check": name, "verdict": finding.verdict.name.lower(), "found": finding.found, "advice": finding.advice}
        for name, finding in report.items()
    ]
    return {"ok": not _has_problem(report), "checks": rows}


def _show(report: Report) -> None:
    """Lines on stdout, however long: a terminal folds them; how many of which kind on stderr."""
    screen = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    widest = max(map(len, report))
    for name, finding in report.items():
        screen.print(_line(name.ljust(widest), finding))
    counts = Counter(finding.verdict for finding in report.values())
    note(", ".join(_counted(counts[verdict], verdict) for verdict in Verdict if counts[verdict]), style="bold")


def _counted(count: int, verdict: Verdict) -> str:
    is_noun = verdict in {Verdict.WARNING, Verdict.PROBLEM}
    return f"{count} {verdict}{'s' if is_noun and count > 1 else ''}"


def _line(name: str, finding: Finding) -> Text:
    verdict = Text(finding.verdict.ljust(_WIDEST), style=_STYLES[finding.verdict])
    said = finding.found if not finding.advice else f"{finding.found} -> {finding.advice}"
    return Text("  ").join([verdict, Text(name), Text(said)])
