"""The job of `mpproducer demo`: N worker processes publish, and the log is compared with them."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import multiprocessing.connection
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from mpproducer.cli.progress import Progress
from mpproducer.errors import KafkaError
from mpproducer.testing import BrokerProcess

TOPIC: Final = "demo"
LINGER_MS: Final = 5
_TICK_S: Final = 0.005
_KEYS: Final = 1000
_READ_TIMEOUT_S: Final = 60.0
_JOIN_S: Final = 120.0


@dataclass(frozen=True)
class Job:
    """What to publish; picklable."""

    bootstrap_servers: str
    records: int
    workers: int
    rate: int
    """Records per second of all workers; 0: as fast as they can."""
    value_bytes: int


@dataclass
class Outcome:
    """What a run did."""

    seconds: float = 0.0
    acked: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    client_cpu_s: float = 0.0


@dataclass
class Report:
    """What a worker process tells at its end."""

    acked: int
    failed: Counter[str]
    cpu_s: float


def records_of(job: Job, worker: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of one worker's records; a value says where it comes from."""
    count = job.records // job.workers + (worker < job.records % job.workers)
    for number in range(count):
        head = json.dumps({"worker": worker, "number": number}, separators=(",", ":")).encode()
        yield b"user-%d" % ((number * 7919 + worker) % _KEYS), head.ljust(job.value_bytes)


def paced(job: Job, records: list[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yield pieces of `records` when they are due."""
    per_second = job.rate / job.workers
    started_s, given = time.monotonic(), 0
    while given < len(records):
        due = 500 if not job.rate else int((time.monotonic() - started_s) * per_second) - given
        chunk = records[given : given + due]
        given += len(chunk)
        yield chunk
        if job.rate:
            time.sleep(_TICK_S)


Records = list[tuple[bytes, bytes]]
Publish = Callable[[Any, Job, Records, multiprocessing.connection.Connection], Report]


def publish_shared(
    producer: Any, job: Job, records: Records, pipe: multiprocessing.connection.Connection
) -> Report:
    """One worker with the host's shared producer."""
    futures = []
    for chunk in paced(job, records):
        futures += [producer.send(TOPIC, value, key=key) for key, value in chunk]
        pipe.send(len(chunk))
    producer.flush()
    failed = Counter(type(error).__name__ for f in futures if (error := f.exception(0)))
    return Report(len(futures) - sum(failed.values()), failed, _cpu_s())


def publish_separate(
    _producer: Any, job: Job, records: Records, pipe: multiprocessing.connection.Connection
) -> Report:
    """One worker with a confluent-kafka producer of its own."""
    import confluent_kafka

    report = Report(0, Counter(), 0.0)

    def told(error: Any, _message: Any) -> None:
        if error is None:
            report.acked += 1
        else:
            report.failed[str(error)] += 1

    client = confluent_kafka.Producer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "enable.idempotence": True,
            "linger.ms": LINGER_MS,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    for chunk in paced(job, records):
        for key, value in chunk:
            client.produce(TOPIC, value, key, on_delivery=told)
        client.poll(0)
        pipe.send(len(chunk))
    left = client.flush(_JOIN_S)
    if left:
        report.failed["not delivered in time"] += left
    report.cpu_s = _cpu_s()
    return report


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _import_client(publish: Publish) -> None:
    """What a client costs once is not what a record costs."""
    if publish is publish_separate:
        import confluent_kafka  # noqa: F401


def _run_worker(
    publish: Publish, producer: Any, job: Job, worker: int,
    pipe: multiprocessing.connection.Connection,
) -> None:  # fmt: skip
    records = list(records_of(job, worker))
    _import_client(publish)
    if producer is not None:
        producer.attach()
    pipe.send("ready")
    pipe.recv()  # all start together
    before_s = _cpu_s()
    report = publish(producer, job, records, pipe)
    report.cpu_s -= before_s
    pipe.send(report)


def run_workers(publish: Publish, producer: Any, job: Job, progress: Progress) -> Outcome:
    """Run the job in `job.workers` processes. Raises KafkaError when one dies."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for worker in range(job.workers):
        here, there = context.Pipe()
        process = context.Process(
            target=_run_worker, args=(publish, producer, job, worker, there), daemon=True
        )
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    outcome = Outcome()
    try:
        for pipe in pipes:
            _receive(pipe)
        started_s = time.monotonic()
        for pipe in pipes:
            pipe.send("go")
        waiting = list(pipes)
        while waiting:
            for ready in multiprocessing.connection.wait(waiting, timeout=_JOIN_S):
                said = _receive(ready)
                if isinstance(said, int):
                    progress.advance(said)
                    continue
                waiting.remove(ready)  # type: ignore[arg-type]
                outcome.acked += said.acked
                outcome.failed.update(said.failed)
                outcome.client_cpu_s += said.cpu_s
        outcome.seconds = time.monotonic() - started_s
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
    return outcome


def _receive(pipe: Any) -> Any:
    if not pipe.poll(_JOIN_S):
        raise KafkaError(f"a worker process said nothing for {_JOIN_S:.0f} s")
    try:
        return pipe.recv()
    except EOFError:
        raise KafkaError("a worker process died; see above") from None


# --- reading back


def have_confluent() -> bool:
    """Whether confluent-kafka is installed."""
    return importlib.util.find_spec("confluent_kafka") is not None


def read_back(broker: BrokerProcess, job: Job) -> list[tuple[int, bytes | None, bytes | None]]:
    """Return (partition, key, value) of all records, by confluent-kafka where it is installed."""
    if not have_confluent():
        return [
            (number, record.key, record.value)
            for number in broker.partitions(TOPIC)
            for record in broker.records(TOPIC, number)
        ]
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(
        {"bootstrap.servers": job.bootstrap_servers, "group.id": "demo", "check.crcs": True}
    )
    try:
        consumer.assign([TopicPartition(TOPIC, n, 0) for n in broker.partitions(TOPIC)])
        expected = sum(len(broker.records(TOPIC, n)) for n in broker.partitions(TOPIC))
        found: list[Any] = []
        until_s = time.monotonic() + _READ_TIMEOUT_S
        while len(found) < expected and time.monotonic() < until_s:
            for message in consumer.consume(10_000, 0.2):
                if message.error():
                    raise KafkaError(f"reading back failed: {message.error()}")
                found.append((message.partition(), message.key(), message.value()))
        return found
    finally:
        consumer.close()


def verify(job: Job, found: list[tuple[int, bytes | None, bytes | None]]) -> list[str]:
    """Return what is wrong with the log; nothing, when every record is there once, in order."""
    expected = {
        (worker, number): (key, value)
        for worker in range(job.workers)
        for number, (key, value) in enumerate(records_of(job, worker))
    }
    wrong: list[str] = []
    last: dict[tuple[int, int], int] = {}
    partition_of: dict[bytes | None, int] = {}
    for partition, key, value in found:
        try:
            facts = json.loads(value or b"null")
            worker, number = int(facts["worker"]), int(facts["number"])
        except (ValueError, KeyError, TypeError):
            wrong.append(f"a record of partition {partition} is changed: {value!r:.80}")
            continue
        if expected.pop((worker, number), None) != (key, value):
            wrong.append(f"record {number} of worker {worker} is there twice, or changed")
        if last.get((worker, partition), -1) > number:
            wrong.append(f"record {number} of worker {worker} is out of order")
        last[worker, partition] = number
        if partition_of.setdefault(key, partition) != partition:
            wrong.append(f"key {key!r} is in two partitions")
    wrong += [f"record {number} of worker {worker} is missing" for worker, number in expected]
    return wrong
