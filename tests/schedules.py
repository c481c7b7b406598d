"""Random schedules over the scripts: hypothesis says what happens next, and makes a failing schedule short.

What happens stands in fleet.py, what must be true of it in books.py.
"""

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from fleet import A_LOT, ENDINGS, LANES, SLOTS, WORKERS, Fleet
from promptq.producer import keys

STEPS: Final = 60
SEED: Final = 5
"""One of those with which every broken rule is found in few schedules."""
THE_LAST: Final = "the last message"

workers = st.integers(0, WORKERS - 1)
jobs = st.integers(0, 99)
tenants = st.sampled_from("xy")
wishes = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "lane": st.sampled_from(LANES),
            "band": st.sampled_from([0, 1, 2]),
            "tenant": tenants,
            "delay": st.sampled_from([0, 0, 0, 100, 5000]),
            "deadline": st.sampled_from(["", "", "", "+1000", "+30000"]),
            "group": st.sampled_from(["one", "two"]),
            "conversation": st.sampled_from(["", "", "talk"]),
            "estimate": st.sampled_from(["100/100", "20000/0"]),
            "payload": st.sampled_from([b"p", b"p" * 900]),
        },
    ),
    min_size=1,
    max_size=5,
)
COMMON: Final = [
    "succeeded",
    "succeeded",
    "succeeded",
    "retry",
    "retry",
    "released",
    "unstarted",
    "failed",
    "throttled",
]
common_endings = st.lists(st.sampled_from(COMMON), max_size=SLOTS)
all_endings = st.lists(st.sampled_from([*COMMON, "failed", "failed", *sorted(ENDINGS)]), max_size=SLOTS)
limits = st.fixed_dictionaries(
    {},
    optional={"rpm": st.sampled_from([120, 600]), "tpm": st.just(60_000), "in_flight": st.sampled_from([1, 3])},
)
models = st.sampled_from(LANES)
troubles = st.sampled_from(["", "", "", "unsent", "unheard"])
times = st.sampled_from([1, 300, 1000, 3000, 12_000])


def step(happening: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a step of a schedule of something that a fleet can do."""

    @functools.wraps(happening)
    def carry_out(schedule: "Schedule", **choices: Any) -> None:
        schedule.carry_out(happening(schedule.fleet, **choices))

    return carry_out


class Schedule(RuleBasedStateMachine):
    """One life of a queue, on a Redis that holds nothing else. Fails on complaints that begin with `about`."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], redis: Any, about: str) -> None:
        super().__init__()
        self.run = run
        self.redis = redis
        self.about = about
        self.listener = redis.pubsub()
        run(self._begin())
        self.fleet = Fleet(redis)

    begin = initialize(wishes=wishes)(step(Fleet.enqueue))
    enqueue = rule(wishes=wishes)(step(Fleet.enqueue))
    enqueue_again = rule()(step(Fleet.enqueue_again))
    plain_enqueue = rule()(step(Fleet.plain_enqueue))
    cancel = rule(job=jobs)(step(Fleet.cancel))
    plain_abort = rule(job=jobs)(step(Fleet.plain_abort))
    list_abort = rule()(step(Fleet.list_abort))
    claim = rule(worker=workers, endings=common_endings, max_bytes=st.sampled_from([A_LOT, 1000]))(step(Fleet.claim))
    claim_in_vain = rule(
        worker=workers, endings=common_endings, trouble=st.sampled_from(["unsent", "half", "unheard"])
    )(step(Fleet.claim_in_vain))
    settle = rule(worker=workers, endings=common_endings, trouble=troubles)(step(Fleet.settle))
    renew = rule(worker=workers, trouble=troubles)(step(Fleet.renew))
    step_clock = rule(milliseconds=times)(step(Fleet.step_clock))
    freeze = rule(worker=workers)(step(Fleet.freeze))
    kill = rule(worker=workers)(step(Fleet.kill))

    def teardown(self) -> None:
        """Everything comes to its end, unless the schedule has failed before."""
        if not self._complaints:
            self.carry_out(self._end())

    def carry_out(self, happening: Coroutine[Any, Any, None]) -> None:
        """Do something; fails if something is wrong then."""
        self.run(happening)
        assert not self._complaints, self._complaints

    @property
    def _complaints(self) -> list[str]:
        return [each for each in self.fleet.books.complaints if each.startswith(self.about)]

    async def _begin(self) -> None:
        await self.redis.flushall()
        await self.listener.psubscribe(keys.done("*"))

    async def _end(self) -> None:
        await self.fleet.come_to_rest()
        await self.redis.publish(keys.done(THE_LAST), "")
        heard: Counter[str] = Counter()
        while THE_LAST not in heard:
            message = await self.listener.get_message(timeout=5)
            if message["type"] == "pmessage":
                heard[message["channel"].decode().removeprefix(keys.done(""))] += 1
        await self.listener.aclose()
        await self.fleet.books.close(heard)


class OperatedSchedule(Schedule):
    """Beside that, operators set limits and shares, hold models and requeue jobs, and the provider refuses calls."""

    claim = rule(worker=workers, endings=all_endings, max_bytes=st.just(A_LOT))(step(Fleet.claim))
    settle = rule(worker=workers, endings=all_endings, trouble=troubles)(step(Fleet.settle))
    requeue = rule(job=jobs, is_sent_again=st.booleans())(step(Fleet.requeue))
    set_limits = rule(model=models, limits=limits)(step(Fleet.set_limits))
    hold = rule(model=models, is_held=st.sampled_from([False, False, True]))(step(Fleet.hold))
    set_tenant = rule(tenant=tenants, weight=st.sampled_from([None, 3]), max_queued=st.sampled_from([None, 3]))(
        step(Fleet.set_tenant)
    )
    look_at_account = rule(said=st.sampled_from(["works", "works", "refused"]))(step(Fleet.look_at_account))
    break_down = rule()(step(Fleet.break_down))


def live(
    machine: type[Schedule], connect: Callable[[], Any], examples: int, *, about: str = "", shrinks: bool = True
) -> None:
    """Run so many schedules, the same each time, on the Redis of `connect`; fails with the steps of a short one.

    `about`: how the complaints begin that count.
    """
    with asyncio.Runner() as runner:
        client = connect()

        @seed(SEED)
        def begin() -> Schedule:
            return machine(runner.run, client, about)

        try:
            # It is typed for classes, and takes whatever makes a machine.
            run_state_machine_as_test(begin, settings=_settings(examples, shrinks))  # type: ignore[arg-type]
        finally:
            runner.run(client.aclose())


def _settings(examples: int, shrinks: bool) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink] if shrinks else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
