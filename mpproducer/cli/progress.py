"""Progress on stderr: a live line on a terminal, one plain line per interval elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

PLAIN_INTERVAL_S = 2.0


class Progress:
    """Counts records as they are done. Use as a context manager; one thread.

    `label` heads the line; without a `total` there is no bar, only the count and the rate. The
    rate is counted from the first `advance`: what came before it was starting, not working.
    """

    def __init__(self, label: str, *, total: int | None = None, quiet: bool = False) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._first: tuple[float, int] | None = None
        self._printed_s = time.monotonic()

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            bar = [BarColumn()] if self.total else []
            self._bar = Bar(
                SpinnerColumn(finished_text=" "),
                TextColumn("{task.description}"),
                *bar,
                TextColumn("{task.fields[count]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(self.label, total=self.total, count="starting")
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
        now_s = time.monotonic()
        self.done += count
        if self._first is None:
            self._first = (now_s, self.done)
        if self._bar is not None:
            self._bar.update(self._task, advance=count, count=self._count(now_s))
        elif self.done and not self._quiet and now_s - self._printed_s >= PLAIN_INTERVAL_S:
            self._printed_s = now_s
            print(f"{self.label}: {self._count(now_s)}", file=sys.stderr)

    def _count(self, now_s: float) -> str:
        of = f" of {self.total:,}" if self.total else ""
        since_s, before = self._first or (now_s, self.done)
        seconds = now_s - since_s
        rate = f", {(self.done - before) / seconds:,.0f}/s" if seconds > 0.1 else ""
        return f"{self.done:,}{of} records{rate}"
