"""How a model is to answer: in which format, and what it declines to write."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from promptq.producer.fields import Frozen, JsonObject


class ResponseFormat(Frozen):
    """`{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}`, `json_object` or `text`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonObject | None = Field(None, description="`schema`, and OpenAI's `name`, `description`, `strict`.")

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("a json_schema goes with the type json_schema, and with no other")
        if self.json_schema is not None:
            if not isinstance(self.json_schema.get("schema"), dict):
                raise ValueError("json_schema needs an object named schema")
            if unknown := self.json_schema.keys() - {"name", "description", "schema", "strict"}:
                raise ValueError(f"json_schema has {len(unknown)} fields beside name, description, schema and strict")
        return self


def _format(given: Any) -> Any:
    """A pydantic class stands for its schema, a word for the type of that name."""
    if isinstance(given, type) and issubclass(given, BaseModel):
        schema = {"name": given.__name__, "schema": given.model_json_schema(), "strict": True}
        return {"type": "json_schema", "json_schema": schema}
    if given in ("text", "json_object"):
        return {"type": given}
    return given


AnyResponseFormat = Annotated[ResponseFormat, BeforeValidator(_format)]


class Guideline(Frozen):
    """What the model declines to write."""

    type: Literal["policy"]
    category: Literal["nsfw", "violence", "profanity"]
    behavior: Literal["decline"]
