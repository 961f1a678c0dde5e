"""What workers are told of the load of each partition, so that unkeyed records go elsewhere."""

from __future__ import annotations

from typing import Any

from mpproducer.sender import actions as a
from mpproducer.sender.actions import PartitionAvailable
from tests.sender.harness import Harness


def told(h: Harness, topic: str = "t") -> list[int]:
    """What is published of each partition now; 1 from its publication on."""
    found = dict.fromkeys(h.topic(topic), 1)
    for action in h.of(PartitionAvailable):
        found[action.partition_index] = action.available
    return list(found.values())


def held(h: Harness, partition: int = 0) -> Any:
    """A produce request for the partition that stays without an answer: more wait behind it."""
    h.open("t", partition)
    h.run_ms(h.config.linger_ms)
    (send,) = h.produce_requests()
    return send


def test_A27_what_waits_behind_a_partition_is_published_and_taken_back() -> None:
    """One batch is no load: it is filling, or about to go."""
    h = Harness(linger_ms=5).ready({0: 0, 1: 0})
    send = held(h)
    h.open("t", 0)
    assert told(h) == [1, 1]
    h.open("t", 0)
    assert told(h) == [3, 1]
    h.open("t", 0)
    h.open("t", 1)
    assert told(h) == [4, 1]
    h.answer(send)  # from now on the partition may pipeline
    assert told(h) == [1, 1]
    assert len(h.partition("t", 0).queue) <= 1


def test_A27_a_batch_that_returns_or_ends_in_the_queue_counts() -> None:
    h = Harness(linger_ms=5, retry_backoff_ms=50, delivery_timeout_ms=1_000,
                request_timeout_ms=900).ready({0: 0})  # fmt: skip
    send = held(h)
    h.open("t", 0)
    assert told(h) == [1]
    h.answer(send, 19)
    assert told(h) == [3]
    h.brokers = {}
    h.connects_fail = True
    h.close(send.conn)
    h.run_ms(2_000)
    assert len(h.completed) == 2
    assert told(h) == [1]


def test_A27_the_byte_holds_what_it_can() -> None:
    h = Harness(linger_ms=5).ready({0: 0})
    held(h)
    for _ in range(300):
        h.open("t", 0)
    assert told(h) == [255]
    h.machine.check_invariants()


def test_partitions_are_told_apart_by_their_leader_alone_when_that_is_wanted() -> None:
    h = Harness(linger_ms=5, partitioner_adaptive_partitioning_enable=False,
                partitioner_availability_timeout_ms=50).ready({0: 0, 1: -1})  # fmt: skip
    held(h)
    for _ in range(20):
        h.open("t", 0)
    h.run_ms(1_000)
    assert told(h) == [1, 0]


def behind(**config: Any) -> Harness:
    """A cluster in which broker 0 has taken nothing of what waits for it for 50 ms."""
    h = Harness(
        partitioner_availability_timeout_ms=50, max_in_flight_requests_per_connection=1, **config
    ).ready({0: 0, 1: 1, 2: 0})
    h.warm("t", 0)
    h.open("t", 0)
    h.open("t", 2)
    h.run_ms(49)
    assert told(h) == [1, 1, 1]
    h.run_ms(1)
    return h


def test_S7_A27_a_broker_that_takes_none_of_its_batches_gets_no_unkeyed_records() -> None:
    """Until it takes one: `drained` moves with a request only, `ready` with every look at it."""
    h = behind()
    assert told(h) == [0, 1, 0]
    h.run_ms(1_000)
    assert told(h) == [0, 1, 0]
    (send,) = h.produce_requests()
    h.answer(send)
    assert len(h.produce_requests()) == 1
    assert told(h) == [1, 1, 1]


def test_S7_a_broker_that_takes_its_batches_one_by_one_is_not_behind() -> None:
    h = Harness(
        partitioner_availability_timeout_ms=50, max_in_flight_requests_per_connection=1
    ).ready({0: 0, 1: 0})
    h.warm("t", 0)
    h.open("t", 0)
    for _ in range(20):
        h.open("t", 1)
        h.run_ms(30)
        h.answer(h.produce_requests()[0])
        h.open("t", 0)
        h.run_ms(30)
        h.answer(h.produce_requests()[0])
    assert not h.of(PartitionAvailable) or told(h) == [1, 1]
    assert all(action.available for action in h.of(PartitionAvailable))


def test_A27_a_leader_that_is_behind_counts_for_what_it_leads_now() -> None:
    h = behind()
    h.leaders["t"] = {0: (1, 2), 1: (0, 2), 2: (0, 1)}
    h.machine.metadata.request_update()
    h.run_ms(300)
    assert told(h) == [1, 0, 0]


def test_A27_a_broker_whose_batches_have_all_expired_is_used_again_when_it_is_back() -> None:
    """Java leaves it out until a keyed record brings it a batch."""
    h = behind(delivery_timeout_ms=1_000, request_timeout_ms=900, reconnect_backoff_ms=50,
               reconnect_backoff_max_ms=50)  # fmt: skip
    h.auto = False
    h.run_ms(3_000)
    assert len(h.completed) == 2
    assert not h.machine.nodes.brokers[0].ready
    assert told(h) == [0, 1, 0]
    h.auto = True
    h.run_ms(20_000)  # connection setups that hang end, and are tried again
    assert told(h) == [1, 1, 1]
    assert h.machine.nodes.brokers[0].blocked_ns is None


def test_A27_what_expired_before_the_timeout_makes_nobody_behind() -> None:
    h = Harness(linger_ms=0, partitioner_availability_timeout_ms=2_000, delivery_timeout_ms=1_000,
                request_timeout_ms=900).ready({0: 0, 1: 1})  # fmt: skip
    h.connects_fail = True
    for conn, action in list(h.conns.items()):
        if action.node_id == 0:
            h.close(conn)
    h.open("t", 0)
    h.run_ms(1_500)
    assert len(h.completed) == 1
    h.run_ms(5_000)
    assert told(h) == [1, 1]


def test_A27_a_connection_closed_on_our_own_wish_leaves_nobody_behind() -> None:
    """Nothing would try it again by itself."""
    h = behind(delivery_timeout_ms=1_000, request_timeout_ms=900)
    h.machine.nodes.close(h.machine.nodes.brokers[0], "test", h.now_ns)
    h.feed(a.FlushAsked())
    assert told(h) == [1, 1, 1]
