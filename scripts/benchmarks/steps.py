"""What one job costs, step by step: each alone, in one process, over and over; Redis' share by its own count.

It looks inside promptq's modules on purpose: a step has no public name, only the whole has.
"""

import asyncio
import socket
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar, cast

import hiredis

from contenders import MAX_TOKENS, MODEL, producer_settings, prompts
from promptq.producer import scripts
from promptq.producer.connection import open_redis
from promptq.producer.entries import CHUNK_JOBS, entry_of, job_of
from promptq.producer.models import PromptJob
from promptq.producer.records import Arg, ClaimedJob, ClaimRequest, Entry, Settlement
from promptq.worker.exchange import CLAIMED_AT_ONCE
from promptq.worker.providers.echo import EchoProvider
from promptq.worker.providers.routes import Routes
from promptq.worker.run import Run, Runner
from promptq.worker.settings import Settings
from promptq.worker.settlement import Clerk
from promptq.worker.telling import Teller
from rig import Rig, Server

REPEATS = 5
"""Of every step outside Redis; the median counts."""
WORKER = "bench"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """`where`: producer, Redis or worker. Microseconds a job."""

    where: str
    what: str
    microseconds: float


class Steps:
    """The same jobs through one step after the other, each with what the one before it gave."""

    def __init__(self, server: Server, count: int, batch: int) -> None:
        self.steps: list[Step] = []
        self.calls: dict[str, list[float]] = {}
        """Milliseconds of each call of a script, by the script's step."""
        self._server, self._count, self._batch = server, count, batch

    def run(self) -> None:
        """All steps, in a job's order."""
        entries = self._enqueue()
        self._on_redis("enqueue script", scripts.ENQUEUE, _enqueue_calls(entries))
        requests = self._claim_calls()
        replies = self._on_redis("claim script", scripts.CLAIM, requests)
        claims = self._timed("worker", "parse the claim", lambda: [scripts._claimed(_parsed(raw)) for raw in replies])
        settlements = asyncio.run(self._run_jobs([job for claim in claims for job in claim.jobs]))
        self._timed("worker", "pack the settlements", lambda: _packed(scripts.SETTLE, self._settle_calls(settlements)))
        replies = self._on_redis("settle script", scripts.SETTLE, self._settle_calls(settlements))
        if {word for raw in replies for word in _parsed(raw)} != {b"done"}:
            raise RuntimeError("not every settlement was taken")

    def _enqueue(self) -> list[Entry]:
        texts, fields = prompts(self._count), {"model": MODEL, "max_tokens": MAX_TOKENS}
        settings = producer_settings(self._server.url)
        jobs = self._timed("producer", "validate", lambda: [job_of(text, fields) for text in texts])
        entries = self._timed("producer", "encode, digest", lambda: [entry_of(job, settings) for job in jobs])
        self._timed("producer", "pack the call", lambda: _packed(scripts.ENQUEUE, _enqueue_calls(entries)))
        return entries

    def _claim_calls(self) -> Iterator[Sequence[Arg]]:
        for seq in range(1, -(-self._count // self._batch) + 1):
            yield ClaimRequest(
                WORKER, seq, slots=self._batch, lease=600_000, take_over_until=0, may_take_poison=True,
                failure_ttl=600_000, result_ttl=600_000, known_lanes=(MODEL,),
            ).args(None)  # fmt: skip

    def _settle_calls(self, settlements: Sequence[Settlement]) -> Iterator[Sequence[Arg]]:
        head = scripts._settle_head(False, "", (), 0, None)
        for start in range(0, len(settlements), self._batch):
            yield scripts._settle_args(head, settlements[start : start + self._batch])

    async def _run_jobs(self, jobs: Sequence[ClaimedJob]) -> list[Settlement]:
        settings, routes = Settings.model_validate({"redis_url": self._server.url}), Routes.to(EchoProvider())
        runner = Runner(
            routes,
            settings,
            Clerk.of(settings, WORKER, routes.name_of),
            Teller(open_redis(self._server.url, timeout=5), 1000, print),
        )
        runs = [Run(job, f"{WORKER}:{number // self._batch + 1}", 0) for number, job in enumerate(jobs)]
        admitted = self._timed("worker", "decode, admit", lambda: [runner._admit(run) for run in runs])
        pairs = [(run, prompt) for run, prompt in zip(runs, admitted, strict=True) if isinstance(prompt, PromptJob)]
        said = await self._timed_calls(runner, pairs)
        judged = self._timed(
            "worker", "judge", lambda: [runner._judge(*pair, word) for pair, word in zip(pairs, said, strict=True)]
        )
        return self._timed(
            "worker",
            "encode the settlement",
            lambda: [
                runner.clerk.settlement(run.job, run.token, outcome, call)
                for run, (outcome, call) in zip(runs, judged, strict=True)
            ],
        )

    async def _timed_calls(self, runner: Runner, pairs: Sequence[tuple[Run, PromptJob]]) -> list[Any]:
        """One task a job, as many at once as there are slots."""
        took: list[float] = []
        said: list[Any] = []
        for _ in range(REPEATS):
            began, said = time.perf_counter(), []
            for start in range(0, len(pairs), self._batch):
                some = pairs[start : start + self._batch]
                said += await asyncio.gather(*(asyncio.create_task(runner._call(*pair)) for pair in some))
            took.append(time.perf_counter() - began)
        self._note("worker", "start a task, call echo", statistics.median(took))
        return said

    def _timed(self, where: str, what: str, work: Callable[[], T]) -> T:
        result, took = None, []
        for _ in range(REPEATS):
            began = time.perf_counter()
            result = work()
            took.append(time.perf_counter() - began)
        self._note(where, what, statistics.median(took))
        return result  # type: ignore[return-value] # there is at least one repeat

    def _on_redis(self, what: str, script: scripts.Script, calls: Iterable[Sequence[Arg]]) -> list[bytes]:
        """The raw replies. Once: what a script does cannot be repeated."""
        self._server.client.script_load(script.text)
        replies, counts = [], [self._server.microseconds_in_scripts()]
        with socket.create_connection(("127.0.0.1", self._server.port)) as connection:
            for packed in _packed(script, calls):
                replies.append(_asked(connection, packed))
                counts.append(self._server.microseconds_in_scripts())
        self.calls[what] = [(after - before) / 1000 for before, after in pairwise(counts)]
        self._note("Redis", what, (counts[-1] - counts[0]) / 1e6)
        return replies

    def _note(self, where: str, what: str, seconds: float) -> None:
        self.steps.append(Step(where, what, seconds / self._count * 1e6))


def _enqueue_calls(entries: Sequence[Entry]) -> Iterator[Sequence[Arg]]:
    for start in range(0, len(entries), CHUNK_JOBS):
        args: list[Arg] = ["", f"nonce {start}", len(entries)]
        for entry in entries[start : start + CHUNK_JOBS]:
            args += entry.args()
        yield args


def _packed(script: scripts.Script, calls: Iterable[Sequence[Arg]]) -> list[bytes]:
    pack = cast(Any, open_redis("redis://127.0.0.1", timeout=1).connection_pool).make_connection().pack_command
    return [b"".join(pack("EVALSHA", script.sha, 0, *args)) for args in calls]


def _asked(connection: socket.socket, packed: bytes) -> bytes:
    connection.sendall(packed)
    raw, reader = b"", hiredis.Reader()
    while True:
        some = connection.recv(1 << 20)
        raw += some
        reader.feed(some)
        if (reply := reader.gets()) is not False:
            break
    if isinstance(reply, hiredis.ReplyError):
        raise reply
    return raw


def _parsed(raw: bytes) -> Any:
    reader = hiredis.Reader()
    reader.feed(raw)
    return reader.gets()


def steps(rig: Rig) -> list[Step]:
    """Every step, in a job's order."""
    with rig.server() as server:
        measured = Steps(server, rig.plan.step_jobs, rig.plan.step_batch)
        measured.run()
    return measured.steps


def longest_calls(rig: Rig) -> dict[str, list[float]]:
    """Milliseconds of calls as long as promptq ever makes them, by what they do."""
    with rig.server() as server:
        measured = Steps(server, rig.plan.step_jobs, CLAIMED_AT_ONCE)
        measured.run()
    return measured.calls
