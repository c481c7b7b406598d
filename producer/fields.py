"""What the models that cross Redis are made of: their two bases, and the kinds of fields that several of them have."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


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
