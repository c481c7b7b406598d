"""Whoever starts workers may be killed: they must not live on, holding a key and taking strangers' jobs."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

from faults.fleet import Fleet, is_worker, pid_of
from promptq.producer import JobStatus, PromptQueue
from promptq.worker.simulator.process import running_simulator
from waiting import wait_until


async def test_workers_drain_when_their_supervisor_is_killed(fleet: Fleet, queue: PromptQueue) -> None:
    """SIGKILL of `--processes 2`: its children let their calls finish, and end."""
    supervisor = await fleet.launch("--processes", "2", promptq_echo_latency=0.5).ready(2)
    handle = await queue.enqueue("q", model="m")
    pids = [pid_of(name) for name in supervisor.names]
    supervisor.kill()
    try:
        await wait_until(lambda: not any(map(is_worker, pids)), timeout=60)
    except AssertionError:
        raise AssertionError(f"{list(filter(is_worker, pids))} of {pids} go on; they said:\n{supervisor.log}") from None
    result = await queue.result(handle.id)
    if result is None:
        await queue.cancel(handle.id)
    else:
        assert result.status is JobStatus.SUCCEEDED


async def test_a_demo_that_is_ended_leaves_no_worker(tmp_path: Path) -> None:
    """However it ends: the workers that it started are gone."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"What is {count}?\n" for count in range(2000)))
    async with asyncio.TaskGroup() as demos:
        for how in (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
            demos.create_task(_end_a_demo(prompts, how))


async def _end_a_demo(prompts: Path, how: signal.Signals) -> None:
    script = "from promptq.worker.cli import main; main()"
    demo = subprocess.Popen(
        [sys.executable, "-c", script, "demo", str(prompts)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        await wait_until(lambda: len(_children(demo.pid)) == 2, 30, message=f"no {how.name} yet", interval=0.1)
        workers = _children(demo.pid)
        demo.send_signal(how)
        await wait_until(lambda: demo.poll() is not None, timeout=30, message=f"the demo ends by {how.name}")
        await wait_until(lambda: not any(map(is_worker, workers)), timeout=30, message=f"no worker after {how.name}")
    finally:
        demo.kill()
        demo.wait()


def _children(pid: int) -> list[int]:
    """The worker processes that it has started."""
    listing = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, check=False, text=True
    )
    return [int(line.split()[0]) for line in listing.stdout.splitlines() if "promptq.worker --" in line]


async def test_a_provider_that_cannot_be_reached_costs_nothing(
    redis_url: str, tmp_path: Path, queue: PromptQueue, unused_tcp_port: int
) -> None:
    """Nobody listens where api.x.ai should be: nothing fails, no attempt is spent, and all run when it is back."""
    settings = {
        "promptq_redis_url": redis_url,
        "promptq_provider": "xai",
        "promptq_xai_host": f"127.0.0.1:{unused_tcp_port}",
        "promptq_xai_insecure": 1,
    }
    with Fleet(tmp_path, **settings) as fleet:
        worker = await fleet.start()
        ids = [handle.id for handle in await queue.enqueue_many([f"q{number}" for number in range(20)], max_attempts=1)]
        await wait_until(lambda: len(worker.said("job.throttled")) >= 21, timeout=20, message="it was tried again")
        async with running_simulator(port=unused_tcp_port):
            results = [result async for result in queue.as_completed(ids, timeout=40)]
    assert [result.status for result in results] == [JobStatus.SUCCEEDED] * 20
    assert {len(result.attempts) for result in results} == {1}
