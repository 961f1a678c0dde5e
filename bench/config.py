"""What every client of a case is configured with, and what the whole run was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Result = dict[str, float]
"""One run of one client: figure name to value; the names are those of `report.FIGURES`."""


@dataclass(frozen=True)
class Setup:
    """The same for every client of a case; printed with the results."""

    bootstrap: str
    topic: str
    partitions: int = 12
    linger_ms: int = 5
    codec: str = "none"
    batch_bytes: int = 256 * 1024
    """0: each client's own default."""
    runtime_dir: str = ""
    """Where mpproducer's sender lives: a private folder, so that every run starts a fresh one."""

    def shown(self) -> dict[str, Any]:
        """What is compared, without what differs from run to run."""
        return {
            "acks": "all",
            "idempotence": True,
            "linger_ms": self.linger_ms,
            "compression": self.codec,
            "batch_bytes": self.batch_bytes or "each client's default",
            "partitions": self.partitions,
        }


@dataclass(frozen=True)
class Options:
    """The command line."""

    rounds: int = 5
    seconds: float = 5.0
    records: int = 1_000_000
    """Of one saturation run of a fast client at 100 B; slower ones and larger records get fewer."""
    processes: tuple[int, ...] = (1, 4, 16, 64)
    rates: tuple[int, ...] = (8_000, 50_000)
    wide_partitions: int = 10_000
    idle_processes: int = 64
    batch_bytes: int = 256 * 1024
    tick_ms: float = 10.0
    full: bool = False
    quick: bool = False
    clients: tuple[str, ...] = ()
    scratch: Path = field(default_factory=Path)
    """Where compiled peers and sender folders go."""

    def wants(self, client: str) -> bool:
        """Whether the command line asks for this client; the null client always runs."""
        return not self.clients or client in self.clients or client == "nothing"
