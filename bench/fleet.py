"""The worker processes of one run of one client, driven over pipes, every wait bounded."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.clients import PYTHON
from bench.clients.base import Client
from bench.config import Setup

START_S = 120.0
RUN_S = 240.0
_END_S = 20.0
_SENDER_END_S = 10.0

Task = Callable[..., Any]
"""A module-level function: (client, ...) -> picklable."""


class RunFailed(RuntimeError):
    """A client could not do its run; it has no figures for it."""


class Fleet:
    """`count` processes with one client each. A context manager; everything ends with the block."""

    def __init__(self, client: str, setup: Setup, count: int) -> None:
        self.client = PYTHON[client]
        # Short, for the Unix socket in it; a fresh one makes a fresh sender.
        self._folder = Path(tempfile.mkdtemp(prefix="mppb-"))
        self.setup = replace(setup, runtime_dir=str(self._folder))
        self._count = count
        self._context = multiprocessing.get_context("spawn")
        self._shared: Any = None
        self._workers: list[tuple[Any, Connection]] = []
        self.pids: list[int] = []
        self.helpers: list[int] = []

    def __enter__(self) -> Fleet:
        try:
            self._shared = self.client.share(self.setup, self._count, self._context)
            for index in range(self._count):
                ours, theirs = self._context.Pipe()
                process = self._context.Process(
                    target=_work,
                    args=(theirs, self.client.name, self.setup, index, self._shared),
                    daemon=True,
                )
                process.start()
                theirs.close()
                self._workers.append((process, ours))
            self.helpers = sorted({pid for pids in self._gather(START_S) for pid in pids})
            self.pids = [int(process.pid or 0) for process, _pipe in self._workers]
        except BaseException:
            self._end(kill=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(kill=kind is not None)

    def begin(self, task: Task, *arguments: Any) -> None:
        """Have every worker start a task: `task(client, *arguments)`."""
        for _process, pipe in self._workers:
            pipe.send((task, arguments))

    def finish(self, timeout_s: float = RUN_S) -> list[Any]:
        """Wait for that task everywhere and return what it returned. Raises RunFailed."""
        return self._gather(timeout_s)

    def run(self, task: Task, *arguments: Any, timeout_s: float = RUN_S) -> list[Any]:
        """`begin` and `finish`."""
        self.begin(task, *arguments)
        return self.finish(timeout_s)

    def _gather(self, timeout_s: float) -> list[Any]:
        until = time.monotonic() + timeout_s
        found = []
        for _process, pipe in self._workers:
            if not pipe.poll(max(0.0, until - time.monotonic())):
                raise RunFailed(f"{self.client.name} did not finish within {timeout_s:.0f} s")
            try:
                kind, value = pipe.recv()
            except EOFError:
                raise RunFailed(f"a worker of {self.client.name} died") from None
            if kind == "failed":
                raise RunFailed(f"{self.client.name}: {value}")
            found.append(value)
        return found

    def _end(self, *, kill: bool) -> None:
        for process, pipe in self._workers:
            if kill:
                process.kill()
            with contextlib.suppress(OSError):
                pipe.send(None)
        until = time.monotonic() + _END_S
        for process, pipe in self._workers:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()
        if self._shared is not None:
            self.client.unshare(self._shared)
        # mpproducer's sender ends by itself when its last worker has gone.
        until = time.monotonic() + _SENDER_END_S
        while any(self._folder.iterdir()) and time.monotonic() < until:
            time.sleep(0.02)
        shutil.rmtree(self._folder, ignore_errors=True)


def _connect(name: str, setup: Setup, index: int, shared: Any) -> Client:
    client = PYTHON[name](setup, index, shared)
    client.burst(client.shaped([b"{}"]))
    acked = client.drain()
    if acked < 1:
        raise RunFailed("the first record was not acknowledged")
    return client


def _work(pipe: Connection, name: str, setup: Setup, index: int, shared: Any) -> None:
    # Ctrl-C is the parent's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    client = None
    try:
        client = _connect(name, setup, index, shared)
        pipe.send(("done", client.helpers()))
    except Exception as error:  # noqa: BLE001 - told to the parent
        pipe.send(("failed", _short(error)))
    while client is not None:
        try:
            message = pipe.recv()
        except EOFError:
            break
        if message is None:
            break
        task, arguments = message
        try:
            pipe.send(("done", task(client, *arguments)))
        except Exception as error:  # noqa: BLE001 - told to the parent
            pipe.send(("failed", _short(error)))
    if client is not None:
        with contextlib.suppress(Exception):
            client.close()
    pipe.close()


def _short(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    sys.stderr.flush()
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
