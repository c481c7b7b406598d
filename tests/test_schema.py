import json
from typing import Any

import pytest
from typer.testing import CliRunner

from promptq.producer.cli import app
from promptq.producer.commands.schema import job_schema
from promptq.producer.models import PromptJob

pytestmark = pytest.mark.producer


def test_the_command_prints_the_schema() -> None:
    """As JSON, and it needs no Redis."""
    said = CliRunner().invoke(app, ["schema"])
    assert said.exit_code == 0
    assert json.loads(said.stdout) == job_schema()


def test_it_has_every_field_of_a_job() -> None:
    """And `prompt`; one of the two ways to ask is needed, and nothing else may stand there."""
    schema = job_schema()
    assert set(schema["properties"]) == {"prompt", *PromptJob.model_fields}
    assert schema["additionalProperties"] is False
    assert schema["required"] == []
    assert schema["oneOf"] == [{"required": ["prompt"]}, {"required": ["messages"]}]


@pytest.mark.parametrize(("field", "value"), [("delay", 1.5), ("deadline", 60), ("response_format", "json_object")])
def test_what_a_line_may_hold_instead(field: str, value: Any) -> None:
    """Seconds as a number, a format as a word: as the library takes them."""
    PromptJob.model_validate({"prompt": "Hi", field: value})
    kind = "number" if isinstance(value, int | float) else "string"
    assert kind in [each.get("type") for each in job_schema()["properties"][field]["anyOf"]]
