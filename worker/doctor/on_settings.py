"""The checks of this machine: what is installed, what the environment says, and whether there is a key."""

import difflib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError

from promptq.producer.connection import public_url
from promptq.producer.console import wrong_settings
from promptq.worker.doctor.findings import Finding, in_a_thread, not_checked, ok, problem, warning
from promptq.worker.providers.api_key import ApiKeyError, key_file, read_key
from promptq.worker.settings import Route, Settings

NEEDS_WORKER = "needs promptq[worker], which a backend does without"
_LIBRARIES = ("arq", "grpc", "xai_sdk")
_LIBRARY_OF_OPENAI = "openai"
_OTHER_NAMES = {"xai_api_key": "XAI_API_KEY", "xai_api_key_file": "XAI_API_KEY_FILE"}
_VARIABLES = {
    "REDIS_URL": "redis_url",
    **{_OTHER_NAMES.get(field, f"PROMPTQ_{field.upper()}"): field for field in Settings.model_fields},
}
_TOGETHER = ("lease", "redis_timeout")
"""The fields that only together can be wrong."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings to go on with. `refused`: the fields that stand at their default, since what was said is wrong."""

    settings: Settings
    wrong: tuple[str, ...] = ()
    refused: frozenset[str] = frozenset()


def load(given: Mapping[str, Any]) -> Loaded:
    """The environment's settings with the command's own on top."""
    try:
        return Loaded(Settings(**given))
    except ValidationError as error:
        reasons = wrong_settings(error)
    fields = {_VARIABLES[variable] for variable, _ in reasons if variable} or set(_TOGETHER)
    defaults = {field: Settings.model_fields[field].get_default(call_default_factory=True) for field in fields}
    rest = load({**given, **defaults})
    wrong = tuple(f"{variable}: {reason}" if variable else reason for variable, reason in reasons)
    return Loaded(rest.settings, wrong + rest.wrong, rest.refused | fields)


def missing_libraries(settings: Settings) -> list[str]:
    """What a worker with these settings needs and this machine lacks."""
    named = {settings.provider, *(route.provider for route in settings.routes.values())}
    needed = [*_LIBRARIES, *([_LIBRARY_OF_OPENAI] if "openai" in named else [])]
    return [name for name in needed if find_spec(name) is None]


async def installation(settings: Settings) -> Finding:
    """The version, and whether a worker could run here."""
    here = f"promptq {version('promptq')}, Python {platform.python_version()}"
    missing = missing_libraries(settings)
    if not missing:
        return ok(f"{here}, with all that a worker needs")
    if len(missing) < len(_LIBRARIES):
        extras = "worker,openai" if _LIBRARY_OF_OPENAI in missing else "worker"
        return problem(f"{here}, but {' and '.join(missing)} missing", f"pip install 'promptq[{extras}]'")
    return ok(f"{here}, for a backend (a worker needs promptq[worker])")


async def settings_are_valid(loaded: Loaded) -> Finding:
    """What is set is understood."""
    if loaded.wrong:
        return problem("; ".join(loaded.wrong), "correct it in the environment; the checks go on with the default")
    settings = loaded.settings
    return ok(f"valid: lease {settings.lease:g} s, Redis timeout {settings.redis_timeout:g} s")


async def environment(loaded: Loaded) -> Finding:
    """Which variables are set, and whether each is one of ours: a misspelt one is silently without effect."""
    ours = [name for name in os.environ if name.upper() in _VARIABLES]
    said = ", ".join(f"{name}={_shown(name.upper(), loaded)}" for name in sorted(ours)) or "nothing is set"
    strays = sorted(name for name in os.environ if name.upper().startswith("PROMPTQ_") and name not in ours)
    if not strays:
        return ok(said)
    return warning(f"{', '.join(strays)}: no setting of promptq; {said}", _hint(strays))


def _hint(strays: list[str]) -> str:
    ours, hints = {variable.removeprefix("PROMPTQ_"): variable for variable in _VARIABLES}, []
    for name in strays:
        alike = difflib.get_close_matches(name.upper().removeprefix("PROMPTQ_"), ours, n=1, cutoff=0.75)
        hints.append(f"{name}: do you mean {ours[alike[0]]}?" if alike else f"unset {name} if nothing else reads it")
    return "; ".join(hints)


def _shown(variable: str, loaded: Loaded) -> str:
    """A value as it counts; nothing that is secret, or that was refused and so may be anything."""
    field = _VARIABLES[variable]
    if field in loaded.refused:
        return "(refused)"
    if field == "redis_url":
        other = "PROMPTQ_REDIS_URL" in os.environ and variable == "REDIS_URL"
        return "(not used)" if other else public_url(loaded.settings.redis_url.get_secret_value())
    if field == "xai_api_key_file":
        return key_file(loaded.settings)
    if field == "routes":
        return ", ".join(loaded.settings.routes)
    value = getattr(loaded.settings, field)
    return "***" if isinstance(value, SecretStr) else str(value)


async def key(settings: Settings, route: Route) -> Finding:
    """Whether there is a key that can be one. `settings`: as the route changes them."""
    if settings.provider == "echo":
        return not_checked("the provider is echo, which needs none")
    given = (settings.own_api_key, settings.xai_api_key, settings.xai_api_key_file)
    if given == (None, None, None) and missing_libraries(settings):
        return not_checked("none is set, and only a worker needs one")
    try:
        secret = await in_a_thread(lambda: read_key(settings))
    except ApiKeyError as error:
        found, _, advice = str(error).partition(": set ")
        return problem(found, f"set {advice}" if advice else "name one that may be read")
    return _where(settings, route, secret)


def _where(settings: Settings, route: Route, secret: str) -> Finding:
    """Which variable the key is from, and what is strange about that."""
    file = settings.xai_api_key_file
    if settings.own_api_key is not None:
        return ok("set by PROMPTQ_OPENAI_API_KEY")
    variable = "XAI_API_KEY" if file is None else "XAI_API_KEY_FILE"
    if route.key or route.key_file:
        variable = "PROMPTQ_ROUTES"
    place = variable if file is None else f"{variable} ({key_file(settings)})"
    if _is_at_xai(settings) and not secret.startswith("xai-"):
        return warning(f"{place} holds one that does not begin with xai-", "see whether it is xAI's: console.x.ai")
    if route.base_url and variable != "PROMPTQ_ROUTES" and not _is_at_xai(settings):
        return warning(f"{place} goes to {route.base_url}, too", 'set a "key" of its own, if only "none"')
    if file is not None and settings.xai_api_key is not None:
        return warning(f"{place} goes before XAI_API_KEY, which is set, too", "unset one of them")
    return ok(f"set by {place}")


def _is_at_xai(settings: Settings) -> bool:
    if settings.provider == "openai":
        return (urlsplit(settings.openai_base_url).hostname or "").endswith("x.ai")
    return settings.xai_host.endswith("x.ai")
