"""The books: every call that was seen, every generation that was started, and what it costs.

A generation is charged when it starts, before any latency, and in full, whatever becomes of it: a
client that goes away has paid. So tests can compare what was paid for with what was recorded.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from pydantic import BaseModel, ConfigDict

JOURNAL_LENGTH = 200_000
SECONDS_LENGTH = 20_000
PROMPT_LENGTH = 1_000
CANCELLED = "CANCELLED"
FAILED = "UNKNOWN"
OK = "OK"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens and cost of one generation, with the names of xAI's `SamplingUsage`.

    `total_tokens` is prompt, completion and reasoning together. The cost is in ticks (10**10 are
    1 USD), None if the answer does not tell it. `server_side_tools_used` has a name for each call.
    """

    prompt_text_tokens: int
    prompt_image_tokens: int
    cached_prompt_text_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    prompt_tokens: int
    total_tokens: int
    cost_in_usd_ticks: int | None
    num_sources_used: int = 0
    server_side_tools_used: tuple[str, ...] = ()


class TokenTotals(_Frozen):
    """Sums over the usage of many generations; the cost in ticks."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0
    cost_in_usd_ticks: int = 0


class Totals(_Frozen):
    """The books in numbers.

    Attributes:
        calls: Calls seen, refused ones included; also the number of the last journal entry.
        generations: Calls that started a generation: each is paid for.
        in_flight: Calls that have not ended.
        peak_in_flight: The most calls that were in flight at once.
        ended: Ended calls by how they ended: `OK`, a status code, or `CANCELLED` for a client that
            cancelled, ran out of time or went away.
        charged: Usage of all generations started.
        answered: Usage of those whose answer was sent.
        connections: Client connections that calls came over.
        credit_in_usd_ticks: What the account has left, below zero if the last call cost more; None
            if it never ends.
    """

    calls: int
    generations: int
    in_flight: int
    peak_in_flight: int
    ended: dict[str, int]
    charged: TokenTotals
    answered: TokenTotals
    connections: int
    credit_in_usd_ticks: int | None


class Second(_Frozen):
    """The calls to one model that came within one second.

    Attributes:
        second: Since the epoch.
        calls: Calls seen, refused ones included.
        generations: Those that started a generation.
        throttled: Those that a rate limit refused.
        total_tokens: Charged for the generations.
    """

    second: int
    model: str
    calls: int
    generations: int
    throttled: int
    total_tokens: int


class JournalEntry(_Frozen):
    """One call.

    Attributes:
        number: Its place in the order of calls, from 1.
        prompt: Text of the last user message, its first 1,000 characters.
        generation: Whether a generation was started.
        key: Fingerprint of the API key, empty if there was none.
        conversation: What `x-grok-conv-id` said, empty if it was not there.
        started_at: Seconds since the epoch.
        ended_at: Seconds since the epoch; None while it is in flight.
        ended: How it ended, as in `Totals.ended`; None while it is in flight.
        usage: What was charged; None without a generation.
    """

    number: int
    model: str
    prompt: str
    generation: bool
    key: str
    conversation: str
    started_at: float
    ended_at: float | None
    ended: str | None
    usage: TokenUsage | None


class Tally:
    """The counts of one `Second`."""

    __slots__ = ("calls", "generations", "throttled", "tokens")

    def __init__(self) -> None:
        self.calls = self.generations = self.throttled = self.tokens = 0


class Call:
    """A call on the books, open until `Books.close`."""

    __slots__ = (
        "conversation",
        "ended",
        "ended_at",
        "key",
        "model",
        "number",
        "prompt",
        "started_at",
        "tally",
        "usage",
    )

    def __init__(
        self, number: int, model: str, prompt: str, key: str, *, conversation: str, started_at: float, tally: Tally
    ) -> None:
        self.number = number
        self.model = model
        self.tally = tally
        self.prompt = prompt[:PROMPT_LENGTH]
        self.key = key
        self.conversation = conversation
        self.started_at = started_at
        self.ended_at: float | None = None
        self.ended: str | None = None
        self.usage: TokenUsage | None = None

    def to_entry(self) -> JournalEntry:
        """As others see it."""
        return JournalEntry(
            number=self.number,
            model=self.model,
            prompt=self.prompt,
            generation=self.usage is not None,
            key=self.key,
            conversation=self.conversation,
            started_at=self.started_at,
            ended_at=self.ended_at,
            ended=self.ended,
            usage=self.usage,
        )


class Books:
    """Counts calls. `open` each, `start` its generation if there is one, `close` it once."""

    def __init__(self) -> None:
        self._journal: deque[Call] = deque(maxlen=JOURNAL_LENGTH)
        self._calls = 0
        self._generations = 0
        self._in_flight = 0
        self._peak_in_flight = 0
        self._ended: Counter[str] = Counter()
        self._charged = _Sum()
        self._answered = _Sum()
        self._peers: set[str] = set()
        self._tallies: dict[tuple[int, str], Tally] = {}

    def open(self, *, model: str, prompt: str, key: str, peer: str, conversation: str = "") -> Call:
        """Books a call as seen; `key` is a fingerprint, `peer` names the connection."""
        self._calls += 1
        self._in_flight += 1
        self._peak_in_flight = max(self._peak_in_flight, self._in_flight)
        self._peers.add(peer)
        now = time.time()
        tally = self._tally(int(now), model)
        tally.calls += 1
        call = Call(self._calls, model, prompt, key, conversation=conversation, started_at=now, tally=tally)
        self._journal.append(call)
        return call

    def throttle(self, call: Call) -> None:
        """Books that a rate limit refuses the call."""
        call.tally.throttled += 1

    def start(self, call: Call, usage: TokenUsage) -> None:
        """Books that the call's generation starts, and charges it."""
        call.usage = usage
        self._generations += 1
        self._charged.add(usage)
        call.tally.generations += 1
        call.tally.tokens += usage.total_tokens

    def close(self, call: Call, ended: str) -> None:
        """Books how the call ended: `OK`, a status code, or `CANCELLED`."""
        call.ended = ended
        call.ended_at = time.time()
        self._in_flight -= 1
        self._ended[ended] += 1
        if ended == OK and call.usage is not None:
            self._answered.add(call.usage)

    def totals(self, *, credit: int | None) -> Totals:
        """The books in numbers; `credit` is what the account has left, in ticks."""
        return Totals(
            calls=self._calls,
            generations=self._generations,
            in_flight=self._in_flight,
            peak_in_flight=self._peak_in_flight,
            ended=dict(self._ended),
            charged=self._charged.to_totals(),
            answered=self._answered.to_totals(),
            connections=len(self._peers),
            credit_in_usd_ticks=credit,
        )

    def seconds(self) -> list[Second]:
        """The calls by second and model, oldest first; only seconds with calls."""
        return [
            Second(
                second=second,
                model=model,
                calls=tally.calls,
                generations=tally.generations,
                throttled=tally.throttled,
                total_tokens=tally.tokens,
            )
            for (second, model), tally in self._tallies.items()
        ]

    def calls_after(self, number: int) -> Iterator[Call]:
        """The calls with higher numbers, oldest first, as far back as the journal reaches."""
        oldest = self._calls - len(self._journal) + 1
        return islice(self._journal, max(0, number + 1 - oldest), None)

    def _tally(self, second: int, model: str) -> Tally:
        tally = self._tallies.get((second, model))
        if tally is None:
            tally = self._tallies[second, model] = Tally()
            if len(self._tallies) > SECONDS_LENGTH:
                del self._tallies[next(iter(self._tallies))]
        return tally


class _Sum:
    __slots__ = ("completion", "cost", "prompt", "reasoning", "total")

    def __init__(self) -> None:
        self.prompt = self.completion = self.reasoning = self.total = self.cost = 0

    def add(self, usage: TokenUsage) -> None:
        self.prompt += usage.prompt_tokens
        self.completion += usage.completion_tokens
        self.reasoning += usage.reasoning_tokens
        self.total += usage.total_tokens
        self.cost += usage.cost_in_usd_ticks or 0

    def to_totals(self) -> TokenTotals:
        return TokenTotals(
            prompt_tokens=self.prompt,
            completion_tokens=self.completion,
            reasoning_tokens=self.reasoning,
            total_tokens=self.total,
            cost_in_usd_ticks=self.cost,
        )
