import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from hand import Hand
from promptq.producer import (
    IdConflict,
    InvalidJob,
    JobStatus,
    Message,
    PayloadTooLarge,
    ProducerSettings,
    PromptJob,
    PromptQueue,
    QueueFull,
    QueueUnavailable,
    codec,
    keys,
    scripts,
)
from promptq.producer.entries import adoption_of, entry_of, job_of
from promptq.producer.models import DELIVERY_FIELDS, REQUEST_FIELDS
from promptq.producer.records import Entry
from waiting import wait_until

pytestmark = pytest.mark.producer

SETTINGS = ProducerSettings()


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[PromptQueue]:
    """With room for 300 jobs a lane and half a megabyte a job."""
    settings = ProducerSettings(redis_url=redis_url, redis_timeout=1, max_queued=200, max_payload=500_000)  # type: ignore[arg-type]
    async with PromptQueue.connect(settings=settings) as queue:
        yield queue


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Entry]]:
    """Every chunk that goes to Redis."""
    sent: list[Sequence[Entry]] = []
    enqueue = scripts.enqueue

    async def noting(redis: Redis, entries: Sequence[Entry], **options: Any) -> Any:
        sent.append(entries)
        return await enqueue(redis, entries, **options)

    monkeypatch.setattr(scripts, "enqueue", noting)
    return sent


def entry(prompt: Any = "Hello", settings: ProducerSettings = SETTINGS, **options: Any) -> Entry:
    """What becomes of a prompt, without Redis."""
    return entry_of(job_of(prompt, options), settings)


def said(entry: Entry) -> Any:
    """What the worker will read."""
    return json.loads(entry.payload)["k"]


BAD: list[tuple[str, Any, dict[str, Any]]] = [
    ("prompt", "", {}),
    ("prompt", "\ud800", {}),
    ("prompt", "Hello", {"messages": [{"role": "user", "content": "Hello"}]}),
    ("messages", None, {}),
    ("messages", 7, {}),
    ("messages", b"Hello", {}),
    ("messages", [], {}),
    ("messages", {}, {}),
    ("messages.0", ["Hello"], {}),
    ("messages.0.role", [{"role": "bot", "content": "Hello"}], {}),
    ("messages.0.content", [{"role": "user"}], {}),
    ("messages.1.content", [{"role": "user", "content": "Hello"}, {"role": "user", "content": ""}], {}),
    ("messages.0.nickname", [{"role": "user", "content": "Hello", "nickname": "Bob"}], {}),
    ("model", "Hello", {"model": ""}),
    ("model", "Hello", {"model": " grok-4"}),
    ("model", "Hello", {"model": keys.INTAKE}),
    ("max_tokens", "Hello", {"max_tokens": 0}),
    ("max_tokens", "Hello", {"max_tokens": 1.5}),
    ("max_tokens", "Hello", {"max_tokens": "many"}),
    ("temperature", "Hello", {"temperature": 2.1}),
    ("temperature", "Hello", {"temperature": float("nan")}),
    ("top_p", "Hello", {"top_p": 0}),
    ("frequency_penalty", "Hello", {"frequency_penalty": -2.5}),
    ("presence_penalty", "Hello", {"presence_penalty": 2.5}),
    ("reasoning_effort", "Hello", {"reasoning_effort": "extreme"}),
    ("seed", "Hello", {"seed": 2**31}),
    ("stop.0", "Hello", {"stop": ""}),
    ("stop.1", "Hello", {"stop": ["a", ""]}),
    ("user", "Hello", {"user": "a\nb"}),
    ("timeout", "Hello", {"timeout": 0}),
    ("timeout", "Hello", {"timeout": float("inf")}),
    ("max_attempts", "Hello", {"max_attempts": 0}),
    ("id", "Hello", {"id": ""}),
    ("id", "Hello", {"id": "a\0b"}),
    ("id", "Hello", {"id": "x" * 129}),
    ("id", "Hello", {"id": 7}),
    ("priority", "Hello", {"priority": "urgent"}),
    ("tenant", "Hello", {"tenant": ""}),
    ("delay", "Hello", {"delay": -1}),
    ("delay", "Hello", {"delay": float("nan")}),
    ("delay", "Hello", {"delay": timedelta(days=4000)}),
    ("deadline", "Hello", {"deadline": 0}),
    ("deadline", "Hello", {"deadline": -1.5}),
    ("deadline", "Hello", {"deadline": float("nan")}),
    ("deadline", "Hello", {"deadline": timedelta(seconds=-1)}),
    ("deadline", "Hello", {"deadline": "tomorrow"}),
    ("deadline", "Hello", {"deadline": True}),
    ("deadline", "Hello", {"deadline": "60"}),
    ("deadline", "Hello", {"deadline": Decimal(60)}),
    ("deadline", "Hello", {"deadline": datetime.min}),  # noqa: DTZ901 - what a caller may come up with
    ("deadline", "Hello", {"deadline": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))}),
    ("result_ttl", "Hello", {"result_ttl": 0}),
    ("result_ttl", "Hello", {"result_ttl": timedelta(0)}),
    ("metadata", "Hello", {"metadata": ["a"]}),
    ("metadata.a", "Hello", {"metadata": {"a": 1}}),
    ("metadata", "Hello", {"metadata": {"a": "\ud800"}}),
    ("metadata", "Hello", {"metadata": {"a": "x" * 600_000}}),
    ("prompt", "x" * 600_000, {}),
    ("max_token", "Hello", {"max_token": 5}),
]


@pytest.mark.parametrize(("field", "prompt", "options"), BAD)
async def test_bad_input_names_its_field(
    queue: PromptQueue, redis_client: Redis, field: str, prompt: Any, options: dict[str, Any]
) -> None:
    """Whatever is wrong, the error says in which field, it is a ValueError, and nothing was written."""
    with pytest.raises(InvalidJob) as caught:
        await queue.enqueue(prompt, **options)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    assert isinstance(caught.value, ValueError)
    assert await redis_client.dbsize() == 0


@pytest.mark.parametrize("secret", ["my secret prompt"])
async def test_errors_do_not_repeat_what_was_given(queue: PromptQueue, secret: str) -> None:
    """What was given may be a prompt: it does not get into the error, and so into a log."""
    with pytest.raises(InvalidJob) as caught:
        await queue.enqueue([{"role": "user", "content": {"text": secret}}], priority=secret, user=f"{secret}\n")
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("options", [{"max_payload": 1024}], ids=str)
def test_too_large_says_how_large(options: dict[str, Any]) -> None:
    """PayloadTooLarge is an InvalidJob with both sizes; a request of exactly the allowed size passes."""
    settings = ProducerSettings(**options)
    room = 1024 - len(entry("x", settings).payload) + 1
    assert len(entry("x" * room, settings).payload) == 1024
    with pytest.raises(PayloadTooLarge, match="1025 bytes encoded, 1024 allowed"):
        entry("x" * (room + 1), settings)
    # Two bytes each in UTF-8: bytes count, not characters.
    with pytest.raises(PayloadTooLarge):
        entry("é" * room, settings)


async def test_a_whole_job_takes_no_parameters(queue: PromptQueue, redis_client: Redis) -> None:
    """A PromptJob together with params is a TypeError that names them, before anything is written."""
    job = PromptJob.model_validate({"prompt": "Hello"})
    with pytest.raises(TypeError, match="temperature, model"):
        await queue.enqueue(job, temperature=1, model="grok-4")
    assert await redis_client.dbsize() == 0


@pytest.mark.parametrize(
    "jobs", ["Hello", b"Hello", {"prompt": "Hello"}, PromptJob.model_validate({"prompt": "Hello"})]
)
async def test_one_job_is_not_many(queue: PromptQueue, redis_client: Redis, jobs: Any) -> None:
    """A text, a dict or a job given to `enqueue_many` is a TypeError, not a batch of its letters or keys."""
    with pytest.raises(TypeError, match="enqueue_many"):
        await queue.enqueue_many(jobs)
    assert await redis_client.dbsize() == 0


def test_delivery_options_go_over_a_jobs_own() -> None:
    """`id`, `priority` and the like given beside a PromptJob replace its own; None leaves them."""
    job = PromptJob.model_validate({"prompt": "Hello", "id": "a", "priority": "low", "max_tokens": 9})
    assert job_of(job, {"id": None, "priority": None}) == job
    changed = job_of(job, {"id": "b", "priority": None, "delay": 5})
    assert changed == job.model_copy(update={"id": "b", "delay": timedelta(seconds=5)})


@pytest.mark.parametrize(
    "given_as",
    [
        "Hello",
        [{"role": "user", "content": "Hello"}],
        ({"role": "user", "content": "Hello"},),
        [Message(role="user", content="Hello")],
        {"prompt": "Hello"},
        {"messages": [{"role": "user", "content": "Hello"}]},
        {"prompt": [{"role": "user", "content": "Hello"}]},
        {"prompt": "Hello", "max_tokens": None, "id": None},
        PromptJob(messages=(Message(role="user", content="Hello"),)),
    ],
    ids=repr,
)
def test_every_form_of_a_prompt_is_the_same_request(given_as: Any) -> None:
    """A text, messages, a dict and a PromptJob end in the same payload and digest."""
    made = entry(given_as)
    assert said(made) == {"messages": [{"role": "user", "content": "Hello"}], "model": "grok-4"}
    assert made.digest == entry("Hello").digest


def test_only_the_request_counts_for_the_digest() -> None:
    """How a job is delivered and run may differ under one id; what the model is asked may not."""
    base = entry("Hello").digest
    delivered: dict[str, Any] = {
        "id": "a", "priority": "high", "tenant": "b", "delay": 1, "deadline": 60, "result_ttl": 5,
        "metadata": {"a": "b"}, "group": "g", "timeout": 9, "max_attempts": 2,
    }  # fmt: skip
    assert set(delivered) == DELIVERY_FIELDS | {"timeout", "max_attempts"}
    asked: dict[str, Any] = {
        "model": "grok-3", "max_tokens": 5, "temperature": 1, "top_p": 0.5, "frequency_penalty": 1,
        "presence_penalty": 1, "reasoning_effort": "low", "seed": 1, "stop": ["a"], "user": "u",
        "safety_identifier": "s", "n": 2, "logprobs": True, "tools": [{"type": "web_search"}], "tool_choice": "auto",
        "parallel_tool_calls": False, "max_turns": 2, "response_format": "json_object", "search_parameters": {},
        "include": ["mcp_call_output"], "store_messages": True, "previous_response_id": "r", "agent_count": 4,
        "use_encrypted_content": True, "service_tier": "priority",
        "guidelines": [{"type": "policy", "category": "nsfw", "behavior": "decline"}],
    }  # fmt: skip
    assert set(asked) | {"messages", "top_logprobs"} == REQUEST_FIELDS
    assert {entry("Hello", **{name: value}).digest for name, value in delivered.items()} == {base}
    assert len({base, *(entry("Hello", **{name: value}).digest for name, value in asked.items())}) == len(asked) + 1
    assert entry("Hello", temperature=1).digest == entry("Hello", temperature=1.0).digest


def test_the_default_model_is_the_producers() -> None:
    """A job without a model gets PROMPTQ_DEFAULT_MODEL where it is enqueued, and stands in that lane."""
    made = entry("Hello", ProducerSettings(default_model="grok-3"))
    assert (made.lane, said(made)["model"]) == ("grok-3", "grok-3")
    assert entry("Hello", model="grok-2").lane == "grok-2"


@pytest.mark.parametrize(
    ("deadline", "sent"),
    [
        (60, "+60000"),
        (0.25, "+250"),
        (timedelta(minutes=1), "+60000"),
        ("PT1M", "+60000"),
        (datetime(2030, 1, 1, tzinfo=UTC), "1893456000000"),
        (datetime(2030, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))), "1893456000000"),
        ("2030-01-01T00:00:00Z", "1893456000000"),
        (datetime(2030, 1, 1), str(round(datetime(2030, 1, 1).timestamp() * 1000))),  # noqa: DTZ001 - local time
        (datetime(1999, 1, 1, tzinfo=UTC), "915148800000"),
    ],
)
def test_deadlines(deadline: Any, sent: str) -> None:
    """Seconds and timedeltas count from Redis' now; datetimes are points in time, naive ones in local time."""
    assert entry(deadline=deadline).deadline == sent


@pytest.mark.parametrize(
    ("delay", "sent"), [(0, 0), (None, 0), (1.5, 1500), (timedelta(hours=1), 3_600_000), (1e-6, 1)]
)
def test_delays(delay: Any, sent: int) -> None:
    """Seconds or timedelta, in ms; what is more than nothing stays so."""
    assert entry(delay=delay).delay == sent


@pytest.mark.parametrize(("ttl", "sent"), [(None, None), (60, 60_000), (timedelta(days=1), 86_400_000)])
def test_result_ttls(ttl: Any, sent: int | None) -> None:
    """Seconds or timedelta, in ms; none: the workers' setting."""
    assert entry(result_ttl=ttl).ttl == sent


def test_ids_are_given_or_made() -> None:
    """A given id is kept, others are all different."""
    assert entry(id="ünï/cödé:1").id == "ünï/cödé:1"
    assert len({entry().id for _ in range(100)}) == 100


async def test_chunks_by_count(queue: PromptQueue, redis_client: Redis, chunks: list[Sequence[Entry]]) -> None:
    """At most 150 jobs a call, handles in the order of the jobs."""
    handles = await queue.enqueue_many([{"prompt": f"prompt {n}", "model": f"m{n % 3}"} for n in range(600)])
    assert [len(chunk) for chunk in chunks] == [150] * 4
    assert [handle.id for handle in handles] == [entry.id for chunk in chunks for entry in chunk]
    assert [handle.queue_name for handle in handles[:3]] == [keys.lane(f"m{n}") for n in range(3)]
    assert {(handle.created, handle.status) for handle in handles} == {(True, JobStatus.QUEUED)}
    await Hand(redis_client).answer_all()


@pytest.mark.parametrize(
    "job",
    [{"prompt": "x" * 300_000}, {"prompt": "x", "metadata": {"a": "x" * 300_000}}],
    ids=["prompt", "metadata"],
)
async def test_chunks_by_bytes(
    queue: PromptQueue, redis_client: Redis, chunks: list[Sequence[Entry]], job: dict[str, Any]
) -> None:
    """At most 1 MiB a call, all told."""
    await queue.enqueue_many([job] * 7)
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]
    await Hand(redis_client).answer_all()


async def test_a_large_job_goes_alone(queue: PromptQueue, redis_client: Redis, chunks: list[Sequence[Entry]]) -> None:
    """A request of more than a chunk is no reason to refuse it."""
    settings = ProducerSettings(redis_url=queue._link.settings.redis_url)
    async with PromptQueue.connect(settings=settings) as roomy:
        await roomy.enqueue_many(["small", "x" * 2_000_000, "small again"])
    assert [len(chunk) for chunk in chunks] == [1, 1, 1]
    await Hand(redis_client).answer_all()


@pytest.mark.parametrize("bad", [{"prompt": "Hello", "priority": "urgent"}, "x" * 600_000, {}, "\ud800"], ids=repr)
async def test_a_list_is_validated_whole(queue: PromptQueue, redis_client: Redis, bad: Any) -> None:
    """A bad job late in a list: nothing of the list is written, and the error has its position."""
    with pytest.raises(InvalidJob, match=r"^job 260: ") as caught:
        await queue.enqueue_many([*(f"prompt {n}" for n in range(260)), bad, "Goodbye"])
    assert (caught.value.position, caught.value.accepted) == (260, ())
    assert await redis_client.dbsize() == 0


@pytest.mark.parametrize("is_slow", [False, True], ids=["quick", "slow"])
async def test_a_stream_is_enqueued_chunk_by_chunk(
    queue: PromptQueue, redis_client: Redis, monkeypatch: pytest.MonkeyPatch, is_slow: bool
) -> None:
    """A generator is read as it is sent; the error says what had been accepted before, or was under way."""
    read, enqueue = 0, scripts.enqueue

    async def enqueue_slowly(*args: Any, **options: Any) -> Any:
        await asyncio.sleep(0.05)
        return await enqueue(*args, **options)

    if is_slow:
        monkeypatch.setattr(scripts, "enqueue", enqueue_slowly)

    def prompts() -> Iterator[Any]:
        nonlocal read
        for read in range(270):
            yield f"prompt {read}"
        yield {"prompt": ""}
        raise AssertionError("read on after the bad one")

    with pytest.raises(InvalidJob, match=r"^job 270: prompt") as caught:
        await queue.enqueue_many(prompts())
    assert len(caught.value.accepted) == 150
    assert (await queue.stats()).lanes[0].queued == 150
    assert set(await queue.results(caught.value.accepted)) == set(caught.value.accepted)
    await Hand(redis_client).answer_all()


async def test_no_jobs_are_no_call(queue: PromptQueue, redis_client: Redis, chunks: list[Sequence[Entry]]) -> None:
    """An empty batch is accepted without asking Redis."""
    assert await queue.enqueue_many([]) == []
    assert chunks == []


async def test_a_chunk_is_prepared_while_redis_takes_the_one_before(
    queue: PromptQueue, redis_client: Redis, chunks: list[Sequence[Entry]]
) -> None:
    """The first call is under way when the second chunk is read; there are never two at a time."""
    under_way: list[int] = []

    def prompts() -> Iterator[str]:
        for number in range(200):
            under_way.append(len(chunks))
            yield f"prompt {number}"

    await queue.enqueue_many(prompts())
    assert under_way == [0] * 151 + [1] * 49
    await Hand(redis_client).answer_all()


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_what_is_under_way_when_the_iterable_fails(
    queue: PromptQueue, redis_client: Redis, error: type[BaseException]
) -> None:
    """Its own error comes out, and no task is left behind."""

    def prompts() -> Iterator[str]:
        yield from ["Hello"] * 160
        raise error

    before = asyncio.all_tasks()
    with pytest.raises(error):
        await queue.enqueue_many(prompts())
    await wait_until(lambda: asyncio.all_tasks() == before)
    await Hand(redis_client).answer_all()


async def test_a_full_lane_refuses_the_call(queue: PromptQueue, redis_client: Redis) -> None:
    """QueueFull: nothing of that call is written, what earlier ones wrote is in `accepted`; other lanes are open."""
    with pytest.raises(QueueFull, match=r"'grok-4' holds 150 of 200 jobs") as caught:
        await queue.enqueue_many([{"prompt": "Hello", "id": f"job-{n}"} for n in range(201)])
    assert caught.value.accepted == tuple(f"job-{n}" for n in range(150))
    assert (await queue.stats()).lanes[0].queued == 150
    await queue.enqueue_many(f"prompt {n}" for n in range(50))
    with pytest.raises(QueueFull, match="200 of 200"):
        await queue.enqueue("one too many")
    assert (await queue.enqueue("Hello", id="job-7")).created is False
    assert (await queue.enqueue("Hello", model="grok-3")).created
    await Hand(redis_client).answer_all()
    assert (await queue.enqueue("there is room again")).created
    await Hand(redis_client).answer_all()


async def test_a_refused_chunk_tells_what_was_accepted(
    queue: PromptQueue, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage in the middle of a batch: QueueUnavailable with the ids that are safe."""
    enqueue = scripts.enqueue

    async def break_down(redis: Redis, entries: Sequence[Entry], **options: Any) -> Any:
        if entries[0].id != "job-0":
            raise RedisConnectionError("gone")
        return await enqueue(redis, entries, **options)

    monkeypatch.setattr(scripts, "enqueue", break_down)
    with pytest.raises(QueueUnavailable, match="gone") as caught:
        await queue.enqueue_many([{"prompt": "Hello", "id": f"job-{n}"} for n in range(260)])
    assert caught.value.accepted == tuple(f"job-{n}" for n in range(150))
    await Hand(redis_client).answer_all()


async def test_a_conflict_in_a_batch_tells_what_was_accepted(queue: PromptQueue, redis_client: Redis) -> None:
    """One id taken by another request: the others of its call are accepted, and said to be."""
    await queue.enqueue("something else", id="b")
    with pytest.raises(IdConflict, match="'b'") as caught:
        await queue.enqueue_many([{"prompt": "Hello", "id": each} for each in "abc"])
    assert (caught.value.id, caught.value.accepted) == ("b", ("a", "c"))
    assert set(await queue.results("abc")) == set("abc")
    await Hand(redis_client).answer_all()


async def test_an_id_twice_in_a_batch(queue: PromptQueue, redis_client: Redis) -> None:
    """The second one is a duplicate of the first, or in conflict with it."""
    first, second = await queue.enqueue_many([{"prompt": "Hello", "id": "a"}, {"prompt": "Hello", "id": "a"}])
    assert (first.created, second.created, second.status) == (True, False, JobStatus.QUEUED)
    with pytest.raises(IdConflict) as caught:
        await queue.enqueue_many([{"prompt": "Hello", "id": "b"}, {"prompt": "Goodbye", "id": "b"}])
    assert caught.value.accepted == ()
    assert await Hand(redis_client).answer_all() == ["a", "b"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([*sorted(PromptJob.model_fields), "prompt", "bogus"])
likely_options = st.dictionaries(NAMES, json_values | st.just("Hello"), max_size=3)
anything = st.fixed_dictionaries({}, optional=dict.fromkeys("fak", json_values | st.just(codec.FUNCTION)))
nearly_good = st.fixed_dictionaries(
    {"f": st.just(codec.FUNCTION), "k": st.just({"prompt": "Hello"}) | likely_options},
    optional={"a": json_values, "et": json_values | st.integers(-(10**30), 10**30), "t": json_values},
)


@given(nearly_good | anything)
def test_a_foreign_payload_is_adopted_or_refused(record: dict[str, Any]) -> None:
    """Whatever a plain arq client sent: a ledger that Redis takes and readers can read, or InvalidJob."""
    try:
        adoption = adoption_of("id", keys.INTAKE, record, SETTINGS)
    except InvalidJob:
        return
    assert {type(arg) for arg in adoption.args()} <= {str, bytes, int}
    datetime.fromtimestamp(adoption.enqueued / 1000, UTC)
    assert len(str(adoption.enqueued)) <= 15, "Lua has no more digits"


@pytest.mark.parametrize("deadline", ["0001-01-01T00:00:00", "9999-12-31T23:59:59-01:00"])
def test_a_foreign_deadline_beyond_the_calendar_is_refused(deadline: str) -> None:
    """What no clock can tell is InvalidJob, not an error that ends the worker."""
    record = {"f": codec.FUNCTION, "k": {"prompt": "Hello", "deadline": deadline}}
    with pytest.raises(InvalidJob, match="deadline"):
        adoption_of("id", keys.INTAKE, record, SETTINGS)
