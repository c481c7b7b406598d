"""From what a caller says to what the enqueue script takes: validate, name, digest, encode. No Redis here."""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from promptq.producer import codec
from promptq.producer.errors import InvalidJob, InvalidPayload, PayloadTooLarge
from promptq.producer.models import REQUEST_FIELDS, PromptJob
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

Prompt = str | Sequence[Mapping[str, Any]]
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
    try:
        return PromptJob.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error, position, is_prompt="prompt" in fields) from None


def _invalid(error: ValidationError, position: int | None, *, is_prompt: bool) -> InvalidJob:
    """The first complaint, without the value that was given: it may be a prompt or a secret."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    loc = first["loc"]
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


def check(job: PromptJob, settings: ProducerSettings, position: int | None = None) -> None:
    """Raise what `entry_of` would raise, mostly without encoding the request.

    Raises InvalidJob or PayloadTooLarge.
    """
    metadata = _encode(job.metadata, position, "metadata") if job.metadata else b""
    texts = sum(len(message.content) for message in job.messages) + sum(map(len, job.stop or ()))
    most = _MOST_ESCAPED * texts + _MOST_BESIDE * (1 + len(job.messages) + len(job.stop or ())) + len(metadata)
    if most > settings.max_payload:
        entry_of(job, settings, position)


def entry_of(job: PromptJob, settings: ProducerSettings, position: int | None = None) -> Entry:
    """The job as the enqueue script takes it, with an id of its own if it has none.

    Raises InvalidJob or PayloadTooLarge.
    """
    job = _with_model(job, settings)
    arguments = job.payload()
    payload = _encode(
        {"t": None, "f": codec.FUNCTION, "a": (), "k": arguments, "et": time.time_ns() // 1_000_000}, position
    )
    if len(payload) > settings.max_payload:
        raise PayloadTooLarge("prompt", f"{len(payload)} bytes encoded, {settings.max_payload} allowed", position)
    entry = _entry(job, job.id or os.urandom(16).hex(), str(job.model), arguments, payload=payload, position=position)
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
    entry = _entry(job, job_id, lane, job.payload(), payload=b"", position=None)
    return Adoption(entry, str(job.model), _enqueued(record.get("et")))


def _enqueued(said: Any) -> int:
    """When a plain arq client says that it enqueued, if a calendar has that moment; else now."""
    return said if type(said) is int and 0 <= said < _CALENDAR_ENDS else round(time.time() * 1000)


def job_in(record: Mapping[str, Any]) -> PromptJob:
    """The job inside a decoded payload, ours or plain arq's. Raises InvalidJob."""
    args, options = record.get("a") or (), record.get("k") or {}
    if not isinstance(args, list | tuple) or len(args) > 1 or not isinstance(options, Mapping):
        raise InvalidJob("prompt", "give one prompt, and everything else by name")
    return job_of(args[0], options) if args else job_of(dict(options), {})


def _entry(
    job: PromptJob, job_id: str, lane: str, arguments: dict[str, Any], *, payload: bytes, position: int | None
) -> Entry:
    return Entry(
        estimate=_estimate(job),
        id=job_id,
        lane=lane,
        band=int(job.band),
        tenant=job.tenant,
        digest=_digest(arguments, position),
        delay=milliseconds(job.delay) if job.delay else 0,
        deadline=_deadline(job.deadline),
        ttl=None if job.result_ttl is None else milliseconds(job.result_ttl),
        metadata=_encode(job.metadata, position, "metadata") if job.metadata else b"",
        payload=payload,
        group=job.group or "",
    )


def _estimate(job: PromptJob) -> str:
    """Tokens as the claim script takes them: of the prompt, and the most of the answer. What is learned corrects it."""
    texts = sum(len(message.content.encode()) for message in job.messages)
    prompt = texts // _BYTES_A_TOKEN + _TOKENS_A_MESSAGE * len(job.messages)
    return str(prompt) if job.max_tokens is None else f"{prompt}/{job.max_tokens}"


def digest_of(job: PromptJob, settings: ProducerSettings) -> str:
    """What tells two requests apart under one id: 32 hex digits. Raises InvalidJob."""
    return _digest(_with_model(job, settings).payload(), None)


def _digest(arguments: Mapping[str, Any], position: int | None) -> str:
    request = {name: value for name, value in arguments.items() if name in REQUEST_FIELDS}
    return hashlib.blake2b(_encode(request, position), digest_size=16).hexdigest()


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
        return codec.dumps(value)
    except InvalidPayload as error:
        raise InvalidJob(field, str(error), position) from None
