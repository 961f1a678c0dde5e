"""The job of `mpproducer produce`: the parent reads and hands out chunks, workers send them."""

from __future__ import annotations

import collections
import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, Final

from mpproducer.cli.lines import Lines, may_wait, open_input, split_lines
from mpproducer.cli.progress import Progress
from mpproducer.errors import KafkaError

OUTSTANDING_CHUNKS: Final = 16
"""Chunks a worker has in delivery before it waits for the oldest one."""
WAITING_CHUNKS: Final = 2
"""Chunks on their way to a worker."""
_REPORT_S: Final = 0.1
_JOIN_S: Final = 30.0

Headers = list[tuple[str, bytes | None]]


@dataclass(frozen=True)
class Job:
    """What every worker does; picklable."""

    config: dict[str, Any]
    topic: str
    partition: int | None
    key: bytes | None
    key_delimiter: bytes | None
    key_field: str | None
    delimiter: bytes
    headers: Headers
    null_empty: bool


@dataclass(frozen=True)
class Chunk:
    """Whole lines of one file, the first of them being line `number`."""

    path: str
    number: int
    data: bytes
    lines: int


@dataclass
class Tally:
    """What became of the lines so far; `examples` has one message per reason."""

    lines: int = 0
    bytes: int = 0
    delivered: int = 0
    failed: collections.Counter[str] = field(default_factory=collections.Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Count another tally in."""
        self.lines += other.lines
        self.bytes += other.bytes
        self.delivered += other.delivered
        self.failed.update(other.failed)
        self.examples = other.examples | self.examples

    def fail(self, count: int, reason: str, example: str = "") -> None:
        """Count lines that are not delivered."""
        if count:
            self.failed[reason] += count
            if example:
                self.examples.setdefault(reason, example)


class Stop:
    """The first Ctrl-C (or SIGTERM) asks for the end of the input, the second one for the end.

    A handler that raises could lose a chunk between two bytecodes, so the first signal only sets
    `asked` and makes `reader` readable.
    """

    def __init__(self) -> None:
        self.asked = False
        self.abandoned = False
        self.reader = -1
        self._writer = -1

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """Handle both signals inside the block; main thread only."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self.reader)
            os.close(self._writer)

    def _on_signal(self, _number: int, _frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        os.write(self._writer, b"x")


class _Worker:
    """A worker process and the pipe to it."""

    def __init__(self, context: BaseContext, job: Job) -> None:
        self.pipe, child = context.Pipe()
        self.process: BaseProcess = context.Process(target=work, args=(job, child))  # type: ignore[attr-defined]
        self.process.start()
        child.close()
        self.waiting: collections.deque[Chunk] = collections.deque()  # handed over, not taken
        self.lines_out = 0  # handed over and not accounted for

    def end(self) -> str:
        """How the process ended, for people; ends it where it has not."""
        self.pipe.close()
        self.process.join(_JOIN_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        status = self.process.exitcode or 0
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"ended with status {status}"


class Dispatcher:
    """Reads the input, keeps every worker supplied, and adds up what they report.

    Every line that was read is accounted for in the tally, whatever becomes of its worker.
    """

    def __init__(self, job: Job, tally: Tally, progress: Progress, stop: Stop) -> None:
        self._job = job
        self._tally = tally
        self._progress = progress
        self._stop = stop
        self._workers: list[_Worker] = []
        self._left: int | None = None
        self._abandoned = False
        self.unreadable = ""

    def run(
        self, files: list[str], workers: int, start_method: str | None, count: int | None
    ) -> None:
        """Send the files. Raises KeyboardInterrupt when told twice to stop."""
        context = multiprocessing.get_context(start_method)
        self._left = count
        # Ctrl-C goes to the whole group; who ignores it from the start is not hit while starting.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._workers = [_Worker(context, self._job) for _ in range(workers)]
        finally:
            signal.signal(signal.SIGINT, before)
        try:
            with self._stop.armed():
                self._read(files)
                if self._stop.asked:
                    print("interrupted: delivering what was read", file=sys.stderr)
                self._finish()
        finally:
            self._abandoned = True
            for worker in self._workers:
                worker.process.terminate()
                self._account(worker, "abandoned")

    def _read(self, files: list[str]) -> None:
        for path in files:
            try:
                with open_input(path) as stream:
                    self._feed(path, Lines(stream, self._job.delimiter),
                               stream.fileno() if may_wait(stream) else None)  # fmt: skip
            except (OSError, EOFError, ValueError, zlib.error) as error:
                why = error.strerror if isinstance(error, OSError) else None
                self.unreadable = f"cannot read {path}: {why or error}"
                return
            if self._stop.asked or self._left == 0 or not self._workers:
                return

    def _feed(self, path: str, lines: Lines, waits_for: int | None) -> None:
        number = 1
        while not self._stop.asked and self._left != 0 and self._workers:
            if waits_for is not None and not self._wait(waits_for):
                continue
            data = lines.read()
            if data is None:
                return
            if data:
                chunk = self._cut(path, number, data)
                number += chunk.lines
                self._give(chunk)

    def _wait(self, input_fd: int) -> bool:
        """Wait for input, reports or a signal; whether there is input."""
        pipes = [worker.pipe for worker in self._workers]
        ready = multiprocessing.connection.wait([input_fd, self._stop.reader, *pipes])
        if any(pipe in ready for pipe in pipes):
            self._collect(0)
        return input_fd in ready

    def _cut(self, path: str, number: int, data: bytes) -> Chunk:
        delimiter = self._job.delimiter
        count = data.count(delimiter) + (not data.endswith(delimiter))
        if self._left is not None:
            if count > self._left:
                count = self._left
                data = delimiter.join(data.split(delimiter, count)[:count]) + delimiter
            self._left -= count
        return Chunk(path, number, data, count)

    def _give(self, chunk: Chunk) -> None:
        """Hand the chunk to the worker with the least to do."""
        while self._workers:
            worker = min(self._workers, key=lambda each: (len(each.waiting), each.lines_out))
            if len(worker.waiting) >= WAITING_CHUNKS:
                self._collect(1.0)
                continue
            worker.waiting.append(chunk)
            worker.lines_out += chunk.lines
            try:
                worker.pipe.send(chunk)
            except OSError:
                self._collect(0)  # finds the worker dead, and gives the chunk to another
            return
        self._tally.lines += chunk.lines
        self._tally.fail(chunk.lines, "no worker process is left")

    def _finish(self) -> None:
        while any(worker.waiting for worker in self._workers):
            self._collect(1.0)
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
        while self._workers:
            self._collect(1.0)

    def _collect(self, timeout_s: float) -> None:
        """Take what workers report."""
        by_pipe = {worker.pipe: worker for worker in self._workers}
        for pipe in multiprocessing.connection.wait(list(by_pipe), timeout=timeout_s):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                kind, report = worker.pipe.recv()
            except (EOFError, OSError):
                self._account(worker, "")
                continue
            if kind == "taken":
                worker.waiting.popleft()
            elif kind == "tally":
                worker.lines_out -= report.lines
                self._tally.add(report)
                self._progress.advance(report.delivered)
            else:
                self._account(worker, report)

    def _account(self, worker: _Worker, why: str) -> None:
        """A worker is no more. What it took and has not reported is not known to be delivered; of
        what it did not take it has sent nothing, so another worker may."""
        self._workers = [other for other in self._workers if other is not worker]
        how = worker.end()
        if not why and worker.process.exitcode:
            print(f"a worker process {how}; {len(self._workers)} go on", file=sys.stderr)
        untaken = [] if self._abandoned else list(worker.waiting)
        taken = worker.lines_out - sum(chunk.lines for chunk in untaken)
        self._tally.lines += taken
        self._tally.fail(taken, why or f"outcome unknown: a worker process {how}")
        for chunk in untaken:
            self._give(chunk)


# --- a worker: sends chunks, reports outcomes


def work(job: Job, pipe: multiprocessing.connection.Connection) -> None:
    """Run one worker process: chunks come in, tallies go out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides about Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sender = _ChunkSender(job, pipe)
    # A parent that is gone cannot be told anything; what it handed over is sent all the same.
    with contextlib.suppress(BrokenPipeError):
        try:
            sender.run()
        except (KafkaError, TimeoutError) as error:
            sender.settle(everything=True)
            pipe.send(("error", f"{type(error).__name__}: {error}"))
        else:
            pipe.send(("end", ""))


class _ChunkSender:
    """Sends the chunks of a pipe with the host's producer."""

    def __init__(self, job: Job, pipe: multiprocessing.connection.Connection) -> None:
        self._job = job
        self._pipe = pipe
        self._outstanding: collections.deque[tuple[Any, Tally]] = collections.deque()

    def run(self) -> None:
        """Return after the last chunk is accounted for. Raises KafkaError, TimeoutError."""
        from mpproducer.producer import Producer

        with Producer(self._job.config) as producer:
            while chunk := self._next():
                self._pipe.send(("taken", None))
                self._send(producer, chunk)
                self.settle()
            producer.flush()
            self.settle(everything=True)

    def _next(self) -> Chunk | None:
        while self._outstanding and not self._pipe.poll(_REPORT_S):
            self.settle()
        try:
            chunk: Chunk | None = self._pipe.recv()
        except EOFError:
            return None
        return chunk

    def _send(self, producer: Any, chunk: Chunk) -> None:
        job = self._job
        tally = Tally()
        values, keys = parse(job, chunk, tally)
        future = producer.send_many(
            job.topic,
            values,
            keys=keys,
            headers=[job.headers] * len(values) if job.headers else None,
            partition=job.partition,
        )
        self._outstanding.append((future, tally))

    def settle(self, *, everything: bool = False) -> None:
        """Report the oldest chunks as far as their outcome is known; waits for it when there are
        too many, or for all."""
        outstanding = self._outstanding
        while outstanding:
            future, tally = outstanding[0]
            if not everything and len(outstanding) <= OUTSTANDING_CHUNKS and not future.done():
                return
            failed = future.failed
            tally.delivered = len(future) - len(failed)
            for _index, error in failed:
                code = f" {error.code}" if getattr(error, "code", None) else ""
                tally.fail(1, f"{type(error).__name__}{code}", str(error))
            self._pipe.send(("tally", tally))
            outstanding.popleft()


def parse(
    job: Job, chunk: Chunk, tally: Tally
) -> tuple[list[bytes | None], list[bytes | None] | None]:
    """Return the values and keys of a chunk's lines; lines without their key are tallied."""
    lines = split_lines(chunk.data, job.delimiter)
    tally.lines = len(lines)
    tally.bytes = sum(map(len, lines))
    if job.key is None and job.key_delimiter is None and job.key_field is None:
        return [line or None for line in lines] if job.null_empty else [*lines], None
    values: list[bytes | None] = []
    keys: list[bytes | None] = []
    for number, line in enumerate(lines, chunk.number):
        try:
            key, value = _key_of(job, line)
        except ValueError as error:
            name = "stdin" if chunk.path == "-" else chunk.path
            tally.fail(1, f"bad line: {error}", f"{name}:{number}")
            continue
        keys.append(key)
        values.append(value if value or not job.null_empty else None)
    return values, keys


def _key_of(job: Job, line: bytes) -> tuple[bytes | None, bytes]:
    if job.key_delimiter is not None:
        key, found, value = line.partition(job.key_delimiter)
        if not found:
            raise ValueError("no key delimiter")
        return key, value
    if job.key_field is None:
        return job.key, line
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(fields, dict) or job.key_field not in fields:
        raise ValueError(f"no field {job.key_field!r}")
    field_value = fields[job.key_field]
    if field_value is None:
        return None, line
    if isinstance(field_value, str):
        return field_value.encode(), line
    return json.dumps(field_value, separators=(",", ":")).encode(), line
