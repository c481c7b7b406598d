"""Random schedules over all scripts; and that they notice it when a rule of the contract is broken."""

import copy
import hashlib
from functools import partial

import fakeredis
import pytest
import redis.asyncio

from promptq.producer import scripts
from schedules import OperatedSchedule, Schedule, live

VERBS = ("ENQUEUE", "CLAIM", "SETTLE", "RENEW", "CANCEL", "ADOPT", "REQUEUE", "LIMITS", "PROBED")


machines = pytest.mark.parametrize("machine", [Schedule, OperatedSchedule])


@pytest.mark.timeout(600)  # a failing schedule is made short first
@machines
def test_random_schedules_on_the_fake(fake_server: fakeredis.FakeServer, machine: type[Schedule]) -> None:
    """Nothing is lost, ends twice or is held twice; books, turns, bands and limits are kept; nothing stays for ever."""
    live(machine, partial(fakeredis.FakeAsyncRedis, server=fake_server), examples=4)


@pytest.mark.timeout(600)
@machines
def test_random_schedules_on_the_real(redis_url: str, machine: type[Schedule]) -> None:
    """The same on a real server."""
    live(machine, partial(redis.asyncio.Redis.from_url, redis_url), examples=20)


RULES = {
    "only the holder gives back or fails": (
        "local holder = ledger.state == 'running' and ledger.token == token",
        "local holder = ledger.state == 'running'",
        "fence",
    ),
    "books once an attempt": (
        "redis.call('HSETNX', K.ledger .. id, 'attempt:' .. token, attempt) == 0",
        "redis.call('HSET', K.ledger .. id, 'attempt:' .. token, attempt) < 0",
        "usage",
    ),
    "a conversation is one job at a time": ("head_of(ledger.conversation, id) ~= id", "false", "conversation"),
    "the same claim, the same answer": ("if last[1] == seq then", "if false then", "leased and not handed over"),
    "the ledger goes before the score": (
        "if ledger.state ~= 'queued' then redis.call('ZADD', K.lane .. lane, score_of(ledger), id) return false end",
        "",
        "two live leases",
    ),
    "a job keeps its turn": ("ledger.turn = ledger.turn or take_turn(", "ledger.turn = take_turn(", "out of turn"),
    "bands in their order": ("for band = 0, 2 do serve_band", "for band = 2, 0, -1 do serve_band", "band"),
    "a call is known by its nonce": ("if call[1] == mark then", "if false then", "own job reported as"),
    "a late success is taken": (
        "kind == 'succeeded' and epoch == ledger.epoch or holder and FINAL[kind]",
        "holder and FINAL[kind]",
        "a paid answer was refused",
    ),
    "the first result wins": ("if FINAL[ledger.state] then return 'over' end", "", "a second result over the first"),
    "a renewal takes nothing from others": (
        "if ledger.state == 'running' and ledger.token ~= token then return 'taken' end",
        "",
        "two live leases",
    ),
    "stalls are counted": ("(ledger.stalls or 0) + 1", "(ledger.stalls or 0) + 0", "started"),
    "groups are counted": (
        "if ledger.state then redis.call('HINCRBY', K.group .. ledger.group, ledger.state, -1) end",
        "",
        "group",
    ),
    "readers are told": ("redis.pcall('PUBLISH', K.done .. id, state)", "", "ended 0 times"),
    "what has ended does not stay": ("redis.call('PEXPIRE', K.ledger .. id, ttl)", "", "left for ever"),
}

ATTEMPTS_GONE = """for _, name in ipairs(redis.call('HKEYS', K.ledger .. id)) do
    if string.find(name, 'attempt:', 1, true) then redis.call('HDEL', K.ledger .. id, name) end
end"""
RULES_FOR_OPERATORS = {
    "requests are charged": ("charge_requests(now, meter, 1)", "", "over the limit: requests"),
    "tokens are limited": (
        "local owed = tpm and used_until(now, meter.tokens, BURST) - now or 0",
        "local owed = 0",
        "over the limit: tokens",
    ),
    "what was really used is charged": (
        "if used > charged or is_young then charge_tokens(now, meter, used - charged) end",
        "",
        "over the limit: tokens",
    ),
    "calls in flight are limited": (
        "room = math.min(room, meter.in_flight - redis.call('ZCARD', K.running .. meter.model))",
        "",
        "over the limit: calls in flight",
    ),
    "a paused model is not claimed": ("if wait > 0 then return 0, wait end", "", "started under a pause"),
    "nor is one that an operator holds": ("if meter.paused then return 0 end", "", "started under a pause"),
    "nor is a paused account": (
        "rooms[account] = account_room(account)",
        "rooms[account] = account_room(account) and math.huge",
        "started under a pause of the account",
    ),
    "what waits is counted": (
        "if WAITS[state] ~= WAITS[ledger.state] then count(ledger, WAITS[state] and 1 or -1) end",
        "",
        "waiting",
    ),
    "a requeued job has a new life": ("(tonumber(ledger.epoch) or 0) + 1", "ledger.epoch", "fence"),
    "a requeued job keeps its attempts": (
        "redis.call('ZREM', K.failed, id)",
        ATTEMPTS_GONE,
        "attempts are not what was called",
    ),
    "a requeue is known by its nonce": (
        "if redis.call('HGET', K.ledger .. id, 'requeued') == nonce then return 'requeued' end",
        "",
        "own requeue reported as",
    ),
}


BROKEN = [pytest.param(Schedule, rule, id=name) for name, rule in RULES.items()]
BROKEN += [pytest.param(OperatedSchedule, rule, id=name) for name, rule in RULES_FOR_OPERATORS.items()]


@pytest.mark.leaves_keys("a broken contract")
@pytest.mark.parametrize(("machine", "rule"), BROKEN)
def test_a_broken_rule_is_noticed(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, machine: type[Schedule], rule: tuple[str, str, str]
) -> None:
    """One rule of one script is taken away: some schedule complains of just that."""
    text, broken, complaint = rule
    break_scripts(monkeypatch, text, broken)
    connect = partial(redis.asyncio.Redis.from_url, redis_url)
    with pytest.raises(AssertionError, match=complaint):
        live(machine, connect, examples=300, about=complaint, shrinks=False)


def break_scripts(monkeypatch: pytest.MonkeyPatch, text: str, broken: str) -> None:
    """Replace a text wherever a script has it."""
    found = 0
    for verb in VERBS:
        script = copy.copy(getattr(scripts, verb))
        if text in script.text:
            script.text = script.text.replace(text, broken)
            script.sha = hashlib.sha1(script.text.encode(), usedforsecurity=False).hexdigest()
            monkeypatch.setattr(scripts, verb, script)
            found += 1
    assert found, f"the scripts have changed: they have no {text!r}"
