"""Functions of the caller's that the model may ask for: in OpenAI's shape, or with the fields beside the type."""

from typing import Literal, Self

from pydantic import model_validator

from promptq.producer.fields import Frozen, JsonObject, Text


class Function(Frozen):
    """A function of the caller's that the model may ask for; `parameters` is a JSON Schema."""

    name: Text
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class FunctionTool(Frozen):
    """`{"type": "function", "function": {...}}`, or the fields of the function beside the type."""

    type: Literal["function"]
    function: Function | None = None
    name: Text | None = None
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None

    @property
    def spec(self) -> Function:
        """The function, however it was written."""
        return self.function or Function(
            name=str(self.name), description=self.description, parameters=self.parameters, strict=self.strict
        )

    @model_validator(mode="after")
    def _is_one_function(self) -> Self:
        beside = any(getattr(self, name) is not None for name in Function.model_fields)
        if self.function is not None and beside:
            raise ValueError("give everything of the function in function")
        if self.function is None and self.name is None:
            raise ValueError("needs a function with a name")
        return self


class FunctionName(Frozen):
    """Which function."""

    name: Text


class FunctionChoice(Frozen):
    """`{"type": "function", "function": {"name": ...}}`, or the name beside the type: this function is called."""

    type: Literal["function"]
    function: FunctionName | None = None
    name: Text | None = None

    @property
    def chosen(self) -> str:
        """The function's name."""
        return self.function.name if self.function else str(self.name)

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.function is None) == (self.name is None):
            raise ValueError("needs the name of one function")
        return self
