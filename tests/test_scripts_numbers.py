"""Numbers keep all their digits and bytes are not touched, whatever a script does with them."""

import json
import time
from datetime import UTC, datetime

import pytest
import redis.asyncio

from contract import HIGH, LANE, LEASE, LOW, NORMAL, Contract, entries, entry, runs_of
from promptq.producer import codec, keys, scripts

pytest_plugins = ["contract_fixture"]

ODD_BYTES = b'{"a":[],"o":{},"n":12345678901234567890,"f":0.1000,"u":"\xc3\xa9","z":"\\u0000"}\x00\xff'
ODD_IDS = ["with space", "a:b:9", 'quote"\\', "sn\u00e9\u2603man", "100%", "-1", "1e3"]


@pytest.mark.parametrize("band", [HIGH, NORMAL, LOW])
async def test_scores_are_exact_at_the_end_of_a_band(contract: Contract, band: int) -> None:
    """The last turns under 2^38 differ by one, keep their order, and stay inside their band."""
    await contract.redis.zadd(keys.fair(LANE, band), {"": 2**38 - 5, "anna": 2**38 - 4})
    await contract.accept(*entries("a", "b", "c", "d", band=band))
    assert [await contract.score(job_id) for job_id in "abcd"] == [band * 2**38 + 2**38 - left for left in (4, 3, 2, 1)]
    assert [await contract.field(job_id, "turn") for job_id in "ad"] == [str(2**38 - 4), str(2**38 - 1)]
    await contract.accept(entry("first", band=HIGH, tenant="new") if band else entry("last", band=NORMAL, tenant="new"))
    assert await contract.taken(9) == (["first", *"abcd"] if band else [*"abcd", "last"])


async def test_times_are_exact_to_the_millisecond(contract: Contract) -> None:
    """`tostring` would keep 14 digits: 10 ms less than these have."""
    contract.now += 7
    await contract.accept(entry("a", delay=1), entry("b", deadline="253402300799999"))
    assert await contract.score("a") == contract.now + 1
    run = await contract.take_one()
    assert (run.job.deadline, run.job.enqueued) == (253402300799999, contract.now)
    assert await contract.field("b", "due") == str(contract.now + LEASE)


async def test_payloads_results_and_metadata_are_not_touched(contract: Contract) -> None:
    """No script decodes them: not empty lists, not long integers, not bytes that are no text."""
    await contract.accept(entry("a", payload=ODD_BYTES, metadata=ODD_BYTES))
    run = await contract.take_one()
    assert run.job.payload == ODD_BYTES
    await contract.settle(run, attempt=ODD_BYTES, result=ODD_BYTES)
    assert await contract.redis.get(keys.result("a")) == ODD_BYTES
    assert await contract.redis.hget(keys.ledger("a"), "metadata") == ODD_BYTES
    assert await contract.redis.hget(keys.ledger("a"), f"attempt:{run.token}") == ODD_BYTES


async def test_tokens_and_ticks_are_counted_past_2_53(contract: Contract) -> None:
    """The books are Redis's own 64-bit integers, to 2^63 - 1: no long number goes through a float."""
    await contract.accept(*entries("a", "b"))
    for run, tokens in zip(await contract.take("w1", slots=2), (2**53 + 1, 2**62), strict=True):
        await contract.settle(run, usage=(0, 0, 0, 0, tokens, tokens))
    books = await contract.usage()
    assert books[f"{LANE}:total_tokens"] == books[f"{LANE}:cost_in_usd_ticks"] == 2**62 + 2**53 + 1


async def test_odd_ids_survive_every_script(contract: Contract) -> None:
    """Claimed, claimed again, renewed, settled; and what a script writes about them is JSON."""
    await contract.accept(*entries(*ODD_IDS, tenant="t:1 \u2603"))
    request = contract.request("host:1", slots=99)
    runs = runs_of(await contract.send(request), request.token)
    assert [run.id for run in runs] == ODD_IDS
    assert [job.id for job in (await contract.send(request)).jobs] == ODD_IDS
    assert await contract.renew(*runs) == ["ours"] * len(runs)
    contract.later(LEASE)
    assert await contract.cancel(*ODD_IDS) == ["cancelled"] * len(runs)
    for job_id in ODD_IDS:
        record = codec.decode(await contract.redis.get(keys.result(job_id)))
        assert (record["id"], codec.result_of(record).id, record["et"]) == (job_id, job_id, runs[0].job.enqueued)


async def test_odd_lanes_survive(contract: Contract) -> None:
    """A model's name may hold a colon or a quote."""
    lanes = ["grok:4:fast", 'x"y', "m:0"]
    await contract.accept(*[entry(lane, lane=lane) for lane in lanes])
    assert sorted((await contract.claim(slots=0)).lanes[-4:]) == sorted([*lanes, keys.INTAKE])
    for run in await contract.take("w1", slots=9, known_lanes=lanes):
        assert await contract.settle(run, "released") == "back"
    assert sorted(await contract.taken(9)) == sorted(lanes)


async def test_scripts_survive_a_flush(contract: Contract) -> None:
    """A restarted server has forgotten them: each call loads its own again."""
    flush = contract.redis.script_flush
    await flush()
    await contract.accept(*entries("a", "b", "c"))
    await flush()
    run = await contract.take_one()
    await flush()
    assert await contract.renew(run) == ["ours"]
    await flush()
    assert await contract.settle(run) == "done"
    await flush()
    assert await contract.cancel("b") == ["cancelled"]
    await flush()
    assert await contract.adopt(entry("c")) == "known"


@pytest.mark.parametrize("kept", [None, scripts.SETTLE, scripts.CLAIM])
async def test_a_pipeline_survives_a_flush(contract: Contract, kept: scripts.Script | None) -> None:
    """Whichever of its scripts the server still knows, outcomes are written once and jobs are claimed once."""
    await contract.accept(*entries("a", "b", "c"))
    run = await contract.take_one()
    await contract.redis.script_flush()
    if kept:
        await contract.redis.script_load(kept.text)
    request = contract.request(slots=1)
    outcomes = [run.outcome(usage=(0, 0, 0, 0, 5, None))]
    said, claimed = await scripts.settle_and_claim(contract.redis, outcomes, request, now=contract.now)
    assert (said[0] in ("done", "over"), [job.id for job in claimed.jobs]) == (True, ["b"])
    assert (await contract.usage())[f"{LANE}:total_tokens"] == 5
    assert await contract.taken(9) == ["c"]


async def test_without_a_test_the_clock_is_redis_own(redis_client: redis.asyncio.Redis) -> None:
    """The server's time in whole ms, not the caller's."""
    contract = Contract(redis_client)
    seconds, microseconds = await contract.redis.time()
    request = contract.request()
    claimed = await scripts.claim(redis_client, request)
    assert 0 <= claimed.now - (seconds * 1000 + microseconds // 1000) < 60_000
    assert abs(claimed.now - time.time() * 1000) < 60_000


async def test_verdicts_are_json(contract: Contract) -> None:
    """What Lua writes itself parses strictly, with whole numbers as numbers."""
    await contract.accept(entry("a"))
    await contract.cancel("a")
    record = json.loads(await contract.redis.get(keys.result("a")))
    assert {name: type(record[name]) for name in ("t", "et", "st", "ft")} == dict.fromkeys(("t", "et", "st", "ft"), int)
    assert (record["a"], record["k"], record["s"], record["q"]) == ([], {}, False, keys.lane(LANE))
    assert datetime.fromtimestamp(record["ft"] / 1000, UTC).year >= 2027
