"""How batches end without an answer: expiry, abort, forced close (S28-S33, A14-A19, K1-K4)."""

from __future__ import annotations

from typing import Any

from mpproducer.reason import Reason
from mpproducer.sender import actions as a
from mpproducer.sender.batch import FREE, LENT, ProducerBatch
from tests.sender.harness import Harness

SHORT: dict[str, Any] = {"delivery_timeout_ms": 2_000, "request_timeout_ms": 1_500}


def _told(h: Harness, batch: ProducerBatch) -> list[a.Outcome]:
    return [outcome for told, outcome in h.completed if told is batch]


def _only_send(h: Harness) -> a.SendProduce:
    (send,) = h.produce_requests()
    return send


# --- expiry


def test_S28_S29_an_expired_batch_in_flight_is_told_at_once_and_freed_with_its_response() -> None:
    h = Harness(**SHORT).ready()
    h.warm("t", 0)
    h.run_ms(1_000)
    h.open("t", 0)
    send = _only_send(h)
    batch = send.batches[0]
    batch.deadline_ns = h.now_ns + 1_000_000_000
    h.run_ms(1_000)
    (outcome,) = _told(h, batch)
    assert (outcome.kind, outcome.reason) == (a.Kind.UNKNOWN, Reason.EXPIRED)
    assert "unanswered" in outcome.message
    assert batch.memory is LENT
    assert batch not in h.released
    h.answer(send)
    assert h.released[-1] is batch
    assert batch.memory is FREE
    assert len(_told(h, batch)) == 1
    assert h.machine.counters.late_response_total == 1
    assert h.machine.counters.record_acked_total == 10, "the one of the warm-up"


def test_S28_a_disconnect_gives_the_memory_of_an_expired_batch_back_once() -> None:
    h = Harness(**SHORT).ready()
    h.open("t", 0)
    send = _only_send(h)
    send.batches[0].deadline_ns = h.now_ns
    h.tick()
    assert not h.released
    h.close(send.conn)
    assert h.released == [send.batches[0]]
    h.run_ms(3_000)
    assert h.released == [send.batches[0]]
    assert len(h.completed) == 1


def test_S31_a_muted_partition_stays_muted_until_the_expired_batch_has_its_response() -> None:
    h = Harness(max_in_flight_requests_per_connection=1, **SHORT).ready({0: 0, 1: 1})
    h.open("t", 0)
    send = _only_send(h)
    send.batches[0].deadline_ns = h.now_ns
    h.tick()
    assert len(h.completed) == 1
    h.machine.metadata.set_leader(h.partition("t", 0), 1, 2)
    h.open("t", 0)
    h.run_ms(1_000)
    assert h.produce_requests() == [send]
    h.answer(send)
    assert [s.batches[0].seq for s in h.produce_requests()] == [2]


def test_S32_an_error_for_an_expired_batch_is_neither_retried_nor_split() -> None:
    for code in (19, 10, 45, 3):
        h = Harness(**SHORT).ready()
        h.open("t", 0)
        send = _only_send(h)
        send.batches[0].deadline_ns = h.now_ns
        h.tick()
        h.answer(send, code)
        h.run_ms(500)
        assert not h.produce_requests(), code
        assert not h.of(a.Split), code
        assert len(h.completed) == 1, code
        assert h.released == [send.batches[0]], code


def test_a_retriable_answer_after_the_deadline_says_both() -> None:
    h = Harness(**SHORT).ready()
    h.open("t", 0)
    send = _only_send(h)
    send.batches[0].deadline_ns = h.now_ns + 1
    h.now_ns += 1
    h.answer(send, 19, message="too few")
    ((_, outcome),) = h.completed
    assert (outcome.kind, outcome.reason) == (a.Kind.NOT_WRITTEN, Reason.EXPIRED)
    assert "too few" in outcome.message


def test_S33_expiry_in_several_partitions_in_one_turn_ends_them_all() -> None:
    h = Harness(linger_ms=60, delivery_timeout_ms=2_000, request_timeout_ms=500).ready(
        {number: -1 for number in range(4)}
    )
    for number in range(4):
        h.open("t", number)
    h.run_ms(1_999)
    assert not h.completed
    h.run_ms(1)
    assert [o.reason for _, o in h.completed] == [Reason.EXPIRED] * 4
    assert len(h.released) == 4


def test_A16_a_batch_in_backoff_expires_at_its_deadline_and_not_before() -> None:
    h = Harness(retry_backoff_ms=10_000, retry_backoff_max_ms=10_000, **SHORT).ready()
    h.open("t", 0)
    h.answer(_only_send(h), 19)
    h.run_ms(1_999)
    assert not h.completed
    h.run_ms(1)
    ((_, outcome),) = h.completed
    assert (outcome.kind, outcome.reason) == (a.Kind.NOT_WRITTEN, Reason.EXPIRED)
    assert "1 attempt(s)" in outcome.message


def test_A17_a_retry_does_not_move_the_deadline() -> None:
    h = Harness(**SHORT).ready()
    h.open("t", 0)
    for _ in range(3):
        h.run_ms(400)
        h.answer(_only_send(h), 19)
    h.run_ms(799)
    assert not h.completed
    h.run_ms(1)
    assert [o.reason for _, o in h.completed] == [Reason.EXPIRED]


def test_A17_the_largest_delivery_timeout_neither_overflows_nor_expires() -> None:
    h = Harness(delivery_timeout_ms=2**31 - 1).ready({0: -1})
    h.open("t", 0)
    h.run_ms(10_000)
    assert not h.completed
    assert h.machine.delivery.next_ns() == h.machine.metadata.partitions[0].queue[0].deadline_ns


def test_A19_a_muted_partition_expires_and_works_again_after_unmuting() -> None:
    h = Harness(max_in_flight_requests_per_connection=1, **SHORT).ready()
    h.open("t", 0)
    send = _only_send(h)
    h.open("t", 0)
    h.partition("t", 0).queue[0].deadline_ns = h.now_ns + 1
    send.batches[0].deadline_ns = h.now_ns
    h.run_ms(1)
    h.run_ms(1_000)
    assert h.produce_requests() == [send]
    h.answer(send)
    h.open("t", 0)
    h.run_ms(10)
    assert _only_send(h).batches[0].seq >= 2


def test_K4_a_clock_that_stands_still_expires_nothing() -> None:
    h = Harness(**SHORT).ready()
    h.open("t", 0)
    for _ in range(5):
        h.tick(0)
    assert not h.completed


def test_K4_a_batch_whose_worker_reads_a_later_clock_counts_from_the_senders_own() -> None:
    h = Harness(**SHORT).ready({0: -1})
    h.open("t", 0, age_ns=-(10**12))
    (batch,) = h.machine.delivery.aging
    assert batch.created_ns == h.now_ns
    h.run_ms(1_999)
    assert not h.completed
    h.run_ms(1)
    assert h.outcomes() == [(a.Kind.NOT_WRITTEN, 0)]


# --- abort


def test_A14_a_forced_close_ends_everything_once_and_gives_all_memory_back() -> None:
    h = Harness(linger_ms=1_000).ready({0: 0, 1: 0, 2: -1})
    h.open("t", 0)
    h.feed(a.FlushAsked())
    h.open("t", 0)
    h.open("t", 1)
    h.open("t", 2)
    send = _only_send(h)
    h.feed(a.CloseAsked(h.now_ns))
    assert h.exited
    assert sorted(h.outcomes()) == [
        (a.Kind.NOT_WRITTEN, 0),
        (a.Kind.NOT_WRITTEN, 0),
        (a.Kind.NOT_WRITTEN, 0),
        (a.Kind.UNKNOWN, 0),
    ]
    assert {o.reason for _, o in h.completed} == {Reason.CLOSED}
    assert len(h.released) == 4
    assert h.machine.delivery.unreleased == 0
    late = a.Response(send.conn, send.correlation_id, None)
    assert not h.feed(late), "the connection is closed: nobody listens"


def test_what_becomes_due_at_the_deadline_of_a_close_is_not_sent_any_more() -> None:
    h = Harness(retry_backoff_ms=1_000, retry_backoff_max_ms=1_000).ready()
    h.open("t", 0)
    h.answer(_only_send(h), 19)
    h.feed(a.CloseAsked(h.now_ns + 1_000_000_000))
    h.run_ms(1_000)
    assert h.exited
    assert len(h.of(a.SendProduce)) == 1
    assert h.outcomes() == [(a.Kind.NOT_WRITTEN, 0)]


def test_memory_is_released_after_the_connection_that_could_read_it_is_closed() -> None:
    h = Harness().ready()
    h.open("t", 0)
    send = _only_send(h)
    seen = h.feed(a.CloseAsked(h.now_ns))
    kinds = [type(action) for action in seen]
    close = next(action for action in h.of(a.Close, seen) if action.conn == send.conn)
    release = h.of(a.Release, seen)[0]
    assert seen.index(close) < seen.index(release)
    assert kinds[-1] is a.Exit


def test_A15_a_refused_producer_id_ends_only_what_was_not_drained() -> None:
    """Neither what is on the wire nor what waits for a retry: both have sequences."""
    h = Harness(retry_backoff_ms=1_000, retry_backoff_max_ms=1_000).ready({0: 0, 1: 1, 2: 0})
    h.warm("t", 1)
    h.warm("t", 2)
    h.open("t", 2)
    h.answer(_only_send(h), 19)
    h.open("t", 0)
    send = _only_send(h)
    h.id_error = 31
    h.machine.idempotence.reset()
    h.open("t", 1)
    h.run_ms(200)
    ((batch, outcome),) = h.completed
    assert batch.partition.number == 1
    assert (outcome.kind, outcome.code) == (a.Kind.NOT_WRITTEN, 31)
    h.answer(send)
    assert h.outcomes()[-1] == (a.Kind.ACKED, 0), "drained before: it may still succeed"
    h.run_ms(1_000)
    retry = _only_send(h)
    assert retry.batches[0].partition.number == 2
    h.answer(retry)
    assert h.outcomes()[-1] == (a.Kind.ACKED, 0)
    assert len(h.completed) == 3


def test_K1_K2_what_arrives_after_an_abort_changes_nothing() -> None:
    for code in (0, 19, 10, 45, 31):
        h = Harness().ready()
        h.open("t", 0)
        send = _only_send(h)
        delivery = h.machine.delivery
        delivery.abort_all(0, Reason.CLOSED, "test", h.now_ns)
        delivery.abort_all(0, Reason.CLOSED, "again", h.now_ns)
        h.answer(send, code)
        assert h.outcomes() == [(a.Kind.UNKNOWN, 0)], code
        assert len(h.released) == 1, code


# --- compression


def test_a_batch_that_expires_while_it_is_compressed_lends_its_memory_until_that_ends() -> None:
    h = Harness(compression_type="gzip", **SHORT).ready()
    h.compress_at_once = False
    h.open("t", 0)
    (job,) = h.of(a.Compress)
    job.batch.deadline_ns = h.now_ns
    h.tick()
    assert len(h.completed) == 1
    assert not h.released
    h.feed(a.Compressed(job.batch, 10))
    assert h.released == [job.batch]
    assert not h.produce_requests()


def test_compression_runs_ahead_of_a_busy_node_but_not_without_limit() -> None:
    h = Harness(compression_type="gzip", max_in_flight_requests_per_connection=1).ready()
    for _ in range(6):
        h.open("t", 0)
    assert len(h.of(a.Compress)) == 3, "one on the wire, two prepared"
    order = []
    for _ in range(6):
        send = _only_send(h)
        order.append(send.batches[0].seq)
        assert send.batches[0].wire_bytes == 161
        h.answer(send)
    assert order == [1, 2, 3, 4, 5, 6]
