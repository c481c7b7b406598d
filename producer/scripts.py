"""Each Lua script as one typed async function of the same verb: positions in ARGV and replies are known here alone.

A script is sent by its hash and loaded when the server does not know it (a restarted or flushed one), in pipelines too.
Every call may be sent again after a lost reply: the scripts recognise it.
"""

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from promptq.producer import keys
from promptq.producer.models import JobStatus, Limits
from promptq.producer.records import (
    Adoption,
    Arg,
    Claimed,
    ClaimedJob,
    ClaimRequest,
    Enqueued,
    Entry,
    Foreign,
    LaneFull,
    Payer,
    Probed,
    Settlement,
    Telling,
    TenantFull,
    clock,
    routes_of,
)
from promptq.producer.wire import wire_of

_LUA = files("promptq.producer") / "lua"


class Script:
    """The text of one script, and its SHA-1."""

    def __init__(self, verb: str, *parts: str) -> None:
        prefixes = ", ".join(f"{name} = '{prefix}'" for name, prefix in keys.PREFIXES.items())
        texts = ((_LUA / f"{part}.lua").read_text() for part in ("common", *parts, verb))
        self.text = "\n".join((f"local K = {{ {prefixes} }}", *texts))
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


ENQUEUE: Final = Script("enqueue")
CLAIM: Final = Script("claim", "meter")
SETTLE: Final = Script("settle", "meter")
TELL: Final = Script("tell")
RENEW: Final = Script("renew")
CANCEL: Final = Script("cancel")
ADOPT: Final = Script("adopt")
REQUEUE: Final = Script("requeue")
LIMITS: Final = Script("limits", "meter")
PROBED: Final = Script("probed", "meter")


async def enqueue(
    redis: Redis,
    entries: Sequence[Entry],
    *,
    nonce: str,
    max_queued: int,
    wait: tuple[int, int] = (0, 0),
    now: int | None = None,
) -> list[Enqueued] | LaneFull | TenantFull:
    """Accept all entries, or none if a lane is full or a tenant at its cap.

    `wait`: replicas that must have them, within so many ms.

    Raises TimeoutError if fewer replicas had them in time; then the jobs are accepted by the primary alone.
    """
    args: list[Arg] = [clock(now), nonce, max_queued]
    for entry in entries:
        args += entry.args()
    replicas = wait[0]
    if not replicas:
        reply = await _run(redis, ENQUEUE, args)
    else:
        reply, reached = await _run_all(redis, [(ENQUEUE, args)], wait)
        if reached < replicas:
            raise TimeoutError(f"{reached} of {replicas} replicas have it")
    if reply[0] == b"full":
        return LaneFull(reply[1].decode(), int(reply[2]), int(reply[3]))
    if reply[0] == b"capped":
        return TenantFull(reply[1].decode(), int(reply[2]), int(reply[3]))
    words = _words(reply)
    return [Enqueued(words[i], JobStatus(words[i + 1]), words[i + 2]) for i in range(1, len(words), 3)]


async def claim(redis: Redis, request: ClaimRequest, *, now: int | None = None) -> Claimed:
    """Lease jobs; the same request gives the same answer."""
    return _claimed(await _run(redis, CLAIM, request.args(now)))


async def tell(redis: Redis, tellings: Sequence[Telling], *, ttl: int, now: int | None = None) -> list[str]:
    """Append to the streams of running jobs, kept for `ttl` ms; per job told, again (from the beginning) or stale."""
    return _words(await _run(redis, TELL, _tell_args(tellings, ttl, now)))


async def settle(
    redis: Redis,
    settlements: Sequence[Settlement],
    *,
    wake: bool,
    account: str = "",
    payers: tuple[Payer, ...] = (),
    luck: float = 0,
    now: int | None = None,
) -> list[str]:
    """Write outcomes; per outcome done, back, pausing, over, stale, gone or "error: ...".

    `wake`: no claim follows. `account`: who paid for the calls; `payers`: who for those of some models. `luck`, from 0
    to 1: of the jitter of a pause.
    """
    head = _settle_head(wake, account, payers, luck, now)
    return _words(await _run(redis, SETTLE, _settle_args(head, settlements)))


async def settle_and_claim(
    redis: Redis, settlements: Sequence[Settlement], request: ClaimRequest, *, luck: float = 0, now: int | None = None
) -> tuple[list[str], Claimed]:
    """Both in one round trip."""
    head = _settle_head(False, request.account, request.payers, luck, now)
    calls = [(SETTLE, _settle_args(head, settlements)), (CLAIM, request.args(now))]
    settled, claimed = await _run_all(redis, calls)
    return _words(settled), _claimed(claimed)


async def renew(
    redis: Redis, runs: Sequence[tuple[str, str, str]], *, lease: int, result_ttl: int, now: int | None = None
) -> list[str]:
    """Renew the leases of (id, token, epoch); per run ours, cancel, taken or over."""
    args: list[Arg] = [clock(now), lease, result_ttl]
    for run in runs:
        args += run
    return _words(await _run(redis, RENEW, args))


async def cancel(redis: Redis, ids: Sequence[str], *, ttl: int, now: int | None = None) -> list[str]:
    """Cancel jobs; per id unknown, over, cancelled or cancelling."""
    return _words(await _run(redis, CANCEL, [clock(now), ttl, *ids]))


async def adopt(redis: Redis, adoption: Adoption, *, failure_ttl: int, now: int | None = None) -> str:
    """Give a plain arq client's job a ledger: adopted, refused, or known if it has one."""
    entry = adoption.entry
    args = [clock(now), *adoption.args(), failure_ttl, entry.group, entry.estimate, entry.conversation]
    return str((await _run(redis, ADOPT, args)).decode())


async def requeue(redis: Redis, ids: Sequence[str], *, nonce: str, now: int | None = None) -> list[str]:
    """Run failed jobs again; per id requeued, open, over (it ended otherwise), unknown, or gone if its payload is."""
    return _words(await _run(redis, REQUEUE, [clock(now), nonce, *ids]))


async def set_limits(
    redis: Redis, model: str, limits: Limits, *, only_if_none: bool = False, now: int | None = None
) -> bool:
    """Limit a model for the whole fleet; whether that was done."""
    amounts = ("" if limit is None else limit for limit in (limits.rpm, limits.tpm, limits.in_flight))
    verb = "fill" if only_if_none else "set"
    return bool(await _run(redis, LIMITS, [clock(now), verb, model, *amounts]) == b"set")


async def pause(redis: Redis, model: str, *, now: int | None = None) -> None:
    """Claim no job of a model until it is resumed."""
    await _run(redis, LIMITS, [clock(now), "pause", model])


async def resume(redis: Redis, model: str, *, now: int | None = None) -> None:
    """End the pause of a model, an operator's or the provider's."""
    await _run(redis, LIMITS, [clock(now), "resume", model])


async def set_tenant(redis: Redis, tenant: str, *, weight: int | None, max_queued: int | None) -> None:
    """Give a tenant its share of a band and its cap; None: the ordinary one, and none."""
    async with redis.pipeline(transaction=True) as pipe:
        for name, value in (("weight", weight), ("max_queued", max_queued)):
            if value is None:
                pipe.hdel(keys.TENANTS, f"{tenant}:{name}")
            else:
                pipe.hset(keys.TENANTS, f"{tenant}:{name}", str(value))
        await pipe.execute()


async def probed(redis: Redis, account: str, said: Probed, *, luck: float = 0, now: int | None = None) -> str:
    """Tell what a worker found out about a paused account; then it is open (one job goes first), paused or none."""
    return str((await _run(redis, PROBED, [clock(now), account, said, luck])).decode())


async def discard(redis: Redis, foreign: Foreign) -> None:
    """Take a member out whose id no client could ask for."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.zrem(keys.lane(foreign.lane), foreign.id)
        pipe.delete(keys.payload("").encode() + foreign.id)
        await pipe.execute()


def _tell_args(tellings: Sequence[Telling], ttl: int, now: int | None) -> list[Arg]:
    args: list[Arg] = [clock(now), ttl]
    for telling in tellings:
        args += telling.args()
    return args


def _settle_head(wake: bool, account: str, payers: tuple[Payer, ...], luck: float, now: int | None) -> tuple[Arg, ...]:
    return clock(now), int(wake), account, luck, routes_of(payers)


def _settle_args(head: Sequence[Arg], settlements: Sequence[Settlement]) -> list[Arg]:
    args = [*head]
    for settlement in settlements:
        args += settlement.args()
    return args


def _words(reply: Sequence[bytes]) -> list[str]:
    return [_text(word) for word in reply]


def _claimed(reply: Sequence[Any]) -> Claimed:
    (now, has_more, due_in, to_probe), lanes, jobs, foreign = reply
    return Claimed(
        now=int(now),
        has_more=has_more == b"1",
        due_in=None if int(due_in) < 0 else int(due_in),
        to_probe=_text(to_probe),
        lanes=tuple(map(_text, lanes)),
        jobs=tuple(_claimed_job(job) for job in jobs),
        foreign=tuple(Foreign(job_id, _text(lane), payload) for job_id, lane, payload in foreign),
    )


def _text(name: bytes) -> str:
    """Ids, lanes and errors are UTF-8; what somebody else put there must not end a worker."""
    return name.decode(errors="replace")


def _claimed_job(reply: Sequence[bytes]) -> ClaimedJob:
    job_id, epoch, lane, model, spent, deadline, enqueued, stalls, timeouts, payload = reply
    return ClaimedJob(
        _text(job_id), _text(epoch), _text(lane), _text(model), int(spent),
        int(deadline) if deadline else None, int(enqueued), int(stalls), int(timeouts), payload,
    )  # fmt: skip


async def _run(redis: Redis, script: Script, args: Sequence[Arg]) -> Any:
    [reply] = await _run_all(redis, [(script, args)])
    return reply


async def _run_all(
    redis: Redis, calls: Sequence[tuple[Script, Sequence[Arg]]], wait: tuple[int, int] | None = None
) -> list[Any]:
    """Scripts in one round trip, in their order; `wait` adds Redis' WAIT behind them. Raises the first error of any."""
    commands: list[Sequence[Arg]] = [("EVALSHA", script.sha, 0, *args) for script, args in calls]
    if wait:
        commands.append(("WAIT", *wait))
    wire = wire_of(redis)
    replies = await wire.call(commands)
    if any(isinstance(reply, NoScriptError) for reply in replies):
        await wire.call([("SCRIPT LOAD", script.text) for script, _ in calls])
        replies = await wire.call(commands)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies
