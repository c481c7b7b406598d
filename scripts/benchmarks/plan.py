"""How much of everything is measured: one object, which also stands in the report."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of a run. Times in seconds."""

    rounds: int = 3
    """Of every measure; contenders take turns in each, and medians are reported."""
    max_jobs: int = 100
    drain_jobs: int = 10_000
    calls: int = 5_000
    bulk_jobs: int = 10_000
    single_jobs: int = 2_000
    pickups: int = 100
    slow_pickups: int = 20
    """Of arq with its default poll delay: each takes half a second."""
    scale_workers: int = 16
    scale_slots: int = 20
    scale_latency: float = 2.0
    scale_batches: int = 10
    """How often every slot of the fleet is filled."""
    arq_scale_batches: int = 3
    idle_window: float = 30.0
    idle_settle: float = 12.0
    """From the last job to the window: longer than a lease."""
    million_jobs: int = 1_000_000
    streams: int = 50
    """Streamed answers at once."""
    stream_pace: float = 80.0
    """Tokens a second of each."""
    stream_tokens: int = 1_200
    step_jobs: int = 5_000
    step_batch: int = 50
    """Jobs in one claim and in one settlement: what a worker with a hundred slots asks for."""
    limits_workers: int = 4
    limits_slots: int = 20
    limits_settle: float = 5.0
    """From the first call to the window in which a limit's use is counted, where the limit is configured."""
    limits_learning: float = 20.0
    """The same where 429s have to teach it."""
    limits_window: float = 60.0
    limits_phase: float = 6.0
    """From one change of a limit to the next."""
    limits_singles: int = 300
    limits_crowd: int = 50_000
    limits_low: int = 100_000
    limits_own: int = 10_000
    limits_tries: int = 20
    limits_lossy: int = 2_000
    limits_bigs: int = 5
    job_timeout: float = 3600.0
    arq_poll_delay: float = 0.01

    @property
    def arq(self) -> str:
        """The contender, in words."""
        return arq_polling(self.arq_poll_delay)


def arq_polling(poll_delay: float) -> str:
    """Plain arq, in words: how it polls is what decides."""
    return f"arq, polling every {poll_delay * 1000:g} ms"


FULL = Plan()
QUICK = Plan(
    rounds=1, drain_jobs=300, calls=100, bulk_jobs=300, single_jobs=30, pickups=10, slow_pickups=2, scale_workers=2,
    scale_slots=5, scale_latency=0.3, scale_batches=3, arq_scale_batches=1, idle_window=2.0, idle_settle=1.0,
    million_jobs=1_000, streams=5, stream_tokens=40, step_jobs=200,
    limits_workers=2, limits_settle=1.0, limits_learning=1.0, limits_window=2.0,
    limits_phase=1.5, limits_singles=10, limits_crowd=100, limits_low=100, limits_own=100, limits_tries=1,
    limits_lossy=50, limits_bigs=1,
)  # fmt: skip
