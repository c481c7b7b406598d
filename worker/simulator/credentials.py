"""Recognises API keys without keeping them, and conversations."""

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache

_SCHEME = "Bearer "
_FINGERPRINT = re.compile(r"[0-9a-f]{12}")


def fingerprint_in(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The fingerprint of the API key in a call's metadata; empty if there is no key."""
    for name, value in metadata:
        if name == "authorization":
            return _fingerprint(str(value))
    return ""


def conversation_in(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The conversation of a call; empty if it names none."""
    return next((str(value) for name, value in metadata if name.lower() == "x-grok-conv-id"), "")


def fingerprint_of(key: str) -> str:
    """Twelve digits that tell the key from others, and nothing else of it."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def is_fingerprint(text: str) -> bool:
    """Whether it reads as a fingerprint, which no API key does."""
    return _FINGERPRINT.fullmatch(text) is not None


@lru_cache(maxsize=1024)
def _fingerprint(authorization: str) -> str:
    key = authorization.removeprefix(_SCHEME).strip()
    if not authorization.startswith(_SCHEME) or not key:
        return ""
    return fingerprint_of(key)
