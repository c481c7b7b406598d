"""`promptq schema`: the JSON Schema of a job."""

from typing import Any

from promptq.producer.commands.asking import say_json
from promptq.producer.models import PromptJob

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DURATIONS = ("delay", "deadline", "result_ttl")


def schema() -> None:
    """Print the JSON Schema of a job, as a line of JSON for `promptq enqueue` may hold it."""
    say_json(job_schema())


def job_schema() -> dict[str, Any]:
    """The schema of PromptJob, with `prompt` in the place of `messages`."""
    said = PromptJob.model_json_schema()
    messages = said["properties"]["messages"]
    prompt = {"description": "Short for one user message.", "anyOf": [{"type": "string", "minLength": 1}, messages]}
    for name in _DURATIONS:
        said["properties"][name]["anyOf"].insert(0, {"type": "number", "description": "Seconds."})
    said["properties"]["response_format"]["anyOf"].append({"enum": ["text", "json_object"], "type": "string"})
    said["properties"] = {"prompt": prompt, **said["properties"]}
    said["required"] = [name for name in said.get("required", ()) if name != "messages"]
    said["oneOf"] = [{"required": ["prompt"]}, {"required": ["messages"]}]
    return {"$schema": DIALECT, **said}
