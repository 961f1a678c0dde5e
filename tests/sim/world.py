"""Time, chance and the record of what happened: one seed, one order of events."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from mpproducer.sender.retry import MS
from tests.sim.plan import Fault, Plan


class Violation(AssertionError):
    """A promise was broken, or an invariant does not hold."""


class World:
    """The simulated clock and its agenda. Ties are broken by chance, so by the seed."""

    def __init__(self, plan: Plan, *, trace: bool = False) -> None:
        self.plan = plan
        self.now_ns = 10_000 * MS
        self.rng = random.Random(f"world {plan.seed}")
        self.hits: Counter[Fault] = Counter()
        self.healed = False
        self.trace: list[str] | None = [] if trace else None
        self._agenda: list[tuple[int, float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def after(self, wait_ns: float, call: Callable[..., None], *args: Any) -> None:
        """Have something happen later."""
        self.at(self.now_ns + int(wait_ns), call, *args)

    def at(self, when_ns: int, call: Callable[..., None], *args: Any) -> None:
        """Have something happen at a time."""
        self._count += 1
        entry = (max(when_ns, self.now_ns), self.rng.random(), self._count, call, args)
        heapq.heappush(self._agenda, entry)

    def next_ns(self) -> int | None:
        """When the next thing happens."""
        return self._agenda[0][0] if self._agenda else None

    def step(self) -> None:
        """Let the next thing happen."""
        when_ns, _, _, call, args = heapq.heappop(self._agenda)
        self.now_ns = max(self.now_ns, when_ns)
        call(*args)

    def chance(self, kind: Fault) -> bool:
        """Whether this fault happens here. It is not counted: `hit` says that it has happened."""
        if self.healed:
            return False
        rate = self.plan.rates.get(kind)
        return rate is not None and self.rng.random() < rate

    def hit(self, kind: Fault) -> None:
        """A fault has happened."""
        self.hits[kind] += 1
        self.say("FAULT", kind.name)

    def strikes(self, kind: Fault) -> bool:
        """Whether this fault happens here and now; counted."""
        if not self.chance(kind):
            return False
        self.hit(kind)
        return True

    def between(self, low_ms: float, high_ms: float) -> int:
        """A duration, in nanoseconds."""
        return int(self.rng.uniform(low_ms, high_ms) * MS)

    def pick(self, choices: Any) -> Any:
        """One of several."""
        return choices[self.rng.randrange(len(choices))]

    def say(self, *words: Any) -> None:
        """Add a line to the trace, where one is kept."""
        if self.trace is not None:
            text = " ".join(str(word) for word in words)
            self.trace.append(f"{self.now_ns / MS - 10_000:12.3f} ms  {text}")
