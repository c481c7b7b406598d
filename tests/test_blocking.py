import asyncio
import contextlib
import gc
import inspect
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from command import FakeWorker, settle_all, subscribers
from promptq.producer import Group as AsyncGroup
from promptq.producer import (
    GroupNotFound,
    IdConflict,
    InvalidJob,
    JobNotFound,
    JobStatus,
    ProducerSettings,
    PromptJob,
    QueueFull,
    QueueUnavailable,
    WaitTimeout,
)
from promptq.producer import JobHandle as AsyncJobHandle
from promptq.producer import PromptQueue as AsyncPromptQueue
from promptq.producer.blocking import Group, JobHandle, PromptQueue
from promptq.producer.entries import CHUNK_JOBS

pytestmark = pytest.mark.producer

SOON = 5.0


def settings_for(url: str) -> ProducerSettings:
    """With a short timeout."""
    return ProducerSettings(redis_url=url, redis_timeout=2)  # type: ignore[arg-type] # a str is coerced


def wait_for(predicate: Callable[[], object], what: str) -> None:
    """Block until it is true."""
    deadline = time.monotonic() + 10
    while not predicate():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def threads() -> list[str]:
    """Those that run the loop, by name."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("promptq", "asyncio"))]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """After each test, once garbage is collected."""
    yield
    gc.collect()
    wait_for(lambda: not threads(), "the loop's thread has ended")


@pytest.fixture
def queue(redis_url: str) -> Iterator[PromptQueue]:
    """What a backend has; what it leaves queued is settled."""
    with PromptQueue.connect(settings=settings_for(redis_url)) as queue:
        yield queue
    asyncio.run(settle_all(redis_url))


@contextlib.contextmanager
def working(redis_url: str) -> Iterator[None]:
    """Somebody answers in upper case, on a thread of its own."""
    is_over = threading.Event()

    async def work() -> None:
        async with FakeWorker(redis_url) as worker:
            while not is_over.is_set():
                if jobs := await worker.claim():
                    await worker.settle(jobs)
                await asyncio.sleep(0.01)

    with ThreadPoolExecutor(1, "worker") as pool:
        running = pool.submit(asyncio.run, work())
        try:
            yield
        finally:
            is_over.set()
            running.result()


@pytest.fixture
def worker(redis_url: str) -> Iterator[None]:
    """Is there for the whole test."""
    with working(redis_url):
        yield


@pytest.mark.usefixtures("worker")
def test_the_five_lines(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect by the environment, enqueue, wait, read the answer and its tokens."""
    monkeypatch.setenv("PROMPTQ_REDIS_URL", redis_url)
    with PromptQueue.connect() as queue:
        job = queue.enqueue("Tell me a joke", model="grok-4", max_tokens=100)
        result = queue.wait(job.id, timeout=60)
    assert (result.content, result.usage.total_tokens) == ("TELL ME A JOKE", 7)


@pytest.mark.usefixtures("worker")
def test_connect_is_also_a_plain_call(redis_url: str) -> None:
    """Closing twice is closing once."""
    queue = PromptQueue.connect(redis_url)
    assert queue.enqueue("Hello").wait(SOON).content == "HELLO"
    queue.close()
    queue.close()


def test_the_life_of_a_job(queue: PromptQueue, redis_url: str) -> None:
    """Status, result, results, stats and the handle say the same as those of the async client."""
    job = queue.enqueue("Hello", id="job", metadata={"user": "7"})
    assert (job.id, job.created, job.status, job.queue_name) == ("job", True, JobStatus.QUEUED, "arq:queue:grok-4")
    assert repr(job) == "JobHandle('job', created=True, status='queued')"
    assert queue.status("job") is JobStatus.QUEUED
    assert queue.result("job") is None
    assert queue.results(iter(["job", "nobody"])) == {"job": None}
    assert [lane.queued for lane in queue.stats().lanes] == [1]
    with working(redis_url):
        result = job.wait(SOON)
    assert (result.content, result.metadata) == ("HELLO", {"user": "7"})
    assert queue.result("job") == queue.results(["job"])["job"] == result
    again = queue.enqueue("Hello", id="job")
    assert (again.created, again.status) == (False, JobStatus.SUCCEEDED)


def test_cancel(queue: PromptQueue) -> None:
    """True once, False for what has ended."""
    job = queue.enqueue("Hello")
    assert queue.cancel(job.id)
    assert not queue.cancel(job.id)
    assert job.wait(SOON).status is JobStatus.CANCELLED


@pytest.mark.usefixtures("worker")
def test_many_come_as_they_complete(queue: PromptQueue) -> None:
    """`enqueue_many` keeps the order of the jobs, `as_completed` that of their ends."""
    jobs = queue.enqueue_many(
        ["a", {"prompt": "b", "delay": 0.3}, PromptJob.model_validate({"prompt": "c"})], tenant="t"
    )
    results = list(queue.as_completed((job.id for job in jobs), timeout=SOON))
    assert sorted(result.content for result in results) == ["A", "B", "C"]
    assert results[-1].id == jobs[1].id


@pytest.mark.usefixtures("worker")
def test_an_answer_is_followed(queue: PromptQueue) -> None:
    """By a plain loop, which may go on later behind any event."""
    job = queue.enqueue("Hello", stream=True)
    events = list(job.events(timeout=SOON))
    assert [event.type for event in events] == ["delta", "ended"]
    assert list(queue.events(job.id, after=events[0].id)) == events[1:]


@pytest.mark.usefixtures("worker")
def test_groups(queue: PromptQueue) -> None:
    """Enqueued under a name, counted, followed to the end, cancelled."""
    jobs = queue.enqueue_many([{"prompt": "a"}, {"prompt": "fail"}, {"prompt": "b", "delay": 0.3}], group="run")
    queue.enqueue("of another", group="other")
    run = queue.group("run")
    assert (repr(run), run.counts().total) == ("Group('run')", 3)
    results = list(run.results(timeout=SOON))
    assert sorted(result.id for result in results) == sorted(job.id for job in jobs)
    assert results[-1].content == "B"
    assert (run.counts().succeeded, run.counts().failed) == (2, 1)
    queue.enqueue_many(["never"] * 3, group="later", delay=3600)
    assert queue.group("later").cancel() == 3
    assert {result.status for result in queue.group("later").results()} == {JobStatus.CANCELLED}


CALLS: dict[str, tuple[type[Exception], Callable[[PromptQueue], object]]] = {
    "enqueue": (InvalidJob, lambda queue: queue.enqueue("Hello", max_tokens=0)),
    "conflict": (IdConflict, lambda queue: queue.enqueue("else", id="there")),
    "params": (TypeError, lambda queue: queue.enqueue(PromptJob.model_validate({"prompt": "Hi"}), model="x")),
    "enqueue_many": (InvalidJob, lambda queue: queue.enqueue_many(["Hello", {"prompt": ""}])),
    "one": (TypeError, lambda queue: queue.enqueue_many("Hello")),
    "status": (JobNotFound, lambda queue: queue.status("nobody")),
    "result": (JobNotFound, lambda queue: queue.result("nobody")),
    "cancel": (JobNotFound, lambda queue: queue.cancel("nobody")),
    "wait": (JobNotFound, lambda queue: queue.wait("nobody")),
    "as_completed": (JobNotFound, lambda queue: list(queue.as_completed(["nobody"]))),
    "events": (JobNotFound, lambda queue: list(queue.events("nobody"))),
    "no event": (ValueError, lambda queue: list(queue.events("there", after="none"))),
    "counts": (GroupNotFound, lambda queue: queue.group("nobody").counts()),
    "group": (GroupNotFound, lambda queue: list(queue.group("nobody").results())),
    "too late": (WaitTimeout, lambda queue: queue.wait("there", timeout=0.05)),
    "all too late": (WaitTimeout, lambda queue: list(queue.as_completed(["there"], timeout=0.05))),
}


@pytest.mark.parametrize("name", CALLS)
def test_errors_are_those_of_the_async_client(queue: PromptQueue, name: str) -> None:
    """Same types, raised in the caller's thread; the queue goes on."""
    kind, call = CALLS[name]
    queue.enqueue("Hello", id="there")
    with pytest.raises(kind):
        call(queue)
    assert queue.status("there") is JobStatus.QUEUED


def test_no_redis_is_said_at_once() -> None:
    """`connect` raises as the async one, and leaves nothing behind."""
    settings = ProducerSettings(redis_url="redis://127.0.0.1:1", redis_timeout=0.2)  # type: ignore[arg-type] # coerced
    with pytest.raises(QueueUnavailable, match=r"no Redis at redis://127\.0\.0\.1:1"):
        PromptQueue.connect(settings=settings)


ASYNC_ONLY = {"__aenter__", "__aexit__", "aclose"}
BLOCKING_ONLY = {"__enter__", "__exit__", "close"}
RETURNS = {
    "Connecting[Self]": "Self",  # which is its own context manager
    "AsyncGenerator[JobResult, None]": "Generator[JobResult, None, None]",
    "AsyncGenerator[Delta | Restarted | Ended, None]": "Generator[Delta | Restarted | Ended, None, None]",
}


def returned(method: Any) -> str:
    """Its annotation without the names of modules."""
    return re.sub(r"(\w+\.)+", "", inspect.formatannotation(inspect.signature(method).return_annotation))


def methods(of: type) -> dict[str, Any]:
    """What a caller may call."""
    found = dict(inspect.getmembers(of, callable))
    dunders = ASYNC_ONLY | BLOCKING_ONLY
    return {name: found[name] for name in found if not name.startswith("_") or (name in dunders and name in vars(of))}


@pytest.mark.usefixtures("worker")
def test_what_an_operator_does(queue: PromptQueue) -> None:
    """Failed jobs, limits, pauses and tenants: as with the async client."""
    queue.pause("grok-4")
    queue.set_limits("grok-4", in_flight=7)
    queue.set_tenant("acme", max_queued=1)
    job = queue.enqueue("fail", tenant="acme")
    with pytest.raises(QueueFull, match="'acme'"):
        queue.enqueue("more", tenant="acme")
    [model], [tenant] = queue.limits(), queue.tenants()
    assert (model.limits.in_flight, model.paused_by_operator) == (7, True)
    assert (tenant.name, tenant.max_queued, tenant.waiting) == ("acme", 1, 1)
    queue.resume("grok-4")
    queue.wait(job.id, SOON)
    assert [result.id for result in queue.failed(code="moderated", model="grok-4")] == [job.id]
    assert list(queue.failed(code="timeout")) == []
    assert queue.requeue(job.id) == (job.id,)
    assert len(queue.wait(job.id, SOON).attempts) == 2


@pytest.mark.parametrize(
    ("blocks", "awaits"),
    [(PromptQueue, AsyncPromptQueue), (JobHandle, AsyncJobHandle), (Group, AsyncGroup)],
    ids=["PromptQueue", "JobHandle", "Group"],
)
def test_signatures_are_those_of_the_async_client(blocks: type, awaits: type) -> None:
    """The same methods, with the same parameters, defaults and types; what is awaited there is returned here."""
    here, there = methods(blocks), methods(awaits)
    assert here.keys() - BLOCKING_ONLY == there.keys() - ASYNC_ONLY
    assert len(here) >= 1
    for name in here.keys() - BLOCKING_ONLY:
        assert inspect.signature(here[name]).parameters == inspect.signature(there[name]).parameters, name
        assert returned(here[name]) == RETURNS.get(returned(there[name]), returned(there[name])), name
        assert not inspect.iscoroutinefunction(here[name])
        assert (here[name].__doc__ or "").splitlines()[0] == (there[name].__doc__ or "").splitlines()[0]


def test_fields_of_a_handle_are_those_of_the_async_one() -> None:
    """What an accepted job tells of itself."""
    assert list(JobHandle.__dataclass_fields__) == list(AsyncJobHandle.__dataclass_fields__)


def test_a_generator_runs_in_the_callers_thread(queue: PromptQueue) -> None:
    """It may use the queue, and a database connection that belongs to this thread."""
    ran_in = set()

    def prompts() -> Iterator[str]:
        yield from (f"prompt {number}" for number in range(2 * CHUNK_JOBS + 1))
        ran_in.add(threading.get_ident())
        assert queue.stats().lanes[0].queued == 2 * CHUNK_JOBS
        yield "the last"

    assert len({job.id for job in queue.enqueue_many(prompts())}) == 2 * CHUNK_JOBS + 2
    assert ran_in == {threading.get_ident()}


def test_what_earlier_chunks_wrote_is_told(queue: PromptQueue) -> None:
    """A generator fails at its own position, after the first chunk was accepted; of a list nothing is written."""
    ids = [f"job-{number}" for number in range(CHUNK_JOBS + 50)]
    jobs = [{"prompt": "Hello", "id": each} for each in ids] + [{"prompt": ""}]
    with pytest.raises(InvalidJob, match=f"job {len(ids)}: prompt") as caught:
        queue.enqueue_many(iter(jobs))
    assert caught.value.accepted == tuple(ids[:CHUNK_JOBS])
    assert queue.stats().lanes[0].queued == CHUNK_JOBS
    with pytest.raises(InvalidJob, match=f"job {len(ids)}: prompt") as caught:
        queue.enqueue_many(jobs)
    assert caught.value.accepted == ()


@pytest.mark.usefixtures("worker")
def test_threads_share_a_queue(queue: PromptQueue) -> None:
    """Thirty-two threads at once, each with answers of its own, on one thread of ours."""

    def ask(number: int) -> list[str]:
        jobs = queue.enqueue_many([f"{number} {each}" for each in "abc"])
        return sorted(result.content for result in queue.as_completed([job.id for job in jobs], timeout=4 * SOON))

    with ThreadPoolExecutor(32, "caller") as pool:
        answers = list(pool.map(ask, range(64)))
    assert answers == [[f"{number} {each}" for each in "ABC"] for number in range(64)]
    assert threads() == ["promptq"]


def test_queues_share_a_thread(redis_url: str) -> None:
    """It ends with the last of them, whoever that is."""
    first, second = PromptQueue.connect(redis_url), PromptQueue.connect(redis_url)
    assert threads() == ["promptq"]
    first.close()
    assert second.stats().lanes == ()
    second.close()
    assert threads() == []
    with PromptQueue.connect(redis_url) as third:
        assert third.stats().lanes == ()
    assert threads() == []


@pytest.mark.usefixtures("worker")
def test_queues_that_come_and_go_at_once(redis_url: str) -> None:
    """Sixteen threads that connect, ask and close: no call is lost between a thread that ends and one that starts."""

    def come_and_go(number: int) -> str:
        with PromptQueue.connect(redis_url) as queue:
            return queue.enqueue(f"prompt {number}").wait(4 * SOON).content

    with ThreadPoolExecutor(16, "caller") as pool:
        assert list(pool.map(come_and_go, range(64))) == [f"PROMPT {number}" for number in range(64)]
    assert threads() == []


def begin_to_wait(pool: ThreadPoolExecutor, queue: PromptQueue, redis_url: str, job: JobHandle) -> Any:
    """Another thread's `wait`, once it has subscribed."""
    waiting = pool.submit(queue.wait, job.id)
    wait_for(lambda: subscribers(redis_url) == 1, "subscribed")
    return waiting


def test_close_ends_the_waits_of_other_threads(queue: PromptQueue, redis_url: str) -> None:
    """They get QueueUnavailable, and so does whoever comes later."""
    job = queue.enqueue("Hello")
    with ThreadPoolExecutor(1, "caller") as pool:
        waiting = begin_to_wait(pool, queue, redis_url, job)
        results = queue.as_completed([job.id])
        queue.close()
        with pytest.raises(QueueUnavailable, match="closed"):
            waiting.result(SOON)
    for call in (lambda: queue.status(job.id), lambda: queue.enqueue_many(["Hello"]), lambda: next(results)):
        with pytest.raises(QueueUnavailable, match="closed"):
            call()


def test_a_call_that_begins_before_the_end_is_told(queue: PromptQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a call's look at the loop and its start there, nobody ends the loop: it would never be looked at."""
    started, has_looked = asyncio.run_coroutine_threadsafe, threading.Event()

    def start_slowly(coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Any:
        if threading.current_thread() is not threading.main_thread():
            has_looked.set()
            time.sleep(0.2)  # for whoever closes meanwhile
        return started(coroutine, loop)

    job = queue.enqueue("Hello")
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", start_slowly)
    with ThreadPoolExecutor(1, "caller") as pool:
        calling = pool.submit(queue.wait, job.id)
        assert has_looked.wait(SOON)
        queue.close()
        with pytest.raises(QueueUnavailable, match="closed"):
            calling.result(SOON)


def test_an_interrupt_ends_a_wait(queue: PromptQueue, redis_url: str) -> None:
    """Ctrl-C gets through at once and stops what ran behind it; the queue can be used on."""
    job = queue.enqueue("Hello")

    def interrupt() -> None:
        wait_for(lambda: subscribers(redis_url) == 1, "subscribed")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with ThreadPoolExecutor(1, "user") as user:
        user.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            job.wait()
    session = queue._bridge._session
    assert session is not None
    wait_for(lambda: not session._calls, "the call behind it has ended")
    assert queue.cancel(job.id)


def test_who_stops_iterating_stops_listening(queue: PromptQueue) -> None:
    """A loop that is left early leaves nothing behind."""
    jobs = queue.enqueue_many(["Hello", "never"])
    queue.cancel(jobs[0].id)
    for result in queue.as_completed([job.id for job in jobs]):
        assert result.id == jobs[0].id
        break
    session = queue._bridge._session
    assert session is not None
    wait_for(lambda: not session.client._link.watcher._waiters, "nobody waits")


IN_A_LOOP: dict[str, Callable[[PromptQueue], object]] = {
    "connect": lambda queue: queue.connect("redis://127.0.0.1:1"),
    "enqueue": lambda queue: queue.enqueue("Hello"),
    "enqueue_many": lambda queue: queue.enqueue_many(["Hello"]),
    "status": lambda queue: queue.status("job"),
    "result": lambda queue: queue.result("job"),
    "results": lambda queue: queue.results([]),
    "wait": lambda queue: queue.wait("job"),
    "as_completed": lambda queue: next(queue.as_completed(["job"])),
    "events": lambda queue: next(queue.events("job")),
    "cancel": lambda queue: queue.cancel("job"),
    "group": lambda queue: queue.group("run").counts(),
    "stats": lambda queue: queue.stats(),
    "failed": lambda queue: next(queue.failed()),
    "requeue": lambda queue: queue.requeue("job"),
    "set_limits": lambda queue: queue.set_limits("grok-4", rpm=1),
    "limits": lambda queue: queue.limits(),
    "pause": lambda queue: queue.pause("grok-4"),
    "resume": lambda queue: queue.resume("grok-4"),
    "set_tenant": lambda queue: queue.set_tenant("acme", weight=2),
    "tenants": lambda queue: queue.tenants(),
    "close": lambda queue: queue.close(),
}


@pytest.mark.parametrize("name", IN_A_LOOP)
def test_a_running_loop_is_not_blocked(queue: PromptQueue, name: str) -> None:
    """Each call says which client to use there, and does nothing; from a thread of that program it works."""

    async def call() -> None:
        with pytest.raises(RuntimeError, match=r"use promptq\.producer\.PromptQueue and await"):
            IN_A_LOOP[name](queue)
        assert (await asyncio.to_thread(queue.stats)).lanes == ()

    asyncio.run(call())


def test_all_methods_refuse_a_running_loop() -> None:
    """None is forgotten above."""
    assert IN_A_LOOP.keys() == methods(PromptQueue).keys() - {"__enter__", "__exit__"}


def test_garbage_closes_itself(redis_url: str) -> None:
    """A queue that nobody closed leaves neither thread nor connection, wherever the collector finds it."""
    for _ in range(3):
        queue: Any = PromptQueue.connect(redis_url)
        queue.itself = queue
        del queue
        gc.collect()
        wait_for(lambda: not threads(), "its thread has ended")


STRICTLY = ("-X", "dev", "-W", "error", "-W", "ignore:This process:DeprecationWarning")  # Python 3.12's word on forks

START = """
import contextlib, gc, logging, multiprocessing, os, stat, sys, threading
from concurrent.futures import ThreadPoolExecutor
from promptq.producer.entries import CHUNK_JOBS
from promptq.producer.blocking import PromptQueue

logging.getLogger("asyncio").setLevel(logging.ERROR)  # that this machine is busy is no complaint
queue = PromptQueue.connect(sys.argv[1])

def forked(act):
    # A child that acts and then ends as a program does, with all that Python cleans up.
    pid = os.fork()
    if pid == 0:
        act()
        sys.exit(0)
    return pid

def ended_well(pid):
    assert os.waitpid(pid, 0)[1] == 0
"""


UNTOLD = """
import concurrent.futures.thread, logging, os, random, threading
register, os.register_at_fork = os.register_at_fork, lambda **_: None
import promptq.producer.blocking
os.register_at_fork = register
"""


def run(redis_url: str, script: str, before: str = "") -> str:
    """A program of its own, which must end well, soon, and without a word of complaint; returns what it printed."""
    command = (sys.executable, *STRICTLY, "-c", before + START + textwrap.dedent(script), redis_url)
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


ITERATE = "results = queue.as_completed([queue.enqueue('late').id]); next(results)"


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    "ending",
    [
        "",
        "del queue",
        "waiting = queue.as_completed([queue.enqueue('late', delay=0.2).id]); next(waiting)",
        "queue.close()",
    ],
    ids=["kept", "dropped", "iterating", "closed"],
)
def test_a_program_that_ends_ends(redis_url: str, ending: str) -> None:
    """Closed or not, the interpreter's exit neither hangs nor complains."""
    assert run(redis_url, f"print(queue.enqueue('Hello').wait(5).content)\n{ending}") == "HELLO\n"


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("before", ["", UNTOLD], ids=["told", "untold"])
def test_a_queue_works_on_both_sides_of_a_fork(redis_url: str, before: str) -> None:
    """While the parent waits and iterates, children and grandchildren ask on sockets of their own; all are answered.

    Even if they are forked by a server in C that does not tell Python so.
    """
    run(
        redis_url,
        """
        def sockets():
            with contextlib.suppress(OSError):
                for fd in range(3, 256):
                    with contextlib.suppress(OSError):
                        if stat.S_ISSOCK((status := os.fstat(fd)).st_mode):
                            yield status.st_ino

        def child():
            assert queue.enqueue("from the child").wait(20).content == "FROM THE CHILD"
            assert not parents & set(sockets())
            gc.collect()
            ended_well(forked(lambda: queue.enqueue("from the grandchild").wait(20)))
            queue.close()

        late = queue.enqueue_many([{"prompt": "late", "delay": delay} for delay in (0.1, 1.5, 1.5)])
        iterating = queue.as_completed([job.id for job in late])
        next(iterating)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(late[1].wait, 20)
            parents = set(sockets())
            assert len(parents) >= 3
            children = [forked(child) for _ in range(3)]
            assert queue.enqueue("from the parent").wait(20).content == "FROM THE PARENT"
            assert waiting.result().content == "LATE"
        assert len(list(iterating)) == 2
        for pid in children:
            ended_well(pid)
        assert queue.enqueue("from the parent again").wait(20).content == "FROM THE PARENT AGAIN"
        queue.close()
        """,
        before,
    )


@pytest.mark.usefixtures("worker")
def test_a_fork_in_the_middle_of_everything(redis_url: str) -> None:
    """Eight threads call without end while the main thread forks: no child hangs, no call of the parent fails."""
    run(
        redis_url,
        """
        is_over = threading.Event()

        def call():
            calls = 0
            while not is_over.is_set():
                calls += len(queue.enqueue("from the parent").wait(20).content) > 0
            return calls

        with ThreadPoolExecutor(8) as pool:
            calling = [pool.submit(call) for _ in range(8)]
            try:
                for _ in range(10):
                    ended_well(forked(lambda: queue.enqueue("from the child").wait(20)))
            finally:
                is_over.set()
            assert all(each.result() for each in calling)
        """,
    )


@pytest.mark.usefixtures("worker")
def test_a_pool_of_forked_processes(redis_url: str) -> None:
    """`multiprocessing`, as prefork workers do it: a queue from before, used in every process, by threads too."""
    printed = run(
        redis_url,
        """
        def ask(number):
            with ThreadPoolExecutor(4) as pool:
                return [*pool.map(lambda n: queue.enqueue(f"{number} {n}").wait(20).content, "abcd")]

        with multiprocessing.get_context("fork").Pool(3) as processes:
            print(processes.map(ask, range(6)) == [[f"{number} {n}" for n in "ABCD"] for number in range(6)])
            processes.close()
            processes.join()
        """,
    )
    assert printed == "True\n"


@pytest.mark.usefixtures("worker")
def test_what_was_begun_before_a_fork_is_the_parents(redis_url: str) -> None:
    """A child that goes on iterating is told so; a queue that was closed before is closed in the child."""
    run(
        redis_url,
        """
        from promptq.producer import QueueUnavailable

        jobs = queue.enqueue_many([{"prompt": "late", "delay": delay} for delay in (0.1, 0.5)])
        iterating = queue.as_completed([job.id for job in jobs])
        next(iterating)

        def refused(call, word):
            try:
                call()
            except QueueUnavailable as error:
                assert word in str(error), error
            else:
                raise AssertionError("not refused")

        ended_well(forked(lambda: refused(lambda: next(iterating), "forked")))
        assert next(iterating).content == "LATE"
        queue.close()
        ended_well(forked(lambda: refused(lambda: queue.stats(), "closed")))
        """,
    )
