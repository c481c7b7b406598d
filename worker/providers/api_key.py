"""The API key: where it is read, whether it can be one, and whether its file has another one by now.

Loads no vendor's library: `promptq doctor` asks where there is none.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

import structlog

from promptq.producer.errors import PromptqError
from promptq.worker.settings import Settings

log = structlog.get_logger("promptq.key")

LOOK_EVERY = 1.0
"""Seconds from one look at the key's file to the next, at least."""


class ApiKeyError(PromptqError, ValueError):
    """There is no usable API key. One line, which says what to set."""


class KeyWords(NamedTuple):
    """How to speak of a provider's key: what it is, and the variables that may have it."""

    what: str = "xAI API key"
    variables: str = "XAI_API_KEY or XAI_API_KEY_FILE"


OF_XAI = KeyWords()
OF_OPENAI = KeyWords("API key", "PROMPTQ_OPENAI_API_KEY, XAI_API_KEY or XAI_API_KEY_FILE")


def read_key(settings: Settings) -> str:
    """The key that the settings name, as it is now. Raises ApiKeyError."""
    try:
        return checked_key(settings.api_key(), OF_OPENAI if settings.provider == "openai" else OF_XAI)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ApiKeyError(f"cannot read the key's file, {key_file(settings)}: {reason}") from None


def key_file(settings: Settings) -> str:
    """The path of the key's file; `***` if somebody has set the key itself there."""
    path = str(settings.xai_api_key_file)
    return "***" if path.startswith("xai-") and "/" not in path else path


def checked_key(api_key: str | None, words: KeyWords = OF_XAI) -> str:
    """The key without white space around it. Raises ApiKeyError if it is none by its characters."""
    key = (api_key or "").strip()
    if not key:
        raise ApiKeyError(f"no {words.what}: set {words.variables}")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ApiKeyError(f"not an {words.what}, by its characters: set {words.variables} to one")
    return key


class KeyFile:
    """The file that XAI_API_KEY_FILE names, read again when it has changed; a symlink is followed.

    A file that holds no key, perhaps only for the moment in which it is written, is no error here: that is logged once,
    and the file is looked at again. Reading blocks.
    """

    def __init__(self, path: Path, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._settings, self._clock = path, settings, clock
        self._looked_at = -math.inf
        self._read: tuple[int, ...] | None = None
        self._told = ""

    @classmethod
    def named_by(cls, settings: Settings) -> Self | None:
        """None if no file is named, or a pipe, which says its key once, or if a key of its own goes before it."""
        path = settings.xai_api_key_file
        if path is None or path.is_fifo() or settings.own_api_key is not None:
            return None
        return cls(path, settings)

    def changed(self) -> str | None:
        """The key, if the file is not as it was when it was last read; looks once a second at most."""
        now = self._clock()
        if now - self._looked_at < LOOK_EVERY:
            return None
        self._looked_at = now
        state = _state_of(self._path)
        return None if state is not None and state == self._read else self.now()

    def now(self) -> str | None:
        """The key, read in any case; None if the file holds none."""
        self._read = _state_of(self._path)  # first: what is written meanwhile is then seen by the next look
        try:
            key = read_key(self._settings)
        except ApiKeyError as error:
            self._read = None
            self._tell(str(error))
            return None
        self._told = ""
        return key

    def _tell(self, reason: str) -> None:
        if reason != self._told:
            log.warning("key.unreadable", reason=reason, file=key_file(self._settings))
            self._told = reason


def _state_of(path: Path) -> tuple[int, ...] | None:
    """Another one after every change; None if the file is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
