"""Closing while others are at work: what was taken is delivered, who waits is woken."""

from __future__ import annotations

import threading
import time

import pytest

import mpproducer
from mpproducer.testing import Broker
from tests.conftest import wait_until

TOPIC = "events"


def test_A31_a_send_that_races_with_close_raises_or_is_delivered(broker: Broker) -> None:
    """No send falls between: each returned a future that is acknowledged, or ClosedError."""
    producer = mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers, sender_idle_ms=0)
    producer.send(TOPIC, b"0-first").result(20)
    taken: list[tuple[bytes, mpproducer.DeliveryFuture]] = []
    refused: list[BaseException] = []
    started = threading.Barrier(4)

    def hammer(thread: int) -> None:
        started.wait(20)
        for number in range(10**6):
            value = b"%d-%d" % (thread, number)
            try:
                taken.append((value, producer.send(TOPIC, value)))
            except mpproducer.KafkaError as error:
                refused.append(error)
                return

    threads = [threading.Thread(target=hammer, args=(n,)) for n in range(1, 4)]
    for thread in threads:
        thread.start()
    started.wait(20)
    assert wait_until(lambda: len(taken) > 1_000)
    producer.close(timeout=30)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert {type(error) for error in refused} == {mpproducer.ClosedError}
    assert len(refused) == 3
    stored = {record.value for record in broker.records(TOPIC)}
    for value, future in taken:
        future.result(20)
        assert value in stored
    assert len(stored) == len(broker.records(TOPIC)) == len(taken) + 1


def test_M6_C7_close_wakes_a_send_that_waits_for_metadata(broker: Broker) -> None:
    producer = mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers,
        allow_auto_create_topics=False,
        max_block_ms=60_000,
        sender_idle_ms=0,
    )
    producer.attach()
    told: list[BaseException] = []

    def wait_for_topic() -> None:
        try:
            producer.send("nowhere", b"v")
        except mpproducer.KafkaError as error:
            told.append(error)

    thread = threading.Thread(target=wait_for_topic)
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive()
    producer.close()
    thread.join(15)
    assert not thread.is_alive()
    assert isinstance(told[0], mpproducer.ClosedError)


def test_a_pickle_works_although_the_producer_it_was_made_of_is_closed(broker: Broker) -> None:
    """It is a value of its own."""
    import pickle

    producer = mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers, sender_idle_ms=0)
    copy = pickle.loads(pickle.dumps(producer))
    producer.close()
    with pytest.raises(mpproducer.ClosedError):
        producer.send(TOPIC, b"v")
    assert copy.send(TOPIC, b"v").result(20).offset == 0
    copy.close()
