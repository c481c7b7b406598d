"""Random schedules over all scripts; and that they notice it when a rule of the contract is broken."""

import copy
import hashlib
from functools import partial

import fakeredis
import pytest
import redis.asyncio

from promptq.producer import scripts
from schedules import live

VERBS = ("ENQUEUE", "CLAIM", "SETTLE", "RENEW", "CANCEL", "ADOPT", "REQUEUE", "LIMITS", "PROBED")


@pytest.mark.timeout(600)  # a failing schedule is made short first
def test_random_schedules_on_the_fake(fake_server: fakeredis.FakeServer) -> None:
    """Nothing is lost, ends twice or is held twice; books, turns and bands are right; nothing stays for ever."""
    live(partial(fakeredis.FakeAsyncRedis, server=fake_server), examples=15)


@pytest.mark.timeout(600)
def test_random_schedules_on_the_real(redis_url: str) -> None:
    """The same on a real server."""
    live(partial(redis.asyncio.Redis.from_url, redis_url), examples=60)


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
    "requests are limited": (
        "room = math.min(room, math.floor((now - used) * rpm / 60000) + 1)",
        "",
        "over the limit: requests",
    ),
    "requests are charged": ("charge_requests(now, meter, 1)", "", "over the limit: requests"),
    "tokens are limited": (
        "if tpm and meter.tokens and math.min(meter.tokens, now + MOST_DEBT) > now then",
        "if false then",
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
    "nor is a paused account": ("slots = math.min(slots, room)", "", "started under a pause of the account"),
    "one job finds out whether a model is back": (
        "if meter.strikes and HALF_OPEN[meter.reason] then room = 1 end",
        "",
        "started beside a probe",
    ),
    "a cap is kept": ("if cap and waiting + more > cap then", "if false then", "cap"),
    "what waits is counted": (
        "if WAITS[state] ~= WAITS[ledger.state] then count(ledger, WAITS[state] and 1 or -1) end",
        "",
        "waiting",
    ),
    "a requeued job has a new life": ("(tonumber(ledger.epoch) or 0) + 1", "ledger.epoch", "fence"),
    "a requeued job goes last": (
        "ledger.tenant or 'default', nil",
        "ledger.tenant or 'default', ledger.turn",
        "out of turn",
    ),
    "a requeued job keeps its attempts": (
        "unpack(FORGOTTEN)",
        "unpack(redis.call('HKEYS', K.ledger .. id))",
        "attempts are not what was called",
    ),
    "a requeue is known by its nonce": (
        "if redis.call('HGET', K.ledger .. id, 'requeued') == nonce then return 'requeued' end",
        "",
        "fence",
    ),
    "what has ended does not stay": ("redis.call('PEXPIRE', K.ledger .. id, ttl)", "", "left for ever"),
}


@pytest.mark.leaves_keys("a broken contract")
@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_noticed(redis_url: str, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    """One rule of one script is taken away: some schedule complains of just that."""
    text, broken, complaint = RULES[rule]
    break_scripts(monkeypatch, text, broken)
    with pytest.raises(AssertionError, match=complaint):
        live(partial(redis.asyncio.Redis.from_url, redis_url), examples=100, about=complaint, shrinks=False)


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
