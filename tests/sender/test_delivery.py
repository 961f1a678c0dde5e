"""From an answer, or none, to what is told and what becomes of the memory (S*, K*, A14-A21)."""

from __future__ import annotations

from typing import Any

import pytest

from mpproducer.reason import Reason
from mpproducer.sender import actions as a
from mpproducer.sender import error_table
from mpproducer.sender.batch import ProducerBatch
from mpproducer.wire.produce import PartitionResult
from tests.sender.harness import Harness

SHORT: dict[str, Any] = {"delivery_timeout_ms": 2_000, "request_timeout_ms": 1_500}


def _result(number: int, code: int = 0, offset: int = 100) -> PartitionResult:
    return PartitionResult(number, code, -1 if code else offset, -1, 0, (), None, None)


def _only_send(h: Harness) -> a.SendProduce:
    (send,) = h.produce_requests()
    return send


# --- retries


def test_S3_after_a_disconnect_the_batch_is_sent_again_and_succeeds() -> None:
    h = Harness().ready()
    h.open("t", 0)
    first = _only_send(h)
    h.close(first.conn)
    h.run_ms(500)
    second = _only_send(h)
    assert second.batches == first.batches
    assert second.conn != first.conn
    h.answer(second, offset=7)
    ((_, outcome),) = h.completed
    assert (outcome.kind, outcome.base_offset) == (a.Kind.ACKED, 7)
    assert len(h.released) == 1
    assert h.machine.counters.record_retry_total == 10


def test_S3_after_as_many_disconnects_as_retries_allow_the_batch_fails_with_unknown_fate() -> None:
    h = Harness(retries=2).ready()
    h.open("t", 0)
    for _ in range(3):
        h.close(_only_send(h).conn)
        h.run_ms(2_000)
    ((batch, outcome),) = h.completed
    assert (outcome.kind, outcome.code) == (a.Kind.UNKNOWN, 13)
    assert batch.attempts == 3
    assert h.released == [batch]
    assert not h.produce_requests()


def test_attempts_that_were_all_refused_end_as_not_written() -> None:
    h = Harness(retries=1).ready()
    h.open("t", 0)
    h.answer(_only_send(h), 19)
    h.run_ms(200)
    h.answer(_only_send(h), 19, message="too few replicas")
    ((_, outcome),) = h.completed
    assert (outcome.kind, outcome.code) == (a.Kind.NOT_WRITTEN, 19)
    assert outcome.reason is Reason.RETRIES_EXHAUSTED
    assert "too few replicas" in outcome.message


def test_a_request_that_was_not_fully_written_leaves_no_doubt_behind() -> None:
    h = Harness(retries=1, enable_idempotence=False).ready()
    h.warm("t", 0)
    h.auto = False
    h.open("t", 0)
    send = _only_send(h)
    h.auto = True
    h.close(send.conn)
    assert not send.batches[0].unsure
    h.run_ms(500)
    h.answer(_only_send(h), 87)
    ((_, outcome),) = h.completed
    assert outcome.kind is a.Kind.NOT_WRITTEN


def test_S34_a_retriable_error_is_not_sent_again_before_its_backoff() -> None:
    h = Harness(retry_backoff_ms=200, retry_backoff_max_ms=200).ready()
    h.open("t", 0)
    h.answer(_only_send(h), 19)
    h.run_ms(199)
    assert not h.produce_requests()
    h.run_ms(1)
    assert len(h.produce_requests()) == 1


def test_flush_pressure_and_close_never_override_the_backoff_of_a_retry() -> None:
    h = Harness(retry_backoff_ms=1_000, retry_backoff_max_ms=1_000, linger_ms=5).ready()
    h.open("t", 0)
    h.feed(a.FlushAsked())
    h.answer(_only_send(h), 19)
    h.feed(a.FlushAsked(), a.MemoryShort(), a.CloseAsked(h.now_ns + 60_000_000_000))
    h.run_ms(999)
    assert not h.produce_requests()
    h.run_ms(1)
    assert len(h.produce_requests()) == 1


def test_S33_a_batch_in_backoff_does_not_keep_the_sender_awake() -> None:
    h = Harness(retry_backoff_ms=500, retry_backoff_max_ms=500).ready()
    h.open("t", 0)
    h.answer(_only_send(h), 19)
    due_ns = h.machine.next_deadline_ns()
    assert due_ns is not None
    while due_ns < h.now_ns + 400_000_000:  # metadata asks again earlier
        h.tick((due_ns - h.now_ns) / 1e6)
        due_ns = h.machine.next_deadline_ns()
        assert due_ns is not None
        assert due_ns > h.now_ns, "no turn without need"


# --- the answers of one request


def test_a_batch_the_response_does_not_mention_is_retried_and_counted() -> None:
    h = Harness(linger_ms=5).ready({0: 0, 1: 0})
    h.open("t", 0)
    h.open("t", 1)
    h.tick(5)
    send = _only_send(h)
    assert len(send.batches) == 2
    h.answer_with(send, [("t", _result(1))])
    assert [batch.partition.number for batch, _ in h.completed] == [1]
    assert h.machine.counters.response_entry_missing_total == 1
    h.run_ms(300)
    again = _only_send(h)
    assert again.batches == (send.batches[0],)
    h.answer(again)
    assert len(h.completed) == 2


def test_B17_entries_for_strangers_and_repeated_entries_are_ignored_and_counted() -> None:
    h = Harness().ready()
    h.open("t", 0)
    send = _only_send(h)
    rows = [_result(0, offset=5), _result(0, 87), _result(9)]
    h.answer_with(send, [*(("t", row) for row in rows), ("x", _result(0))])
    ((_, outcome),) = h.completed
    assert (outcome.kind, outcome.base_offset) == (a.Kind.ACKED, 5)
    assert h.machine.counters.response_entry_ignored_total == 3


def test_a_single_entry_for_another_partition_is_no_answer() -> None:
    h = Harness().ready({0: 0, 1: 0})
    h.open("t", 0)
    h.answer_with(_only_send(h), [("t", _result(1))])
    assert not h.completed
    assert h.machine.counters.response_entry_missing_total == 1


def test_partitions_of_one_request_succeed_and_fail_on_their_own() -> None:
    h = Harness(linger_ms=5).ready({0: 0, 1: 0, 2: 0})
    for number in range(3):
        h.open("t", number)
    h.tick(5)
    h.answer_with(_only_send(h), [("t", _result(0)), ("t", _result(1, 87)), ("t", _result(2, 19))])
    assert [(batch.partition.number, o.kind) for batch, o in h.completed] == [
        (0, a.Kind.ACKED),
        (1, a.Kind.NOT_WRITTEN),
    ]
    h.run_ms(200)
    assert [batch.partition.number for batch in _only_send(h).batches] == [2]


def test_N17_with_acks_0_a_batch_is_done_when_its_bytes_are_written() -> None:
    h = Harness(acks=0, enable_idempotence=False).ready()
    h.open("t", 0)
    h.auto = False
    h.open("t", 0)
    send = h.of(a.SendProduce)[-1]
    assert send.acks == 0
    assert len(h.completed) == 1
    h.feed(a.Wrote(send.conn, send.correlation_id))
    _, (_, outcome) = h.completed
    assert (outcome.kind, outcome.base_offset) == (a.Kind.ACKED, -1)
    assert len(h.released) == 2
    assert not any(node.in_flight for node in h.machine.nodes.all())


def test_the_log_append_time_of_the_broker_is_told() -> None:
    h = Harness().ready()
    h.open("t", 0)
    result = PartitionResult(0, 0, 3, 1_234, 0, (), None, None)
    h.answer_with(_only_send(h), [("t", result)])
    ((_, outcome),) = h.completed
    assert outcome.log_append_time_ms == 1_234


# --- errors


def _expected_kind(row: error_table.ErrorRow) -> a.Kind:
    if row.step is error_table.Step.DUPLICATE or not row.code:
        return a.Kind.ACKED
    return a.Kind.NOT_WRITTEN if row.refused else a.Kind.UNKNOWN


@pytest.mark.parametrize("idempotent", [True, False])
def test_every_error_code_retries_or_ends_with_the_fate_the_table_says(idempotent: bool) -> None:
    """Every code Kafka has, those of other APIs and unknown ones too: the whole range."""
    for code in [*range(-1, 140), 32_000]:
        row = error_table.row(code)
        h = Harness(enable_idempotence=idempotent).ready({0: 0, 1: 1})
        h.open("t", 0, records=1)
        asked = h.machine.counters.metadata_update_total
        h.answer(_only_send(h), code)
        if row.retriable:
            assert not h.completed, code
            h.run_ms(500)
            assert (h.machine.counters.metadata_update_total > asked) == row.refresh, code
            h.answer(_only_send(h))
            assert h.outcomes() == [(a.Kind.ACKED, 0)], code
        else:
            ((_, outcome),) = h.completed
            assert outcome.kind is _expected_kind(row), code
            if outcome.kind is not a.Kind.ACKED:
                assert outcome.code == code
                assert outcome.reason is row.reason, code
        h.open("t", 1)
        fatal = row.step is error_table.Step.FATAL and idempotent
        assert (h.machine.fatal is not None) == fatal, code
        if fatal:
            assert h.outcomes()[-1] == (a.Kind.NOT_WRITTEN, code)
        else:
            h.answer(_only_send(h))
            assert h.outcomes()[-1] == (a.Kind.ACKED, 0), code
        assert h.machine.delivery.unreleased == 0, code


def test_S21_a_duplicate_is_success_without_an_offset() -> None:
    h = Harness().ready()
    h.open("t", 0)
    h.answer(_only_send(h), 46)
    ((_, outcome),) = h.completed
    assert (outcome.kind, outcome.base_offset, outcome.code) == (a.Kind.ACKED, -1, 0)
    h.open("t", 0)
    assert _only_send(h).batches[0].base_sequence == 10, "the sequence goes on"


def test_S30_record_errors_divide_the_batch() -> None:
    h = Harness().ready()
    h.open("t", 0, records=5)
    h.answer(_only_send(h), 87, record_errors=((1, "bad key"), (3, None)), message="invalid")
    outcomes = [outcome for _, outcome in h.completed]
    assert [(o.first, o.count) for o in outcomes] == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]
    assert [o.reason for o in outcomes] == [
        Reason.REJECTED,
        Reason.INVALID_RECORD,
        Reason.REJECTED,
        Reason.INVALID_RECORD,
        Reason.REJECTED,
    ]
    assert "bad key" in outcomes[1].message
    assert "invalid" in outcomes[3].message
    assert len(h.of(a.Complete)) == 1


def test_S36_the_message_of_the_broker_reaches_the_user() -> None:
    h = Harness().ready()
    h.open("t", 0)
    h.answer(_only_send(h), 44, message="policy says no")
    assert "policy says no" in h.completed[0][1].message


def test_S23_cluster_authorization_is_fatal_and_a_late_success_is_ignored() -> None:
    h = Harness(linger_ms=5).ready({0: 0, 1: 1, 2: 0})
    h.open("t", 0)
    h.open("t", 1)
    h.tick(5)
    h.open("t", 2)
    first, second = h.produce_requests()
    h.answer(first, 31)
    assert sorted(h.outcomes()) == [
        (a.Kind.NOT_WRITTEN, 31),
        (a.Kind.NOT_WRITTEN, 31),
        (a.Kind.UNKNOWN, 31),
    ]
    assert len(h.released) == 2, "the one on the wire still lends its memory"
    h.answer(second)
    assert len(h.completed) == 3
    assert len(h.released) == 3
    h.open("t", 0)
    assert h.outcomes()[-1] == (a.Kind.NOT_WRITTEN, 31)
    assert not h.produce_requests()


def test_S24_an_unsupported_message_format_fails_one_batch_only() -> None:
    h = Harness().ready({0: 0, 1: 1})
    h.open("t", 0)
    h.open("t", 1)
    first, second = h.produce_requests()
    h.answer(first, 43)
    assert h.outcomes() == [(a.Kind.NOT_WRITTEN, 43)]
    h.answer(second)
    assert h.outcomes()[-1] == (a.Kind.ACKED, 0)


@pytest.mark.parametrize("idempotent", [True, False])
def test_S24_an_unsupported_version_is_fatal_with_idempotence_only(idempotent: bool) -> None:
    h = Harness(enable_idempotence=idempotent).ready({0: 0, 1: 1})
    h.open("t", 0)
    h.answer(_only_send(h), 35)
    h.open("t", 1)
    if not idempotent:
        h.answer(_only_send(h))
    told = (a.Kind.NOT_WRITTEN, 35)
    assert h.outcomes() == [told, told if idempotent else (a.Kind.ACKED, 0)]
    assert h.produce_requests() == []


def test_B12_a_wrong_crc_is_retried_while_the_bytes_are_what_was_sent() -> None:
    h = Harness().ready()
    slot = h.open("t", 0)
    h.answer(_only_send(h), 2)
    assert len(h.of(a.Verify)) == 1
    h.run_ms(200)
    h.corrupt[slot] = "changed"
    h.answer(_only_send(h), 2)
    ((_, outcome),) = h.completed
    assert (outcome.kind, outcome.reason) == (a.Kind.NOT_WRITTEN, Reason.CORRUPT)
    assert h.machine.counters.batch_corrupt_total == 1
    assert len(h.released) == 1


def test_B12_changed_bytes_are_found_before_they_go_again_also_where_no_backoff_is_due() -> None:
    """A newer leader is known: the batch would go at once, and be given back on the wire."""
    h = Harness().ready()
    slot = h.open("t", 0)
    send = _only_send(h)
    h.corrupt[slot] = "changed"
    h.answer(send, 2, leader=(0, 5))
    h.run_ms(10)
    ((batch, outcome),) = h.completed
    assert (outcome.kind, outcome.reason) == (a.Kind.NOT_WRITTEN, Reason.CORRUPT)
    assert h.released == [batch]
    assert len(h.of(a.SendProduce)) == 1
    assert batch.partition.split_pending == 0


def test_a_batch_that_cannot_be_read_is_told_to_every_worker() -> None:
    h = Harness().ready()
    h.join(2)
    h.corrupt[h.slot + 1] = "scribbled"
    h.open("t", 0)
    (action,) = h.of(a.Complete)
    assert action.batch.participants == (1, 2)
    assert action.outcomes[0].reason is Reason.CORRUPT
    assert len(h.released) == 1
    h.open("t", 0)
    assert len(h.produce_requests()) == 1, "the partition goes on"


# --- split


def test_S26_a_batch_too_large_for_the_broker_is_split_and_both_parts_are_delivered() -> None:
    h = Harness(retries=1).ready()
    h.warm("t", 0)
    h.open("t", 0, records=10)
    send = _only_send(h)
    (whole,) = send.batches
    h.answer(send, 10)
    assert h.machine.counters.batch_split_total == 1
    assert h.machine.counters.record_retry_total == 0
    parts: list[ProducerBatch] = []
    for offset in (50, 55):
        part_send = _only_send(h)
        parts += part_send.batches
        h.answer(part_send, offset=offset)
    assert [(p.first, p.records, p.base_sequence, p.attempts) for p in parts] == [
        (0, 5, 10, 1),
        (5, 5, 15, 1),
    ]
    assert [p.created_ns for p in parts] == [whole.created_ns] * 2
    assert [(o.first, o.count, o.base_offset) for _, o in h.completed] == [(0, 5, 50), (5, 5, 55)]
    assert [action.more for action in h.of(a.Complete)[-2:]] == [True, False]
    assert len(h.released) == 4
    assert h.machine.delivery.unreleased == 0


def test_A21_parts_come_before_newer_batches_and_keep_the_deadline() -> None:
    h = Harness(**SHORT).ready()
    h.warm("t", 0)
    h.open("t", 0)
    h.open("t", 0)
    first, second = h.produce_requests()
    h.answer(first, 10)
    assert [send.batches[0].seq for send in h.produce_requests()] == [3, 2]
    h.answer(second, 45)
    order = []
    for _ in range(3):
        send = _only_send(h)
        order.append((send.batches[0].seq, send.batches[0].first, send.batches[0].base_sequence))
        h.answer(send)
        h.run_ms(130)
    assert order == [(2, 0, 10), (2, 5, 15), (3, 0, 20)]


def test_A21_a_split_part_expires_by_the_creation_of_the_original() -> None:
    h = Harness(**SHORT).ready()
    h.warm("t", 0)
    start_ns = h.now_ns
    h.open("t", 0)
    h.run_ms(1_000)
    h.answer(_only_send(h), 10)
    h.answer(_only_send(h), 19)
    h.brokers = {1: ("b1", 9092)}
    h.leaders["t"] = {0: (-1, 5)}
    h.run_ms(999)
    kinds = [outcome.kind for _, outcome in h.completed]
    assert kinds == []
    h.run_ms(1)
    assert h.now_ns == start_ns + 2_000_000_000
    assert [o.reason for _, o in h.completed] == [Reason.EXPIRED] * 2


def test_a_part_that_is_still_too_large_is_split_again_with_a_smaller_limit() -> None:
    h = Harness(batch_size=10_000).ready()
    h.open("t", 0, records=4, size_bytes=8_000)
    h.answer(_only_send(h), 10)
    h.answer(_only_send(h), 10)
    for _ in range(3):
        h.answer(_only_send(h))
    assert h.split_limits == [4_000, 2_000]
    assert [(o.first, o.count) for _, o in h.completed] == [(0, 1), (1, 1), (2, 2)]
    assert [action.more for action in h.of(a.Complete)] == [True, True, False]


def test_S27_a_single_record_that_is_too_large_fails_and_is_not_split() -> None:
    h = Harness().ready()
    h.open("t", 0, records=1)
    h.answer(_only_send(h), 10)
    assert not h.of(a.Split)
    ((_, outcome),) = h.completed
    assert (outcome.kind, outcome.reason) == (a.Kind.NOT_WRITTEN, Reason.TOO_LARGE)
    assert not h.partition("t", 0).sequenced
    h.run_ms(1_000)
    assert not h.produce_requests()


def test_a_batch_that_may_be_in_the_log_is_not_split() -> None:
    """Its parts would be new batches to the broker: what was appended would be there twice."""
    h = Harness().ready()
    h.open("t", 0)
    h.close(_only_send(h).conn)
    h.run_ms(500)
    h.answer(_only_send(h), 10)
    assert not h.of(a.Split)
    ((_, outcome),) = h.completed
    assert (outcome.kind, outcome.code) == (a.Kind.UNKNOWN, 10)


def test_records_that_cannot_be_read_back_for_a_split_fail_as_corrupt() -> None:
    h = Harness().ready()
    slot = h.open("t", 0)
    send = _only_send(h)
    h.corrupt[slot] = "scribbled"
    h.answer(send, 10)
    ((_, outcome),) = h.completed
    assert (outcome.kind, outcome.reason) == (a.Kind.NOT_WRITTEN, Reason.CORRUPT)
    assert len(h.released) == 1
    h.open("t", 0)
    h.answer(_only_send(h))
    assert h.outcomes()[-1] == (a.Kind.ACKED, 0)


def test_a_fatal_error_beside_a_split_ends_the_parts_too() -> None:
    h = Harness(linger_ms=5).ready({0: 0, 1: 0})
    h.open("t", 0)
    h.open("t", 1)
    h.tick(5)
    h.answer_with(_only_send(h), [("t", _result(0, 10)), ("t", _result(1, 31))])
    assert [(o.kind, o.first, o.count) for _, o in h.completed] == [
        (a.Kind.NOT_WRITTEN, 0, 10),
        (a.Kind.NOT_WRITTEN, 0, 5),
        (a.Kind.NOT_WRITTEN, 5, 5),
    ]
    assert not h.produce_requests()
    assert h.machine.delivery.unreleased == 0


def test_S26_without_idempotence_what_may_be_in_the_log_is_split_all_the_same() -> None:
    """Retries double there as well; a part that fails may be in the log all the same."""
    h = Harness(enable_idempotence=False).ready()
    h.open("t", 0)
    h.close(_only_send(h).conn)
    h.run_ms(500)
    h.answer(_only_send(h), 10)
    first, second = h.produce_requests()
    h.answer(first)
    h.answer(second, 87)
    assert h.outcomes() == [(a.Kind.ACKED, 0), (a.Kind.UNKNOWN, 87)]
