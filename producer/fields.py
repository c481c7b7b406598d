"""What the models that cross Redis are made of: their two bases, and the kinds of fields that several of them have."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Frozen(BaseModel):
    """What a caller builds: an unknown field is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Read(BaseModel):
    """What a reader builds: unknown fields are passed over, since a newer worker may have written them."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def _plain(name: str) -> str:
    if not name.isprintable() or name != name.strip():
        raise ValueError("must be printable, without spaces at its ends")
    return name


Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_plain)]
Text = Annotated[str, Field(min_length=1)]
Texts = tuple[Text, ...]
JsonObject = dict[str, Any]


def _moment(value: Any) -> Any:
    """An ISO date or time, in UTC where it names no zone."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("must be an ISO 8601 date or time") from None
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    return value


Moment = Annotated[datetime, BeforeValidator(_moment)]
