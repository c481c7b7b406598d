"""Every Redis key of promptq, one function each: its type, who writes it and how long it lives.

Used by the producer, the worker and (as the table `PREFIXES`) by every Lua script; no key literal stands anywhere else.
Keys named `arq:*` keep arq's meaning, so that arq's own `Job` class can read them.
"""

from datetime import date
from typing import Final
from urllib.parse import quote

LANES: Final = "promptq:lanes"
"""ZSET lane -> ms it was last served. Writer: enqueue, adopt, claim, requeue. A lane leaves when it is empty."""

DEADLINES: Final = "promptq:deadlines"
"""ZSET job id -> deadline in ms. Writer: enqueue, adopt, requeue. A job leaves when it ends."""

FAILED: Final = "promptq:failed"
"""ZSET job id -> ms until which its result is kept. Writer: whatever ends a job as failed; requeue.

TTL: the longest of them.
"""

ABORT: Final = "arq:abort"
"""ZSET job id -> ms, arq's own list of aborts. Writer: `arq.jobs.Job.abort`. Emptied by claim and renew."""

WORKERS: Final = "promptq:workers"
"""ZSET worker -> ms of its last claim or renewal. Writer: claim, renew. Who stops leaves. TTL: ten minutes."""

LIMITS: Final = "promptq:limits"
"""HASH "model:rpm", "model:tpm", "model:in_flight" -> number; "model:paused" -> 1. Writer: limits. Permanent."""

TENANTS: Final = "promptq:tenants"
"""HASH "tenant:weight", "tenant:max_queued" -> number. Writer: set_tenant. Permanent."""

ACCOUNTS: Final = "promptq:accounts"
"""ZSET account -> ms until which it is paused. Writer: settle, claim, probed. TTL: two minutes."""

WAKE: Final = "promptq:wake"
"""ZSET with one member while a lane is new to the fleet. Writer: enqueue, adopt, claim, requeue. TTL: a minute."""

INTAKE: Final = "promptq"
"""The lane into which plain arq clients enqueue (`arq:queue:promptq`)."""


def payload(job_id: str) -> str:
    """STRING, JSON in arq's wire shape. Writer: enqueue. Gone when the job ends; a failed one has its result's TTL."""
    return f"arq:job:{job_id}"


def result(job_id: str) -> str:
    """STRING, JSON in arq's wire shape. Writer: whatever ends a job; requeue deletes it. TTL: result or failure TTL."""
    return f"arq:result:{job_id}"


def in_progress(job_id: str) -> str:
    """STRING, the holder's token. Writer: claim, renew. TTL: the lease."""
    return f"arq:in-progress:{job_id}"


def lane(model: str) -> str:
    """ZSET job id -> score (see architecture.md, "Scores"). Writer: every script. Gone when empty."""
    return f"arq:queue:{model}"


def ledger(job_id: str) -> str:
    """HASH, the truth about one job. Writer: every script. Gets the TTL of the result when the job ends."""
    return f"promptq:job:{job_id}"


def running(model: str) -> str:
    """ZSET job id -> end of its lease in ms; its size is the calls in flight. Writer: claim, renew. Gone when empty."""
    return f"promptq:running:{model}"


def fair(model: str, band: int) -> str:
    """ZSET tenant -> finish of its last turn, "" -> the clock, " " -> the last newcomer. Goes with the lane."""
    return f"promptq:fair:{model}:{band}"


def meter(model: str) -> str:
    """HASH, the use of a model's limits, what jobs take, and its pause. Writer: claim, settle, limits. TTL: a day."""
    return f"promptq:meter:{model}"


def account(name: str) -> str:
    """HASH, why and until when an account is not claimed for. Writer: settle, claim, probed. TTL: two minutes."""
    return f"promptq:account:{name}"


def waiting(model: str) -> str:
    """HASH "band:tenant" -> jobs that are queued or delayed. Writer: every script. Goes with the lane."""
    return f"promptq:waiting:{model}"


def wake(name: str) -> str:
    """ZSET with a member while a lane, or one worker, has something to do. Writer: most scripts. TTL: a minute."""
    return f"promptq:wake:{name}"


def worker(name: str) -> str:
    """HASH, the last claim of one worker process. Writer: claim. TTL: ten minutes."""
    return f"promptq:worker:{name}"


def group(name: str) -> str:
    """HASH of counters: jobs, ended, requeued, one for each state. Writer: every script. TTL once all have ended."""
    return f"promptq:group:{name}"


def members(name: str) -> str:
    """ZSET job id -> 0, or its place among the ended jobs of the group. Writer and TTL as the group's."""
    return f"promptq:members:{name}"


def conversation(tenant: str, name: str) -> str:
    """ZSET job id -> its place among those that have not ended. Writer: every script. Gone when empty."""
    return f"promptq:conversation:{conversation_of(tenant, name)}"


def conversation_of(tenant: str, name: str) -> str:
    """What tells a conversation from all others: also of tenants that use the same name."""
    return f"{quote(tenant, safe='')}:{name}"


def events(job_id: str) -> str:
    """STREAM, an answer while it is written (architecture.md, "Streams"). Writer: tell. TTL: `PROMPTQ_EVENTS_TTL`."""
    return f"promptq:events:{job_id}"


def usage(day: date) -> str:
    """HASH "model:counter" -> tokens or ticks used that day (UTC). Writer: settle. TTL: 90 days."""
    return f"promptq:usage:{day.toordinal() - date(1970, 1, 1).toordinal()}"


def done(job_id: str) -> str:
    """CHANNEL that hears the final status of a job. Writer: whatever ends a job."""
    return f"promptq:done:{job_id}"


def told(job_id: str) -> str:
    """CHANNEL that hears whenever the job's stream has grown."""
    return f"promptq:told:{job_id}"


def group_done(name: str) -> str:
    """CHANNEL that hears whenever a job of the group ends."""
    return f"promptq:group-done:{name}"


PREFIXES: Final = {
    "lanes": LANES,
    "deadlines": DEADLINES,
    "failed": FAILED,
    "abort": ABORT,
    "workers": WORKERS,
    "limits": LIMITS,
    "tenants": TENANTS,
    "accounts": ACCOUNTS,
    "wake_new": WAKE,
    "intake": INTAKE,
    "payload": payload(""),
    "result": result(""),
    "in_progress": in_progress(""),
    "lane": lane(""),
    "ledger": ledger(""),
    "running": running(""),
    "fair": "promptq:fair:",
    "meter": meter(""),
    "account": account(""),
    "waiting": waiting(""),
    "wake": wake(""),
    "worker": worker(""),
    "conversation": "promptq:conversation:",
    "events": events(""),
    "told": told(""),
    "usage": "promptq:usage:",
    "done": done(""),
    "group": group(""),
    "members": members(""),
    "group_done": group_done(""),
}
"""What the Lua scripts build their keys from, under the same names."""


PERMANENT: Final = frozenset({LIMITS.encode(), TENANTS.encode()})
"""Keys that may stand without TTL when every job has ended."""


def is_permanent(key: bytes) -> bool:
    """Whether a key outlives the jobs."""
    return key in PERMANENT
