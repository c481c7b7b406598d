"""`limits`: what a fleet makes of an account's limits, counted by the simulator, which sees what was really called.

Each part is a measure of its own, `limits:requests` and so on; `limits` means all of them. A part sets its `stage`
(a private Redis, a simulator, workers with the real SDK), puts load on it, and reads the simulator's counters.
"""

from collections.abc import Callable

from figures import Figure
from limits.following import changes
from limits.keeping import learned, requests, tokens
from limits.sharing import neighbour, priority, retry, tenant
from limits.telling import ledgers, sizes
from rig import Rig

PARTS: dict[str, Callable[[Rig], list[Figure]]] = {
    f"limits:{part.__name__}": part
    for part in (requests, tokens, learned, changes, neighbour, tenant, priority, retry, ledgers, sizes)
}
"""By the name on the command line."""
