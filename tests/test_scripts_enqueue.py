import pytest
import redis.asyncio

from contract import DAY, LANE, LOW, NOW, Contract, entries, entry
from promptq.producer import keys, scripts
from promptq.producer.records import LaneFull

pytestmark = pytest.mark.producer
pytest_plugins = ["contract_fixture"]


async def test_a_new_job_is_written_whole(contract: Contract) -> None:
    """Payload as given and without TTL, ledger, and a place in its lane."""
    said = await contract.dispositions(entry("a", band=LOW, metadata=b'{"k":"v"}', ttl=5000))
    assert said == [("created", "queued")]
    ledger = await contract.ledger("a")
    assert {name: ledger[name] for name in ("state", "epoch", "lane", "model", "band", "tenant", "turn")} == {
        "state": "queued", "epoch": "1", "lane": LANE, "model": LANE, "band": "2", "tenant": "anna", "turn": "1",
    }  # fmt: skip
    assert (ledger["metadata"], ledger["ttl"], ledger["enqueued"]) == ('{"k":"v"}', "5000", str(NOW))
    assert await contract.redis.get(keys.payload("a")) == entry("a").payload
    assert await contract.redis.pttl(keys.payload("a")) == -1
    assert await contract.score("a") == 2 * 2**38 + 1


async def test_a_job_sent_again_is_a_duplicate_in_any_state(contract: Contract) -> None:
    """The same request under a known id changes nothing and tells the job's state; another request is a conflict."""
    await contract.accept(*entries("queued", "running", "succeeded", "failed", "cancelled"))
    await contract.accept(entry("delayed", delay=DAY), entry("expired", deadline="+1"))
    await contract.cancel("cancelled")
    contract.later(1)
    runs = {run.id: run for run in await contract.take("w1", slots=4)}
    await contract.settle(runs["succeeded"])
    await contract.settle(runs["failed"], "failed")
    await contract.settle(runs["queued"], "released")

    states = ["queued", "running", "succeeded", "failed", "cancelled", "delayed", "expired"]
    before = {state: await contract.ledger(state) for state in states}
    assert await contract.dispositions(*entries(*states)) == [("duplicate", state) for state in states]
    assert await contract.dispositions(*entries(*states, digest="other")) == [("conflict", state) for state in states]
    assert {state: await contract.ledger(state) for state in states} == before


async def test_a_full_lane_refuses_the_whole_call(contract: Contract) -> None:
    """Nothing of the call is written, in no lane; a smaller call is accepted."""
    await contract.accept(*entries("a", "b"))
    keys_before = sorted(await contract.redis.keys("*"))
    said = await contract.enqueue(entry("x", lane="other"), *entries("c", "d"), max_queued=3)
    assert said == LaneFull(LANE, 2, 3)
    assert sorted(await contract.redis.keys("*")) == keys_before
    assert await contract.dispositions(entry("c"), max_queued=3) == [("created", "queued")]


async def test_known_ids_need_no_room(contract: Contract) -> None:
    """Only new ids count against the lane."""
    await contract.accept(*entries("a", "b"))
    said = await contract.dispositions(*entries("a", "b", "c"), max_queued=3)
    assert [disposition for disposition, _ in said] == ["duplicate", "duplicate", "created"]


async def test_running_and_delayed_jobs_fill_a_lane(contract: Contract) -> None:
    """A lane holds what has not ended."""
    await contract.accept(entry("a"), entry("b", delay=DAY))
    await contract.take_one()
    assert await contract.enqueue(entry("c"), max_queued=2) == LaneFull(LANE, 2, 2)


async def test_a_call_sent_again_says_created(contract: Contract) -> None:
    """After a lost reply a producer never sees "duplicate" for its own job: not when it ran, not in a full lane."""
    call = entries("a", "b")
    first = await contract.dispositions(*call, nonce="n", max_queued=2)
    assert first == [("created", "queued")] * 2
    await contract.settle(await contract.take_one())
    again = await contract.dispositions(*call, nonce="n", max_queued=1)
    assert again == [("created", "succeeded"), ("created", "queued")]
    assert await contract.redis.zcard(keys.lane(LANE)) == 1


async def test_another_call_is_no_repetition(contract: Contract) -> None:
    """The nonce, not the content, tells a repetition."""
    await contract.enqueue(entry("a"), nonce="mine")
    assert await contract.dispositions(entry("a"), nonce="yours") == [("duplicate", "queued")]


async def test_one_id_twice_in_a_call(contract: Contract) -> None:
    """The first makes the job, the second meets it; both say so again when the call is sent again."""
    call = [*entries("a", "a"), entry("a", digest="other")]
    expected = [("created", "queued"), ("duplicate", "queued"), ("conflict", "queued")]
    assert await contract.dispositions(*call, nonce="n") == expected
    assert await contract.dispositions(*call, nonce="n") == expected
    assert await contract.taken(9) == ["a"]


async def test_one_id_twice_needs_room_once(contract: Contract) -> None:
    """Only new ids count, not their repetitions."""
    said = await contract.dispositions(*entries("a", "a"), max_queued=1)
    assert [disposition for disposition, _ in said] == ["created", "duplicate"]


async def test_a_delayed_job_waits_without_a_turn(contract: Contract) -> None:
    """Not before its time; the claim tells when that is."""
    assert await contract.dispositions(entry("a", delay=5000)) == [("created", "delayed")]
    assert await contract.score("a") == NOW + 5000
    assert "turn" not in await contract.ledger("a")
    claimed = await contract.claim()
    assert (claimed.jobs, claimed.due_in) == ((), 5000)
    contract.later(5000)
    assert await contract.taken(1) == ["a"]


@pytest.mark.parametrize("written", ["+7000", str(NOW + 7000)])
async def test_a_deadline_is_relative_or_a_point_in_time(contract: Contract, written: str) -> None:
    """Both forms mean the same ms, and reach the worker."""
    await contract.accept(entry("a", deadline=written))
    assert await contract.redis.zscore(keys.DEADLINES, "a") == NOW + 7000
    assert (await contract.take_one()).job.deadline == NOW + 7000


async def test_markers_wake_workers(contract: Contract) -> None:
    """A new job marks its lane, a new lane also the fleet; a call that makes nothing marks nothing."""
    await contract.accept(entry("a"), entry("x", lane="other", delay=DAY))
    assert await contract.redis.pttl(keys.WAKE) > 0
    assert await contract.redis.pttl(keys.wake(LANE)) > 0
    assert await contract.pop_markers() == {"", LANE, "other"}
    await contract.accept(entry("b"))
    assert await contract.pop_markers() == {LANE}
    await contract.enqueue(*entries("a", "b"))
    await contract.enqueue(entry("c"), max_queued=1)
    assert await contract.pop_markers() == set()


@pytest.mark.leaves_keys("another application's job")
@pytest.mark.parametrize("key", [keys.payload("a"), keys.result("a")])
async def test_an_id_of_another_arq_application_is_a_conflict(contract: Contract, key: str) -> None:
    """The keys of arq are shared with other applications: what is not ours is not touched."""
    await contract.redis.set(key, b"theirs")
    said = await contract.dispositions(*entries("a", "b"))
    assert [disposition for disposition, _ in said] == ["conflict", "created"]
    assert await contract.redis.get(key) == b"theirs"
    assert await contract.redis.exists(keys.ledger("a")) == 0


@pytest.mark.leaves_keys("a corrupted ledger")
async def test_a_corrupted_ledger_does_not_tear_a_call(contract: Contract) -> None:
    """Its id is a conflict; the other jobs of the call are accepted and can be claimed."""
    await contract.redis.set(keys.ledger("b"), b"not a hash")
    said = await contract.dispositions(*entries("a", "b", "c"))
    assert [disposition for disposition, _ in said] == ["created", "conflict", "created"]
    assert await contract.taken(9) == ["a", "c"]


async def test_missing_replicas_are_an_error_and_the_jobs_are_there(redis_client: redis.asyncio.Redis) -> None:
    """The primary alone has accepted them; the same call may be sent again."""
    for _ in range(2):
        with pytest.raises(TimeoutError, match="0 of 1 replicas"):
            await scripts.enqueue(redis_client, [entry("a")], nonce="n", max_queued=9, wait=(1, 1), now=NOW)
    contract = Contract(redis_client)
    assert await contract.taken(9) == ["a"]
    await contract.drain()
