"""Instances of JSON schemas, checked by pydantic against the models that the schemas come from."""

import json
from datetime import date, datetime
from enum import Enum
from typing import Annotated, Any, Literal, Optional
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from promptq.worker.simulator.schemas import UnknownSchema, instance_of


class Colour(Enum):
    """Values by name."""

    RED = "red"
    BLUE = "blue"


class Person(BaseModel):
    """A plain object."""

    name: str
    age: int
    born: date | None = None


class Tree(BaseModel):
    """A recursive one."""

    value: float
    left: Optional["Tree"] = None
    right: Optional["Tree"] = None


class Bounded(BaseModel):
    """Numbers, texts and lists within bounds."""

    percent: Annotated[int, Field(ge=0, le=100)]
    below_zero: Annotated[int, Field(lt=0)]
    even: Annotated[int, Field(gt=3, multiple_of=2)]
    between: Annotated[float, Field(gt=0.1, lt=0.2)]
    code: Annotated[str, Field(min_length=40)]
    short: Annotated[str, Field(max_length=3)]
    postcode: Annotated[str, Field(pattern=r"^\d{5}$")]
    three: Annotated[list[int], Field(min_length=3)]
    none: Annotated[list[int], Field(max_length=0)]


class Everything(BaseModel):
    """All that models usually have."""

    colour: Colour
    kind: Literal["a", "b"]
    only: Literal[7]
    at: datetime
    id: UUID
    people: list[Person]
    by_name: dict[str, int]
    pair: tuple[int, str]
    either: int | str
    is_so: bool
    nothing: None
    anything: Any


@pytest.mark.parametrize("kind", [Person, Tree, Bounded, Everything, list[Person], dict[str, int], int, Colour])
def test_an_instance_fits_its_schema(kind: Any) -> None:
    """What is made up for a schema is what the schema's own model takes, and the same each time."""
    adapter = TypeAdapter(kind)
    schema = json.dumps(adapter.json_schema())
    instance = instance_of(schema)
    adapter.validate_json(json.dumps(instance), strict=True)
    assert instance == instance_of(schema)


@pytest.mark.parametrize("schema", ["{}", '{"description": "no arguments"}'])
def test_a_schema_without_type_is_of_an_object(schema: str) -> None:
    """A function without parameters is called with none."""
    assert instance_of(schema) == {}


@pytest.mark.parametrize(
    "schema",
    [
        [],
        {"type": "colour"},
        {"$ref": "#/$defs/missing"},
        {"$ref": "https://example.com/schema"},
        {"$ref": "#"},
        {"type": "object", "properties": {"again": {"$ref": "#"}}, "required": ["again"]},
        {"type": "array", "minItems": 10**10},
        {"type": "array", "minItems": "x"},
        {"type": "integer", "multipleOf": 0},
        {"properties": [1]},
        {"allOf": 5},
        {"enum": 5},
        {"type": "string", "minLength": 10**10},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "string", "pattern": "^(ab){17}$"},
        {"type": "string", "pattern": "("},
    ],
    ids=str,
)
def test_what_cannot_be_made_is_refused(schema: Any) -> None:
    """An impossible, endless or unknown schema is an error, never an instance that does not fit."""
    with pytest.raises(UnknownSchema):
        instance_of(json.dumps(schema))
