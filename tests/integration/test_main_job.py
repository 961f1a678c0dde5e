"""The main job on real Kafka: worker processes, one sender, read back by a foreign client."""

from __future__ import annotations

import json
import multiprocessing
import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import mpproducer
from mpproducer._core.native import murmur2
from tests.checker.log import KafkaPythonLog
from tests.checker.scenario import Scenario, Worker
from tests.checker.writer import Writer
from tests.conftest import wait_until
from tests.integration import support
from tests.integration.support import Told

pytestmark = [pytest.mark.kafka_real, pytest.mark.xdist_group("kafka")]

WORKERS = 4
METHODS = ("fork", "spawn", "forkserver")


def shares(lines: list[bytes], workers: int = WORKERS) -> dict[int, list[bytes]]:
    return {worker: lines[worker::workers] for worker in range(workers)}


def run_processes(
    method: str, producer: mpproducer.Producer, topic: str, sent: dict[int, list[bytes]]
) -> dict[int, list[Told]]:
    context: Any = multiprocessing.get_context(method)
    pipes, processes = {}, []
    for worker, lines in sent.items():
        pipes[worker], there = context.Pipe()
        process = context.Process(
            target=support.publish_to, args=(there, producer, topic, worker, lines)
        )
        process.start()
        there.close()
        processes.append(process)
    told = {}
    try:
        for worker, pipe in pipes.items():
            assert pipe.poll(100), f"worker {worker} does not answer"
            answer = pipe.recv()
            assert not isinstance(answer, BaseException), answer
            told[worker] = answer
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join(30)
            if process.is_alive():
                process.kill()
                process.join()
    return told


@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", METHODS)
def test_packages_by_four_processes_to_three_brokers(
    kafka3: str, dump: Callable[[str, int], str], method: str, runtime_dir: Path,
    status_of: Callable[[Any], dict[str, Any]],
) -> None:  # fmt: skip
    topic = support.new_topic(kafka3, partitions=12, replication=3)
    sent = shares(support.package_lines())
    # A fork server has the environment of an earlier test: the folder goes with the pickle.
    config = {"compression.type": "zstd", "acks": "all", "runtime.dir": str(runtime_dir)}
    with mpproducer.Producer(config, bootstrap_servers=kafka3) as producer:
        # Under fork the children inherit an attachment that they must not use; under all methods
        # it keeps one sender alive until it is asked.
        producer.attach()
        told = run_processes(method, producer, topic, sent)
        status = status_of(producer)
    support.check(support.read_back(kafka3, topic, 12), sent, told, 12)
    assert len(support.check_sequences(dump, topic, 12)) == 1
    # One connection to each broker; the one to a bootstrap server was given up.
    assert status["counters"]["connection-count"] == 3, status["nodes"]
    ready = [node["id"] for node in status["nodes"] if node["state"] == "READY"]
    assert len(ready) == 3
    assert min(ready) >= 0


def test_a_process_pool_executor(kafka: str) -> None:
    topic = support.new_topic(kafka, partitions=6)
    sent = shares(support.package_lines()[:4000], 8)
    with mpproducer.Producer(bootstrap_servers=kafka, compression_type="lz4") as producer:
        tasks = [(producer, topic, worker, lines) for worker, lines in sent.items()]
        with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
            answers = list(pool.map(support.publish_task, tasks, timeout=100))
    told = {worker: found for worker, _pid, found in answers}
    assert len({pid for _worker, pid, _found in answers}) > 1
    support.check(support.read_back(kafka, topic, 6), sent, told, 6)


@pytest.mark.parametrize("method", METHODS)
def test_a_multiprocessing_pool(kafka: str, method: str) -> None:
    """Its workers are daemons: they may have no children of multiprocessing, and no atexit runs."""
    topic = support.new_topic(kafka, partitions=6)
    sent = shares(support.package_lines()[:4000], 8)
    producer = mpproducer.Producer(bootstrap_servers=kafka, compression_type="gzip")
    tasks = [(producer, topic, worker, lines) for worker, lines in sent.items()]
    context: Any = multiprocessing.get_context(method)
    with context.Pool(WORKERS) as pool:
        answers = pool.map_async(support.publish_task, tasks, 1).get(100)
    told = {worker: found for worker, _pid, found in answers}
    support.check(support.read_back(kafka, topic, 6), sent, told, 6)
    producer.close()


def test_threads_of_one_process(kafka: str, tmp_path: Path, seed: int) -> None:
    def job(writer: Writer) -> None:
        for number in range(1500):
            writer.send(key=number % 97, size=100 + number % 200)
        writer.send_many(500)
        assert writer.finish(60) == 0

    with Scenario(kafka, tmp_path, seed, partitions=6) as run:
        writers = [run.stream(callbacks=number == 0) for number in range(8)]
        with ThreadPoolExecutor(len(writers)) as pool:
            list(pool.map(job, writers, timeout=100))
        assert run.check().counts["acked"] == 8 * 2000


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("acks", ["all", 1])
def test_codecs(kafka: str, codec: str, acks: object, tmp_path: Path, seed: int) -> None:
    def job(worker: Worker) -> None:
        for number in range(1000):
            worker.writer.send(key=number % 97, size=100 + number % 200)
        worker.writer.send_many(1000, size=300, keys=list(range(1000)))

    config = {"compression_type": codec, "acks": acks, "enable_idempotence": acks == "all"}
    with Scenario(kafka, tmp_path, seed, **config) as run:  # type: ignore[arg-type]
        run.workers(2, job)
        counts = run.check().counts
        assert counts["read"] == counts["acked"] == 4000
        if codec == "zstd":  # one of them by a second foreign client
            assert run.check(KafkaPythonLog(kafka, run.topics)).counts == counts


def test_B27_acks_0_sends_and_tells_no_offset(kafka: str, tmp_path: Path, seed: int) -> None:
    with Scenario(kafka, tmp_path, seed, acks=0, enable_idempotence=False) as run:
        futures = [run.writer.send(number % 3) for number in range(300)]
        run.producer.flush()
        assert {future.result(1).offset for future in futures} == {-1}
        # Told when written: the broker may still be at it.
        assert wait_until(lambda: sum(e.end - e.start for e in run.log().extents()) == 300)
        assert run.check().counts["in_log"] == 300


def test_a_topic_that_is_created_on_demand(kafka: str) -> None:
    name = f"auto-{uuid.uuid4().hex[:8]}"
    with mpproducer.Producer(bootstrap_servers=kafka) as producer:
        assert producer.send(name, b"first").result(30).offset == 0
    assert [record.value for record in support.read_back(kafka, name, 1)] == [b"first"]


def test_send_many(kafka: str) -> None:
    topic = support.new_topic(kafka, partitions=4)
    lines = support.package_lines()[:5000]
    keys = [json.loads(line)["package"].encode() for line in lines]
    headers = [[("worker", b"0"), ("number", b"%d" % n)] for n in range(len(lines))]
    with mpproducer.Producer(bootstrap_servers=kafka, compression_type="zstd") as producer:
        batch = producer.send_many(topic, lines, keys=keys, headers=headers)
        metadata = batch.result(60)
        assert batch.offsets == [found.offset for found in metadata]
        assert not batch.failed
    told = {0: [Told(n, m.partition, m.offset) for n, m in enumerate(metadata)]}
    support.check(support.read_back(kafka, topic, 4), {0: lines}, told, 4)


def test_send_many_in_columns(kafka: str) -> None:
    topic = support.new_topic(kafka, partitions=6)
    count = 100_000
    values = np.array([b"%06d " % n * (1 + n % 20) for n in range(count)], object)
    column = pa.chunked_array([pa.array(values[:60_000]), pa.array(values[60_000:])])
    keys = np.array([b"user-%d" % (n * 7919 % 10_007) for n in range(count)])
    with mpproducer.Producer(bootstrap_servers=kafka, compression_type="zstd") as producer:
        batch = producer.send_many(topic, column, keys=keys)
        offsets = batch.offsets_array(60)
        assert not batch.failed
    records = support.read_back(kafka, topic, 6)
    found = {(record.partition, record.offset): record for record in records}
    assert len(found) == len(records) == count
    for n, (partition, offset) in enumerate(zip(batch.partitions, offsets, strict=True)):
        record = found[partition, offset]
        assert (record.key, record.value) == (keys[n], values[n])
        assert partition == (murmur2(keys[n].item()) & 0x7FFFFFFF) % 6
    for partition in range(6):
        there = [o for p, o in zip(batch.partitions, offsets, strict=True) if p == partition]
        assert there == list(range(len(there)))
