"""What a producer takes from the environment. The worker's settings add to these."""

from datetime import timedelta
from typing import Annotated, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.asyncio import Redis

from promptq.producer.connection import open_redis
from promptq.producer.models import ModelName

Seconds = Annotated[float, Field(gt=0, le=3650 * 86400)]


class ProducerSettings(BaseSettings):
    """`PROMPTQ_*`; durations in seconds. Raises pydantic's ValidationError, which names the variable."""

    model_config = SettingsConfigDict(
        env_prefix="PROMPTQ_", frozen=True, extra="ignore", populate_by_name=True, hide_input_in_errors=True
    )

    redis_url: SecretStr = Field(
        SecretStr("redis://localhost:6379"),
        validation_alias=AliasChoices("PROMPTQ_REDIS_URL", "REDIS_URL"),
    )
    redis_timeout: Seconds = 5.0
    """How long any call may wait for Redis, connecting included."""
    enqueue_replicas: int = Field(0, ge=0)
    """Replicas that must have a job before it counts as accepted."""
    default_model: ModelName = "grok-4"
    max_queued: int = Field(1_000_000, ge=1)
    """Jobs that a lane holds at most."""
    max_payload: int = Field(16 * 1024 * 1024, ge=1024)
    """Bytes of one encoded request."""
    result_ttl: Seconds = 3 * 86400.0
    failure_ttl: Seconds = 7 * 86400.0

    @field_validator("redis_url")
    @classmethod
    def _is_a_redis_url(cls, url: SecretStr) -> SecretStr:
        open_redis(url.get_secret_value(), timeout=1)  # connects to nothing
        return url

    def at(self, redis_url: str | None) -> Self:
        """The same for another Redis; None: for this one."""
        return self if redis_url is None else self.model_copy(update={"redis_url": SecretStr(redis_url)})

    def open_redis(self) -> Redis:
        """A client whose every step takes half of `redis_timeout` at most. Connects when first used; ValueError."""
        return open_redis(self.redis_url.get_secret_value(), timeout=self.redis_timeout / 2)

    @property
    def result_ttl_ms(self) -> int:
        """Of succeeded, cancelled and expired jobs."""
        return milliseconds(self.result_ttl)

    @property
    def failure_ttl_ms(self) -> int:
        """Of failed jobs."""
        return milliseconds(self.failure_ttl)


def milliseconds(duration: float | timedelta) -> int:
    """At least 1."""
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    return max(1, round(seconds * 1000))
