"""Recognises API keys without keeping them."""

import hashlib
from functools import lru_cache

from promptq.worker.simulator.context import Metadata

_SCHEME = "Bearer "


def fingerprint_in(metadata: Metadata) -> str:
    """The fingerprint of the API key in a call's metadata; empty if there is no key."""
    for name, value in metadata:
        if name == "authorization":
            return _fingerprint(str(value))
    return ""


@lru_cache(maxsize=1024)
def _fingerprint(authorization: str) -> str:
    key = authorization.removeprefix(_SCHEME).strip()
    if not authorization.startswith(_SCHEME) or not key:
        return ""
    return hashlib.sha256(key.encode()).hexdigest()[:12]
