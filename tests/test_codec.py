import asyncio
import json
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from promptq.producer import (
    ErrorCode,
    InvalidPayload,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobResult,
    JobStatus,
    PromptqError,
    Usage,
    codec,
    reading,
)

pytestmark = pytest.mark.producer

# Somebody's worker in some later year; results are read for a week at least.
RECORD: dict[str, Any] = {
    "t": 1, "f": "sample_prompt", "a": [], "k": {}, "et": 1_000, "s": True, "st": 2_000, "ft": 3_000,
    "q": "arq:queue:grok-4", "id": "a",
    "r": {"status": "succeeded", "content": "Hi", "usage": {"total_tokens": 5}},
}  # fmt: skip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self._path)!r}, 'w').close()",)

    @classmethod
    def bytes(cls, path: Path, protocol: int) -> bytes:
        """One as arq would store it."""
        return pickle.dumps({"f": "sample_prompt", "r": cls(path), "s": True, "k": {}}, protocol)


def record(**result: Any) -> bytes:
    """A result record with this result in it."""
    return codec.dumps(RECORD | {"s": result["status"] == "succeeded", "r": result})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, protocol: int) -> None:
    """Of any protocol: InvalidPayload, and the code in it does not run."""
    bomb = Bomb.bytes(tmp_path / "went off", protocol)
    for read in (codec.decode, codec.loads):
        with pytest.raises(InvalidPayload, match="pickle" if protocol >= 2 else "not JSON"):
            read(bomb)
    with pytest.raises(InvalidPayload):
        reading.result_of("a", bomb, {})
    assert not (tmp_path / "went off").exists()
    pickle.loads(bomb)  # noqa: S301 - the bomb is a real one
    assert (tmp_path / "went off").exists()


@given(st.binary())
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"\xef\xbb\xbf{}")
@example(b'{"a": 1e999999999}')
@example(b'{"a": ' + b"9" * 10_000 + b"}")
@example(b'"\\ud800"')
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    """Whatever stands in Redis: a dict, or InvalidPayload; no other error, no crash."""
    for read in (codec.decode, codec.loads):
        with suppress(InvalidPayload):
            assert isinstance(read(data), dict)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=4))
def test_json_goes_there_and_back(value: dict[str, Any]) -> None:
    """What JSON can hold is not changed; codec.dumps writes what every other reader of JSON reads."""
    written = codec.dumps(value)
    if "NaN" not in repr(json.loads(written)) and "Infinity" not in written.decode():
        assert repr(codec.decode(written)) == repr(json.loads(written))


@pytest.mark.parametrize(
    "value", [object(), {"a": object()}, "\ud800", {"a": "\ud800"}, {1: {2: {3: object}}}], ids=range(5)
)
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    """InvalidPayload, as arq wraps it."""
    with pytest.raises(InvalidPayload, match="JSON"):
        codec.dumps(value)


def test_what_refuses_itself_is_refused() -> None:
    """An endless value ends as an error."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidPayload):
        codec.dumps(endless)


def test_a_success_is_a_result() -> None:
    """`loads` gives arq's Job the JobResult in `r`, and leaves the rest."""
    loaded = codec.loads(codec.dumps(RECORD))
    result = JobResult(id="a", status=JobStatus.SUCCEEDED, content="Hi", usage=Usage(total_tokens=5))
    assert loaded == RECORD | {"r": result}


@pytest.mark.parametrize(
    ("status", "kind"),
    [("failed", JobFailed), ("expired", JobExpired), ("cancelled", asyncio.CancelledError)],
)
def test_a_failure_is_what_arq_raises(status: str, kind: type[BaseException]) -> None:
    """Arq raises what stands in `r`: our exceptions, or CancelledError for a cancelled job."""
    loaded = codec.loads(record(status=status, error={"code": "timeout", "message": "no answer"}))["r"]
    assert type(loaded) is kind
    if isinstance(loaded, JobFailed):
        assert loaded.result.error is not None
        assert loaded.result.error.code is ErrorCode.TIMEOUT
        assert not isinstance(loaded, JobCancelled)


def test_a_payload_is_left_alone() -> None:
    """A queued job's payload has no result; its arguments come back as they are."""
    payload = {"t": None, "f": "sample_prompt", "a": ["Hello"], "k": {"r": 1, "s": 2}, "et": 5}
    assert codec.loads(codec.dumps(payload)) == payload


@given(
    st.dictionaries(st.sampled_from([*RECORD, "status", "usage", "error"]), json_values, max_size=6)
    | st.fixed_dictionaries(
        {"id": st.text(), "r": st.dictionaries(st.sampled_from(sorted(JobResult.model_fields)), json_values)}
    )
)
def test_a_strange_record_is_refused(strange: dict[str, Any]) -> None:
    """A record that is no result of ours is InvalidPayload, never another error."""
    with suppress(InvalidPayload):
        assert isinstance(codec.result_of(strange), JobResult)


@pytest.mark.parametrize(
    "ledger",
    [
        {b"enqueued": b"1e30"},
        {b"enqueued": b"soon"},
        {b"finished": b"nan"},
        {b"finished": b"-99999999999999999"},
        {b"metadata": b"{"},
        {b"metadata": b"[1]"},
        {b"attempt:x": b"{}"},
        {b"attempt:x": b"\x80\x04."},
    ],
    ids=str,
)
def test_a_strange_ledger_is_refused(ledger: dict[bytes, bytes]) -> None:
    """A ledger that somebody wrote into is InvalidPayload that names the job, never another error."""
    with pytest.raises(InvalidPayload, match="'a'"):
        reading.result_of("a", codec.dumps(RECORD), ledger)


@pytest.mark.parametrize("data", [b"\x80\x04.", b"not JSON", b"[]", b"{}", b'{"r": 1}'], ids=str)
def test_a_strange_result_names_its_job(data: bytes) -> None:
    """Of two hundred results that are read at once, the error says which one it was."""
    with pytest.raises(InvalidPayload, match="'a'"):
        reading.result_of("a", data, {})


def test_exceptions_are_ours() -> None:
    """One except clause is enough for a backend."""
    assert issubclass(InvalidPayload, PromptqError)
    assert issubclass(InvalidPayload, ValueError)
