"""Progress on stderr: a live line on a terminal, one plain line per interval elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

PLAIN_INTERVAL_S = 2.0


class Progress:
    """Counts things as they are done. Use as a context manager; one thread."""

    def __init__(self, what: str, *, total: int | None = None, quiet: bool = False) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._started_s = time.monotonic()
        self._printed_s = self._started_s

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
            )
            from rich.progress import Progress as Bar

            self._bar = Bar(
                SpinnerColumn(),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(self.what, total=self.total, rate="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int) -> None:
        """Count `count` more."""
        self.done += count
        now_s = time.monotonic()
        rate = f"{self.done / max(1e-9, now_s - self._started_s):,.0f} {self.what}/s"
        if self._bar is not None:
            self._bar.update(self._task, advance=count, rate=rate)
        elif not self._quiet and now_s - self._printed_s >= PLAIN_INTERVAL_S:
            self._printed_s = now_s
            of = f" of {self.total}" if self.total else ""
            print(f"{self.done}{of} {self.what}, {rate}", file=sys.stderr)
