"""Scripted faults of the in-memory broker: what to do to which requests, how often."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Final

ERROR: Final = "error"
ERROR_AFTER: Final = "error_after"
CLOSE_BEFORE: Final = "close_before"
CLOSE_AFTER: Final = "close_after"
DROP_REPLY: Final = "drop_reply"
GARBAGE: Final = "garbage"
HALF_REPLY: Final = "half_reply"
OMIT: Final = "omit_partition"
REPEAT: Final = "duplicate_partition"
REPLY_TWICE: Final = "reply_twice"
WRONG_CORRELATION: Final = "wrong_correlation"


@dataclass
class Fault:
    """One scripted fault. `hits` says how often it happened: a test asserts that it did."""

    api: str
    node: int | None
    topic: str | None
    times: int
    kind: str = ""
    code: int = 0
    delay_s: float = 0.0
    throttle_ms: int = 0
    hits: int = 0
    removed: bool = False

    def error(self, code: int) -> Fault:
        """Answer with this error code, without doing anything (per partition for Produce)."""
        self.code, self.kind = code, ERROR
        return self

    def error_after(self, code: int) -> Fault:
        """Carry a Produce request out, then answer with this error code as if it had failed."""
        self.code, self.kind = code, ERROR_AFTER
        return self

    def close_before(self) -> Fault:
        """Close the connection without carrying the request out."""
        self.kind = CLOSE_BEFORE
        return self

    def close_after(self) -> Fault:
        """Carry the request out, then close the connection instead of answering."""
        self.kind = CLOSE_AFTER
        return self

    def drop_reply(self) -> Fault:
        """Carry the request out and never answer; the connection stays open."""
        self.kind = DROP_REPLY
        return self

    def garbage(self) -> Fault:
        """Answer with bytes that are no response."""
        self.kind = GARBAGE
        return self

    def half_reply(self) -> Fault:
        """Send the first half of the response, then nothing more on this connection."""
        self.kind = HALF_REPLY
        return self

    def wrong_correlation(self) -> Fault:
        """Answer under another correlation id."""
        self.kind = WRONG_CORRELATION
        return self

    def reply_twice(self) -> Fault:
        """Answer, then answer once more."""
        self.kind = REPLY_TWICE
        return self

    def omit_partition(self) -> Fault:
        """Leave the last partition out of a Produce response."""
        self.kind = OMIT
        return self

    def duplicate_partition(self) -> Fault:
        """Name the first partition twice in a Produce response."""
        self.kind = REPEAT
        return self

    def delay(self, seconds: float) -> Fault:
        """Answer this much later."""
        self.delay_s = seconds
        return self

    def throttle(self, milliseconds: int) -> Fault:
        """Answer at once, with this throttle_time_ms."""
        self.throttle_ms = milliseconds
        return self

    @property
    def idle(self) -> bool:
        """Whether nothing was scripted yet: `on` registers it before its kind is chosen."""
        return not (self.kind or self.delay_s or self.throttle_ms)

    def remove(self) -> None:
        """End the fault now."""
        self.removed = True


@dataclass
class Faults:
    """All scripted faults of a broker. Thread-safe: tests add, the broker's loop takes."""

    scripted: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: Fault) -> Fault:
        """Register a fault."""
        with self._lock:
            self.scripted.append(fault)
        return fault

    def take(self, api: str, node: int, topics: set[str]) -> Fault | None:
        """Return the first fault that applies to a request, counting the hit."""
        with self._lock:
            for fault in self.scripted:
                if fault.removed or fault.idle or fault.hits >= fault.times or fault.api != api:
                    continue
                if fault.node is not None and fault.node != node:
                    continue
                if fault.topic is not None and fault.topic not in topics:
                    continue
                fault.hits += 1
                return fault
        return None
