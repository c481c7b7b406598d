"""All checks, side by side: the slowest decides how long the whole takes, and a missing Redis hides nothing else."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import Redis
from redis.exceptions import RedisError

from promptq.producer.connection import close_redis, open_redis
from promptq.producer.console import one_line
from promptq.worker.doctor import on_redis, on_settings
from promptq.worker.doctor.findings import Check, Finding, Report, Verdict, examined, in_a_thread, not_checked
from promptq.worker.doctor.on_api import api
from promptq.worker.doctor.on_settings import Loaded
from promptq.worker.providers.api_key import read_key
from promptq.worker.settings import ALL_OTHERS, Route, Settings

LIMIT = 4.0
"""Seconds for each check here and in Redis."""
API_LIMIT = 10.0
_SHORTEST_SECRET = 4
_CLOSED_WITHIN = 1.0


async def examine(loaded: Loaded) -> Report:
    """Every check's finding. Takes `LIMIT` and `API_LIMIT` at most, whatever hangs."""
    local = await _all(
        {
            "installation": partial(on_settings.installation, loaded.settings),
            "settings": partial(on_settings.settings_are_valid, loaded),
            "environment": partial(on_settings.environment, loaded),
        }
    )
    of_redis, of_the_keys = await asyncio.gather(_redis(loaded), _keys_and_apis(loaded.settings))
    report = {**local, **of_redis, **of_the_keys}
    return {name: _presentable(finding, loaded.settings) for name, finding in report.items()}


async def _all(checks: Mapping[str, Check]) -> Report:
    findings = await asyncio.gather(*(examined(check, LIMIT) for check in checks.values()))
    return dict(zip(checks, findings, strict=True))


async def _redis(loaded: Loaded) -> Report:
    settings = loaded.settings
    redis: Redis = open_redis(settings.redis_url.get_secret_value(), timeout=LIMIT)
    checks = on_redis.checks(redis, settings)
    try:
        if "redis_url" in loaded.refused:
            reached = not_checked("PROMPTQ_REDIS_URL is none")
        else:
            reached = await examined(lambda: on_redis.reachable(redis, settings, LIMIT), LIMIT)
        if reached.verdict is not Verdict.OK:
            return {"Redis": reached, **dict.fromkeys(checks, not_checked("there is no Redis to ask"))}
        return {"Redis": reached, **await _all(checks)}
    finally:
        with contextlib.suppress(TimeoutError, RedisError, OSError):
            async with asyncio.timeout(_CLOSED_WITHIN):
                await close_redis(redis)


async def _keys_and_apis(settings: Settings) -> Report:
    """Those of the provider for all other models, and of each route, named by its pattern."""
    routes = {ALL_OTHERS: Route(model=settings.default_model)} | settings.routes
    reports = await asyncio.gather(*(_key_and_api(settings.routed(route), route) for route in routes.values()))
    return {
        name if pattern == ALL_OTHERS else f"{name} of {pattern}": _of_the_route(pattern, finding, settings)
        for pattern, report in zip(routes, reports, strict=True)
        for name, finding in report.items()
    }


def _of_the_route(pattern: str, finding: Finding, settings: Settings) -> Finding:
    """With the advice as it is for a route: where what it leaves out is said for all."""
    if pattern not in settings.routes or not finding.advice:
        return finding
    return replace(finding, advice=f"in PROMPTQ_ROUTES, or for all: {finding.advice}")


async def _key_and_api(settings: Settings, route: Route) -> Report:
    key = await examined(partial(on_settings.key, settings, route), LIMIT)

    async def ask() -> Finding:
        return await api(settings, await in_a_thread(partial(read_key, settings)), route.model)

    if settings.provider == "echo":
        asked = not_checked("the provider is echo")
    elif on_settings.missing_libraries(settings):
        asked = not_checked(on_settings.NEEDS_WORKER)
    elif key.verdict in {Verdict.PROBLEM, Verdict.NOT_CHECKED}:
        asked = not_checked("there is no key to ask with")
    else:
        asked = await examined(ask, API_LIMIT)
    return {"key": key, "API": asked}


def _presentable(finding: Finding, settings: Settings) -> Finding:
    """The finding on one line each, and without what must not be seen, whoever has quoted it."""
    found, advice = finding.found, finding.advice
    for secret in _secrets(settings):
        found, advice = found.replace(secret, "***"), advice.replace(secret, "***")
    return replace(finding, found=one_line(found), advice=one_line(advice))


def _secrets(settings: Settings) -> Iterator[str]:
    """Longer ones first, since one may hold another."""
    url = urlsplit(settings.redis_url.get_secret_value())
    passwords = [url.password or "", unquote(url.password or ""), *parse_qs(url.query).get("password", ())]
    of_routes = (route.key for route in settings.routes.values())
    keys = [key.get_secret_value() for key in (settings.xai_api_key, settings.openai_api_key, *of_routes) if key]
    yield from sorted((each for each in (*passwords, *keys) if len(each) >= _SHORTEST_SECRET), key=len, reverse=True)
