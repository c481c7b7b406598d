"""The worker's environment as one frozen object."""

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import from_json
from pydantic_settings import NoDecode

from promptq.producer.fields import Name
from promptq.producer.models import Limits, ModelName
from promptq.producer.settings import ProducerSettings, Seconds

RENEWALS_PER_LEASE = 3

ProviderName = Literal["xai", "openai", "echo"]
PROVIDERS: Final[tuple[ProviderName, ...]] = get_args(ProviderName)
ALL_OTHERS: Final = "*"
"""The pattern of the models that no other names."""
_OWNERS: Final[dict[str, ProviderName]] = {"base_url": "openai", "host": "xai", "insecure": "xai"}
"""Of what only one provider heeds."""


def _is_an_http_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must begin with http:// or https:// and a host")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("must have no password, query or fragment")
    return url


def _is_a_pattern(pattern: str) -> str:
    if "*" in pattern[:-1]:
        raise ValueError("may have a * at its end alone")
    return pattern


HttpUrl = Annotated[str, AfterValidator(_is_an_http_url)]
Pattern = Annotated[Name, AfterValidator(_is_a_pattern)]


class Route(BaseModel):
    """What answers the models of one pattern of `PROMPTQ_ROUTES`. What is None is as in the other settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    provider: ProviderName | None = None
    """None: the one that the pattern begins with, such as `openai:`."""
    key: SecretStr | None = None
    key_file: Path | None = None
    base_url: HttpUrl | None = None
    host: str | None = None
    insecure: bool | None = None
    model: Name | None = None
    """What the vendor calls them; None: by their names, without the prefix."""

    def fault(self, provider: ProviderName) -> str | None:
        """What cannot be, if this provider answers; None: nothing."""
        if self.key is not None and self.key_file is not None:
            return "key_file: must not stand beside key"
        for field, owner in _OWNERS.items():
            if getattr(self, field) is not None and provider != owner:
                return f"{field}: is for provider {owner}, and this is {provider}"
        return None


def without_prefix(model: str) -> str:
    """The vendor's own name of a model: without `openai:`, or another provider's name."""
    provider, _, rest = model.partition(":")
    return rest if rest and provider in PROVIDERS else model


class Settings(ProducerSettings):
    """`PROMPTQ_*` and `XAI_API_KEY`; durations in seconds. Raises ValidationError, which names the variable."""

    provider: ProviderName = "xai"
    """What answers the models that neither a route nor a prefix names."""
    xai_api_key: SecretStr | None = Field(None, validation_alias=AliasChoices("xai_api_key", "XAI_API_KEY"))
    xai_api_key_file: Path | None = Field(None, validation_alias=AliasChoices("xai_api_key_file", "XAI_API_KEY_FILE"))
    xai_host: str = "api.x.ai"
    xai_insecure: bool = False
    """Plain text instead of TLS: for the simulator."""
    openai_base_url: HttpUrl = "https://api.x.ai/v1"
    """Of any server with Chat Completions."""
    openai_api_key: SecretStr | None = None
    """None: xAI's, which may be in a file."""
    routes: Annotated[dict[Pattern, Route], NoDecode] = Field(default_factory=dict)
    """By a model's name, or the beginning of names and `*`: the longest that matches counts. Each has its provider."""
    max_jobs: int = Field(100, ge=1, le=10_000)
    """Calls to the provider at once, in one process."""
    job_timeout: Seconds = 3600.0
    """For one attempt, unless the job says otherwise."""
    max_attempts: int = Field(5, ge=1, le=100)
    limits: Annotated[dict[ModelName, Limits], NoDecode] = Field(default_factory=dict)
    """By model, for the whole fleet; for those that have none yet when a worker starts."""
    lease: Seconds = 10.0
    """How long a dead worker's jobs wait for another."""
    events_ttl: Seconds = 3600.0
    """How long the stream of an answer is kept after its last piece."""
    drain_timeout: float = Field(25.0, ge=0, le=86400)
    """How long a stopping worker lets its calls finish."""
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_content: bool = False
    """Whether answers may be logged. Prompts never are."""
    echo_latency: float = Field(0.0, ge=0, le=86400)

    @field_validator("limits", "routes", mode="before")
    @classmethod
    def _is_json(cls, said: object) -> object:
        """Read here: what pydantic-settings raises for a text that is no JSON does not say so in one line."""
        if not isinstance(said, str):
            return said
        try:
            return from_json(said)
        except ValueError as error:
            raise ValueError(f"no JSON: {error}") from None

    @field_validator("routes")
    @classmethod
    def _each_names_its_provider(cls, routes: dict[str, Route], info: ValidationInfo) -> dict[str, Route]:
        named = {}
        for pattern, route in routes.items():
            by_prefix = next((name for name in PROVIDERS if pattern.startswith(f"{name}:")), None)
            provider = route.provider or by_prefix or info.data.get("provider", "xai")
            if fault := route.fault(provider):
                raise ValueError(f"{pattern}.{fault}")
            named[pattern] = route.model_copy(update={"provider": provider})
        return named

    @property
    def renew_period(self) -> float:
        """Seconds from one renewal of the leases to the next."""
        return self.lease / RENEWALS_PER_LEASE

    @property
    def lease_ms(self) -> int:
        """The lease in ms."""
        return round(self.lease * 1000)

    @property
    def own_api_key(self) -> SecretStr | None:
        """What goes before xAI's key: that of provider openai, if it has one of its own."""
        return self.openai_api_key if self.provider == "openai" else None

    def routed(self, route: Route) -> Self:
        """The same with what the route says in the place of what is said for all."""
        said: dict[str, Any] = {
            "provider": route.provider,
            "xai_host": route.host,
            "xai_insecure": route.insecure,
            "openai_base_url": route.base_url,
        }
        said = {field: value for field, value in said.items() if value is not None}
        if route.key is not None or route.key_file is not None:
            said |= {"openai_api_key": None, "xai_api_key": route.key, "xai_api_key_file": route.key_file}
        return self.model_copy(update=said)

    def api_key(self) -> str | None:
        """The provider's key as it is now: a file is read anew at each call."""
        if self.own_api_key is not None:
            return self.own_api_key.get_secret_value()
        if self.xai_api_key_file is not None:
            return self.xai_api_key_file.read_text().strip()
        return self.xai_api_key.get_secret_value() if self.xai_api_key else None

    @model_validator(mode="after")
    def _a_lease_outlives_a_late_renewal(self) -> Self:
        if self.lease <= self.renew_period + self.redis_timeout:
            needed = self.redis_timeout * RENEWALS_PER_LEASE / (RENEWALS_PER_LEASE - 1)
            raise ValueError(
                f"PROMPTQ_LEASE must be more than {needed:g} s with PROMPTQ_REDIS_TIMEOUT={self.redis_timeout:g}"
            )
        return self
