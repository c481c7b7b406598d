"""The child's side of a measure: what it is told (argv), when to go, when to end (stdin), and what it says (stdout).

The other side is rig.py. A child says `ready`, waits for a line, runs until its input ends, and says what it measured.
"""

import asyncio
import json
import sys
from typing import Any


def options() -> dict[str, Any]:
    """What the measure asks for."""
    told: dict[str, Any] = json.loads(sys.argv[1])
    return told


def say(**facts: Any) -> None:
    """One JSON line to the measure."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def told_to_go() -> None:
    """The clock starts now."""
    await asyncio.to_thread(sys.stdin.readline)


async def told_to_end() -> None:
    """The measure has seen enough, or is gone."""
    await asyncio.to_thread(sys.stdin.read)
