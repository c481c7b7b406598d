"""The rule of the house: once a queue is drained, every key in Redis has a TTL or is permanent."""

from typing import Any

from promptq.producer.keys import is_permanent

# A pipeline of this many TTLs per round trip.
_BATCH = 1000


def keys_without_ttl(client: Any) -> list[bytes]:
    """The keys that nothing will ever remove, seen through a synchronous client."""
    found = sorted(client.scan_iter(count=_BATCH))
    left: list[bytes] = []
    for start in range(0, len(found), _BATCH):
        batch = found[start : start + _BATCH]
        pipeline = client.pipeline(transaction=False)
        for key in batch:
            pipeline.pttl(key)
        left += [key for key, ttl in zip(batch, pipeline.execute(), strict=True) if ttl == -1]
    return [key for key in left if not is_permanent(key)]


def assert_no_leftovers(client: Any) -> None:
    """Fail if the database holds a key that should have had a TTL."""
    left = keys_without_ttl(client)
    names = ", ".join(key.decode(errors="backslashreplace") for key in left[:20])
    assert not left, f"{len(left)} keys were left without TTL: {names}"
