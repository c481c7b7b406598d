"""What a worker tells the readers of its streamed jobs, through one script."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from contract import Contract, entry
from contract import Run as Lease
from promptq.producer import keys, scripts
from promptq.producer.records import Telling
from promptq.worker.providers.base import Delta
from promptq.worker.run import Run
from promptq.worker.telling import Teller
from waiting import wait_until

pytest_plugins = ["contract_fixture"]

TTL = 60_000


class Told:
    """A teller whose calls are counted, and can be made to fail."""

    def __init__(self, contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
        self.contract = contract
        self.errors: list[BaseException] = []
        self.calls: list[list[Telling]] = []
        self.trouble: BaseException | None = None
        self.teller = Teller(contract.redis, TTL, self.errors.append)
        really = scripts.tell

        async def tell(redis: Any, tellings: Sequence[Telling], *, ttl: int) -> list[str]:
            self.calls.append(list(tellings))
            if self.trouble is not None:
                raise self.trouble
            return await really(redis, tellings, ttl=ttl, now=contract.now)

        monkeypatch.setattr(scripts, "tell", tell)

    async def start(self, *ids: str) -> list[tuple[Lease, Run]]:
        """Jobs that run here."""
        await self.contract.accept(*(entry(job_id) for job_id in ids))
        return [(lease, Run(lease.job, lease.token, 0)) for lease in await self.contract.take(slots=9)]

    async def batches(self, job_id: str) -> list[str]:
        """What stands in a stream: the content of each batch, or `restarted`."""
        return [
            "".join(delta.get("content", "") for delta in json.loads(fields[b"d"])) if b"d" in fields else "restarted"
            for _, fields in await self.contract.redis.xrange(keys.events(job_id))
        ]

    def say(self, run: Run, *pieces: str) -> None:
        """The model writes."""
        for piece in pieces:
            self.teller.hear(run, Delta(piece))


@pytest.fixture
def told(contract: Contract, monkeypatch: pytest.MonkeyPatch) -> Told:
    """Of one worker."""
    return Told(contract, monkeypatch)


async def test_what_comes_together_goes_together(told: Told) -> None:
    """Pieces of 20 ms are one batch, and the batches of all jobs one call."""
    runs = [run for _, run in await told.start("a", "b")]
    for run in runs:
        told.say(run, "one ", "two ")
    await wait_until(lambda: told.batches("b"))
    for run in runs:
        told.say(run, "three")
    await wait_until(lambda: len(told.calls) == 2)
    assert [len(call) for call in told.calls] == [2, 2]
    assert [await told.batches(job_id) for job_id in "ab"] == [["one two ", "three"]] * 2
    assert 0 < await told.contract.redis.pttl(keys.events("a")) <= TTL


async def test_the_rest_is_told_before_the_end_is_written(told: Told) -> None:
    """Whoever sees the result finds all of the answer in the stream, and in the result where that is."""
    [(lease, run)] = await told.start("a")
    told.say(run, "one ")
    await wait_until(lambda: told.batches("a"))
    told.say(run, "two")
    assert told.teller.end(run) == (f"{run.token}/1", 2)
    await told.teller.finish([lease.outcome()])
    assert await told.batches("a") == ["one ", "two"]
    assert await told.contract.redis.hmget(keys.ledger("a"), "teller", "told") == [f"{run.token}/1".encode(), b"2"]


@pytest.mark.parametrize("kind", ["retry", "throttled", "released"])
async def test_what_goes_back_is_taken_back(told: Told, kind: Any) -> None:
    """Readers learn at once that what they saw is void, not when the job runs again."""
    [(lease, run)] = await told.start("a")
    told.say(run, "one ")
    await wait_until(lambda: told.batches("a"))
    told.say(run, "two")
    await told.teller.finish([lease.outcome(kind)])
    assert await told.batches("a") == ["restarted"]


async def test_what_was_never_told_is_not_taken_back(told: Told) -> None:
    """There is nothing to drop, so no stream either."""
    [(lease, run)] = await told.start("a")
    told.say(run, "one ")
    await told.teller.finish([lease.outcome("retry")])
    assert await told.batches("a") == []


async def test_an_outage_loses_nothing(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker hears of it, tries again, and tells all that came meanwhile, once."""
    monkeypatch.setattr("promptq.worker.telling.REST", 0.05)
    [(_, run)] = await told.start("a")
    told.trouble = ConnectionError("gone")
    told.say(run, "one ")
    await wait_until(lambda: bool(told.errors))
    told.say(run, "two")
    told.trouble = None
    await wait_until(lambda: told.batches("a"))
    assert "".join(await told.batches("a")) == "one two"
    assert told.errors[0].args == ("gone",)


async def test_a_lost_reply_tells_nothing_twice(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is sent again under its number."""
    monkeypatch.setattr("promptq.worker.telling.REST", 0.02)
    [(_, run)] = await told.start("a")
    tell = scripts.tell
    lost: list[list[str]] = []

    async def lose(*args: Any, **options: Any) -> list[str]:
        said = await tell(*args, **options)
        if not lost:
            lost.append(said)
            raise ConnectionError("lost")
        return said

    monkeypatch.setattr(scripts, "tell", lose)
    told.say(run, "one ")
    await wait_until(lambda: len(told.calls) == 2)
    told.say(run, "two")
    await wait_until(lambda: len(told.calls) == 3)
    assert await told.batches("a") == ["one ", "two"]


async def test_a_lost_stream_is_told_anew(told: Told) -> None:
    """Somebody deletes it, or its time is over while the model thinks: the whole answer so far comes again."""
    [(_, run)] = await told.start("a")
    told.say(run, "one ")
    await wait_until(lambda: told.batches("a"))
    await told.contract.redis.delete(keys.events("a"))
    told.say(run, "two ")
    await wait_until(lambda: told.batches("a"))
    assert "".join(await told.batches("a")) == "one two "
    assert told.teller.end(run) == (f"{run.token}/2", 1)


async def test_who_does_not_hold_the_job_tells_nothing(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lease ran out and another worker has it; it tries again now and then, in case the job comes back."""
    monkeypatch.setattr("promptq.worker.telling.REST", 3600)
    [(lease, run)] = await told.start("a")
    await told.contract.run_out(lease)
    await told.contract.take_one("w2")
    told.say(run, "one ")
    await wait_until(lambda: len(told.calls) == 1)
    told.say(run, "two ")
    await wait_until(lambda: told.teller._timer is None and told.teller._flushing is None)
    assert await told.batches("a") == []
    assert len(told.calls) == 1


async def test_the_next_worker_says_that_it_begins_anew(told: Told) -> None:
    """Before its model has written a word."""
    [(lease, run)] = await told.start("a")
    told.say(run, "one ")
    await wait_until(lambda: told.batches("a"))
    await told.contract.run_out(lease)
    heir = await told.contract.take_one("w2")
    other = Run(heir.job, heir.token, 0)
    told.teller.restart(other)
    await wait_until(lambda: len(told.calls) == 2)
    assert await told.batches("a") == ["restarted"]
    told.say(other, "uno")
    await wait_until(lambda: len(told.calls) == 3)
    assert await told.batches("a") == ["restarted", "uno"]


async def test_an_outcome_takes_nothing_from_a_later_run_of_its_job(told: Told) -> None:
    """The worker could not write it in time, and its own job came back to it: what this run tells stays whole."""
    [(lease, run)] = await told.start("a")
    told.say(run, "one ")
    await wait_until(lambda: told.batches("a"))
    await told.contract.run_out(lease)
    again = await told.contract.take_one("w1")
    other = Run(again.job, again.token, 0)
    told.say(other, "uno ")
    await told.teller.finish([lease.outcome("retry")])
    told.say(other, "due")
    await wait_until(lambda: len(told.calls) == 2)
    assert await told.batches("a") == ["restarted", "uno due"]
    assert told.teller.end(other) == (f"{other.token}/1", 1)


async def test_one_call_at_a_time(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that begins anew waits for the call that is under way; closing ends it."""
    calls = 0

    async def tell(*_: Any, **__: Any) -> list[str]:
        nonlocal calls
        calls += 1
        try:
            await asyncio.Event().wait()
        finally:
            calls -= 1
        raise AssertionError("nobody answers")

    runs = [run for _, run in await told.start("a", "b")]
    monkeypatch.setattr(scripts, "tell", tell)
    told.say(runs[0], "one")
    await wait_until(lambda: calls == 1)
    told.teller.restart(runs[1])
    await asyncio.sleep(0.01)
    assert calls == 1
    await told.teller.aclose()
    assert calls == 0


async def test_what_is_no_text_stops_nobody(told: Told) -> None:
    """A provider's bug: half a character. Its answer fails by itself; the streams of all others go on."""
    (_, broken), (_, sound) = await told.start("a", "b")
    told.say(broken, "\ud83d")
    told.say(sound, "one ")
    await wait_until(lambda: told.batches("b"))
    assert told.teller.end(broken) == (f"{broken.token}/1", 0)
    assert await told.batches("a") == []
