"""`mpproducer sender metrics`, `sender status --json`, `top`: what an operator sees."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mpproducer import Producer, prometheus
from mpproducer.shm import control, metrics
from mpproducer.testing import Broker
from tests.cli.conftest import Start
from tests.cli.support import COMMAND, TIMEOUT_S, mpproducer
from tests.conftest import metric, senders, wait_until

RECORDS = 250


@pytest.fixture
def producer(broker: Broker) -> Iterator[Producer]:
    """A producer that has sent RECORDS records to the topic `t.1`."""
    with Producer(bootstrap_servers=broker.bootstrap_servers, client_id='a "b"') as producer:
        producer.send_many("t.1", [bytes(100)] * RECORDS).result(10)
        assert wait_until(lambda: metric(producer, "record-acked-total") == RECORDS)
        yield producer


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Sample name -> (labels, value) of a page of Prometheus' text format."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_without_a_sender_all_say_so(runtime_dir: Path) -> None:
    for command in (("sender", "metrics"), ("sender", "metrics", "--prometheus"),
                    ("top", "--count", "1")):  # fmt: skip
        done = mpproducer(*command)
        assert done.returncode == 1, command
        assert done.stderr == f"no sender runs in {runtime_dir}\n"
    assert mpproducer("sender", "metrics", "--json").stdout == "[]\n"


def test_status_as_json_has_the_metrics(producer: Producer) -> None:
    (told,) = json.loads(mpproducer("sender", "status", "--json").stdout)
    found: dict[str, Any] = told["metrics"]
    assert found["producer-metrics"]["record-send-total"] == RECORDS
    assert found["producer-topic-metrics.t.1"]["record-send-total"] == RECORDS
    assert found["producer-metrics"]["send-to-ack-p99"] > 0
    idle = [row for name, row in found.items() if name.startswith("producer-node-metrics.node--")]
    assert idle[0]["request-latency-avg"] is None, "JSON has no nan"
    text = mpproducer("sender", "status").stdout
    assert "send-to-ack-p99" in text
    assert "request-latency-p50" in text


def test_metrics_as_json_are_what_a_worker_reads(producer: Producer) -> None:
    (told,) = json.loads(mpproducer("sender", "metrics", "--json").stdout)
    mine = producer.metrics()
    assert told["client_id"] == 'a "b"'
    assert told["metrics"].keys() == mine.keys() - {"worker-metrics"}
    for group, values in told["metrics"].items():
        assert values.keys() == mine[group].keys()
    for name in ("record-send-total", "record-size-max", "batch-size-avg", "send-to-ack-p50"):
        assert told["metrics"]["producer-metrics"][name] == mine["producer-metrics"][name]


def test_metrics_as_text_has_a_line_for_each(producer: Producer) -> None:
    done = mpproducer("sender", "metrics")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    told = {(group, name): value for group, name, value in lines}
    assert told["producer-topic-metrics.t.1", "record-send-total"] == str(RECORDS)
    assert len(told) == sum(len(v) for k, v in producer.metrics().items() if k != "worker-metrics")


def test_prometheus_reads_every_metric_under_its_name(
    producer: Producer, runtime_dir: Path
) -> None:
    text = mpproducer("sender", "metrics", "--prometheus").stdout
    found = samples(text)
    (folder,) = [path.parent.name for path in runtime_dir.glob("*/socket")]
    host = {"client_id": 'a "b"', "sender": folder}
    prefix = "kafka_producer_producer"
    for table, group in (
        (metrics.PRODUCER_METRICS, f"{prefix}_metrics"),
        (metrics.NODE_METRICS, f"{prefix}_node_metrics"),
        (metrics.TOPIC_METRICS, f"{prefix}_topic_metrics"),
    ):
        for each in table:
            assert f"{group}_{each.name.replace('-', '_')}" in found, each.name
    assert found[f"{prefix}_metrics_record_send_total"] == [(host, RECORDS)]
    assert found[f"{prefix}_topic_metrics_record_send_total"] == [
        ({**host, "topic": "t.1"}, RECORDS)
    ]
    nodes = {labels["node_id"] for labels, _ in found[f"{prefix}_node_metrics_request_total"]}
    assert nodes == {"node-1", "node--1"}
    assert found["mpproducer_record_acked_total"] == [(host, RECORDS)]
    for each in metrics.SENDER_METRICS:
        assert f"mpproducer_{each.name.replace('-', '_')}" in found, each.name


def test_prometheus_histograms_are_cumulative_and_whole(producer: Producer) -> None:
    found = samples(mpproducer("sender", "metrics", "--prometheus").stdout)
    batches = producer.metrics()["sender-metrics"]["batch-send-total"]
    for stem in ("record_queue_time", "send_to_ack"):
        name = f"mpproducer_{stem}_seconds"
        rows = [(float(labels["le"]), count) for labels, count in found[f"{name}_bucket"]]
        assert [count for _le, count in rows] == sorted(count for _le, count in rows)
        assert [le for le, _count in rows] == sorted(le for le, _count in rows)
        ((_labels, count),) = found[f"{name}_count"]
        assert count == batches == rows[-1][1]
        assert rows[-1][0] == float("inf")
        ((_labels, total),) = found[f"{name}_sum"]
        assert 0 <= total < count * 60


def test_a_scrape_reads_what_is_there_at_that_moment(start: Start, producer: Producer) -> None:
    process = start("sender", "metrics", "--listen", "0")
    assert process.stderr is not None
    line = process.stderr.readline().decode()
    assert line.startswith("metrics at http://127.0.0.1:"), line
    url = line.split()[-1]
    for records in (RECORDS, RECORDS + 5):
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = samples(answer.read().decode())
        assert found["mpproducer_record_acked_total"][0][1] == records
        producer.send_many("t.1", [b"x"] * 5).result(10)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_an_address_that_is_none_is_refused(runtime_dir: Path) -> None:
    for wrong in ("x", "localhost:", "h:70000"):
        done = mpproducer("sender", "metrics", "--listen", wrong)
        assert done.returncode == 2
        assert f"--listen {wrong}" in done.stderr


def test_an_address_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = mpproducer("sender", "metrics", "--listen", address)
    assert done.returncode == 2
    assert done.stderr == f"mpproducer: --listen {address}: Address already in use\n"


def test_the_collector_registers_without_asking_and_collects_from_all(
    producer: Producer, broker: Broker, runtime_dir: Path
) -> None:
    registry = CollectorRegistry()
    registry.register(prometheus.Collector())
    with Producer(bootstrap_servers=broker.bootstrap_servers, client_id="other") as other:
        other.send("t.1", b"x").result(10)
        assert len(senders(runtime_dir)) == 2
        found = samples(generate_latest(registry).decode())
        clients = {
            labels["client_id"]: value
            for labels, value in found["kafka_producer_producer_metrics_record_send_total"]
        }
        assert clients == {'a "b"': RECORDS, "other": 1}


def test_without_the_library_it_is_named(
    monkeypatch: pytest.MonkeyPatch, runtime_dir: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    with pytest.raises(ValueError, match=r"pip install 'mpproducer\[prometheus\]'"):
        prometheus.exposition()


def test_a_sender_of_another_version_is_warned_of_and_hides_nobody(
    producer: Producer, runtime_dir: Path
) -> None:
    folder = runtime_dir / "old"
    folder.mkdir(mode=0o700)

    def refuse(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                with peer:
                    peer.recv(4096)
                    peer.sendall(control.encode({"type": "refused", "message": "say hello"}))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        thread = threading.Thread(target=refuse, args=(listener,))
        thread.start()
        try:
            done = mpproducer("sender", "metrics", "--json")
            status = mpproducer("sender", "status", "--json")
            text = mpproducer("sender", "status")
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            (folder / "socket").unlink()
            folder.rmdir()
    assert done.returncode == 0
    assert f"the sender of {folder} gives no metrics: say hello" in done.stderr
    (told,) = json.loads(done.stdout)
    assert told["client_id"] == 'a "b"'
    assert {answer["type"] for answer in json.loads(status.stdout)} == {"status", "refused"}
    assert f"sender {os.getpid()} in {folder}: say hello\n" in text.stdout


def test_top_off_a_terminal_prints_a_line_per_sender_and_look(
    producer: Producer, runtime_dir: Path
) -> None:
    done = mpproducer("top", "--count", "2", "--interval", "0.1")
    assert done.returncode == 0, done.stderr
    (sender,) = senders(runtime_dir)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"sender {sender.pid}: records/s ") for line in lines)
    assert "ack p99 ms" in lines[0]


def test_top_on_a_terminal_shows_brokers_and_topics(producer: Producer) -> None:
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [*COMMAND, "top", "--count", "1"],
            stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            shown += data
        _, errors = process.communicate(timeout=TIMEOUT_S)
    finally:
        os.close(ours)
    assert process.returncode == 0, errors
    text = shown.decode()
    assert "t.1" in text
    assert "broker" in text
    assert 'a "b"' in text


def test_top_refuses_an_interval_that_is_none(runtime_dir: Path) -> None:
    for wrong in ("0.0", "nan", "inf"):
        done = mpproducer("top", "--interval", wrong)
        assert done.returncode == 2
        assert f"--interval {wrong}" in done.stderr
