import io
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import ValidationError

from promptq.producer import ProducerSettings
from promptq.producer.console import wrong_settings
from promptq.worker import logs
from promptq.worker.settings import Settings

SECRET = "xai-s3cr3t"
DEFAULTS: dict[str, Any] = {
    "redis_timeout": 5.0,
    "enqueue_replicas": 0,
    "provider": "xai",
    "xai_host": "api.x.ai",
    "xai_insecure": False,
    "openai_base_url": "https://api.x.ai/v1",
    "default_model": "grok-4",
    "max_jobs": 100,
    "job_timeout": 3600.0,
    "max_attempts": 5,
    "lease": 10.0,
    "drain_timeout": 25.0,
    "result_ttl": 3 * 86400.0,
    "failure_ttl": 7 * 86400.0,
    "max_queued": 1_000_000,
    "max_payload": 16 * 1024 * 1024,
    "log_format": "console",
    "log_content": False,
    "echo_latency": 0.0,
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has set does not count here."""
    for name in (
        *(f"PROMPTQ_{field.upper()}" for field in Settings.model_fields),
        "REDIS_URL",
        "XAI_API_KEY",
        "XAI_API_KEY_FILE",
    ):
        monkeypatch.delenv(name, raising=False)


def url(settings: ProducerSettings) -> str:
    """Where the Redis is."""
    return settings.redis_url.get_secret_value()


def test_defaults() -> None:
    """Without any variable: what the documentation says."""
    settings = Settings()
    assert {name: getattr(settings, name) for name in DEFAULTS} == DEFAULTS
    assert url(settings) == "redis://localhost:6379"
    assert settings.api_key() is None


@pytest.mark.parametrize(
    ("variable", "said", "field", "value"),
    [
        ("PROMPTQ_REDIS_TIMEOUT", "2.5", "redis_timeout", 2.5),
        ("PROMPTQ_ENQUEUE_REPLICAS", "1", "enqueue_replicas", 1),
        ("PROMPTQ_PROVIDER", "echo", "provider", "echo"),
        ("PROMPTQ_XAI_HOST", "localhost:1", "xai_host", "localhost:1"),
        ("PROMPTQ_XAI_INSECURE", "1", "xai_insecure", True),
        ("PROMPTQ_OPENAI_BASE_URL", "http://vllm:8000/v1", "openai_base_url", "http://vllm:8000/v1"),
        ("PROMPTQ_DEFAULT_MODEL", "grok-3", "default_model", "grok-3"),
        ("PROMPTQ_MAX_JOBS", "7", "max_jobs", 7),
        ("PROMPTQ_JOB_TIMEOUT", "60", "job_timeout", 60.0),
        ("PROMPTQ_MAX_ATTEMPTS", "1", "max_attempts", 1),
        ("PROMPTQ_LEASE", "30", "lease", 30.0),
        ("PROMPTQ_DRAIN_TIMEOUT", "0", "drain_timeout", 0.0),
        ("PROMPTQ_RESULT_TTL", "60", "result_ttl", 60.0),
        ("PROMPTQ_FAILURE_TTL", "61", "failure_ttl", 61.0),
        ("PROMPTQ_MAX_QUEUED", "5", "max_queued", 5),
        ("PROMPTQ_MAX_PAYLOAD", "2048", "max_payload", 2048),
        ("PROMPTQ_LOG_FORMAT", "json", "log_format", "json"),
        ("PROMPTQ_LOG_LEVEL", "debug", "log_level", "debug"),
        ("PROMPTQ_LOG_CONTENT", "1", "log_content", True),
        ("PROMPTQ_ECHO_LATENCY", "0.5", "echo_latency", 0.5),
    ],
)
def test_each_variable_sets_its_field(
    monkeypatch: pytest.MonkeyPatch, variable: str, said: str, field: str, value: Any
) -> None:
    """Environment first, an argument (a flag) over it."""
    monkeypatch.setenv(variable, said)
    assert getattr(Settings(), field) == value
    assert getattr(Settings(**{field: DEFAULTS.get(field, "info")}), field) == DEFAULTS.get(field, "info")


@pytest.mark.parametrize("kind", [ProducerSettings, Settings])
def test_the_redis_url_falls_back(monkeypatch: pytest.MonkeyPatch, kind: type[ProducerSettings]) -> None:
    """An argument, then PROMPTQ_REDIS_URL, then REDIS_URL, which may be another application's."""
    monkeypatch.setenv("REDIS_URL", "redis://other")
    assert url(kind()) == "redis://other"
    monkeypatch.setenv("PROMPTQ_REDIS_URL", "redis://ours")
    assert url(kind()) == "redis://ours"
    assert url(kind(redis_url="redis://given")) == "redis://given"  # type: ignore[arg-type] # a str is coerced


def test_the_key_comes_from_the_environment_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file goes before the variable, and is read anew each time, so that a key can be changed under a worker."""
    monkeypatch.setenv("XAI_API_KEY", SECRET)
    assert Settings().api_key() == SECRET
    file = tmp_path / "key"
    file.write_text("from the file\n")
    monkeypatch.setenv("XAI_API_KEY_FILE", str(file))
    settings = Settings()
    assert settings.api_key() == "from the file"
    file.write_text("another")
    assert settings.api_key() == "another"


@pytest.mark.parametrize(
    ("lease", "timeout", "is_enough"),
    [(10, 5, True), (7.6, 5, True), (7.5, 5, False), (3, 5, False), (1.6, 1, True), (1.5, 1, False)],
)
def test_a_lease_outlives_a_late_renewal(lease: float, timeout: float, is_enough: bool) -> None:
    """`lease > renew period + Redis timeout`, or the settings are refused with both names and what is needed."""
    if is_enough:
        settings = Settings(lease=lease, redis_timeout=timeout)
        assert settings.lease > settings.renew_period + settings.redis_timeout
        return
    with pytest.raises(
        ValidationError, match=rf"PROMPTQ_LEASE must be more than {1.5 * timeout:g} s with PROMPTQ_REDIS_TIMEOUT"
    ):
        Settings(lease=lease, redis_timeout=timeout)


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("PROMPTQ_REDIS_TIMEOUT", "0"),
        ("PROMPTQ_REDIS_TIMEOUT", "soon"),
        ("PROMPTQ_REDIS_URL", "localhost"),
        ("PROMPTQ_MAX_JOBS", "0"),
        ("PROMPTQ_PROVIDER", "simulator"),
        ("PROMPTQ_DRAIN_TIMEOUT", "-1"),
        ("PROMPTQ_DRAIN_TIMEOUT", "inf"),
        ("PROMPTQ_RESULT_TTL", "nan"),
        ("PROMPTQ_LOG_FORMAT", "xml"),
        ("PROMPTQ_MAX_PAYLOAD", "10"),
        ("PROMPTQ_DEFAULT_MODEL", ""),
        ("PROMPTQ_DEFAULT_MODEL", "promptq"),
        ("PROMPTQ_ECHO_LATENCY", "inf"),
        ("PROMPTQ_LIMITS", "grok-4: 480"),
        ("PROMPTQ_LIMITS", "[]"),
        ("PROMPTQ_LIMITS", '{"grok-4": 480}'),
    ],
)
def test_a_bad_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str, said: str) -> None:
    """One bad variable is refused, and the error says which one it was."""
    monkeypatch.setenv(variable, said)
    with pytest.raises(ValidationError, match=f"(?i){variable}|{variable.removeprefix('PROMPTQ_')}"):
        Settings()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("grok-4: 480", "no JSON"),
        ('{"grok-4": {"rpm": 480}, "grok-3": {"rpm": 0}}', "grok-3.rpm: Input should be"),
        ('{"grok-4": {"rmp": 480}}', "grok-4.rmp: Extra"),
    ],
)
def test_bad_limits_are_found(monkeypatch: pytest.MonkeyPatch, said: str, reason: str) -> None:
    """The error says of which model, and which limit."""
    monkeypatch.setenv("PROMPTQ_LIMITS", said)
    with pytest.raises(ValidationError) as refused:
        Settings()
    [(variable, why)] = wrong_settings(refused.value)
    assert variable == "PROMPTQ_LIMITS"
    assert why.startswith(reason)


def test_settings_are_frozen() -> None:
    """What a process started with stays."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().max_jobs = 5  # type: ignore[misc] # that is the point


@pytest.fixture
def secretive(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with secrets."""
    monkeypatch.setenv("XAI_API_KEY", SECRET)
    monkeypatch.setenv("PROMPTQ_REDIS_URL", f"redis://user:{SECRET}@localhost")


@pytest.mark.usefixtures("secretive")
def test_settings_do_not_show_secrets() -> None:
    """Not in `repr`, `str`, or JSON."""
    settings = Settings()
    assert settings.api_key() == SECRET
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


@pytest.mark.usefixtures("secretive")
@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("PROMPTQ_LEASE", "1"),
        ("PROMPTQ_REDIS_TIMEOUT", "soon"),
        ("PROMPTQ_REDIS_URL", f"redis://:{SECRET}/@localhost"),
        ("PROMPTQ_REDIS_URL", f"http://:{SECRET}@localhost"),
    ],
)
def test_refused_settings_do_not_show_secrets(monkeypatch: pytest.MonkeyPatch, variable: str, said: str) -> None:
    """Nor does the error about a setting, which goes to the log of a container that does not start."""
    monkeypatch.setenv(variable, said)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert SECRET not in str(caught.value)


@pytest.fixture
def fresh_structlog() -> Iterator[None]:
    """Logging is for the whole process: put it back."""
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("fresh_structlog")
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_logged_exception_shows_no_local_variables(log_format: Any) -> None:
    """A traceback in the log names lines, not what the variables held: they hold prompts and keys."""
    said = io.StringIO()
    with redirect_stderr(said):
        logs.set_up(Settings(log_format=log_format))
        prompt = SECRET
        try:
            {0: 0}[len(prompt)]
        except LookupError:
            structlog.get_logger().exception("something.broke")
    assert "KeyError" in said.getvalue()
    assert SECRET not in said.getvalue()
