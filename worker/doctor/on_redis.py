"""The checks of Redis. Each asks for what it needs; a user who may not ask gets "could not be checked"."""

import asyncio
import re
import time
import uuid
from functools import partial
from socket import getaddrinfo
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from promptq.producer import keys
from promptq.producer.connection import public_url, try_until
from promptq.producer.errors import QueueUnavailable
from promptq.producer.reading import read_stats
from promptq.worker.doctor.findings import Check, Finding, in_a_thread, ok, problem, warning
from promptq.worker.pauses import BY_AN_OPERATOR, read_pauses
from promptq.worker.settings import Settings

OLDEST = (6, 2)
MOST_SKEW = 2.0
"""Seconds between this machine's clock and Redis'."""
FULL = 0.8

_ACL_ADVICE = "give the user ~arq:* ~promptq:* &promptq:* +@all -@dangerous"
_TRY = """
local refused = {}
local function try(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then refused[#refused + 1] = select(1, ...) .. ': ' .. reply.err end
end
for i = 1, 2 do
  try('ZADD', ARGV[i], 0, '1')
  try('PEXPIRE', ARGV[i], 1000)
  try('DEL', ARGV[i])
end
return refused
"""
"""Writes what the queue writes, and takes it away."""


def checks(redis: Redis, settings: Settings) -> dict[str, Check]:
    """What can be asked of, or tried on, a Redis that answers."""
    return {
        "Redis version": lambda: server_version(redis),
        "Redis kind": lambda: kind(redis),
        "eviction": lambda: eviction(redis),
        "memory": lambda: memory(redis),
        "persistence": lambda: persistence(redis),
        "replicas": lambda: replicas(redis, settings),
        "clock": lambda: clock(redis),
        "workers": lambda: workers(redis),
        "pauses": lambda: pauses(redis),
        "permissions": lambda: permissions(redis),
        "channels": lambda: channels(redis),
    }


async def reachable(redis: Redis, settings: Settings, limit: float) -> Finding:
    """Whether it answers; for `limit` seconds at most."""
    url = settings.redis_url.get_secret_value()
    where, advice = public_url(url), "start Redis, or set PROMPTQ_REDIS_URL to where it is"
    # By ourselves: a lookup inside redis-py that hangs would hold up our end.
    lookups = [in_a_thread(partial(getaddrinfo, host, None)) for host in _hosts(url)]
    failures = [said for said in await asyncio.gather(*lookups, return_exceptions=True) if isinstance(said, OSError)]
    if failures and len(failures) == len(lookups):
        return problem(f"no address for the host of {where}: {failures[0].strerror}", advice)
    try:
        await try_until(limit / 2, redis.ping, where)
    except QueueUnavailable as error:
        said = str(error).removesuffix("; is it running?")
        return problem(said, "set its user and password in PROMPTQ_REDIS_URL" if "the login" in said else advice)
    began = time.perf_counter()
    await redis.ping()
    return ok(f"{where} answers in {(time.perf_counter() - began) * 1000:.1f} ms")


def _hosts(url: str) -> list[str]:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return []
    places = parts.netloc.rpartition("@")[2].split(",")
    return [urlsplit(f"//{place}").hostname or "localhost" for place in places]


async def _hello(redis: Redis) -> dict[str, Any]:
    """`server`, `version`, `mode` and `role`; also for users who may not run INFO."""
    try:
        reply = await redis.execute_command("HELLO")  # type: ignore[no-untyped-call] # redis-py's own
    except NoPermissionError:
        raise
    except ResponseError:  # older than 6.2, or hidden
        info = await redis.info()
        return {"server": "redis", "version": info["redis_version"], "mode": info["redis_mode"], "role": info["role"]}
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


async def server_version(redis: Redis) -> Finding:
    """Scripts and commands that the queue uses came with Redis 6.2; every Valkey has them."""
    said = await _hello(redis)
    name = f"{said['server'].capitalize()} {said['version']}"
    numbers = tuple(int(number) for number in re.findall(r"\d+", said["version"])[:2])
    if numbers < OLDEST:
        return problem(name, "promptq needs Redis 6.2 or later, or Valkey")
    return ok(name)


async def kind(redis: Redis) -> Finding:
    """One primary, neither a cluster nor a sentinel nor a replica."""
    said = await _hello(redis)
    if said["mode"] == "cluster":
        return problem("a node of a Redis Cluster", "use one without cluster mode: scripts touch keys of many slots")
    if said["mode"] == "sentinel":
        return problem(
            "a sentinel, not the Redis itself", "set PROMPTQ_REDIS_URL=redis+sentinel://host:port/service/db"
        )
    if said["role"] != "master":
        return problem("a replica, which takes no writes", "set PROMPTQ_REDIS_URL to the primary, or to its sentinels")
    return ok("one primary, no cluster")


async def eviction(redis: Redis) -> Finding:
    """Whether Redis may throw jobs away when it is full."""
    info = await redis.info("memory")
    policy = info.get("maxmemory_policy") or (await redis.config_get("maxmemory-policy"))["maxmemory-policy"]
    if policy == "noeviction":
        return ok("noeviction")
    advice = "set maxmemory-policy noeviction in its configuration (CONFIG SET maxmemory-policy noeviction)"
    if not info.get("maxmemory"):
        return warning(f"{policy}, which would throw jobs away as soon as maxmemory is set", advice)
    return problem(f"{policy}: when its memory is full it throws jobs and results away", advice)


async def memory(redis: Redis) -> Finding:
    """Room for more jobs: under `maxmemory`, or on a machine without it."""
    info = await redis.info("memory")
    used, most, machine = info["used_memory"], info.get("maxmemory", 0), info.get("total_system_memory", 0)
    of = most or machine
    if not of:
        return ok(f"{_mib(used)} used, no maxmemory")
    said = (
        f"{_mib(used)} used ({used / of:.0%}), {'maxmemory is' if most else 'no maxmemory; the machine has'} {_mib(of)}"
    )
    if used >= most > 0:
        return problem(f"full: {said}; nothing can be enqueued", "raise maxmemory, or let results expire sooner")
    if used > FULL * of:
        return warning(said, "raise maxmemory, or lower PROMPTQ_RESULT_TTL and PROMPTQ_MAX_QUEUED")
    return ok(said)


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


async def persistence(redis: Redis) -> Finding:
    """What is left of accepted jobs when Redis, or its machine, goes down."""
    info = await redis.info("persistence")
    advice = "set appendonly yes and appendfsync everysec in its configuration"
    if not info.get("aof_enabled"):
        count = (await redis.info("replication")).get("connected_slaves", 0)
        if count:
            return warning(f"no append-only file; a restart of the primary empties its replicas ({count})", advice)
        return problem("no append-only file: a restart of Redis loses accepted jobs", advice)
    if info.get("aof_last_write_status", "ok") != "ok":
        return problem("the last write to the append-only file failed", "see its disk: Redis refuses writes until then")
    try:
        fsync = (await redis.config_get("appendfsync")).get("appendfsync", "?")
    except ResponseError:  # not permitted, or hidden
        return ok("append-only file on; how often it is synced may not be asked")
    if fsync == "no":
        return warning("append-only file on, appendfsync no: a crash of its machine may lose half a minute", advice)
    return ok(f"append-only file on, appendfsync {fsync}")


async def replicas(redis: Redis, settings: Settings) -> Finding:
    """As many as an enqueue waits for."""
    wanted = settings.enqueue_replicas
    if not wanted:
        return ok("none needed (PROMPTQ_ENQUEUE_REPLICAS is 0)")
    count = (await redis.info("replication")).get("connected_slaves", 0)
    if count < wanted:
        return problem(
            f"{count} connected, and every enqueue waits for {wanted}",
            "add replicas, or lower PROMPTQ_ENQUEUE_REPLICAS",
        )
    return ok(f"{count} connected, {wanted} needed")


async def clock(redis: Redis) -> Finding:
    """Deadlines that are given as a date count by this machine's clock, all else by Redis'."""
    began = time.time()
    seconds, micros = await redis.time()
    skew = (began + time.time()) / 2 - (seconds + micros / 1_000_000)
    if abs(skew) <= MOST_SKEW:
        return ok(f"this machine and Redis are within {max(0.1, abs(skew)):.1f} s")
    said = f"this machine is {abs(skew):,.1f} s {'ahead of' if skew > 0 else 'behind'} Redis"
    return warning(said, "set both by NTP: deadlines given as a date are off by that much")


async def permissions(redis: Redis) -> Finding:
    """Scripts, and the keys that they write; tried on keys that nobody else uses."""
    name = f"doctor-{uuid.uuid4().hex}"
    try:
        sha = await redis.script_load(_TRY)
        refused = await redis.evalsha(sha, 0, keys.wake(name), keys.in_progress(name))  # type: ignore[misc]
        await redis.bzpopmin(keys.wake(name), timeout=0.01)
    except ResponseError as error:
        return _refusal(str(error))
    return _refusal(_text(refused[0])) if refused else ok("scripts run, and write their keys")


def _refusal(said: str) -> Finding:
    is_for_want_of_rights = "permission" in said or "ACL" in said
    advice = _ACL_ADVICE if is_for_want_of_rights else "see what else is said of Redis here"
    return problem(f"refused: {said}", advice)


async def channels(redis: Redis) -> Finding:
    """Publish and subscribe; without them a waiting reader looks only every ten seconds."""
    channel = keys.done(f"doctor-{uuid.uuid4().hex}")
    pubsub = redis.pubsub()
    try:
        await redis.publish(channel, "")
        await pubsub.subscribe(channel)
        await pubsub.get_message(timeout=1)
    except NoPermissionError as error:
        return warning(f"refused: {error!s}; readers look every ten seconds instead", _ACL_ADVICE)
    finally:
        await pubsub.aclose()  # type: ignore[no-untyped-call] # redis-py's own
    return ok("publish and subscribe work")


async def workers(redis: Redis) -> Finding:
    """How many worker processes there are, and what waits for them."""
    stats = await read_stats(redis)
    waiting = sum(lane.queued for lane in stats.lanes)
    said = f"{stats.workers or 'no'} worker process{'' if stats.workers == 1 else 'es'}, {waiting:,} jobs waiting"
    if not stats.workers:
        return warning(said, "start one: promptq worker")
    return ok(said)


async def pauses(redis: Redis) -> Finding:
    """Whether the fleet holds a model back, and why."""
    lanes = [lane.decode(errors="replace") for lane in await redis.zrange(keys.LANES, 0, -1)]
    paused = await read_pauses(redis, lanes)
    if not paused:
        return ok("no model and no account is paused")
    said = "paused: " + ", ".join(map(str, paused))
    if any(pause.is_of_the_account for pause in paused):
        return problem(said, "give the workers a good key with credit: console.x.ai")
    if held := next((pause.what for pause in paused if pause.reason == BY_AN_OPERATOR), None):
        return warning(said, f"when it may go on: promptq resume {held}")
    return warning(said, "wait: it ends by itself when the provider answers again")
