"""What the scripts take and give, as values: positions in ARGV are known here and in scripts.py alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from promptq.producer import codec
from promptq.producer.models import JobStatus

Arg = str | bytes | int | float


def clock(now: int | None) -> Arg:
    """How a call names its time in ms: none is the server's own."""
    return "" if now is None else now


class Entry(NamedTuple):
    """One job as the enqueue script takes it. Durations in ms."""

    id: str
    lane: str
    band: int
    tenant: str
    digest: str
    delay: int
    deadline: str
    """"" for none, "+ms" from now, or ms since 1970."""
    ttl: int | None
    metadata: bytes
    payload: bytes
    group: str = ""
    conversation: str = ""
    """As `keys.conversation` ends: a tenant's, so that no tenant holds up another."""
    estimate: str = "1"
    """Tokens of the prompt, and behind a slash the most that the answer may take, if that is known."""

    @property
    def size(self) -> int:
        """Bytes that it takes in a call and in Redis."""
        return len(self.payload) + len(self.metadata)

    def args(self) -> tuple[Arg, ...]:
        """In the order of ARGV."""
        ttl: Arg = "" if self.ttl is None else self.ttl
        return (
            self.id, self.lane, self.band, self.tenant, self.digest,
            self.delay, self.deadline, ttl, self.metadata, self.group,
            self.conversation, self.estimate, self.payload,
        )  # fmt: skip


class Enqueued(NamedTuple):
    """What became of one entry."""

    disposition: str
    """created, duplicate or conflict."""
    status: JobStatus
    lane: str
    """Where it stands; for a duplicate perhaps not where it was meant to go."""


class LaneFull(NamedTuple):
    """The call was refused whole: `queued` of at most `most` jobs are in `lane`."""

    lane: str
    queued: int
    most: int


class TenantFull(NamedTuple):
    """The call was refused whole: `waiting` of at most `most` jobs of `tenant` wait."""

    tenant: str
    waiting: int
    most: int


class Payer(NamedTuple):
    """Who pays for the calls of the models that match: `pattern` is a model, or ends with `*`. The first match counts.

    `most`: jobs of this account that one claim may lease; -1: any number.
    """

    pattern: str
    account: str
    most: int = -1


@lru_cache(maxsize=8)
def routes_of(payers: tuple[Payer, ...]) -> Arg:
    """As the scripts take them."""
    return codec.dumps(payers) if payers else ""


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What a worker asks for. `seq` grows by one with every claim that was answered; `lease` in ms.

    `account`: who pays for the calls, as `Provider.account`; `payers`: who pays for those of some models.

    `take_over_until`: in ms since 1970, by Redis' clock; run later, the claim takes over no lease that ran out.
    """

    worker: str
    seq: int
    slots: int
    lease: int
    take_over_until: int
    may_take_poison: bool
    failure_ttl: int
    result_ttl: int
    known_lanes: Sequence[str] = ()
    serves: Sequence[str] = ()
    max_bytes: int = 8 * 1024 * 1024
    account: str = ""
    payers: tuple[Payer, ...] = ()

    @property
    def token(self) -> str:
        """What stands in the ledger of every job that this claim leases."""
        return f"{self.worker}:{self.seq}"

    def args(self, now: int | None) -> tuple[Arg, ...]:
        """In the order of ARGV."""
        return (
            clock(now), self.worker, self.seq, self.slots,
            self.lease, self.take_over_until, int(self.may_take_poison), self.max_bytes,
            self.failure_ttl, self.result_ttl, codec.dumps(list(self.known_lanes)), self.account,
            routes_of(self.payers), *self.serves,
        )  # fmt: skip


class ClaimedJob(NamedTuple):
    """A leased job. Times in ms since 1970."""

    id: str
    epoch: str
    lane: str
    model: str
    spent: int
    deadline: int | None
    enqueued: int
    stalls: int
    timeouts: int
    payload: bytes


class Foreign(NamedTuple):
    """A job of a plain arq client, for the worker to adopt. Its id may be no text."""

    id: bytes
    lane: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer to a claim. `due_in`: ms until something comes due; None: nothing will by itself."""

    now: int
    has_more: bool
    """Slots or bytes stopped it, or it has dealt with as many jobs as one script may."""
    due_in: int | None
    to_probe: str
    """The account of which this worker is to find out whether it works again; empty: none."""
    lanes: tuple[str, ...]
    jobs: tuple[ClaimedJob, ...]
    foreign: tuple[Foreign, ...]


Probed = Literal["works", "refused", "gone"]
"""What a worker found out about an account; gone: nobody uses it any more."""

Kind = Literal["succeeded", "failed", "cancelled", "expired", "retry", "throttled", "released"]


class Settlement(NamedTuple):
    """The outcome of one run as the settle script takes it. Durations in ms."""

    id: str
    token: str
    epoch: str
    kind: Kind
    ttl: int
    delay: int = 0
    reason: str = ""
    attempt: bytes = b""
    """By `codec.dump_attempt`; empty if no call was made."""
    usage: tuple[int | None, ...] = (0, 0, 0, 0, 0, None)
    """Prompt, completion, reasoning, cached and total tokens; ticks."""
    result: bytes = b""

    @property
    def was_unreached(self) -> bool:
        """Whether the provider could not be asked at all."""
        return self.kind == "throttled" and not self.attempt

    def args(self) -> tuple[Arg, ...]:
        """In the order of ARGV."""
        usage: list[Arg] = ["" if amount is None else amount for amount in self.usage]
        return (
            self.id, self.token, self.epoch, self.kind, self.delay, self.ttl, self.reason,
            self.attempt, *usage, self.result,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Adoption:
    """A plain arq client's job with the ledger that it is to get.

    `refusal`: the failed result that it ends in instead.
    """

    entry: Entry
    model: str
    enqueued: int
    refusal: bytes = b""

    def args(self) -> tuple[Arg, ...]:
        """In the order of ARGV."""
        e = self.entry
        ttl: Arg = "" if e.ttl is None else e.ttl
        return (
            e.id, e.lane, self.model, e.band, e.tenant, e.digest,
            e.delay, e.deadline, ttl, e.metadata, self.enqueued, self.refusal,
        )  # fmt: skip


class Telling(NamedTuple):
    """What the tell script appends to the stream of one running job: `batches`, the first of them with number `first`.

    `edition`: how often this run has begun to tell its answer from the beginning; the first batch of a later one is
    made of the first `again` batches of the edition before. Without batches: all that it has told is void.
    """

    id: str
    token: str
    edition: int
    again: int
    first: int
    batches: Sequence[bytes]

    def args(self) -> tuple[Arg, ...]:
        """In the order of ARGV."""
        return (self.id, self.token, self.edition, self.again, self.first, len(self.batches), *self.batches)
