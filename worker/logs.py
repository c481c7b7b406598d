"""How the worker logs: structlog events, for a console or as one JSON object a line. Never a prompt or a key."""

import logging
import sys

import structlog
from structlog.typing import Processor

from promptq.worker.settings import Settings


def set_up(settings: Settings) -> None:
    """Configure structlog for this process; logs go to standard error."""
    renderer: list[Processor]
    if settings.log_format == "json":
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(sort_keys=False)]
    else:
        renderer = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                pad_event_to=18,
                exception_formatter=structlog.dev.plain_traceback,  # the default one prints local variables: prompts
            )
        ]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.log_level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
