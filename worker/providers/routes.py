"""Which provider answers a model: by `PROMPTQ_ROUTES`, by a prefix such as `openai:`, else by `PROMPTQ_PROVIDER`.

A lane keeps the model's whole name; here it becomes a provider and the name that its vendor knows. Used by the engine,
which says at each claim who pays for what, by run.py for each call, and by the health pages.
"""

import asyncio
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Final, NamedTuple, Self

import structlog

from promptq.producer.errors import ErrorCode
from promptq.producer.models import PromptJob
from promptq.producer.records import Payer
from promptq.worker.providers.accounts import account_name, place_of
from promptq.worker.providers.api_key import ApiKeyError, KeyFile, read_key
from promptq.worker.providers.base import Answer, Hear, Provider, ProviderError
from promptq.worker.settings import ALL_OTHERS, PROVIDERS, Route, Settings, without_prefix

_LIBRARIES: Final = {"xai": "xai_sdk", "openai": "openai"}
_EXTRAS: Final = {"xai": "promptq[worker]", "openai": "promptq[openai]"}
_MOST_MODELS = 1000
"""Whose way is remembered."""

log = structlog.get_logger("promptq.routes")


class Rule(NamedTuple):
    """What answers the models of a pattern: a name, or the beginning of names and `*`.

    `model`: what the vendor calls them all; None: by their names, without the prefix.
    """

    pattern: str
    provider: Provider
    model: str | None = None

    def is_for(self, model: str) -> bool:
        """Whether it may answer this one."""
        return model == self.pattern or (self.pattern.endswith("*") and model.startswith(self.pattern[:-1]))


class Way(NamedTuple):
    """Where a job goes: the provider, and the vendor's own name of the model."""

    provider: Provider
    model: str


class Routes:
    """The rules of a process, and their providers. The last rule is for `*`; whatever order they are given in."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules = tuple(sorted(rules, key=lambda rule: (rule.pattern.endswith("*"), -len(rule.pattern))))
        self.default = self._rules[-1].provider
        """For models that no other rule names."""
        self.way = lru_cache(_MOST_MODELS)(self._way)
        """The way of a model, by its lane's name."""

    @classmethod
    def to(cls, provider: Provider) -> Self:
        """All models to this one, by the names that they have."""
        return cls([Rule(ALL_OTHERS, provider)])

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Those that the settings describe. A route without a key is told of, and refuses its jobs until it has one.

        Raises:
            ApiKeyError: The key of the provider for all other models is missing, or is not one.
        """
        unsaid = {f"{name}:*": Route(provider=name) for name in PROVIDERS} | {ALL_OTHERS: Route()}
        routes = unsaid | settings.routes
        default = settings.routed(routes[ALL_OTHERS])
        providers = {_identity(default): build_provider(default)}
        rules = []
        for pattern, route in routes.items():
            own = settings.routed(route)
            identity = _identity(own)
            if identity not in providers:
                providers[identity] = _deferred(own)
            provider = providers[identity]
            if pattern in settings.routes and isinstance(provider, Deferred):
                provider.open_at_start(pattern)
            rules.append(Rule(pattern, provider, route.model))
        return cls(rules)

    def _way(self, model: str) -> Way:
        rule = next(rule for rule in self._rules if rule.is_for(model))
        is_only_one = len(self._rules) == 1
        return Way(rule.provider, rule.model or (model if is_only_one else without_prefix(model)))

    def name_of(self, model: str) -> str:
        """The provider's, as it stands in results."""
        return self.way(model).provider.name

    def payers(self) -> tuple[Payer, ...]:
        """Who pays as of now, for all models: of those that match one the first counts; the last is for `*`."""
        return tuple([Payer(rule.pattern, rule.provider.account) for rule in self._rules])

    def account_of(self, model: str) -> str:
        """Who pays for a call of this model that is made now."""
        return self.way(model).provider.account

    def paid_by(self, account: str) -> Provider | None:
        """A provider whose calls this account pays for now, if there is any."""
        return next((rule.provider for rule in self._rules if rule.provider.account == account), None)

    async def aclose(self) -> None:
        """Close all connections; no call is running."""
        providers = {id(rule.provider): rule.provider for rule in self._rules}
        await asyncio.gather(*(provider.aclose() for provider in providers.values()))


class Deferred:
    """A provider that is opened for its first call, since its library takes time and memory to load.

    Without a key, or without the library, it refuses as a bad key does, under an account of its own: so the lanes that
    it would serve pause, and workers that have the key take their jobs. It looks again before each call and probe.
    """

    def __init__(self, settings: Settings) -> None:
        self.name: str = settings.provider
        self._settings = settings
        self._key_file = KeyFile.named_by(settings)
        self._opened: Provider | None = None
        self._account = self._present_account()

    @property
    def account(self) -> str:
        """As `Provider.account`; `openai:unset`, or alike, while there is no key."""
        if self._opened is not None:
            return self._opened.account
        if self._key_file is not None and self._key_file.changed() is not None:
            self._account = self._present_account()
        return self._account

    async def sample(self, job: PromptJob, timeout: float, hear: Hear | None = None) -> Answer:
        """As `Provider.sample`."""
        return await self._provider().sample(job, timeout, hear)

    async def probe(self) -> None:
        """As `Provider.probe`."""
        await self._provider().probe()

    async def aclose(self) -> None:
        """Close the connections, if there are any."""
        if self._opened is not None:
            await self._opened.aclose()

    def open_at_start(self, pattern: str) -> None:
        """Open it now; or tell, once, that the jobs of this pattern will wait."""
        try:
            self._provider()
        except ProviderError as error:
            log.error("route.unset", pattern=pattern, reason=error.message, help="its jobs wait; all others run")  # noqa: TRY400 - the reason is all there is to tell

    def _provider(self) -> Provider:
        """The provider itself. Raises ProviderError."""
        if self._opened is None:
            try:
                self._opened = build_provider(self._settings)
            except ApiKeyError as error:
                raise ProviderError(ErrorCode.BAD_KEY, str(error), was_sent=False) from None
            except ImportError:
                said = f"needs {_EXTRAS[self.name]}, which is not installed"
                raise ProviderError(ErrorCode.BAD_KEY, said, was_sent=False) from None
        return self._opened

    def _present_account(self) -> str:
        """What the opened provider would say, without loading its library."""
        try:
            key = read_key(self._settings)
        except ApiKeyError:
            return f"{self.name}:unset"
        if find_spec(_LIBRARIES[self.name]) is None:
            return f"{self.name}:unset"
        return account_name(self.name, key, place_of(self._settings.openai_base_url) if self.name == "openai" else "")


def _deferred(settings: Settings) -> Provider:
    """Opened later, if that costs anything."""
    return build_provider(settings) if settings.provider == "echo" else Deferred(settings)


def _identity(settings: Settings) -> tuple[Any, ...]:
    """What two routes have in common that share a provider: vendor, place, and where the key is."""
    if settings.provider == "echo":
        return ("echo",)
    place = (settings.openai_base_url,) if settings.provider == "openai" else (settings.xai_host, settings.xai_insecure)
    return settings.provider, *place, settings.own_api_key or settings.xai_api_key_file or settings.xai_api_key


def build_provider(settings: Settings) -> Provider:
    """The provider that the settings name; only that one's library is imported. Raises ApiKeyError, ImportError."""
    if settings.provider == "echo":
        from promptq.worker.providers.echo import EchoProvider  # noqa: PLC0415 - loaded only if named

        return EchoProvider(settings.echo_latency)
    if settings.provider == "openai":
        from promptq.worker.providers.openai import OpenAIProvider  # noqa: PLC0415 - loaded only if named

        return OpenAIProvider.from_settings(settings)
    from promptq.worker.providers.xai import XaiProvider  # noqa: PLC0415 - loaded only if named

    return XaiProvider.from_settings(settings)
