"""What is on the books: `ledgers`, of jobs whose calls fail at random; `sizes`, of jobs too big for a limit."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from contenders import MODEL
from figures import Figure, Target, compared
from limits.stage import Stage, number_of, numbered, stage
from promptq.producer import ErrorCode, JobResult, JobStatus
from promptq.worker.simulator.books import JournalEntry
from rig import Rig

FAULTS = [
    {"kind": "status", "code": "UNAVAILABLE", "rate": 0.2},
    {"kind": "drop_call", "rate": 0.05 / 0.8},  # of what the first one leaves
]
LATENCY = "lognormal:0.2,0.5"
SLOTS = 50

TPM = 60_000
BIG = TPM // 60 * 2
"""Tokens of an answer: two seconds of the limit."""
HUGE = TPM * 8
"""Characters of a prompt: about two minutes of it."""

SEEN = "seen by the simulator"
NONE = Target(0, "value", "at most")


@dataclass(frozen=True, slots=True)
class Books:
    """Both sides of the same jobs, each in the order of the jobs' numbers."""

    results: Sequence[Sequence[JobResult]]
    """As they came."""
    calls: Sequence[int]
    """That the simulator saw."""
    generations: Sequence[int]
    """That it started, and charges."""
    seconds: float
    """From the first call to the last result."""

    @property
    def attempts(self) -> list[int]:
        """That are recorded."""
        return [sum(len(result.attempts) for result in results[:1]) for results in self.results]


def ledgers(rig: Rig) -> list[Figure]:
    """A fifth of the calls is refused as unavailable, a twentieth breaks after it was paid."""
    books = asyncio.run(_books(rig))
    not_one = sum(len(results) != 1 for results in books.results)
    unrecorded = sum(max(0, seen - told) for seen, told in zip(books.calls, books.attempts, strict=True))
    jobs = f"{rig.plan.limits_lossy:,} jobs, calls that fail"
    return [
        _counted(rig, f"{jobs}: jobs without exactly one result", not_one),
        _counted(rig, f"{jobs}: calls seen that the job's ledger does not tell", unrecorded),
        compared(
            rig.measure, f"{jobs}: attempts recorded", "calls", ours=[sum(books.attempts)],
            contender=SEEN, theirs=[sum(books.calls)], target=Target(1, "ratio", "at least"),
        ),
        compared(
            rig.measure, f"{jobs}: generations started", "calls", ours=[sum(books.generations)],
            contender=SEEN, theirs=[sum(books.calls)], target=Target(1, "ratio", "at most"),
        ),
        Figure(
            rig.measure, f"{jobs}: from the first call to the last result", books.seconds, "s",
            samples={"promptq": [books.seconds]},
        ),
    ]  # fmt: skip


def sizes(rig: Rig) -> list[Figure]:
    """Jobs of more tokens than the limit's burst, and than a whole minute of it."""
    big, huge, refused, seconds = asyncio.run(_sizes(rig))
    bigs = f"{TPM:,} tokens/min: {len(big)} jobs with answers of {BIG:,} tokens"
    huges = f"{TPM:,} tokens/min: {len(huge)} jobs with prompts of {HUGE:,} characters"
    unanswered = sum(result.status is not JobStatus.SUCCEEDED for result in big)
    unnamed = sum(result.error is None or result.error.code is not ErrorCode.TOO_LARGE for result in huge)
    return [
        _counted(rig, f"{bigs}: not answered", unanswered),
        _counted(rig, f"{bigs}: calls answered 429", refused),
        Figure(rig.measure, f"{bigs}: until the last answer", seconds, "s", samples={"promptq": [seconds]}),
        _counted(rig, f"{huges}: not failed as too_large", unnamed),
        _counted(rig, f"{huges}: calls made", sum(len(result.attempts) for result in huge)),
    ]


def _counted(rig: Rig, what: str, count: int) -> Figure:
    """Of what must not be."""
    return Figure(rig.measure, what, count, "", target=NONE, samples={"promptq": [count]})


async def _books(rig: Rig) -> Books:
    count = rig.plan.limits_lossy
    async with stage(rig, latency=LATENCY, faults=FAULTS) as on:
        jobs = await on.enqueue(numbered(count, "job"))
        numbers = {job.id: number for number, job in enumerate(jobs)}
        results: list[list[JobResult]] = [[] for _ in jobs]
        with on.fleet(slots=SLOTS):
            async for result in on.queue.as_completed(numbers, timeout=300):
                results[numbers[result.id]].append(result)
            ended = time.time()
        seen = await on.calls_of("job")
    calls, generations = _by_number(seen), _by_number([call for call in seen if call.generation])
    return Books(
        results,
        [calls[number] for number in range(count)],
        [generations[number] for number in range(count)],
        ended - seen[0].started_at,
    )


def _by_number(calls: Sequence[JournalEntry]) -> Counter[int]:
    return Counter(map(number_of, calls))


async def _sizes(rig: Rig) -> tuple[list[JobResult], list[JobResult], int, float]:
    """Results of the big and of the huge ones, answers 429, and the seconds that the big ones took."""
    knobs = {"limits": {"*": {"tpm": TPM}}, "latency": LATENCY, "answer_tokens": BIG}
    async with stage(rig, **knobs) as on:
        await on.queue.set_limits(MODEL, tpm=TPM)
        with on.fleet():
            huge = await _results(on, [text.ljust(HUGE, ".") for text in numbered(rig.plan.limits_bigs, "huge")])
            began = time.perf_counter()
            big = await _results(on, numbered(rig.plan.limits_bigs, "big"))
            took = time.perf_counter() - began
        refused = sum(call.ended == "RESOURCE_EXHAUSTED" for call in await on.calls_of("big"))
    return big, huge, refused, took


async def _results(on: Stage, texts: Sequence[str]) -> list[JobResult]:
    jobs = await on.enqueue(texts, max_tokens=BIG)
    return [result async for result in on.queue.as_completed([job.id for job in jobs], timeout=120)]
