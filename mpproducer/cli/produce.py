"""`mpproducer produce`: lines of files or stdin to a topic, by several worker processes."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpproducer.cli.produce_job import Dispatcher, Job, Stop, Tally
from mpproducer.cli.progress import Progress
from mpproducer.config import Config
from mpproducer.errors import KafkaError
from mpproducer.producer import Producer

_DESCRIPTION = """\
Send every line of the files (or of stdin) as one record. The letters are kcat's. Exit status 0
when every record that was read is acknowledged, 1 when some are not (the reasons are counted on
stderr), 2 when the command cannot work. The first Ctrl-C ends the input and delivers what was
read; the second abandons it (130).
"""
_PATIENCE_S = 3.0
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|[\\nrt0])")
_ESCAPED = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t", "0": "\0"}


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "produce", help="send lines of files or stdin to a topic", description=_DESCRIPTION
    )
    add = parser.add_argument
    add("files", nargs="*", default=["-"], metavar="FILE",
        help="input, '-' for stdin; .gz and .zst are read directly")  # fmt: skip
    add_brokers(parser)
    add("-t", "--topic", required=True, help="topic to write to")
    add("-p", "--partition", type=int, help="write to this partition only (-1: any)")
    add("-k", "--key", help="the key of every record")
    add("-K", "--key-delimiter", metavar="DELIM", help="a line is key, DELIM, value")
    add("--key-field", metavar="NAME", help="lines are JSON objects; this field is the key")
    add("-D", "--delimiter", metavar="DELIM", default="\\n", help="ends a record (\\n)")
    add("-H", "--header", action="append", default=[], metavar="NAME=VALUE",
        help="header of every record; without '=' its value is null; may be repeated")  # fmt: skip
    add("-Z", "--null-empty", action="store_true", help="an empty value becomes null")
    add("-c", "--count", type=int, metavar="N", help="stop after N records")
    add("-l", "--lines", action="store_true", help="send files line by line: always so here")
    add("-z", "--compression", "--compression-codec", metavar="CODEC",
        help="none, gzip, snappy, lz4 or zstd")  # fmt: skip
    add("-w", "--workers", type=int, default=1, metavar="N",
        help="worker processes (1: the order of the lines is kept per partition; more: each worker "
        "keeps the order of what it sends)")  # fmt: skip
    add("--start-method", choices=multiprocessing.get_all_start_methods(),
        help="how workers are started")  # fmt: skip
    add("-q", "--quiet", action="store_true", help="no progress on stderr")
    add("--json", action="store_true", help="print the result as JSON on stdout")
    parser.set_defaults(run=run)


def add_brokers(parser: argparse.ArgumentParser) -> None:
    """Declare the options that make a configuration; `config_of` reads them."""
    add = parser.add_argument
    add("-b", "--bootstrap-server", "--bootstrap-servers", metavar="HOST:PORT,...",
        dest="bootstrap", help="brokers (or bootstrap.servers by -F or -X)")  # fmt: skip
    add("-X", "--config", "--command-property", action="append", default=[], metavar="KEY=VALUE",
        help="any configuration key (docs/CONFIG.md); may be repeated")  # fmt: skip
    add("-F", "--config-file", "--command-config", metavar="FILE",
        help="configuration keys from a file, one KEY=VALUE a line")  # fmt: skip


def config_of(args: argparse.Namespace) -> Config:
    """The configuration of -F, -X, -b and -z, later ones win. Raises KafkaError."""
    given = _properties(args.config_file) if args.config_file else {}
    for item in args.config:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise KafkaError(f"--config {item!r}: must be KEY=VALUE")
        given[name.strip().replace(".", "_")] = value
    if args.bootstrap:
        given["bootstrap_servers"] = args.bootstrap
    if getattr(args, "compression", None):
        given["compression_type"] = args.compression
    if not given.get("bootstrap_servers"):
        raise KafkaError("which brokers? give -b HOST:PORT")
    return Config.from_user(None, given)


def _properties(path: str) -> dict[str, Any]:
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KafkaError(f"cannot read {path}: {_why(error)}") from error
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith(("#", "!")):
            continue
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise KafkaError(f"{path}:{number}: must be KEY=VALUE")
        found[name.strip().replace(".", "_")] = value.strip()
    return found


def run(args: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    config = config_of(args)
    job = _job(args, config)
    started_s = time.monotonic()
    tally, stop = Tally(), Stop()
    with Producer(config.to_wire()) as producer:
        # Before a line is read: a cluster out of reach, or a topic that is not there, ends it all.
        with _patience(config, job.topic, quiet=args.quiet):
            partitions = producer.partitions_for(job.topic)
        if job.partition is not None and job.partition not in partitions:
            raise KafkaError(
                f"-p {job.partition}: topic {job.topic!r} has partitions 0 to {len(partitions) - 1}"
            )
        with Progress(job.topic, quiet=args.quiet) as progress:
            dispatcher = Dispatcher(job, tally, progress, stop)
            try:
                dispatcher.run(args.files, args.workers, args.start_method, args.count)
            except KeyboardInterrupt:
                stop.abandoned = True
    quiet = args.quiet or bool(dispatcher.unreadable and not tally.lines)
    status = _report(tally, time.monotonic() - started_s, as_json=args.json, quiet=quiet)
    if dispatcher.unreadable:
        print(f"mpproducer: {dispatcher.unreadable}", file=sys.stderr)
        return 2
    return 130 if stop.abandoned else status


@contextlib.contextmanager
def _patience(config: Config, topic: str, *, quiet: bool) -> Iterator[None]:
    """Say what is waited for, if it takes long; the thread is over when the block is."""
    if quiet:
        yield
        return
    brokers = ",".join(f"{host}:{port}" for host, port in config.bootstrap_servers)
    text = (
        f"mpproducer: waiting for {brokers} to name the partitions of {topic!r}, at most "
        f"{config.max_block_ms / 1000:g} s (max_block_ms)"
    )
    timer = threading.Timer(_PATIENCE_S, print, (text,), {"file": sys.stderr})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _job(args: argparse.Namespace, config: Config) -> Job:
    if args.workers < 1:
        raise KafkaError(f"--workers {args.workers}: must be at least 1")
    if args.count is not None and args.count < 1:
        raise KafkaError(f"--count {args.count}: must be at least 1")
    if args.partition is not None and args.partition < -1:
        raise KafkaError(f"--partition {args.partition}: must not be negative (-1: any)")
    keys = {"--key": args.key, "--key-delimiter": args.key_delimiter, "--key-field": args.key_field}
    given = [name for name, value in keys.items() if value is not None]
    if len(given) > 1:
        raise KafkaError(f"{' and '.join(given)} exclude each other")
    return Job(
        config.to_wire(),
        args.topic,
        None if args.partition == -1 else args.partition,
        None if args.key is None else args.key.encode(),
        None if args.key_delimiter is None else _delimiter(args.key_delimiter, "--key-delimiter"),
        args.key_field,
        _delimiter(args.delimiter, "--delimiter"),
        [_header(item) for item in args.header],
        args.null_empty,
    )


def _delimiter(text: str, option: str) -> bytes:
    r"""The bytes of a delimiter; \n \r \t \0 \\ and \xHH stand for what they do in C."""
    found = b""
    at = 0
    for match in _ESCAPE.finditer(text):
        code = match[1]
        found += text[at : match.start()].encode()
        found += bytes([int(code[1:], 16)]) if code[0] == "x" else _ESCAPED[code].encode()
        at = match.end()
    found += text[at:].encode()
    if not found:
        raise KafkaError(f"{option}: must not be empty")
    return found


def _header(item: str) -> tuple[str, bytes | None]:
    name, equals, value = item.partition("=")
    if not name:
        raise KafkaError(f"--header {item!r}: must be NAME=VALUE, or NAME for null")
    return name, value.encode() if equals else None


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _report(tally: Tally, seconds: float, *, as_json: bool, quiet: bool) -> int:
    failed = sum(tally.failed.values())
    if as_json:
        print(json.dumps({"lines": tally.lines, "delivered": tally.delivered, "failed": failed,
                          "bytes": tally.bytes, "seconds": round(seconds, 3),
                          "reasons": dict(tally.failed)}))  # fmt: skip
    if not quiet or failed:
        rate = tally.delivered / seconds if seconds else 0.0
        print(f"{tally.delivered:,} of {tally.lines:,} records delivered in {seconds:.2f} s "
              f"({rate:,.0f}/s)", file=sys.stderr)  # fmt: skip
    for reason, count in sorted(tally.failed.items()):
        example = tally.examples.get(reason)
        shown = f" ({example})" if example else ""
        print(f"{count:,} not delivered: {reason}{shown}", file=sys.stderr)
    return 1 if failed else 0
