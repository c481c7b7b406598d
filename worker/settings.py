"""The worker's environment as one frozen object."""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_core import from_json
from pydantic_settings import NoDecode

from promptq.producer.models import Limits, ModelName
from promptq.producer.settings import ProducerSettings, Seconds

RENEWALS_PER_LEASE = 3


class Settings(ProducerSettings):
    """`PROMPTQ_*` and `XAI_API_KEY`; durations in seconds. Raises ValidationError, which names the variable."""

    provider: Literal["xai", "openai", "echo"] = "xai"
    xai_api_key: SecretStr | None = Field(None, validation_alias=AliasChoices("xai_api_key", "XAI_API_KEY"))
    xai_api_key_file: Path | None = Field(None, validation_alias=AliasChoices("xai_api_key_file", "XAI_API_KEY_FILE"))
    xai_host: str = "api.x.ai"
    xai_insecure: bool = False
    """Plain text instead of TLS: for the simulator."""
    openai_base_url: str = "https://api.x.ai/v1"
    """Of any server with Chat Completions."""
    openai_api_key: SecretStr | None = None
    """None: xAI's, which may be in a file."""
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

    @field_validator("openai_base_url")
    @classmethod
    def _is_an_http_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("must begin with http:// or https:// and a host")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("must have no password, query or fragment")
        return url

    @field_validator("limits", mode="before")
    @classmethod
    def _is_json(cls, limits: object) -> object:
        """Read here: what pydantic-settings raises for a text that is no JSON does not say so in one line."""
        if not isinstance(limits, str):
            return limits
        try:
            return from_json(limits)
        except ValueError as error:
            raise ValueError(f"no JSON: {error}") from None

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
