"""`Producer.metrics()` in workers, during traffic: what it says is what was sent."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import random
from typing import Any

import pytest

import mpproducer
from mpproducer.shm.metrics import Metrics
from mpproducer.testing import Broker
from tests.conftest import metric, run_child, wait_until

PRODUCER, SENDER, WORKER = "producer-metrics", "sender-metrics", "worker-metrics"
QUICK: dict[str, Any] = {"sender_idle_ms": 0}


def row(metrics: Metrics, topic: str) -> dict[str, float]:
    return metrics[f"producer-topic-metrics.{topic}"]


def settled(producer: mpproducer.Producer, acked: int) -> Metrics:
    """The metrics once the sender has published that many acknowledged records."""
    assert wait_until(lambda: metric(producer, "record-acked-total") == acked)
    assert wait_until(lambda: metric(producer, "requests-in-flight") == 0)
    return producer.metrics()


def test_before_it_is_attached_and_after_it_is_closed_there_is_nothing(broker: Broker) -> None:
    producer = mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers, **QUICK)
    assert producer.metrics() == {}
    with pytest.raises(KeyError, match="not attached"):
        producer.metrics()[PRODUCER]
    producer.attach()
    assert producer.metrics()[PRODUCER]["record-send-total"] == 0
    producer.close()
    assert producer.metrics() == {}


def test_numbers_agree_with_what_was_sent(rng: random.Random) -> None:
    with Broker(brokers=2) as broker:
        for topic in ("a", "b.c"):
            broker.create_topic(topic, 4)
        with mpproducer.Producer(
            bootstrap_servers=broker.bootstrap_servers, linger_ms=3, **QUICK
        ) as producer:
            sent = {"a": 0, "b.c": 0}
            futures: list[Any] = []
            for _ in range(30):
                topic = rng.choice(list(sent))
                count = rng.randrange(1, 60)
                values = [rng.randbytes(rng.randrange(200)) for _ in range(count)]
                keys = [rng.randbytes(4) for _ in range(count)]
                futures.append(producer.send_many(topic, values, keys=keys))
                sent[topic] += count
                if rng.random() < 0.3:
                    futures[-1].result(20)
            for future in futures:
                future.result(20)
            total = sum(sent.values())
            found = settled(producer, total)
        whole, nodes = found[PRODUCER], broker.requests_by_node
        for topic, count in sent.items():
            assert row(found, topic)["record-send-total"] == count
            assert row(found, topic)["compression-rate"] in (1, math.nan) or not count
        rows = [row(found, topic) for topic in sent]
        produced = broker.requests["Produce"]
        assert whole["record-send-total"] == total
        assert whole["records-per-request-avg"] == pytest.approx(total / produced)
        assert found[SENDER]["produce-request-total"] == produced
        assert found[SENDER]["byte-total"] == sum(each["byte-total"] for each in rows)
        assert sum(each["batch-send-total"] for each in rows) == found[SENDER]["batch-send-total"]
        for stem in ("request-latency", "send-to-ack", "record-queue-time"):
            levels = [whole[f"{stem}-{end}"] for end in ("p50", "p99", "p999", "max")]
            assert levels == sorted(levels), stem
            assert 0 <= whole[f"{stem}-avg"] <= whole[f"{stem}-max"]
        assert whole["send-to-ack-max"] >= whole["request-latency-p50"] > 0
        everybody = [
            values for name, values in found.items() if name.startswith("producer-node-metrics.")
        ]
        assert sum(node["request-total"] for node in everybody) == whole["request-total"]
        assert sum(node["request-total"] for node in everybody) == sum(nodes.values())
        assert (
            sum(node["outgoing-byte-total"] for node in everybody) == whole["outgoing-byte-total"]
        )
        assert (
            sum(node["incoming-byte-total"] for node in everybody) == whole["incoming-byte-total"]
        )
        assert found[WORKER]["records"] == total


def test_every_worker_reads_the_same_of_the_whole_host(broker: Broker) -> None:
    with mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers, **QUICK) as producer:
        producer.send("t", b"parent").result(10)

        def in_child() -> None:
            with producer:
                producer.send("t", b"child").result(10)
                found = settled(producer, 2)
                assert row(found, "t")["record-send-total"] == 2
                assert found[WORKER]["records"] == 1
                assert found[SENDER]["workers"] == 2

        run_child(in_child)
        found = settled(producer, 2)
        assert found[PRODUCER]["record-send-total"] == 2
        assert found[WORKER]["records"] == 1


def test_asking_costs_the_sender_nothing(broker: Broker) -> None:
    with mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers, **QUICK) as producer:
        producer.send("t", b"x").result(10)
        settled(producer, 1)
        before = metric(producer, "loop-turn-total")
        for _ in range(200):
            producer.metrics()
        assert metric(producer, "loop-turn-total") - before <= 2, "its own timers"


def test_retries_and_refusals_show_in_topic_and_reason(broker: Broker) -> None:
    broker.create_topic("good")
    broker.create_topic("bad")
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, retry_backoff_ms=1, **QUICK
    ) as producer:
        producer.send("good", b"warm").result(10)
        broker.on("Produce", topic="good", times=2).error(7)
        assert producer.send_many("good", [b"1", b"2", b"3"]).result(20)
        broker.on("Produce", topic="bad").error(29)
        assert isinstance(
            producer.send("bad", b"x").exception(20), mpproducer.errors.AuthorizationFailed
        )
        wait_until(lambda: metric(producer, "record-error-authorization-total") == 1)
        found = settled(producer, 4)
        good, bad = row(found, "good"), row(found, "bad")
        assert good["record-retry-total"] == 6
        assert good["record-send-total"] == 1 + 3 * 3
        assert good["record-error-total"] == 0
        assert bad["record-error-total"] == 1
        assert found[PRODUCER]["record-error-total"] == 1
        assert found[PRODUCER]["record-retry-total"] == 6
        assert found[SENDER]["record-error-authorization-total"] == 1


def test_what_send_itself_refuses_is_counted_by_reason(broker: Broker) -> None:
    broker.create_topic("t")
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, max_request_size=2_000, max_block_ms=200,
        **QUICK,
    ) as producer:  # fmt: skip
        producer.attach(20)
        producer.partitions_for("t", 20)
        assert isinstance(producer.send("t", bytes(3_000)).exception(0), mpproducer.RecordTooLarge)
        many = producer.send_many("t", [b"1", bytes(3_000), b"2", bytes(3_000)])
        assert [place for place, _error in many.failed] == [1, 3]
        assert isinstance(producer.send("no/name", b"x").exception(0), mpproducer.InvalidTopic)
        broker.on("Metadata", times=100).error(5)
        failed = producer.send("u", b"x", partition=3)
        assert isinstance(failed.exception(0), mpproducer.MetadataTimeout)
        found = producer.metrics()
        counted = {
            name.removeprefix("send-error-").removesuffix("-total"): value
            for name, value in found[SENDER].items()
            if name.startswith("send-error-") and value
        }
        assert counted == {"too-large": 3, "invalid-topic": 1, "no-metadata": 1}
        assert found[PRODUCER]["record-error-total"] == 5


def _wait_for_memory(producer: mpproducer.Producer, topic: str) -> None:
    error = None
    while not isinstance(error, mpproducer.BufferFull):
        future = producer.send(topic, bytes(60_000))
        error = future.exception(0) if future.done() else None
    os._exit(0)


def test_waits_of_all_processes_add_up_and_outlive_them(broker: Broker) -> None:
    broker.create_topic("t")
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, buffer_memory=1 << 20, max_block_ms=300,
        batch_size=16_384, delivery_timeout_ms=60_000, request_timeout_ms=30_000, **QUICK,
    ) as producer:  # fmt: skip
        producer.attach(20)
        producer.partitions_for("t", 20)
        producer.send("t", b"x").result(10)
        held = broker.on("Produce", times=10_000).delay(0.8)
        fork = multiprocessing.get_context("fork")
        workers = [fork.Process(target=_wait_for_memory, args=(producer, "t")) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
        found = producer.metrics()
        assert found[PRODUCER]["buffer-exhausted-total"] == 3
        assert found[SENDER]["bufferpool-wait-total"] >= 3
        waited_s = found[PRODUCER]["bufferpool-wait-time-ns-total"] / 1e9
        assert 3 * 0.2 <= waited_s < 60
        assert found[PRODUCER]["bufferpool-wait-ratio"] > 0
        assert found[WORKER]["memory-waits"] == 0, "this process has not waited"
        assert held.hits > 0
        held.remove()
        assert wait_until(  # what the workers left is delivered
            lambda: metric(producer, "buffer-available-bytes") == 1 << 20
        )


def test_time_in_flush_and_in_waits_for_metadata_is_counted(broker: Broker) -> None:
    broker.create_topic("t")
    with mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers, **QUICK) as producer:
        producer.attach()
        assert metric(producer, "metadata-wait-time-ns-total") == 0
        broker.on("Metadata").delay(0.2)
        producer.partitions_for("t")
        assert metric(producer, "metadata-wait-time-ns-total") > 0.1e9
        assert metric(producer, "flush-time-ns-total") == 0
        broker.on("Produce").delay(0.2)
        producer.send("t", b"x")
        producer.flush()
        assert 0.15e9 < metric(producer, "flush-time-ns-total") < 60e9


def test_it_is_a_plain_dict_of_numbers(broker: Broker) -> None:
    with mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers, **QUICK) as producer:
        producer.send("t", b"x").result(10)
        found = producer.metrics()
        assert isinstance(found, dict)
        copy = pickle.loads(pickle.dumps(found))
        assert json.dumps(copy) == json.dumps(found)
        numbers = [value for values in found.values() for value in values.values()]
        assert all(isinstance(value, (int, float)) for value in numbers)
        with pytest.raises(KeyError, match="sender-metrics"):
            found["record-acked-total"]
