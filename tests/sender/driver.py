"""Drives a Machine the way the loop does: answers of the same turn first, then what was reported.

What stands on both sides of the machine, scripted (`harness.py`) or simulated (`tests/sim`), is a
subclass: a method `_do_<Action>` carries an action out and returns the events that answer it.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from mpproducer.sender import actions as a
from mpproducer.sender.machine import Machine

# What the loop answers before it hands over anything else.
ANSWERS: Final = (
    a.Sealed,
    a.BatchCorrupt,
    a.Compressed,
    a.SplitDone,
    a.TopicPublished,
)


class Driver:
    """A machine and the present time; `log` keeps every action where `keep` says so."""

    machine: Machine
    now_ns: int

    def __init__(self, *, keep: bool = True) -> None:
        self.log: list[Any] = []
        self._keep = keep
        self._doers: dict[type, Any] = {}

    def feed(self, *events: Any) -> list[Any]:
        """Feed events; returns every action they led to, answers included."""
        seen: list[Any] = []
        reported = deque(events)
        answers: deque[Any] = deque()
        while answers or reported:
            event = answers.popleft() if answers else reported.popleft()
            actions = self.machine.on_event(event, self.now_ns)
            self.told(event, actions)
            if self._keep:
                self.log += actions
                seen += actions
            for action in actions:
                for answer in self.apply(action):
                    (answers if isinstance(answer, ANSWERS) else reported).append(answer)
            if not answers:
                self.machine.check_invariants()
        return seen

    def told(self, event: Any, actions: list[Any]) -> None:
        """Hook: the machine turned this event into these actions."""

    def apply(self, action: Any) -> list[Any]:
        """Carry an action out; returns the events that answer it in the same turn."""
        kind = type(action)
        if kind not in self._doers:
            self._doers[kind] = getattr(self, f"_do_{kind.__name__}", None)
        doer = self._doers[kind]
        return list(doer(action) or ()) if doer is not None else []
