"""The tell script: what a running job has been answered so far stands in its stream, once, and what is void goes."""

from typing import Any

import pydantic_core
import pytest

from contract import EVENTS_TTL, Contract, Run, batch, entry
from promptq.producer import keys

pytest_plugins = ["contract_fixture"]

MOST, GRACE = 1000, 100


@pytest.fixture
async def run(contract: Contract) -> Run:
    """A job that runs."""
    await contract.accept(entry("a"))
    return await contract.take_one()


async def stream(contract: Contract) -> list[Any]:
    """What a reader that comes now is told: the contents of each batch, `restarted`, or (w, contents)."""
    told: list[Any] = []
    for _, fields in await contract.redis.xrange(keys.events("a")):
        if b"r" in fields:
            told.append("restarted")
            continue
        contents = "".join(delta["content"] for delta in pydantic_core.from_json(fields[b"d"]))
        told.append((fields[b"w"].decode(), contents) if b"w" in fields else contents)
    return told


async def last_id(contract: Contract) -> str:
    """Of the stream."""
    [(entry_id, _)] = await contract.redis.xrevrange(keys.events("a"), count=1)
    return str(entry_id.decode())


async def told(contract: Contract) -> tuple[str, str]:
    """Who has told how much, as the ledger says."""
    return await contract.field("a", "teller"), await contract.field("a", "told")


async def test_batches_are_appended_in_their_order(contract: Contract, run: Run) -> None:
    """Readers are told that there are more; the stream lives for its TTL from then on, the ledger says how many."""
    async with contract.redis.pubsub() as pubsub:
        await pubsub.subscribe(keys.told("a"))
        assert await contract.tell(run, "one ", "two ") == "told"
        assert await contract.tell(run, "three", first=3) == "told"
        heard = [await pubsub.get_message(timeout=1) for _ in range(3)]
    assert [message and message["type"] for message in heard] == ["subscribe", "message", "message"]
    assert await stream(contract) == ["one ", "two ", "three"]
    assert EVENTS_TTL - 60_000 < await contract.redis.pttl(keys.events("a")) <= EVENTS_TTL
    assert await told(contract) == (f"{run.token}/1", "3")


async def test_a_lost_reply_repeats_nothing(contract: Contract, run: Run) -> None:
    """Sent again, alone or with what came meanwhile, each batch stands there once."""
    await contract.tell(run, "one ", "two ")
    assert await contract.tell(run, "one ", "two ") == "told"
    assert await contract.tell(run, "one ", "two ", "three") == "told"
    assert await stream(contract) == ["one ", "two ", "three"]


@pytest.mark.parametrize("how", ["another holds it", "it has ended", "nobody knows it"])
async def test_only_the_holder_tells(contract: Contract, run: Run, how: str) -> None:
    """What a run says that has lost its job is stale, and changes nothing."""
    await contract.tell(run, "one ")
    if how == "another holds it":
        await contract.run_out(run)
        await contract.take_one("w2")
    elif how == "it has ended":
        await contract.settle(run)
    before = await stream(contract)
    asked = run if how != "nobody knows it" else Run(run.job._replace(id="b"), run.token)
    assert await contract.tell(asked, "two", first=2) == "stale"
    assert await contract.tell(asked) == "stale"
    assert await stream(contract) == before
    assert not await contract.redis.exists(keys.events("b"), keys.ledger("b"))


async def test_another_run_begins_anew(contract: Contract, run: Run) -> None:
    """What the run before it has told goes, and readers hear that it is void."""
    await contract.tell(run, "one ", "two ")
    await contract.run_out(run)
    second = await contract.take_one("w2")
    assert await contract.tell(second, "eins ") == "told"
    assert await stream(contract) == ["restarted", "eins "]
    assert await told(contract) == (f"{second.token}/1", "1")


async def test_what_is_taken_back_is_void(contract: Contract, run: Run) -> None:
    """Once, and only if something was told; the next run then goes on behind it."""
    assert await contract.tell(run) == "told"
    assert await stream(contract) == []
    await contract.tell(run, "one ")
    assert [await contract.tell(run), await contract.tell(run)] == ["told", "told"]
    assert await stream(contract) == ["restarted"]
    await contract.settle(run, "released")
    second = await contract.take_one("w2")
    assert await contract.tell(second, "eins ") == "told"
    assert await stream(contract) == ["restarted", "eins "]


async def test_what_is_void_stays_void_when_the_stream_is_gone(contract: Contract, run: Run) -> None:
    """A reader who has not seen that it was taken back sees it in the next stream."""
    await contract.tell(run, "one ")
    await contract.tell(run)
    await contract.redis.delete(keys.events("a"))
    assert await contract.tell(run, "eins ") == "told"
    assert await stream(contract) == ["restarted", "eins "]


async def test_a_long_answer_is_written_anew(contract: Contract, run: Run) -> None:
    """At the cap the teller is asked for it as one batch; that one alone says up to where it was read before.

    What stands before it goes when readers have had the time to read it.
    """
    assert await contract.tell(run, *["x"] * MOST) == "again"
    read = await last_id(contract)
    assert await contract.tell(run, "x" * MOST, "y", edition=2, again=MOST) == "told"
    assert await stream(contract) == [*["x"] * MOST, (read, "x" * MOST), "y"]
    assert await contract.tell(run, "x" * MOST, "y", "z", edition=2, again=MOST) == "told"
    assert await stream(contract) == [*["x"] * MOST, (read, "x" * MOST), "y", "z"]
    assert await contract.tell(run, *["."] * (GRACE - 3), edition=2, again=MOST, first=4) == "told"
    assert await stream(contract) == [(read, "x" * MOST), "y", "z", *["."] * (GRACE - 3)]


@pytest.mark.parametrize("again", [1, 3])
async def test_an_edition_of_more_or_less_than_was_told_is_new_to_all(contract: Contract, run: Run, again: int) -> None:
    """Redis has lost batches, or got some by another call: nobody may skip the first batch of the next edition."""
    await contract.tell(run, "one ", "two ")
    assert await contract.tell(run, "four", first=4) == "again"
    assert await contract.tell(run, "all", edition=2, again=again) == "told"
    assert await stream(contract) == [("", "all")]


async def test_a_stream_whose_time_was_over_is_written_anew(contract: Contract, run: Run) -> None:
    """From the beginning; nobody can have read on in it."""
    await contract.tell(run, "one ")
    await contract.redis.delete(keys.events("a"))
    assert await contract.tell(run, "two", first=2) == "again"
    assert await contract.tell(run, "one two", edition=2, again=1) == "told"
    assert await stream(contract) == [("", "one two")]


async def test_one_job_does_not_stop_another(contract: Contract, run: Run) -> None:
    """Each of a call gets its own word; a stream that is none is left alone."""
    await contract.accept(entry("b"))
    other = await contract.take_one()
    await contract.redis.set(keys.events("b"), "no stream", px=EVENTS_TTL)
    assert await contract.tell(other, "one") == "stale"
    assert await contract.tell(run, batch("one")) == "told"
    assert await stream(contract) == ["one"]
