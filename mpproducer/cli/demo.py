"""`mpproducer demo`: the main job on an embedded broker, verified, beside separate producers."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

from mpproducer import visitor
from mpproducer.cli.demo_job import (
    LINGER_MS,
    TOPIC,
    Job,
    Outcome,
    have_confluent,
    publish_separate,
    publish_shared,
    read_back,
    run_workers,
    verify,
)
from mpproducer.cli.progress import Progress
from mpproducer.errors import KafkaError
from mpproducer.shm.rendezvous import Rendezvous
from mpproducer.testing import BrokerProcess

NODES = 3
PARTITIONS = 12


@dataclass
class Result:
    """One column of the table."""

    name: str
    outcome: Outcome
    requests: int
    request_bytes: int
    batches: int
    connections: int
    producer_ids: int
    wrong: list[str]


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "demo",
        help="see it work: worker processes, an embedded broker, everything read back",
        description="Worker processes publish keyed records to an embedded broker of three nodes; "
        "every record is read back and checked. Where confluent-kafka is installed the same job "
        "runs with one of its producers per worker. Exit status 0 when every record is there "
        "exactly once and in order.",
    )
    parser.add_argument("-n", "--records", type=int, default=100_000, help="how many (100000)")
    parser.add_argument("-w", "--workers", type=int, default=4, help="worker processes (4)")
    parser.add_argument(
        "-r",
        "--rate",
        type=int,
        default=25_000,
        help="records per second of all workers (25000); 0: as fast as they can",
    )
    parser.add_argument("-s", "--size", type=int, default=100, help="bytes of a value (100)")
    parser.add_argument("--alone", action="store_true", help="without the comparison")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=run)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    for name in ("records", "workers"):
        if getattr(args, name) < 1:
            raise KafkaError(f"--{name} {getattr(args, name)}: must be at least 1")
    if args.rate < 0 or args.size < 0:
        raise KafkaError("--rate and --size must not be negative")
    results = [_run(args, shared=True)]
    if have_confluent() and not args.alone:
        results.append(_run(args, shared=False))
    _show(args, results)
    for result in results:
        for line in result.wrong[:10]:
            print(f"{result.name}: {line}", file=sys.stderr)
    mine = results[0]
    return 1 if mine.wrong or mine.outcome.failed else 0


def _run(args: argparse.Namespace, *, shared: bool) -> Result:
    name = "mpproducer" if shared else "confluent-kafka"
    with BrokerProcess(NODES, auto_create_topics=False) as broker:
        broker.create_topic(TOPIC, PARTITIONS)
        job = Job(broker.bootstrap_servers, args.records, args.workers, args.rate, args.size)
        with Progress(name, total=args.records, quiet=args.quiet) as progress:
            outcome = _shared(job, progress) if shared else _separate(job, progress)
        requests, sizes = broker.requests, broker.request_bytes
        connections = broker.connections
        batches, ids = _stored(broker)
        return Result(
            name, outcome, requests["Produce"], sizes["Produce"], batches,
            connections, ids, verify(job, read_back(broker, job)),
        )  # fmt: skip


def _shared(job: Job, progress: Progress) -> Outcome:
    from mpproducer.producer import Producer

    with Producer(bootstrap_servers=job.bootstrap_servers, linger_ms=LINGER_MS) as producer:
        producer.attach()
        place = Rendezvous.of(producer.config.sender_key(), None)
        before_s = _sender_cpu_s(place)
        outcome = run_workers(publish_shared, producer, job, progress)
        outcome.client_cpu_s += _sender_cpu_s(place) - before_s
    return outcome


def _sender_cpu_s(place: Rendezvous) -> float:
    import psutil

    answer = visitor.ask(place, "status")
    if answer is None:
        return 0.0
    times = psutil.Process(answer["pid"]).cpu_times()
    return float(times.user + times.system)


def _separate(job: Job, progress: Progress) -> Outcome:
    return run_workers(publish_separate, None, job, progress)


def _stored(broker: BrokerProcess) -> tuple[int, int]:
    """(batches, producer ids) in the log: a batch starts where the sequence's batch starts."""
    counts = [broker.batch_facts(TOPIC, number) for number in broker.partitions(TOPIC)]
    ids = {producer_id for _count, found in counts for producer_id in found}
    return sum(count for count, _found in counts), len(ids)


def _show(args: argparse.Namespace, results: list[Result]) -> None:
    from rich.console import Console
    from rich.table import Table

    rate = f"{args.rate:,}/s" if args.rate else "full speed"
    print(
        f"{args.records:,} records of {args.size} B, keyed, {args.workers} workers, {rate}, "
        f"{NODES} nodes, {PARTITIONS} partitions, linger {LINGER_MS} ms, idempotent"
    )
    table = Table()
    table.add_column("")
    for result in results:
        table.add_column(result.name, justify="right")
    rows = [
        ("records acknowledged", [f"{r.outcome.acked:,}" for r in results]),
        ("read back once, in order", ["yes" if not r.wrong else "NO" for r in results]),
        ("records/s", [f"{r.outcome.acked / r.outcome.seconds:,.0f}" for r in results]),
        ("produce requests", [f"{r.requests:,}" for r in results]),
        ("records per batch", [f"{r.outcome.acked / max(1, r.batches):,.1f}" for r in results]),
        ("bytes per record on the wire",
         [f"{r.request_bytes / max(1, r.outcome.acked):,.0f}" for r in results]),
        ("connections made", [f"{r.connections:,}" for r in results]),
        ("producer ids", [f"{r.producer_ids:,}" for r in results]),
        ("client CPU per record",
         [f"{r.outcome.client_cpu_s / max(1, r.outcome.acked) * 1e6:,.2f} µs" for r in results]),
    ]  # fmt: skip
    for label, values in rows:
        table.add_row(label, *values)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    if len(results) == 1 and not args.alone:
        console.print("pip install confluent-kafka: the same job by separate producers beside it")
