"""Producer id, epoch and sequences (S8, S11-S19, S22, S25 and reference rules 7.1-7.9)."""

from __future__ import annotations

from typing import Any

import pytest

from mpproducer.sender import actions as a
from mpproducer.sender.batch import NO_SEQUENCE, RETRY_WAIT
from mpproducer.sender.idempotence import (
    MAX_EPOCH,
    IdState,
    is_after,
    last_sequence,
    next_sequence,
)
from tests.sender.harness import Harness

SHORT: dict[str, Any] = {"delivery_timeout_ms": 2_000, "request_timeout_ms": 1_500}
TOP = 2**31 - 1


def _sequences(sends: list[a.SendProduce]) -> list[int]:
    return [batch.base_sequence for send in sends for batch in send.batches]


def _epochs(sends: list[a.SendProduce]) -> list[int]:
    return [batch.producer_epoch for send in sends for batch in send.batches]


def _pipelined(count: int = 3, partitions: dict[int, int] | None = None, **config: Any) -> Harness:
    """A partition with `count` batches on the wire, sequences 10, 20, 30, ..."""
    h = Harness(**config).ready(partitions or {0: 0})
    h.warm("t", 0)
    for _ in range(count):
        h.open("t", 0)
    return h


def _expire(h: Harness, send: a.SendProduce) -> None:
    """The batch of a request passes its delivery timeout now."""
    batch = send.batches[0]
    batch.deadline_ns = h.now_ns
    h.machine.delivery.aging.move_to_end(batch, last=False)
    h.tick()
    assert batch.done


def _send_until_done(h: Harness, rounds: int = 20) -> list[a.SendProduce]:
    """Acknowledge what comes, one request at a time; returns it in order."""
    seen = []
    for _ in range(rounds):
        for send in h.produce_requests()[:1]:
            seen.append(send)
            h.answer(send, offset=1_000 + 100 * len(seen))
        h.run_ms(150)
    assert not h.machine.delivery.aging
    return seen


# --- assignment


def test_S8_a_producer_id_is_asked_for_before_any_data() -> None:
    h = Harness(auto=False).ready()
    h.auto = True
    (resolve,) = h.of(a.Resolve)
    h.feed(a.Resolved(resolve.node_id, resolve.host, (("boot", 9092),)))
    h.open("t", 0)
    sent = [x for x in h.log if isinstance(x, a.Request | a.SendProduce)]
    kinds = [x.api_key if isinstance(x, a.Request) else 0 for x in sent]
    assert 22 in kinds
    assert kinds.index(22) < kinds.index(0)


def test_S8_one_in_flight_and_a_metadata_request_pending_do_not_deadlock() -> None:
    h = Harness(max_in_flight_requests_per_connection=1).ready()
    h.brokers = {0: ("b0", 9092)}
    h.machine.idempotence.reset()
    h.machine.metadata.request_update()
    h.open("t", 0)
    h.run_ms(1_000)
    (send,) = h.produce_requests()
    assert send.batches[0].producer_id == 1_000 * h.producer_ids
    h.answer(send)
    assert h.outcomes() == [(a.Kind.ACKED, 0)]


def test_S25_a_sequence_advances_by_the_number_of_records() -> None:
    h = Harness().ready()
    seen = []
    for records in (1, 7, 100, 3):
        h.open("t", 0, records=records)
        (send,) = h.produce_requests()
        seen += _sequences([send])
        h.answer(send)
    assert seen == [0, 1, 8, 108]


def test_a_sequence_is_assigned_once_and_a_retry_keeps_it() -> None:
    h = Harness().ready()
    h.open("t", 0)
    stamps = []
    for code in (19, 7, 6, 0):
        (send,) = h.produce_requests()
        batch = send.batches[0]
        stamps.append((batch.producer_id, batch.producer_epoch, batch.base_sequence))
        h.answer(send, code)
        h.run_ms(1_500)
    assert stamps == [(1_000, 0, 0)] * 4


def test_a_batch_that_waits_has_no_sequence() -> None:
    h = _pipelined(7)
    assert len(h.produce_requests()) == 5
    assert [b.base_sequence for b in h.partition("t", 0).queue] == [NO_SEQUENCE] * 2


def test_without_idempotence_no_batch_has_a_sequence() -> None:
    h = Harness(enable_idempotence=False).ready()
    h.open("t", 0)
    h.open("t", 0)
    sends = h.produce_requests()
    assert _sequences(sends) == [NO_SEQUENCE] * 2
    assert {send.batches[0].producer_id for send in sends} == {-1}
    assert not h.producer_ids


def test_sequence_arithmetic_wraps_to_zero_after_the_largest_int32() -> None:
    assert next_sequence(TOP, 1) == 0
    assert next_sequence(TOP - 4, 10) == 5
    assert is_after(3, TOP - 3)
    assert not is_after(TOP - 3, 3)
    assert not is_after(5, 5)


def test_T13_batches_go_on_over_the_wrap_and_the_acknowledged_sequence_follows() -> None:
    h = Harness().ready()
    h.warm("t", 0)
    partition = h.partition("t", 0)
    partition.next_sequence = TOP - 4
    partition.last_acked_sequence = TOP - 5
    for _ in range(3):
        h.open("t", 0)
    sends = h.produce_requests()
    assert _sequences(sends) == [TOP - 4, 5, 15]
    assert last_sequence(sends[0].batches[0]) == 4
    for send in sends:
        h.answer(send)
    assert partition.last_acked_sequence == 24


def test_a_lost_batch_at_the_wrap_is_recognised_as_the_next_expected_one() -> None:
    h = Harness().ready()
    h.warm("t", 0)
    partition = h.partition("t", 0)
    partition.next_sequence = TOP - 9
    partition.last_acked_sequence = TOP - 10
    h.open("t", 0)
    h.open("t", 0)
    first, second = h.produce_requests()
    assert _sequences([second]) == [0]
    h.answer(first)
    h.answer(second, 45)
    h.run_ms(200)
    assert h.machine.idempotence.epoch == 1
    assert _send_until_done(h)[0].batches[0].base_sequence == 0


# --- several in flight


def test_S11_followers_of_a_failed_batch_come_back_45_and_go_again_one_by_one() -> None:
    h = _pipelined(3)
    first, second, third = h.produce_requests()
    h.answer(first, 19)
    h.answer(second, 45)
    h.answer(third, 45)
    seen = []
    offsets = iter((200, 300, 400))
    for _ in range(3):
        h.run_ms(150)
        (send,) = h.produce_requests()
        seen += _sequences([send])
        h.answer(send, offset=next(offsets))
    assert seen == [10, 20, 30]
    assert [o.base_offset for _, o in h.completed] == [200, 300, 400]
    assert h.machine.idempotence.epoch == 0, "nothing was lost: no new epoch"


def test_S11_a_newer_batch_never_passes_a_retry() -> None:
    h = _pipelined(2)
    h.open("t", 0)
    h.open("t", 0)
    sends = h.produce_requests()
    h.answer(sends[0], 19)
    for send in sends[1:]:
        h.answer(send, 45)
    h.open("t", 0)
    assert _sequences(_send_until_done(h)) == [10, 20, 30, 40, 50]


def test_S12_a_terminal_failure_starts_a_new_epoch_and_the_later_ones_succeed() -> None:
    h = _pipelined(3)
    first, second, third = h.produce_requests()
    h.answer(first, 87)
    assert h.outcomes() == [(a.Kind.NOT_WRITTEN, 87)]
    h.answer(second, 45)
    h.answer(third, 45)
    sends = _send_until_done(h)
    assert _sequences(sends) == [0, 10]
    assert _epochs(sends) == [1, 1]
    assert h.outcomes()[1:] == [(a.Kind.ACKED, 0)] * 2
    assert h.machine.counters.epoch_bump_total == 1


def test_S12_followers_of_unsure_fate_are_settled_under_the_old_epoch_first() -> None:
    """A new epoch makes the broker forget them: one that is in the log would be there twice."""
    h = _pipelined(2)
    first, second = h.produce_requests()
    h.answer(first, 87)
    h.close(second.conn)
    h.run_ms(500)
    (again,) = h.produce_requests()
    assert (_sequences([again]), _epochs([again])) == ([20], [0])
    h.answer(again, 45)
    h.run_ms(500)
    (anew,) = h.produce_requests()
    assert (_sequences([anew]), _epochs([anew])) == ([0], [1])
    h.answer(anew)
    assert h.outcomes() == [(a.Kind.NOT_WRITTEN, 87), (a.Kind.ACKED, 0)]


def test_S13_45_on_the_next_expected_batch_bumps_the_epoch_and_the_user_never_sees_it() -> None:
    h = _pipelined(1)
    (send,) = h.produce_requests()
    h.answer(send, 45)
    sends = _send_until_done(h)
    assert (_sequences(sends), _epochs(sends)) == ([0], [1])
    assert h.outcomes() == [(a.Kind.ACKED, 0)]


def test_45_for_a_follower_is_no_reason_for_a_new_epoch() -> None:
    h = _pipelined(2)
    first, second = h.produce_requests()
    h.answer(first, 19)
    h.answer(second, 45)
    assert h.machine.idempotence.epoch == 0
    assert not h.partition("t", 0).bump_wanted


def test_S14_a_bump_is_local_to_the_partition_that_asked() -> None:
    h = Harness().ready({0: 0, 1: 1})
    for number in (0, 1):
        h.warm("t", number)
    h.open("t", 0)
    h.open("t", 1)
    h.open("t", 1)
    lost, *others = h.produce_requests()
    h.answer(lost, 45)
    h.run_ms(200)
    assert h.machine.idempotence.epoch == 1
    assert _epochs(others) == [0, 0]
    h.open("t", 1)
    assert [s.batches[0].partition.number for s in h.produce_requests()] == [1, 1, 0], (
        "a new batch of the other partition waits for the old epoch's"
    )
    h.answer(others[0])
    h.answer(others[1])
    new = [s for s in h.produce_requests() if s.batches[0].partition.number == 1]
    assert (_sequences(new), _epochs(new)) == ([0], [1])


def test_S15_last_acked_never_goes_back() -> None:
    h = _pipelined(3)
    partition = h.partition("t", 0)
    idempotence = h.machine.idempotence
    batches = [send.batches[0] for send in h.produce_requests()]
    for order, expected in ((1, 29), (0, 29), (2, 39)):
        idempotence.acked(batches[order], 500 - order)
        assert partition.last_acked_sequence == expected
    assert partition.last_acked_offset == 509
    partition.sequenced.clear()


def test_S15_the_second_failing_first_leaves_the_first_to_succeed() -> None:
    h = _pipelined(2)
    first, second = h.produce_requests()
    h.close(first.conn)
    h.run_ms(500)
    (again,) = h.produce_requests()
    assert _sequences([again]) == [10]
    h.answer(again, 46)
    (later,) = h.produce_requests()
    assert later.batches == second.batches
    h.answer(later)
    assert h.outcomes() == [(a.Kind.ACKED, 0)] * 2
    assert h.partition("t", 0).last_acked_sequence == 29


# --- unresolved sequences


def test_S16_a_batch_that_was_never_sent_leaves_no_gap() -> None:
    h = Harness(**SHORT).ready()
    h.warm("t", 0)
    h.leaders["t"] = {0: (-1, 5)}
    h.machine.metadata.set_leader(h.partition("t", 0), -1, 5)
    h.open("t", 0)
    h.run_ms(2_100)
    assert [o.kind for _, o in h.completed] == [a.Kind.NOT_WRITTEN]
    partition = h.partition("t", 0)
    assert (partition.unresolved, partition.bump_wanted) == (False, False)
    h.leaders["t"] = {0: (0, 6)}
    h.run_ms(1_500)
    h.open("t", 0)
    h.run_ms(1_000)
    (send,) = h.produce_requests()
    assert (_sequences([send]), _epochs([send])) == ([10], [0])


def test_S17_a_later_success_proves_that_an_expired_batch_is_in_the_log() -> None:
    h = _pipelined(2)
    first, second = h.produce_requests()
    h.close(first.conn)
    batch = first.batches[0]
    batch.deadline_ns = h.now_ns
    h.machine.delivery.aging.move_to_end(batch, last=False)
    h.tick()
    assert h.outcomes() == [(a.Kind.UNKNOWN, 0)]
    h.run_ms(500)
    (again,) = h.produce_requests()
    assert again.batches == second.batches
    h.answer(again)
    partition = h.partition("t", 0)
    assert not partition.unresolved
    assert h.machine.idempotence.epoch == 0
    h.open("t", 0)
    assert _sequences(h.produce_requests()) == [30]


def test_S17_a_later_failure_after_an_expired_batch_bumps_the_epoch() -> None:
    h = _pipelined(2)
    first, second = h.produce_requests()
    h.close(first.conn)
    batch = first.batches[0]
    batch.deadline_ns = h.now_ns
    h.machine.delivery.aging.move_to_end(batch, last=False)
    h.tick()
    h.run_ms(500)
    (again,) = h.produce_requests()
    h.answer(again, 45)
    sends = _send_until_done(h)
    assert sends[0].batches == second.batches
    assert (_sequences(sends), _epochs(sends)) == ([0], [1])


def test_S18_while_unresolved_its_partition_drains_nothing_new_and_others_go_on() -> None:
    h = Harness(**SHORT).ready({0: 0, 1: 0})
    for number in (0, 1):
        h.warm("t", number)
    h.open("t", 0)
    (lost,) = h.produce_requests()
    _expire(h, lost)
    h.open("t", 0)
    h.open("t", 1)
    assert [s.batches[0].partition.number for s in h.produce_requests()] == [0, 1]
    h.answer(lost)
    assert [s.batches[0].partition.number for s in h.produce_requests()] == [1, 0]
    assert _sequences(h.produce_requests()) == [10, 20], "the late answer resolved it"


def test_S18_a_batch_that_was_due_when_its_predecessor_expired_is_not_drained_either() -> None:
    h = Harness(max_in_flight_requests_per_connection=2, **SHORT).ready({0: 0, 1: 0})
    for number in (0, 1):
        h.warm("t", number)
    h.open("t", 0)
    h.open("t", 1)
    first, second = h.produce_requests()
    h.open("t", 0)  # due, and its node takes nothing more
    _expire(h, first)
    h.close(first.conn)
    assert second not in h.produce_requests()
    assert not h.partition("t", 0).unresolved, "nothing else was pending: a new epoch"
    assert h.machine.idempotence.epoch == 1


def test_S18_the_gate_closes_with_the_expiry_and_not_with_the_next_event() -> None:
    h = Harness(max_in_flight_requests_per_connection=2, **SHORT).ready({0: 0, 1: 0})
    for number in (0, 1):
        h.warm("t", number)
    h.open("t", 1)
    h.open("t", 0)
    other, lost = h.produce_requests()
    h.open("t", 0)
    assert h.partition("t", 0).ready_at is not None
    _expire(h, lost)
    assert h.partition("t", 0).ready_at is None
    h.answer(other)
    assert h.produce_requests() == [lost]


def test_every_batch_that_was_written_is_marked_unresolved_when_it_expires() -> None:
    """Java marks retries only: followers of a first attempt loop on 45 until they expire."""
    h = _pipelined(2)
    first, second = h.produce_requests()
    _expire(h, first)
    assert h.partition("t", 0).unresolved
    h.answer(first, 7)
    h.answer(second, 45)
    sends = _send_until_done(h)
    assert (_sequences(sends), _epochs(sends)) == ([0], [1])


def test_an_expired_batch_alone_in_its_partition_bumps_once_its_answer_says_nothing() -> None:
    h = _pipelined(1)
    (send,) = h.produce_requests()
    _expire(h, send)
    assert h.machine.idempotence.epoch == 0
    h.answer(send, 7)
    assert h.machine.idempotence.epoch == 1
    h.open("t", 0)
    assert _sequences(h.produce_requests()) == [0]


# --- producer id


def test_S19_after_a_reset_retries_keep_the_old_id_and_new_batches_get_the_new_one() -> None:
    h = _pipelined(1)
    (send,) = h.produce_requests()
    h.answer(send, 19)
    h.machine.idempotence.reset()
    h.open("t", 0)
    h.run_ms(200)
    (retry,) = h.produce_requests()
    assert retry.batches[0].producer_id == 1_000
    assert _sequences([retry]) == [10]
    h.answer(retry)
    (fresh,) = h.produce_requests()
    assert (fresh.batches[0].producer_id, _sequences([fresh])) == (2_000, [0])


def test_the_last_epoch_is_followed_by_a_new_producer_id() -> None:
    h = _pipelined(2)
    idempotence = h.machine.idempotence
    first, second = h.produce_requests()
    idempotence.epoch = h.partition("t", 0).producer_epoch = MAX_EPOCH
    for send in (first, second):
        send.batches[0].producer_epoch = MAX_EPOCH
    h.answer(first, 87)
    h.answer(second, 45)
    sends = _send_until_done(h)
    assert [s.batches[0].producer_id for s in sends] == [2_000]
    assert (_sequences(sends), _epochs(sends)) == ([0], [0])
    assert idempotence.state is IdState.READY


@pytest.mark.parametrize("how", [0, 20_000_000_000_000])
def test_S20_a_close_while_the_producer_id_is_missing_ends_with_everything_told(how: int) -> None:
    h = Harness(**SHORT).ready()
    h.id_error = 15
    h.machine.idempotence.reset()
    h.open("t", 0)
    h.run_ms(300)
    assert not h.produce_requests()
    h.feed(a.CloseAsked(h.now_ns + how))
    h.run_ms(2_500)
    assert h.exited
    assert [o.kind for _, o in h.completed] == [a.Kind.NOT_WRITTEN]
    assert h.machine.delivery.unreleased == 0


def test_S22_unknown_producer_id_with_an_unknown_log_start_is_a_plain_retry() -> None:
    h = _pipelined(1)
    h.answer(h.produce_requests()[0], 59, log_start=-1)
    sends = _send_until_done(h)
    assert (_sequences(sends), _epochs(sends)) == ([10], [0])


def test_S22_unknown_producer_id_otherwise_starts_a_new_epoch_followers_too() -> None:
    h = _pipelined(3)
    for send in h.produce_requests():
        h.answer(send, 59, log_start=1_000)
    sends = _send_until_done(h)
    assert (_sequences(sends), _epochs(sends)) == ([0, 10, 20], [1, 1, 1])
    assert h.outcomes() == [(a.Kind.ACKED, 0)] * 3


def test_an_old_epoch_fails_the_batch_and_the_partition_goes_on_under_a_new_one() -> None:
    h = _pipelined(1)
    h.answer(h.produce_requests()[0], 47)
    assert h.outcomes() == [(a.Kind.NOT_WRITTEN, 47)]
    h.open("t", 0)
    sends = h.produce_requests()
    assert (_sequences(sends), _epochs(sends)) == ([0], [1])


def test_a_partition_that_was_made_again_sends_its_first_batch_alone() -> None:
    h = _pipelined(0)
    h.topic_ids["t"] = b"j" * 16
    h.machine.metadata.request_update()
    h.run_ms(300)
    h.open("t", 0)
    h.open("t", 0)
    assert len(h.produce_requests()) == 1
    h.answer(h.produce_requests()[0])
    assert len(h.produce_requests()) == 1
    assert h.outcomes() == [(a.Kind.ACKED, 0)]


def test_a_batch_returns_from_a_lost_connection_in_its_place() -> None:
    h = _pipelined(3)
    h.close(h.produce_requests()[0].conn)
    queue = h.partition("t", 0).queue
    assert [b.base_sequence for b in queue] == [10, 20, 30]
    assert {b.state for b in queue} == {RETRY_WAIT}
    assert _sequences(_send_until_done(h)) == [10, 20, 30]


def test_X8_random_errors_never_break_order_or_sequences(seed: int) -> None:
    """A partition against a broker that appends, refuses and forgets at random: what is in the
    log is what was told, once and in order."""
    from tests.sender.randomly import Run

    late = timeouts = 0
    for round_ in range(200):
        run = Run(seed + round_)
        run.check()
        late += run.h.machine.counters.late_response_total
        timeouts += run.h.machine.counters.request_timeout_total
    assert late
    assert timeouts
