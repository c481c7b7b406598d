"""From what a caller says to what the enqueue script takes: validate, name, digest, encode. No Redis here."""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from promptq.producer import codec, keys
from promptq.producer.errors import InvalidJob, InvalidPayload, PayloadTooLarge
from promptq.producer.messages import Message
from promptq.producer.models import PAYLOAD_FIELDS, REQUEST_FIELDS, PromptJob
from promptq.producer.records import Adoption, Entry
from promptq.producer.settings import ProducerSettings, milliseconds

CHUNK_JOBS = 150
CHUNK_BYTES = 1024 * 1024
_CALENDAR_ENDS = 253_402_300_800_000
_MOST_ESCAPED = 6
"""Bytes of JSON for one character."""
_BYTES_A_TOKEN = 4
_TOKENS_A_MESSAGE = 4
_MOST_BESIDE = 8192
"""Bytes of everything else in a request, or beside one of its texts."""
_TOKENS_AN_ATTACHMENT = 1_000
"""An image or a file, however many bytes it has."""
_LONG_FIELDS = frozenset({"tools", "response_format"})
"""Those beside the messages that may be long, and that the model reads."""
_NOT_ASKED = PAYLOAD_FIELDS - REQUEST_FIELDS
_VALIDATOR = PromptJob.__pydantic_validator__
"""What `model_validate` calls. What it does before that is a tenth of the time."""

_BEFORE_ARGUMENTS = b'{"t":null,"f":"%b","a":[],"k":' % codec.FUNCTION.encode()
_AFTER_ARGUMENTS = b',"et":'

Prompt = str | Sequence[Mapping[str, Any] | Message]
"""A user's prompt, or messages such as `{"role": "user", "content": "Hi"}`."""


def job_of(
    given: "Prompt | Mapping[str, Any] | PromptJob", options: Mapping[str, Any], position: int | None = None
) -> PromptJob:
    """A validated job. `options` left None keep the job's own.

    Raises InvalidJob, which names the field and, in a batch, the job's `position`.
    """
    said = {name: value for name, value in options.items() if value is not None}
    if isinstance(given, str):
        fields: dict[str, Any] = {"prompt": given} | said
    elif isinstance(given, PromptJob):
        if not said:
            return given
        fields = given.model_dump(exclude_unset=True, exclude_none=True) | said
    elif isinstance(given, Mapping):
        fields = {**given, **said}
    else:
        fields = {"messages": given} | said
    return _validated(fields, position)


def _validated(fields: dict[str, Any], position: int | None) -> PromptJob:
    try:
        job: PromptJob = _VALIDATOR.validate_python(fields)
    except ValidationError as error:
        raise _invalid(error, position, is_prompt="prompt" in fields) from None
    return job


def _invalid(error: ValidationError, position: int | None, *, is_prompt: bool) -> InvalidJob:
    """The first complaint, without the value that was given: it may be a prompt or a secret.

    Where a field may be one of several shapes, the complaint that goes deepest into one of them counts.
    """
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    first = errors[0]
    if _is_shape(first["loc"][-1:]):
        field_of = first["loc"][:-1]
        about_it = [each for each in errors if each["loc"][: len(field_of)] == field_of]
        first = max(about_it, key=lambda each: len(each["loc"]))
    loc = tuple(place for place in first["loc"] if not _is_shape((place,)))
    if is_prompt and loc[:1] == ("messages",):
        field = "prompt"
    elif loc[:1] == ("deadline",):
        field = "deadline"  # without the kind that it might have been
    else:
        field = ".".join(map(str, loc)) or "prompt"
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        reason = "no such option"
    return InvalidJob(field, reason, position)


def _is_shape(place: tuple[str | int, ...]) -> bool:
    """Whether it is no field, but the tag of one of the shapes that a field may have."""
    return place != () and str(place[0]).startswith("[")


def check(job: PromptJob, settings: ProducerSettings, position: int | None = None) -> None:
    """Raise what `entry_of` would raise, mostly without encoding the request.

    Raises InvalidJob or PayloadTooLarge.
    """
    metadata = _encode(job.metadata, position, "metadata") if job.metadata else b""
    texts = [message.content for message in job.messages if isinstance(message.content, str)]
    if len(texts) < len(job.messages) or not job.model_fields_set.isdisjoint(_LONG_FIELDS):
        entry_of(job, settings, position)
        return
    texts += job.stop or ()
    most = _MOST_ESCAPED * sum(map(len, texts)) + _MOST_BESIDE * (1 + len(texts)) + len(metadata)
    if most > settings.max_payload:
        entry_of(job, settings, position)


def entry_of(job: PromptJob, settings: ProducerSettings, position: int | None = None) -> Entry:
    """The job as the enqueue script takes it, with an id of its own if it has none.

    Raises InvalidJob or PayloadTooLarge.
    """
    job = _with_model(job, settings)
    encoded = _encode(job, position)
    payload = b"%b%b%b%d}" % (_BEFORE_ARGUMENTS, encoded, _AFTER_ARGUMENTS, time.time_ns() // 1_000_000)
    if len(payload) > settings.max_payload:
        raise PayloadTooLarge("prompt", f"{len(payload)} bytes encoded, {settings.max_payload} allowed", position)
    digest = _digest_of(job, encoded, position)
    entry = _entry(job, job.id or os.urandom(16).hex(), str(job.model), digest, payload=payload, position=position)
    if entry.size > settings.max_payload:
        raise PayloadTooLarge(
            "metadata", f"{entry.size} bytes with the request, {settings.max_payload} allowed", position
        )
    return entry


def chunks_of(
    jobs: Iterable[str | Mapping[str, Any] | PromptJob], options: Mapping[str, Any], settings: ProducerSettings
) -> Iterator[list[Entry]]:
    """Many jobs as the enqueue script takes them, call by call. A list is validated before the first of them.

    Raises TypeError for what is no batch; InvalidJob or PayloadTooLarge.
    """
    if isinstance(jobs, str | bytes | Mapping | PromptJob):
        raise TypeError(f"enqueue_many takes many jobs, not one {type(jobs).__name__}; use enqueue, or a list")
    made: Iterable[PromptJob] = (job_of(job, options, position) for position, job in enumerate(jobs))
    if isinstance(jobs, Sequence):
        made = list(made)
        for position, job in enumerate(made):
            check(job, settings, position)
    return _chunks(entry_of(job, settings, position) for position, job in enumerate(made))


def _chunks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    chunk: list[Entry] = []
    size = 0
    for entry in entries:
        if chunk and (len(chunk) == CHUNK_JOBS or size + entry.size > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(entry)
        size += entry.size
    if chunk:
        yield chunk


def adoption_of(job_id: str, lane: str, record: Mapping[str, Any], settings: ProducerSettings) -> Adoption:
    """The ledger for a job that a plain arq client enqueued.

    `record` is its decoded payload: `sample_prompt`, at most one positional argument, keywords as for `enqueue`.
    Raises InvalidJob.
    """
    if record.get("f") != codec.FUNCTION:
        raise InvalidJob("function", f"{record.get('f')!r} is not {codec.FUNCTION!r}, the only one here")
    job = job_in(record)
    if job.id is not None:
        raise InvalidJob("id", "give arq's _job_id instead")
    job = _with_model(job, settings)
    entry = _entry(job, job_id, lane, _digest(job), payload=b"", position=None)
    return Adoption(entry, str(job.model), _enqueued(record.get("et")))


def _enqueued(said: Any) -> int:
    """When a plain arq client says that it enqueued, if a calendar has that moment; else now."""
    return said if type(said) is int and 0 <= said < _CALENDAR_ENDS else round(time.time() * 1000)


def job_in(record: Mapping[str, Any]) -> PromptJob:
    """The job inside a decoded payload, ours or plain arq's. Raises InvalidJob."""
    args, options = record.get("a") or (), record.get("k") or {}
    if not isinstance(args, list | tuple) or len(args) > 1 or not isinstance(options, dict):
        raise InvalidJob("prompt", "give one prompt, and everything else by name")
    return job_of(args[0], options) if args else _validated(options, None)


def _entry(job: PromptJob, job_id: str, lane: str, digest: str, *, payload: bytes, position: int | None) -> Entry:
    return Entry(
        estimate=_estimate(job),
        id=job_id,
        lane=lane,
        band=int(job.band),
        tenant=job.tenant,
        digest=digest,
        delay=milliseconds(job.delay) if job.delay else 0,
        deadline=_deadline(job.deadline),
        ttl=None if job.result_ttl is None else milliseconds(job.result_ttl),
        metadata=_encode(job.metadata, position, "metadata") if job.metadata else b"",
        payload=payload,
        group=job.group or "",
        conversation=keys.conversation_of(job.tenant, job.conversation) if job.conversation else "",
    )


def _estimate(job: PromptJob) -> str:
    """Tokens as the claim script takes them: of the prompt, and the most of the answer. What is learned corrects it."""
    bytes_of_text, attachments = 0, 0
    for message in job.messages:
        content = message.content
        if isinstance(content, str):
            bytes_of_text += len(content.encode())
        else:
            bytes_of_text += len(message.text.encode())
            attachments += sum(1 for _ in message.attachments)
        if message.tool_calls or message.encrypted_content or message.reasoning_content:
            bytes_of_text += _bytes_beside(message)
    if not job.model_fields_set.isdisjoint(_LONG_FIELDS):
        bytes_of_text += sum(len(codec.dumps(getattr(job, field))) for field in _LONG_FIELDS if getattr(job, field))
    prompt = (
        bytes_of_text // _BYTES_A_TOKEN + _TOKENS_A_MESSAGE * len(job.messages) + _TOKENS_AN_ATTACHMENT * attachments
    )
    if job.max_tokens is None:
        return str(prompt)
    return f"{prompt}/{job.max_tokens * (job.n or 1)}"


def _bytes_beside(message: Message) -> int:
    """Of what an assistant's message carries beside its content."""
    calls = sum(len(call.function.name) + len(call.function.arguments) for call in message.tool_calls or ())
    return calls + len(message.encrypted_content or "") + len(message.reasoning_content or "")


def digest_of(job: PromptJob, settings: ProducerSettings) -> str:
    """What tells two requests apart under one id: 32 hex digits. Raises InvalidJob."""
    return _digest(_with_model(job, settings))


def _digest(job: PromptJob) -> str:
    return _digest_of(job, _encode(job, None), None)


def _digest_of(job: PromptJob, encoded: bytes, position: int | None) -> str:
    """`encoded`: its payload, which mostly is the request and nothing else."""
    if not job.model_fields_set.isdisjoint(_NOT_ASKED):
        request = {name: value for name, value in job.payload().items() if name in REQUEST_FIELDS}
        encoded = _encode(request, position)
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def _with_model(job: PromptJob, settings: ProducerSettings) -> PromptJob:
    return job if job.model else job.model_copy(update={"model": settings.default_model})


def _deadline(deadline: timedelta | datetime | None) -> str:
    if deadline is None:
        return ""
    if isinstance(deadline, timedelta):
        return f"+{milliseconds(deadline)}"
    return str(round(deadline.timestamp() * 1000))


def _encode(value: Any, position: int | None, field: str = "prompt") -> bytes:
    try:
        return codec.dump_payload(value) if isinstance(value, PromptJob) else codec.dumps(value)
    except InvalidPayload as error:
        raise InvalidJob(field, str(error), position) from None
