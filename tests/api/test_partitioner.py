"""A partitioner of the user's own: what it is asked, what its answer does, what its errors do."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from aiokafka.partitioner import DefaultPartitioner

import mpproducer
from mpproducer.testing import Broker
from tests.conftest import metric, wait_until
from tests.integration.support import java_partition

TOPIC = "events"
PARTITIONS = 6
FAST: dict[str, Any] = {"sender_idle_ms": 0, "linger_ms": 2}
Partitioner = Callable[[bytes | None, list[int], list[int]], Any]


def by_length(key: bytes | None, everyone: list[int], _available: list[int]) -> int:
    """A function of this module: picklable by name."""
    return len(everyone) - 1 if key is None else len(key) % len(everyone)


def producer_of(broker: Broker, partitioner: Any, **config: Any) -> mpproducer.Producer:
    broker.create_topic(TOPIC, PARTITIONS)
    return mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, partitioner=partitioner, **FAST | config
    )


def placed(broker: Broker) -> dict[bytes | None, int]:
    """Value -> partition of all that is in the log."""
    return {
        record.value: number
        for number in range(PARTITIONS)
        for record in broker.records(TOPIC, number)
    }


def test_it_is_asked_for_each_record_that_names_no_partition(broker: Broker) -> None:
    asked: list[tuple[object, ...]] = []

    def note(*seen: object) -> int:
        asked.append(seen)
        return 4

    with producer_of(broker, note) as producer:
        assert producer.send(TOPIC, b"1", key=b"k").result(20).partition == 4
        assert producer.send(TOPIC, b"2").result(20).partition == 4
        assert producer.send(TOPIC, b"3", key=bytearray(b"ab")).result(20).partition == 4
        assert producer.send(TOPIC, b"4", key=b"k", partition=1).result(20).partition == 1
    everyone = list(range(PARTITIONS))
    assert asked == [(key, everyone, everyone) for key in (b"k", None, b"ab")]
    assert placed(broker) == {b"1": 4, b"2": 4, b"3": 4, b"4": 1}


def test_partitioners_of_aiokafka_work_as_they_are(broker: Broker) -> None:
    keys = [b"user-%d" % number for number in range(50)]
    with producer_of(broker, DefaultPartitioner()) as producer:
        futures = [producer.send(TOPIC, b"v", key=key) for key in keys]
        many = producer.send_many(TOPIC, [b"v"] * len(keys), keys=keys)
        expected = [java_partition(key, PARTITIONS) for key in keys]
        assert [future.result(20).partition for future in futures] == expected
        assert [metadata.partition for metadata in many.result(20)] == expected


def test_a_name_is_imported_and_crosses_processes(broker: Broker) -> None:
    with producer_of(broker, f"{__name__}:by_length") as producer:
        assert producer.send(TOPIC, b"1", key=b"four").result(20).partition == 4
        copy = pickle.loads(pickle.dumps(producer))
        assert copy.send(TOPIC, b"2", key=b"333").result(20).partition == 3
        copy.close()


def _send_in_child(producer: mpproducer.Producer) -> None:
    producer.send(TOPIC, b"child", key=b"22").result(20)
    producer.close()


@pytest.mark.parametrize("way", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_callable_goes_with_its_producer_to_other_processes(broker: Broker, way: str) -> None:
    context: Any = multiprocessing.get_context(way)
    with producer_of(broker, by_length) as producer:
        producer.send(TOPIC, b"parent", key=b"1").result(20)
        child = context.Process(target=_send_in_child, args=(producer,))
        child.start()
        child.join(30)
        assert child.exitcode == 0
    assert placed(broker) == {b"parent": 1, b"child": 2}


def test_a_callable_that_pickle_cannot_take_along_says_so_when_it_is_pickled(
    broker: Broker,
) -> None:
    with (
        producer_of(broker, lambda _key, _all, _available: 0) as producer,
        pytest.raises((pickle.PicklingError, AttributeError), match="lambda"),
    ):
        pickle.dumps(producer)


def test_columns_are_asked_for_record_by_record(broker: Broker) -> None:
    """Keys of every form, with a column of partitions that leaves some to it."""
    keys = [b"", b"1", b"22", None, b"4444", b"55555"]
    expected = [0, 1, 2, PARTITIONS - 1, 4, 5]
    with producer_of(broker, by_length) as producer:
        found = producer.send_many(TOPIC, [b"a%d" % n for n in range(6)], keys=keys).result(20)
        assert [metadata.partition for metadata in found] == expected
        column = np.array([b"1", b"22", b"333", b"4444"])
        found = producer.send_many(TOPIC, np.array([b"b0", b"b1", b"b2", b"b3"]), keys=column)
        assert [metadata.partition for metadata in found.result(20)] == [1, 2, 3, 4]
        found = producer.send_many(TOPIC, [b"c0", b"c1"])
        assert [metadata.partition for metadata in found.result(20)] == [PARTITIONS - 1] * 2
        found = producer.send_many(TOPIC, [b"d0", b"d1"], keys=[b"1", b"22"], partition=5)
        assert [metadata.partition for metadata in found.result(20)] == [5, 5]
        pyarrow = pytest.importorskip("pyarrow")
        partitions = pyarrow.array([3, None, 0], pyarrow.int32())
        found = producer.send_many(
            TOPIC, [b"e0", b"e1", b"e2"], keys=[b"1", b"22", b"333"], partition=partitions
        )
        assert [metadata.partition for metadata in found.result(20)] == [3, 2, 0]
        assert producer.send_many(TOPIC, [], keys=[]).result(1) == []


def test_many_records_are_asked_for_over_the_ends_of_chunks(broker: Broker) -> None:
    keys = [b"x" * (number % 5) for number in range(5_000)]
    with producer_of(broker, by_length) as producer:
        found = producer.send_many(TOPIC, [b"%d" % n for n in range(5_000)], keys=keys)
        assert [metadata.partition for metadata in found.result(30)] == [len(key) for key in keys]
    assert [int(record.value or b"") for record in broker.records(TOPIC, 3)] == list(
        range(3, 5_000, 5)
    )


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (None, TypeError),
        ("1", TypeError),
        (1.0, TypeError),
        (True, TypeError),
        (-1, ValueError),
        (PARTITIONS, ValueError),
        (2**70, ValueError),
    ],
)
def test_an_answer_that_is_no_partition_is_an_error_and_nothing_is_sent(
    broker: Broker, answer: object, error: type[Exception]
) -> None:
    answers: list[object] = [answer]
    with producer_of(broker, lambda *_seen: answers[-1]) as producer:
        with pytest.raises(error, match=r"the partitioner returned .* for topic 'events'.*0 to 5"):
            producer.send(TOPIC, b"1")
        asked: list[object] = []

        def second_is_bad(*_seen: object) -> object:
            asked.append(0)
            return answer if len(asked) == 2 else 3

        producer._partitioner = second_is_bad
        with pytest.raises(error, match="nothing was sent"):
            producer.send_many(TOPIC, [b"2", b"3", b"4"])
        producer._partitioner = lambda *_seen: np.int64(3)
        assert producer.send(TOPIC, b"after").result(20).partition == 3
        assert wait_until(lambda: metric(producer, "record-send-total") == 1)
    assert placed(broker) == {b"after": 3}


def test_what_it_raises_send_raises_and_nothing_is_sent(broker: Broker) -> None:
    class Own(Exception):
        pass

    def fail(key: bytes | None, _everyone: list[int], _available: list[int]) -> int:
        if key == b"bad":
            raise Own("no place for it")
        return 2

    with producer_of(broker, fail) as producer:
        with pytest.raises(Own, match="no place for it"):
            producer.send(TOPIC, b"1", key=b"bad")
        with pytest.raises(Own, match="no place for it"):
            producer.send_many(TOPIC, [b"2", b"3"], keys=[b"good", b"bad"])
        assert producer.send(TOPIC, b"after").result(20).partition == 2
    assert placed(broker) == {b"after": 2}


def test_it_may_close_the_producer_or_send_through_it(broker: Broker) -> None:
    inner: list[mpproducer.DeliveryFuture] = []

    def sends(key: bytes | None, _everyone: list[int], _available: list[int]) -> int:
        if key == b"outer":
            inner.append(producer.send(TOPIC, b"inner"))
        if key == b"closes":
            producer.close()
        return 1

    producer = producer_of(broker, sends)
    assert producer.send(TOPIC, b"outer", key=b"outer").result(20).partition == 1
    assert inner[0].result(20).partition == 1
    with pytest.raises(mpproducer.ClosedError):
        producer.send(TOPIC, b"never", key=b"closes")
    assert placed(broker) == {b"outer": 1, b"inner": 1}


def test_partitions_without_a_leader_are_not_among_the_available(broker: Broker) -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def note(_key: bytes | None, everyone: list[int], available: list[int]) -> int:
        seen.append((everyone, available))
        return available[0]

    broker.create_topic(TOPIC, PARTITIONS)
    for number in (0, 3):
        broker.set_leader(TOPIC, number, -1)
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, partitioner=note, **FAST
    ) as producer:
        assert producer.send(TOPIC, b"v").result(20).partition == 1
    assert seen == [(list(range(PARTITIONS)), [1, 2, 4, 5])]


def test_an_unknown_topic_is_told_before_it_is_asked(broker: Broker) -> None:
    asked: list[object] = []
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, partitioner=lambda *seen: asked.append(seen),
        allow_auto_create_topics=False, max_block_ms=200, **FAST,
    ) as producer:  # fmt: skip
        producer.attach(10)
        assert isinstance(producer.send("no", b"v").exception(0), mpproducer.MetadataTimeout)
        many = producer.send_many("no", [b"1", b"2"])
        assert [type(error) for _at, error in many.failed] == [mpproducer.MetadataTimeout] * 2
    assert not asked


def test_a_method_of_who_holds_the_producer_keeps_neither_alive(broker: Broker) -> None:
    class Holder:
        def __init__(self) -> None:
            self.producer = producer_of(broker, self.last)

        def last(self, _key: bytes | None, everyone: list[int], _available: list[int]) -> int:
            return everyone[-1]

    holder = Holder()
    assert holder.producer.send(TOPIC, b"v").result(20).partition == PARTITIONS - 1
    seen = weakref.ref(holder), weakref.ref(holder.producer)
    del holder
    gc.collect()
    assert [one() for one in seen] == [None, None]
