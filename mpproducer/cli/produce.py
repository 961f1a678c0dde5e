"""`mpproducer produce`: lines of files or stdin to a topic, by several worker processes."""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import multiprocessing
import multiprocessing.connection
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from mpproducer.cli.lines import chunks, open_input, split_lines
from mpproducer.cli.progress import Progress
from mpproducer.config import Config
from mpproducer.errors import KafkaError

OUTSTANDING_CHUNKS = 16
"""Chunks a worker has in delivery before it waits for the oldest one."""


@dataclass(frozen=True)
class Job:
    """What every worker does; picklable."""

    config: dict[str, Any]
    topic: str
    key_field: str | None
    key_separator: bytes | None
    partition: int | None
    headers: list[tuple[str, bytes]]


@dataclass
class Tally:
    """What became of the lines so far."""

    lines: int = 0
    bytes: int = 0
    delivered: int = 0
    failed: collections.Counter[str] = field(default_factory=collections.Counter)

    def add(self, other: Tally) -> None:
        """Count another tally in."""
        self.lines += other.lines
        self.bytes += other.bytes
        self.delivered += other.delivered
        self.failed.update(other.failed)


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "produce",
        help="send lines of files or stdin to a topic",
        description="Send every line of the files (or of stdin) as one record. Exit status 0 when "
        "every record was acknowledged, 1 when some were not, 2 when the command cannot work.",
    )
    parser.add_argument(
        "files",
        nargs="*",
        default=["-"],
        metavar="FILE",
        help="input, '-' for stdin; .gz and .zst are read directly",
    )
    parser.add_argument(
        "-b",
        "--bootstrap-server",
        "--bootstrap-servers",
        required=True,
        metavar="HOST:PORT,...",
        dest="bootstrap",
        help="brokers",
    )
    parser.add_argument("-t", "--topic", required=True, help="topic to write to")
    parser.add_argument(
        "-k", "--key-field", metavar="NAME", help="lines are JSON objects; this field is the key"
    )
    parser.add_argument("-K", "--key-separator", metavar="TEXT", help="lines are KEY TEXT VALUE")
    parser.add_argument("-p", "--partition", type=int, help="write to this partition only")
    parser.add_argument(
        "-H",
        "--header",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="header of every record; may be repeated",
    )
    parser.add_argument("-z", "--compression", metavar="CODEC", help="compression_type")
    parser.add_argument(
        "-X",
        "-C",
        "--config",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any configuration key; may be repeated",
    )
    parser.add_argument(
        "-w",
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="worker processes (default 1: file order is kept; more workers keep "
        "the order of what each of them sends)",
    )
    parser.add_argument(
        "--start-method",
        choices=multiprocessing.get_all_start_methods(),
        default=None,
        help="how workers are started",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    parser.set_defaults(run=run)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    if args.workers < 1:
        raise KafkaError(f"--workers {args.workers}: must be at least 1")
    if args.key_field and args.key_separator:
        raise KafkaError("--key-field and --key-separator exclude each other")
    config = Config.from_user(_pairs(args.config, "--config"), _direct(args))
    job = Job(
        config.to_wire(),
        args.topic,
        args.key_field,
        args.key_separator.encode() if args.key_separator else None,
        args.partition,
        [(name, value.encode()) for name, value in _pairs(args.header, "--header").items()],
    )
    started_s = time.monotonic()
    with Progress("records", quiet=args.quiet) as progress:
        tally = _produce(job, args.files, args.workers, args.start_method, progress)
    return _report(tally, time.monotonic() - started_s, as_json=args.json, quiet=args.quiet)


def _direct(args: argparse.Namespace) -> dict[str, Any]:
    direct: dict[str, Any] = {"bootstrap_servers": args.bootstrap}
    if args.compression:
        direct["compression_type"] = args.compression
    return direct


def _pairs(items: list[str], option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise KafkaError(f"{option} {item!r}: must be NAME=VALUE")
        pairs[name] = value
    return pairs


def _report(tally: Tally, seconds: float, *, as_json: bool, quiet: bool) -> int:
    failed = sum(tally.failed.values())
    if as_json:
        print(json.dumps({"lines": tally.lines, "delivered": tally.delivered, "failed": failed,
                          "bytes": tally.bytes, "seconds": round(seconds, 3),
                          "reasons": dict(tally.failed)}))  # fmt: skip
    if not quiet or failed:
        rate = tally.delivered / seconds if seconds else 0.0
        print(f"{tally.delivered} of {tally.lines} records delivered in {seconds:.2f} s "
              f"({rate:,.0f}/s)", file=sys.stderr)  # fmt: skip
    for reason, count in sorted(tally.failed.items()):
        print(f"{count} not delivered: {reason}", file=sys.stderr)
    return 1 if failed else 0


# --- the parent: reads, hands out chunks, adds up


class _Worker:
    """A worker process and the pipe to it; never more than two chunks are on the way."""

    def __init__(self, context: BaseContext, job: Job) -> None:
        self.pipe, child = context.Pipe()
        self.process: BaseProcess = context.Process(target=work, args=(job, child))  # type: ignore[attr-defined]
        self.process.start()
        child.close()
        self.waiting_chunks = 0
        self.finished = False


def _produce(
    job: Job, files: list[str], count: int, start_method: str | None, progress: Progress
) -> Tally:
    context = multiprocessing.get_context(start_method)
    workers = [_Worker(context, job) for _ in range(count)]
    tally = Tally()
    source = _read(files)
    try:
        with _stop_at_interrupt(source):
            for chunk in source:
                worker = _free_worker(workers, tally, progress)
                worker.pipe.send_bytes(chunk)
                worker.waiting_chunks += 1
        for worker in workers:
            with contextlib.suppress(OSError):
                worker.pipe.send_bytes(b"")
        while not all(worker.finished for worker in workers):
            _collect(workers, tally, progress)
    finally:
        for worker in workers:
            if not worker.finished:
                worker.process.terminate()
            worker.process.join(timeout=30)
    return tally


def _read(files: list[str]) -> Iterator[bytes]:
    for path in files:
        try:
            with open_input(path) as stream:
                yield from chunks(stream)
        except OSError as error:
            raise KafkaError(f"cannot read {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _stop_at_interrupt(source: Iterator[bytes]) -> Iterator[None]:
    """The first Ctrl-C ends the input and what was read is delivered; a second one abandons."""

    def stop(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise _Interrupted

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    except _Interrupted:
        print("interrupted: delivering what was read", file=sys.stderr)
    finally:
        signal.signal(signal.SIGINT, before)
    del source


class _Interrupted(Exception):
    """The user asked for the end of the input."""


def _free_worker(workers: list[_Worker], tally: Tally, progress: Progress) -> _Worker:
    while True:
        least = min(workers, key=lambda worker: worker.waiting_chunks)
        if least.waiting_chunks < 2:
            return least
        _collect(workers, tally, progress)


def _collect(workers: list[_Worker], tally: Tally, progress: Progress) -> None:
    """Take what workers report; a worker that died took its chunks with it, and is counted."""
    by_pipe = {worker.pipe: worker for worker in workers if not worker.finished}
    for pipe in multiprocessing.connection.wait(list(by_pipe), timeout=1.0):
        worker = by_pipe[pipe]  # type: ignore[index]
        try:
            kind, report = worker.pipe.recv()
        except (EOFError, OSError):
            raise KafkaError(
                f"worker process {worker.process.pid} died (exit status "
                f"{worker.process.exitcode}); what it had sent is delivered, the rest is not"
            ) from None
        if kind == "taken":
            worker.waiting_chunks -= 1
        elif kind == "end":
            worker.finished = True
        elif kind == "error":
            worker.finished = True
            raise KafkaError(report)
        else:
            tally.add(report)
            progress.advance(report.delivered)


# --- a worker: sends chunks, reports outcomes


def work(job: Job, pipe: multiprocessing.connection.Connection) -> None:
    """Run one worker process: chunks come in, tallies go out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides about Ctrl-C
    try:
        _send_chunks(job, pipe)
        pipe.send(("end", None))
    except KafkaError as error:
        pipe.send(("error", str(error)))


def _send_chunks(job: Job, pipe: multiprocessing.connection.Connection) -> None:
    from mpproducer.producer import Producer

    outstanding: collections.deque[tuple[Any, Tally]] = collections.deque()
    with Producer(job.config) as producer:
        while chunk := pipe.recv_bytes():
            pipe.send(("taken", None))
            tally = Tally()
            values, keys = parse(job, chunk, tally)
            future = producer.send_many(
                job.topic,
                values,
                keys=keys,
                headers=[job.headers] * len(values) if job.headers else None,
                partition=job.partition,
            )
            outstanding.append((future, tally))
            while outstanding and (len(outstanding) > OUTSTANDING_CHUNKS
                                   or outstanding[0][0].done()):  # fmt: skip
                pipe.send(("tally", _settle(*outstanding.popleft())))
        producer.flush()
        while outstanding:
            pipe.send(("tally", _settle(*outstanding.popleft())))


def _settle(future: Any, tally: Tally) -> Tally:
    failed = future.failed
    tally.delivered = len(future) - len(failed)
    for _index, error in failed:
        tally.failed[f"{type(error).__name__}: {error}"] += 1
    return tally


def parse(job: Job, chunk: bytes, tally: Tally) -> tuple[list[bytes], list[bytes | None] | None]:
    """Return the values and keys of a chunk's lines; lines without their key are tallied."""
    lines = split_lines(chunk)
    tally.lines = len(lines)
    tally.bytes = sum(map(len, lines))
    if job.key_field is None and job.key_separator is None:
        return lines, None
    values: list[bytes] = []
    keys: list[bytes | None] = []
    for line in lines:
        try:
            key, value = _key_of(job, line)
        except ValueError as error:
            tally.failed[f"bad line: {error}"] += 1
            continue
        keys.append(key)
        values.append(value)
    return values, keys


def _key_of(job: Job, line: bytes) -> tuple[bytes | None, bytes]:
    if job.key_separator is not None:
        key, found, value = line.partition(job.key_separator)
        if not found:
            raise ValueError("no key separator")
        return key, value
    try:
        fields = json.loads(line)
    except ValueError:
        raise ValueError("not JSON") from None
    if not isinstance(fields, dict) or job.key_field not in fields:
        raise ValueError(f"no field {job.key_field!r}")
    field_value = fields[job.key_field]
    if field_value is None:
        return None, line
    if isinstance(field_value, str):
        return field_value.encode(), line
    return json.dumps(field_value, separators=(",", ":")).encode(), line
