"""By which name a vendor knows the conversation of a job. Loads no vendor's library."""

import hashlib
from typing import Final

from promptq.producer.models import PromptJob

CONVERSATION_HEADER: Final = "x-grok-conv-id"
"""XAI sends calls with the same value to the same server, whose prompt cache has what they begin with."""

_DIGEST_BYTES: Final = 16


def conversation_headers(job: PromptJob) -> dict[str, str]:
    """What a call of the job carries beside the request: a digest, for headers are ASCII and names are the caller's."""
    if job.conversation is None:
        return {}
    return {CONVERSATION_HEADER: hashlib.blake2b(job.conversation.encode(), digest_size=_DIGEST_BYTES).hexdigest()}
