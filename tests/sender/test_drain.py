"""Which batch goes where and when (behaviours A*, K*, S4, S31, S33, S34)."""

from __future__ import annotations

from typing import Any

import pytest

from mpproducer.sender import actions as a
from mpproducer.sender.batch import IN_FLIGHT, OPEN
from mpproducer.sender.retry import MS
from tests.sender.harness import Fill, Harness


def _numbers(send: a.SendProduce) -> list[int]:
    return [batch.partition.number for batch in send.batches]


def test_A1_nothing_is_ready_before_linger_and_a_second_batch_makes_the_first_one_full() -> None:
    h = Harness(linger_ms=5).ready()
    h.open("t", 0)
    assert not h.produce_requests()
    h.open("t", 0)
    (send,) = h.produce_requests()
    assert [batch.seq for batch in send.batches] == [1]


def test_a_batch_a_worker_has_filled_does_not_linger() -> None:
    h = Harness(linger_ms=5).ready()
    slot = h.open("t", 0)
    h.feed(a.BatchFull(slot))
    assert len(h.produce_requests()) == 1


def test_A3_linger_ends_at_linger_and_not_a_millisecond_earlier() -> None:
    h = Harness(linger_ms=5).ready()
    slot = h.open("t", 0, records=1)
    h.tick(4)
    assert not h.produce_requests()
    assert h.machine.next_deadline_ns() == h.now_ns + 1 * MS
    h.fills[slot].records = 7
    h.tick(1)
    (send,) = h.produce_requests()
    assert send.batches[0].records == 7, "it went on filling until it was drained"


def test_what_has_lingered_a_quarter_goes_with_what_is_due_and_the_newest_stay() -> None:
    h = Harness(linger_ms=8).ready({n: 0 for n in range(4)})
    h.open("t", 0)
    for wait_ms, number in ((4, 1), (2, 2), (1, 3)):
        h.tick(wait_ms)
        h.open("t", number)
    h.tick(1)
    assert [_numbers(send) for send in h.produce_requests()] == [[0, 1, 2]]
    h.tick(6)
    assert len(h.produce_requests()) == 1
    h.tick(1)
    assert [_numbers(send) for send in h.produce_requests()][1:] == [[3]]


def test_linger_counts_from_the_opening_and_not_from_the_senders_first_look() -> None:
    h = Harness(linger_ms=5).ready({0: 0, 1: 0})
    h.open("t", 0, age_ns=3 * MS)
    assert h.machine.next_deadline_ns() == h.now_ns + 2 * MS
    h.open("t", 1, age_ns=7 * MS)
    h.tick(0)
    assert [send.batches[0].partition.number for send in h.produce_requests()] == []
    h.tick(2)
    (send,) = h.produce_requests()
    assert [batch.partition.number for batch in send.batches] == [0, 1]


def test_a_batch_that_is_older_than_its_linger_when_it_is_seen_goes_at_once() -> None:
    h = Harness(linger_ms=5).ready()
    h.open("t", 0, age_ns=5 * MS)
    assert len(h.produce_requests()) == 1
    (batch,) = h.produce_requests()[0].batches
    assert batch.deadline_ns == h.now_ns - 5 * MS + 120_000 * MS, "delivery.timeout.ms, too"


def test_a_batch_from_the_future_was_opened_now() -> None:
    h = Harness(linger_ms=5).ready()
    h.open("t", 0, age_ns=-(1 << 40))
    assert h.machine.next_deadline_ns() == h.now_ns + 5 * MS


def test_open_batches_fill_while_their_node_is_busy_and_are_sealed_at_drain_time() -> None:
    h = Harness(linger_ms=5, max_in_flight_requests_per_connection=1).ready({0: 0, 1: 0})
    h.open("t", 0)
    h.tick(5)
    slot = h.open("t", 1, records=1)
    h.tick(50)
    batch = h.partition("t", 1).queue[0]
    assert batch.state is OPEN
    h.fills[slot].records = 99
    h.answer(h.produce_requests()[0])
    assert batch.state is IN_FLIGHT
    assert batch.records == 99


def test_A4_a_request_takes_what_fits_and_the_rest_comes_next() -> None:
    h = Harness(max_request_size=1_000_000, linger_ms=5).ready({n: 0 for n in range(4)})
    for number in range(4):
        h.open("t", number, size_bytes=400_000)
    h.tick(5)
    assert [_numbers(send) for send in h.produce_requests()] == [[0, 1], [2, 3]]


def test_batches_are_sealed_for_a_request_until_it_is_full_and_the_others_stay_open() -> None:
    h = Harness(max_request_size=1_000_000, linger_ms=5).ready({n: 0 for n in range(6)})
    slots = [h.open("t", number, size_bytes=400_000) for number in range(6)]
    h.tick(5)
    assert [_numbers(send) for send in h.produce_requests()] == [[0, 1], [2, 3], [4, 5]]
    # The last one of each was sealed while there was room, and found none.
    first, *_ = h.of(a.Seal)
    assert [batch.slot for batch in first.batches] == slots
    assert first.room_bytes == 1_000_000


def test_A5_a_sealed_batch_does_not_pass_an_open_one_that_stands_before_it() -> None:
    h = Harness(
        max_request_size=1_000_000, linger_ms=5, max_in_flight_requests_per_connection=1
    ).ready({n: 0 for n in range(3)})
    for number in range(3):
        h.open("t", number, size_bytes=900_000)
    h.tick(5)
    (send,) = h.produce_requests()
    h.answer(send, 7)  # comes back, sealed, behind the two that were open then
    h.run_ms(300)
    order = []
    for _ in range(3):
        for send in h.produce_requests():
            order += _numbers(send)
            h.answer(send)
    assert order == [1, 2, 0]


def test_A5_repeated_drains_rotate_and_no_partition_starves() -> None:
    h = Harness(
        max_request_size=1_000_000, linger_ms=5, max_in_flight_requests_per_connection=1
    ).ready({n: 0 for n in range(3)})
    seen: list[int] = []
    for number in range(3):
        h.open("t", number, size_bytes=900_000)
    h.tick(5)
    for _ in range(9):
        (send,) = h.produce_requests()
        seen += _numbers(send)
        # The partition that was just drained has more at once, and still waits its turn.
        h.feed(a.BatchFull(h.open("t", _numbers(send)[0], size_bytes=900_000)))
        h.answer(send)
    assert seen == [0, 1, 2] * 3


def test_A6_a_batch_larger_than_max_request_size_goes_alone() -> None:
    h = Harness(max_request_size=100_000, linger_ms=5).ready({0: 0, 1: 0, 2: 0})
    for number, size in ((0, 1_000), (1, 500_000), (2, 1_000)):
        h.open("t", number, size_bytes=size)
    h.tick(5)
    assert [_numbers(send) for send in h.produce_requests()] == [[0], [1], [2]]


def test_at_most_one_batch_of_a_partition_is_in_a_request() -> None:
    h = Harness(linger_ms=5).ready()
    h.warm("t", 0)
    for _ in range(4):
        h.open("t", 0)
    h.tick(5)
    for send in h.produce_requests():
        assert len(send.batches) == 1
    assert len(h.produce_requests()) == 4


def test_A8_the_next_deadline_is_the_shortest_remaining_linger() -> None:
    h = Harness(linger_ms=10).ready({0: 0, 1: 1, 2: 0})
    start = h.now_ns
    h.open("t", 0)
    h.tick(3)
    h.open("t", 1)
    assert h.machine.next_deadline_ns() == start + 10 * MS
    h.feed(a.BatchFull(h.open("t", 2)))
    assert h.machine.next_deadline_ns() == start + 10 * MS


def test_A9_a_retry_in_backoff_does_not_hold_up_its_node() -> None:
    h = Harness().ready({0: 0, 1: 0})
    h.open("t", 0)
    h.answer(h.produce_requests()[0], 19)
    h.open("t", 1)
    assert [_numbers(send) for send in h.produce_requests()] == [[1]]
    h.run_ms(79)
    assert len(h.produce_requests()) == 1
    h.run_ms(42)
    assert [_numbers(send) for send in h.produce_requests()] == [[1], [0]]


def test_A10_after_its_backoff_the_retry_goes_before_newer_batches() -> None:
    h = Harness().ready()
    h.open("t", 0)
    h.answer(h.produce_requests()[0], 19)
    h.open("t", 0)
    assert not h.produce_requests()
    h.run_ms(121)
    (send,) = h.produce_requests()
    assert send.batches[0].seq == 1
    h.answer(send)
    assert [send.batches[0].seq for send in h.produce_requests()] == [2]


def test_X_the_first_batch_under_a_producer_id_goes_alone() -> None:
    """Else a broker that knows nothing of the id takes the second when it refuses the first."""
    h = Harness().ready({0: 0, 1: 0})
    for _ in range(3):
        h.open("t", 0)
    h.open("t", 1)
    assert [_numbers(send) for send in h.produce_requests()] == [[0], [1]]
    h.answer(h.produce_requests()[0], 3)
    h.run_ms(121)
    assert [(s.batches[0].partition.number, s.batches[0].seq) for s in h.produce_requests()] == [
        (1, 1),
        (0, 1),
    ]
    h.answer(h.produce_requests()[0])
    h.answer(h.produce_requests()[0])
    assert [send.batches[0].seq for send in h.produce_requests()] == [2, 3]


def test_A11_a_newer_leader_epoch_cancels_the_backoff_once() -> None:
    h = Harness(retry_backoff_ms=10_000, retry_backoff_max_ms=10_000).ready({0: 0})
    h.open("t", 0)
    h.answer(h.produce_requests()[0], 19)
    partition = h.partition("t", 0)
    metadata = h.machine.metadata
    metadata.set_leader(partition, 1, 1)
    h.feed(a.Tick())
    assert not h.produce_requests(), "same epoch: no reason to hurry"
    metadata.set_leader(partition, 1, 2)
    h.feed(a.Tick())
    (send,) = h.produce_requests()
    assert h.node_of(send) == 1
    h.answer(send, 19)
    h.feed(a.Tick())
    assert not h.produce_requests(), "the change was seen in an earlier attempt"


def test_A12_flush_makes_everything_ready_and_lingering_counts_again_afterwards() -> None:
    h = Harness(linger_ms=1_000).ready({0: 0, 1: 1})
    h.open("t", 0)
    h.open("t", 1)
    h.feed(a.FlushAsked())
    assert sorted(_numbers(send)[0] for send in h.produce_requests()) == [0, 1]
    for send in h.produce_requests():
        h.answer(send)
    h.open("t", 0)
    assert not h.produce_requests()
    h.tick(1_000)
    assert len(h.produce_requests()) == 1


def test_memory_pressure_ends_lingering() -> None:
    h = Harness(linger_ms=1_000).ready()
    h.open("t", 0)
    h.feed(a.MemoryShort())
    assert len(h.produce_requests()) == 1


def test_A16_a_batch_expires_at_its_creation_plus_delivery_timeout_whatever_linger_says() -> None:
    h = Harness(linger_ms=5, delivery_timeout_ms=2_000, request_timeout_ms=500).ready()
    h.connects_fail = True
    h.machine.nodes.close_all("test", h.now_ns)
    h.open("t", 0)
    h.run_ms(1_999)
    assert not h.completed
    h.run_ms(1)
    ((_, outcome),) = h.completed
    assert outcome.kind is a.Kind.NOT_WRITTEN
    assert "never been sent" in outcome.message
    assert len(h.released) == 1


def test_A18_expiry_bounds_the_sleep_even_if_linger_is_longer() -> None:
    h = Harness(linger_ms=50_000, delivery_timeout_ms=60_000, request_timeout_ms=10_000).ready()
    h.open("t", 0)
    start = h.now_ns
    h.partition("t", 0).queue[0].deadline_ns = start + 7 * MS
    assert h.machine.next_deadline_ns() == start + 7 * MS


def test_A24_an_unknown_leader_holds_up_its_partition_only() -> None:
    h = Harness().ready({0: 0, 1: -1})
    h.open("t", 1)
    h.open("t", 0)
    (send,) = h.produce_requests()
    assert _numbers(send) == [0]
    h.answer(send)
    h.leaders["t"][1] = (0, 2)
    h.run_ms(2_000)
    assert [_numbers(send) for send in h.produce_requests()] == [[1]]


def test_S4_with_one_in_flight_a_partition_is_muted_even_if_its_leader_moves() -> None:
    h = Harness(max_in_flight_requests_per_connection=1).ready({0: 0})
    h.open("t", 0)
    h.open("t", 0)
    (first,) = h.produce_requests()
    h.machine.metadata.set_leader(h.partition("t", 0), 1, 2)
    h.run_ms(100)
    assert h.produce_requests() == [first]
    h.answer(first)
    (second,) = h.produce_requests()
    assert h.node_of(second) == 1


def test_a_new_leader_gets_nothing_until_the_old_one_has_answered() -> None:
    h = Harness().ready({0: 0})
    h.warm("t", 0)
    h.open("t", 0)
    h.open("t", 0)
    first, second = h.produce_requests()
    h.machine.metadata.set_leader(h.partition("t", 0), 1, 2)
    h.open("t", 0)
    assert len(h.produce_requests()) == 2
    h.answer(first)
    assert len(h.produce_requests()) == 1
    h.answer(second)
    (third,) = h.produce_requests()
    assert h.node_of(third) == 1


def test_a_batch_is_asked_for_once_where_its_leader_moves_before_it_is_sealed() -> None:
    """One answer frees the node, which asks for the batch, and adds partitions, and names another
    leader: they are published, and the leader is believed, before the batch is there."""
    h = Harness(max_in_flight_requests_per_connection=1).ready({0: 0, 1: 1})
    h.warm("t", 0)
    h.warm("t", 1)
    h.run_ms(300)
    h.auto = False
    h.machine.metadata.request_update()
    h.tick()
    (request,) = [
        one for queue in h.requests.values() for one in queue if isinstance(one, a.Request)
    ]
    busy = h.conns[request.conn].node_id
    other = 1 - busy
    slot = h.open("t", busy)
    assert not h.produce_requests()
    h.leaders["t"] = {busy: (other, 2), other: (other, 1), 2: (other, 1)}
    h.feed(h.answer_internal(request))
    assert [batch.slot for batch in h.asked_to_seal()].count(slot) == 1
    (send,) = h.produce_requests()
    assert (h.node_of(send), _numbers(send)) == (other, [busy])


def test_in_flight_limit_holds_per_connection() -> None:
    h = Harness(max_in_flight_requests_per_connection=3, enable_idempotence=False).ready()
    for _ in range(10):
        h.open("t", 0)
    assert len(h.produce_requests()) == 3
    h.answer(h.produce_requests()[0])
    assert len(h.produce_requests()) == 3


def test_N6_nothing_is_drained_behind_a_half_written_request() -> None:
    h = Harness().ready({0: 0, 1: 0})
    h.auto = False
    h.open("t", 0)
    h.open("t", 1)
    (send,) = h.produce_requests()
    assert _numbers(send) == [0]
    h.feed(a.Wrote(send.conn, send.correlation_id))
    assert len(h.produce_requests()) == 2


def test_an_empty_batch_is_left_open_and_asked_again() -> None:
    h = Harness().ready()
    slot = h.open("t", 0, records=0)
    assert not h.produce_requests()
    assert h.partition("t", 0).queue[0].state is OPEN
    h.fills[slot].records = 1
    h.run_ms(2)
    assert len(h.produce_requests()) == 1


def test_an_empty_batch_of_a_dead_worker_is_given_back_and_nobody_is_told() -> None:
    h = Harness().ready()
    h.open("t", 0, records=0, owners=())
    assert not h.completed
    assert len(h.released) == 1
    h.open("t", 0)
    assert len(h.produce_requests()) == 1


def test_thousands_of_due_partitions_are_sealed_once_and_sent_together() -> None:
    h = Harness(linger_ms=5).ready({n: 0 for n in range(3_000)})
    for number in range(3_000):
        index = h.topic("t")[number]
        h.slot += 1
        h.fills[h.slot] = Fill(1, 50, (1,))
        for action in h.machine.on_event(a.BatchOpened(index, 1, h.slot), h.now_ns):
            h.apply(action)
    sealed_before = len(h.asked_to_seal())
    h.tick(5)
    (send,) = h.produce_requests()
    assert len(send.batches) == 3_000
    assert len(h.asked_to_seal()) - sealed_before == 3_000
    assert len(h.of(a.Seal)) < 20


def test_W04_an_empty_batch_of_a_stopped_writer_is_asked_again_later_not_at_once() -> None:
    h = Harness().ready()
    slot = h.open("t", 0, records=0)
    h.open("t", 0)  # another worker goes on behind it
    asked = h.asked_to_seal()
    assert len(asked) <= 3
    assert not h.produce_requests()
    h.run_ms(20)
    assert len(asked) < len(h.asked_to_seal()) <= 25
    h.fills[slot].records = 1
    h.run_ms(2)
    (send,) = h.produce_requests()
    assert [batch.seq for batch in send.batches] == [1]


class _Compressing(Harness):
    def _do_Compress(self, action: a.Compress) -> list[a.Compressed]:
        return [a.Compressed(action.batch, action.batch.size_bytes)]


def test_a_ready_batch_waits_when_another_partition_has_bumped_the_epoch() -> None:
    h = _Compressing(max_in_flight_requests_per_connection=2, compression_type="zstd")
    h.ready({0: 0, 1: 0})
    h.warm("t", 0)
    h.warm("t", 1)
    h.open("t", 1)
    h.open("t", 0)
    first, second = h.produce_requests()
    h.open("t", 0)  # ready, and waiting for its node
    h.answer(first, code=87)
    assert h.machine.idempotence.epoch == 1
    assert h.produce_requests() == [second]
    h.answer(second)
    (third,) = h.produce_requests()
    assert [(batch.producer_epoch, batch.base_sequence) for batch in third.batches] == [(1, 0)]


def test_a_close_past_its_deadline_does_not_wait_for_a_batch_without_a_record() -> None:
    h = Harness().ready()
    h.open("t", 0, records=0)
    h.open("t", 0)
    h.feed(a.CloseAsked(h.now_ns))
    assert h.exited == "closed"


@pytest.mark.parametrize("event", [a.FlushAsked(), a.MemoryShort(), a.CloseAsked(10**15)])
def test_A9_A12_flush_memory_pressure_and_close_end_the_linger_and_no_backoff(event: Any) -> None:
    h = Harness(linger_ms=10_000, retry_backoff_ms=1_000, retry_backoff_max_ms=1_000)
    h.ready({0: 0, 1: 0})
    h.warm("t", 0)
    h.warm("t", 1)
    h.open("t", 0)
    h.feed(a.FlushAsked())
    (send,) = h.produce_requests()
    h.answer(send, 19)
    h.open("t", 0)
    h.open("t", 1)
    assert h.produce_requests() == []
    h.feed(event)
    (send,) = h.produce_requests()
    assert [batch.partition.number for batch in send.batches] == [1]
    h.answer(send)
    h.run_ms(999)
    h.feed(event)
    assert h.produce_requests() == []
    h.run_ms(1)
    (retry, *_) = h.produce_requests()
    assert [batch.attempts for batch in retry.batches] == [2]
