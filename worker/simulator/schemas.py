"""An instance of a JSON schema: what a model would have to answer with, with made-up values.

It knows types, `const`, `enum`, references inside the schema, `allOf`, `anyOf`, `oneOf`, required and
other properties, bounds of numbers, lengths of strings and arrays, and the usual formats. Of patterns
it knows only those that one of a few plain texts fits.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from promptq.worker.simulator.prose import MARK

_DEEPEST = 24
_OPTIONAL_UNTIL = 4
_MOST_PARTS = 10_000
_LONGEST = 1_000_000

_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_FORMATS = {
    "date": "2026-01-02",
    "date-time": "2026-01-02T03:04:05Z",
    "duration": "PT1M",
    "email": "simulated@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "time": "03:04:05Z",
    "uri": "https://example.com/simulated",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_PLAIN_TEXTS = ("1", "a", "A", "12", "123", "1234", "12345", "ab", "AB", "abc", "ABC", "abc-1", "1.0", "")


class UnknownSchema(ValueError):
    """The schema is none, contradicts itself, or says what is not known here."""


def instance_of(schema: str, name: str = "value") -> Any:
    """The same instance for the same schema; `name` is part of strings that may say anything.

    Raises:
        UnknownSchema: as it says.
    """
    try:
        root = _root_of(schema)
        return _Writer(root).write(root, name, 0)
    except UnknownSchema:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError):
        raise UnknownSchema("it is no JSON, or a keyword has a value of the wrong kind") from None


def _root_of(schema: str) -> dict[str, Any]:
    root = from_json(schema) if schema else {}
    if not isinstance(root, dict):
        raise UnknownSchema("it must be a JSON object")
    return root


class _Writer:
    """Writes the parts of one schema; `root` is what its references point into."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._parts = 0

    def write(self, schema: Any, name: str, depth: int) -> Any:
        self._parts += 1
        if depth > _DEEPEST or self._parts > _MOST_PARTS:
            raise UnknownSchema("the schema asks for an endless value")
        if not isinstance(schema, Mapping):
            return f"{MARK} {name}"
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][0]
        options = schema.get("anyOf") or schema.get("oneOf")
        if options:
            rest = {key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}
            return self.write(_merged([rest, self._option(options, depth)]), name, depth + 1)
        return self._writers()[_type_of(schema, at_the_top=depth == 0)](schema, name, depth)

    def _writers(self) -> dict[str, Callable[[Mapping[str, Any], str, int], Any]]:
        return {
            "object": self._object,
            "array": self._array,
            "string": lambda schema, name, _: _string(schema, name),
            "integer": lambda schema, *_: _number(schema, whole=True),
            "number": lambda schema, *_: _number(schema, whole=False),
            "boolean": lambda *_: True,
            "null": lambda *_: None,
        }

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """The schema with its reference followed and its `allOf` taken together."""
        for _ in range(_DEEPEST):
            if "$ref" in schema:
                rest = {key: value for key, value in schema.items() if key != "$ref"}
                schema = _merged([self._target(schema["$ref"]), rest])
            elif schema.get("allOf"):
                rest = {key: value for key, value in schema.items() if key != "allOf"}
                schema = _merged([*(self._resolved(part) for part in schema["allOf"]), rest])
            else:
                return schema
        raise UnknownSchema("its references go round in a circle")

    def _target(self, reference: str) -> Mapping[str, Any]:
        target = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            target = target.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
        if not (reference.startswith("#") and isinstance(target, Mapping)):
            raise UnknownSchema(f"nothing is known of {reference!r}")
        return target

    def _option(self, options: Sequence[Any], depth: int) -> Mapping[str, Any]:
        """The first, or, when it gets deep, one that goes no deeper."""
        known = [self._resolved(option) for option in options if isinstance(option, Mapping)]
        if not known:
            return {}
        flat = [option for option in known if _type_of(option) not in ("object", "array")]
        return flat[0] if flat and depth > _OPTIONAL_UNTIL else known[0]

    def _object(self, schema: Mapping[str, Any], _: str, depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        chosen = [name for name in properties if name in required or depth <= _OPTIONAL_UNTIL]
        missing = [name for name in required if name not in properties]
        return {name: self.write(properties.get(name, {}), name, depth + 1) for name in (*chosen, *missing)}

    def _array(self, schema: Mapping[str, Any], name: str, depth: int) -> list[Any]:
        first = [self.write(item, name, depth + 1) for item in schema.get("prefixItems", [])]
        shortest = schema.get("minItems", 0)
        wanted = max(shortest, 1 if depth <= _OPTIONAL_UNTIL and schema.get("maxItems", 1) else 0)
        return first + [self.write(schema.get("items", {}), name, depth + 1) for _ in range(wanted - len(first))]


def _merged(schemas: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    merged: dict[str, Any] = {}
    for schema in schemas:
        properties = {**merged.get("properties", {}), **schema.get("properties", {})}
        required = [*merged.get("required", []), *schema.get("required", [])]
        merged |= schema
        if properties:
            merged |= {"properties": properties}
        if required:
            merged |= {"required": required}
    return merged


def _type_of(schema: Mapping[str, Any], *, at_the_top: bool = False) -> str:
    """The type, or the first of several that is not null; without one, what the rest is about."""
    types = schema.get("type")
    if isinstance(types, list):
        types = next((name for name in types if name != "null"), "null")
    if types is None:
        is_object = at_the_top or "properties" in schema or "required" in schema
        return "object" if is_object else "array" if "items" in schema else "string"
    if types not in _TYPES:
        raise UnknownSchema(f"{types!r} is no type")
    return str(types)


def _string(schema: Mapping[str, Any], name: str) -> str:
    shortest, longest = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    if shortest > _LONGEST:
        raise UnknownSchema("the schema asks for an endless text")
    if "pattern" in schema:
        return _fitting(schema["pattern"], shortest, longest)
    text = _FORMATS.get(schema.get("format", ""), f"{MARK} {name}")
    if len(text) > longest:
        return text[: int(longest)]
    return text.ljust(shortest, ".")


def _fitting(pattern: str, shortest: float, longest: float) -> str:
    try:
        fits = re.compile(pattern).search
    except re.error:
        raise UnknownSchema(f"the pattern {pattern!r} is none") from None
    for text in (*_FORMATS.values(), *_PLAIN_TEXTS):
        if fits(text) and shortest <= len(text) <= longest:
            return text
    raise UnknownSchema(f"the simulator knows no text that the pattern {pattern!r} fits")


def _number(schema: Mapping[str, Any], *, whole: bool) -> float:
    """The lowest number that is allowed and not below 1; below, if it has to be."""
    step = schema.get("multipleOf", 1 if whole else 0.5)
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    start = low if low > -math.inf else min(1, high)
    candidates = [math.floor(start / step) * step + number * step for number in (0, 1, 2, -1)]
    candidates.append((low + high) / 2 if not whole and math.isfinite(low + high) else candidates[0])
    for candidate in candidates:
        if _is_allowed(candidate, schema):
            return int(candidate) if whole else candidate
    raise UnknownSchema("no number is between its bounds")


def _is_allowed(number: float, schema: Mapping[str, Any]) -> bool:
    return bool(
        schema.get("minimum", -math.inf) <= number <= schema.get("maximum", math.inf)
        and schema.get("exclusiveMinimum", -math.inf) < number < schema.get("exclusiveMaximum", math.inf)
    )
