"""The application that runs prompt jobs, started by `promptq worker`. Only its own commands and tests import it."""

from collections.abc import Iterator


class _Refusal:
    """Stands where arq looks for functions: arq would run its own worker class, without leases and fences."""

    def __iter__(self) -> Iterator[object]:
        from click import ClickException  # noqa: PLC0415 - comes with arq, which a backend may lack

        raise ClickException("these jobs need promptq's own worker: run `promptq worker` instead of `arq`")


class WorkerSettings:
    """What `arq promptq.worker.WorkerSettings` finds: one line that names the right command."""

    functions = _Refusal()
