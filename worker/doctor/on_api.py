"""The check of the API: is it there, and what does it say of the key? Costs no tokens."""

import os
from urllib.parse import urlsplit

from promptq.producer.errors import ErrorCode
from promptq.worker.doctor.findings import Finding, ok, problem, warning
from promptq.worker.providers.base import ProviderError
from promptq.worker.settings import Settings

_MODEL = "api-key:model:"
_CONSOLE = "console.x.ai"
_ADVICE = {
    ErrorCode.BAD_KEY: f"set XAI_API_KEY or XAI_API_KEY_FILE to a key of {_CONSOLE}",
    ErrorCode.NO_CREDIT: f"buy credit: {_CONSOLE}",
}
_REACH_OPENAI = "see whether this machine may reach it (DNS, firewall, proxy), or correct PROMPTQ_OPENAI_BASE_URL"


async def api(settings: Settings, key: str, model: str | None) -> Finding:
    """What the provider's API says of the key. `model`: one that it must be good for. Loads the provider's library."""
    return await (_by_openai(settings, key) if settings.provider == "openai" else _by_xai(settings, key, model))


async def _by_openai(settings: Settings, key: str) -> Finding:
    from promptq.worker.providers.openai import OpenAIProvider  # noqa: PLC0415 - a backend has no openai

    url = settings.openai_base_url
    provider = OpenAIProvider(api_key=key, base_url=url, max_jobs=1)
    try:
        await provider.probe()
    except ProviderError as error:
        return problem(f"{url}: {error!s}", _ADVICE.get(error.code, _REACH_OPENAI))
    finally:
        await provider.aclose()
    parts = urlsplit(url)
    if parts.scheme == "http" and not _is_here(parts.netloc):
        return warning(f"{url} takes the key, which goes there unencrypted", "let PROMPTQ_OPENAI_BASE_URL say https")
    return ok(f"{url} takes the key")


async def _by_xai(settings: Settings, key: str, model: str | None) -> Finding:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else it tells the terminal what the error tells, too
    from promptq.worker.providers.xai import KeyInfo, XaiProvider  # noqa: PLC0415 - a backend has no grpc

    host = settings.xai_host
    provider = XaiProvider(api_key=key, host=host, insecure=settings.xai_insecure, max_jobs=1)
    try:
        info: KeyInfo = await provider.key_info()
    except ProviderError as error:
        return problem(f"{host}: {error!s}", _ADVICE.get(error.code) or _reach(settings))
    finally:
        await provider.aclose()
    if info.faults:
        return problem(f"{host}: the key is {' and '.join(info.faults)}", f"enable it, or make another: {_CONSOLE}")
    models = [acl.removeprefix(_MODEL) for acl in info.acls if acl.startswith(_MODEL)]
    if models and model and not {"*", model} & set(models):
        only = ", ".join(models)
        return warning(f"{host}: the key may not use {model}, only {only}", "set PROMPTQ_DEFAULT_MODEL to one")
    if settings.xai_insecure and not _is_here(host):
        return warning(f"{host} takes the key, which goes there unencrypted", "unset PROMPTQ_XAI_INSECURE")
    return ok(f"{host} takes the key")


def _reach(settings: Settings) -> str:
    if _is_here(settings.xai_host) and not settings.xai_insecure:
        return "for the simulator: PROMPTQ_XAI_INSECURE=1"
    if _is_here(settings.xai_host):
        return "start it (promptq simulate), or correct PROMPTQ_XAI_HOST"
    return "see whether this machine may reach it (DNS, firewall, proxy), or correct PROMPTQ_XAI_HOST"


def _is_here(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    return name in {"localhost", "::1"} or name.startswith("127.")
