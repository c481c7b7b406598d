"""What an operator sets, limits of models and shares of tenants: checked, and read with what is used of them.

Used by `PromptQueue`; the scripts limit, pause and share by it.
"""

from datetime import timedelta
from typing import Any, Final, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from redis.asyncio import Redis

from promptq.producer import keys, meters
from promptq.producer.errors import InvalidSetting
from promptq.producer.models import ModelLimits, ModelName, TenantStats, from_ms
from promptq.producer.reading import ask_meter, read_clock

SettingT = TypeVar("SettingT", bound=BaseModel)

_MODEL: Final[TypeAdapter[str]] = TypeAdapter(ModelName)
_METER = 3
"""Replies of `ask_meter`."""


def checked_model(name: str) -> str:
    """The name itself. Raises InvalidSetting."""
    try:
        return _MODEL.validate_python(name, strict=True)
    except ValidationError as error:
        raise _invalid(error, "model") from None


def checked(kind: type[SettingT], **fields: Any) -> SettingT:
    """Limits, or a Tenant. Raises InvalidSetting."""
    try:
        return kind.model_validate(fields, strict=True)
    except ValidationError as error:
        raise _invalid(error, "name") from None


def _invalid(error: ValidationError, field: str) -> InvalidSetting:
    """The first complaint; `field`: what it is about if it does not say."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return InvalidSetting(".".join(map(str, first["loc"])) or field, first["msg"].removeprefix("Value error, "))


async def read_limits(redis: Redis) -> tuple[ModelLimits, ...]:
    """Every model that has limits, jobs, or was used in the last day, by name."""
    now = await read_clock(redis)
    busy, others = await _models(redis, now)
    models = sorted((busy | others) - {keys.INTAKE})
    async with redis.pipeline(transaction=False) as pipe:
        for model in models:
            ask_meter(pipe, model)
        replies = await pipe.execute()
    told = (meters.Meter(now, *replies[start : start + _METER]) for start in range(0, len(replies), _METER))
    return tuple(
        _limits_of(model, meter)
        for model, meter in zip(models, told, strict=True)
        if model in busy or meter.is_known
    )  # fmt: skip


async def _models(redis: Redis, now: int) -> tuple[set[str], set[str]]:
    """Those with jobs or limits, and those that answered yesterday or today: a meter is kept for a day."""
    today = from_ms(now).date()
    async with redis.pipeline(transaction=False) as pipe:
        pipe.zrange(keys.LANES, 0, -1)
        for key in (keys.LIMITS, keys.usage(today), keys.usage(today - timedelta(days=1))):
            pipe.hkeys(key)
        lanes, limited, *used = await pipe.execute()
    return (
        {name.decode() for name in lanes} | {_owner(field) for field in limited},
        {_owner(field) for fields in used for field in fields},
    )


def _owner(field: bytes) -> str:
    """Of "model:rpm" the model, of "tenant:weight" the tenant; a name may have colons, too."""
    return field.decode().rpartition(":")[0]


def _limits_of(model: str, meter: meters.Meter) -> ModelLimits:
    requests, tokens = meter.use
    rpm, tpm = meter.rates
    until, reason = meter.pause
    return ModelLimits(
        model=model,
        limits=meter.limits,
        requests=requests,
        tokens=tokens,
        in_flight=meter.in_flight,
        rpm_now=rpm,
        tpm_now=tpm,
        throttled_at=from_ms(meter.throttled) if meter.throttled else None,
        paused_by_operator=meter.is_paused_by_operator,
        paused_until=from_ms(until) if until else None,
        pause_reason=reason,
    )


async def read_tenants(redis: Redis) -> tuple[TenantStats, ...]:
    """Every tenant whose jobs wait, or that has a weight or a cap, by name."""
    lanes = [name.decode() for name in await redis.zrange(keys.LANES, 0, -1)]
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hgetall(keys.TENANTS)
        for lane in lanes:
            pipe.hgetall(keys.waiting(lane))
        settings, *counts = await pipe.execute()
    waiting: dict[str, int] = {}
    for of_lane in counts:
        for place, jobs in of_lane.items():
            tenant = place.decode().partition(":")[2]  # "band:tenant"
            waiting[tenant] = waiting.get(tenant, 0) + int(jobs)
    names = waiting.keys() | {_owner(field) for field in settings}
    return tuple(_tenant_of(name, settings, waiting.get(name, 0)) for name in sorted(names))


def _tenant_of(name: str, settings: dict[bytes, bytes], waiting: int) -> TenantStats:
    said = {field: settings.get(f"{name}:{field}".encode()) for field in ("weight", "max_queued")}
    return TenantStats.model_validate(
        {"name": name, "waiting": waiting} | {field: value for field, value in said.items() if value is not None}
    )
