"""The xAI API key: where it is read, and whether it can be one.

Loads no vendor's library: `promptq doctor` asks where there is none.
"""

from promptq.producer.errors import PromptqError
from promptq.worker.settings import Settings


class ApiKeyError(PromptqError, ValueError):
    """There is no usable xAI API key. One line, which says what to set."""


def read_key(settings: Settings) -> str:
    """The key that the settings name, as it is now. Raises ApiKeyError."""
    try:
        return checked_key(settings.api_key())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ApiKeyError(f"cannot read XAI_API_KEY_FILE ({key_file(settings)}): {reason}") from None


def key_file(settings: Settings) -> str:
    """The path of the key's file; `***` if somebody has set the key itself there."""
    path = str(settings.xai_api_key_file)
    return "***" if path.startswith("xai-") and "/" not in path else path


def checked_key(api_key: str | None) -> str:
    """The key without white space around it. Raises ApiKeyError if it is none by its characters."""
    key = (api_key or "").strip()
    if not key:
        raise ApiKeyError("no xAI API key: set XAI_API_KEY or XAI_API_KEY_FILE")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ApiKeyError("not an xAI API key, by its characters: set XAI_API_KEY or XAI_API_KEY_FILE to one")
    return key
