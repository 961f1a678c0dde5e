"""The whole machine: the way of a batch, requests, the end. Names follow the behaviours of the
Java producer's own tests (S: sender, A: accumulator, N: network)."""

from __future__ import annotations

from mpproducer.sender import actions as a
from tests.sender.harness import Harness


def test_S1_one_record_is_sent_acknowledged_and_released() -> None:
    h = Harness().ready()
    h.open("t", 0)
    (send,) = h.produce_requests()
    assert (send.acks, send.timeout_ms) == (-1, 30_000)
    h.answer(send, offset=42)
    ((batch, outcome),) = h.completed
    assert (outcome.kind, outcome.base_offset, outcome.count) == (a.Kind.ACKED, 42, 10)
    assert h.released == [batch]
    assert h.machine.delivery.unreleased == 0
    assert not any(node.in_flight for node in h.machine.nodes.all())
