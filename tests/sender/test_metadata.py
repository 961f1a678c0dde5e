"""What the sender believes about the cluster, and when it asks again (M*, S6, S35, A11)."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mpproducer.sender import actions as a
from mpproducer.sender import error_table
from mpproducer.sender.actions import PartitionAvailable, PublishTopic, PublishTopicError
from tests.sender.harness import SECOND, Harness


def _hold(h: Harness) -> a.Request:
    """The metadata request that waits for an answer (auto is off)."""
    (request,) = [
        action
        for queue in h.requests.values()
        for action in queue
        if isinstance(action, a.Request) and action.api_key == 3
    ]
    return request


def _answer_now(h: Harness, request: a.Request) -> list[object]:
    return h.feed(h.answer_internal(request))


def test_M1_a_topic_is_published_with_the_partitions_the_cluster_has() -> None:
    h = Harness().ready({0: 0, 1: 1, 2: 0})
    (published,) = h.of(PublishTopic)
    assert (published.name, published.partition_count) == ("t", 3)
    assert [p.leader for p in h.machine.metadata.partitions.values()] == [0, 1, 0]


def test_M2_a_new_topic_is_asked_for_at_once_even_inside_the_backoff_and_alone() -> None:
    h = Harness().ready()
    h.leaders["u"] = {0: (0, 1)}
    h.machine.metadata.request_update()
    h.want("missing")
    before = len(h.metadata_requests)
    h.want("u")
    assert h.metadata_requests[before:] == [("u",)]
    assert [action.name for action in h.of(PublishTopic)] == ["t", "u"]


def test_M2_a_partial_update_does_not_count_as_a_full_one() -> None:
    h = Harness(metadata_max_age_ms=10_000).ready()
    h.run_ms(9_000)
    h.want("u", {0: 0})
    before = len(h.metadata_requests)
    h.run_ms(1_500)
    assert set(h.metadata_requests[-1]) == {"t", "u"}
    assert len(h.metadata_requests) == before + 1


def test_M3_identical_answers_to_repeated_requests_back_off_exponentially() -> None:
    h = Harness(retry_backoff_ms=100, retry_backoff_max_ms=1_600).ready({0: -1})
    h.open("t", 0)
    times = []
    seen = len(h.metadata_requests)
    for _ in range(4_000):
        h.run_ms(2)
        if len(h.metadata_requests) > seen:
            seen = len(h.metadata_requests)
            times.append(h.now_ns)
    gaps = [(b - a_) / 1e6 for a_, b in pairwise(times)]
    assert gaps[-1] >= 1_200
    assert len(times) < 12, "8 seconds of the same answer"
    h.leaders["t"] = {0: (0, 2)}
    h.run_ms(2_000)
    h.answer(h.produce_requests()[0], 3)
    assert len(h.metadata_requests) > seen, "a change starts the backoff over"


def test_M4_an_idle_topic_is_no_longer_asked_for_and_a_batch_brings_it_back() -> None:
    h = Harness(metadata_max_idle_ms=5_000, metadata_max_age_ms=4_000).ready()
    h.want("u", {0: 0})
    for _ in range(3):
        h.run_ms(3_000)
        h.open("u", 0)
        h.answer(h.produce_requests()[0])
    h.run_ms(4_500)
    assert h.metadata_requests[-1] == ("u",)
    before = len(h.metadata_requests)
    h.open("t", 0)
    assert "t" in h.metadata_requests[before]
    assert len(h.produce_requests()) == 1


def test_S6_a_topic_with_batches_is_not_idle() -> None:
    h = Harness(metadata_max_idle_ms=5_000, metadata_max_age_ms=4_000).ready({0: -1})
    h.open("t", 0)
    h.run_ms(20_000)
    assert h.metadata_requests[-1] == ("t",)


def test_M4_a_topic_the_cluster_does_not_know_is_forgotten_when_nobody_asks_any_more() -> None:
    h = Harness(metadata_max_idle_ms=5_000).ready()
    h.want("missing")
    h.run_ms(4_000)
    assert "missing" in h.metadata_requests[-1]
    h.run_ms(6_000)
    before = len(h.metadata_requests)
    h.run_ms(10_000)
    assert len(h.metadata_requests) == before
    h.leaders["missing"] = {0: (0, 1)}
    h.want("missing")
    assert h.metadata_requests[-1] == ("missing",)


def test_M5_an_error_that_does_not_pass_reaches_the_waiters_of_that_topic_only() -> None:
    h = Harness().ready()
    h.topic_errors["secret"] = 29
    h.want("secret")
    (told,) = h.of(PublishTopicError)
    assert (told.topic_index, told.code) == (h.topic_index["secret"], 29)
    before = len(h.metadata_requests)
    h.run_ms(20_000)
    assert len(h.metadata_requests) == before
    del h.topic_errors["secret"]
    h.want("secret", {0: 0})
    assert h.of(PublishTopic)[-1].name == "secret"


def test_every_error_code_of_a_topic_is_told_once_and_asked_again_if_it_may_pass() -> None:
    for code in range(-1, 140):
        if not code:
            continue
        h = Harness().ready()
        h.topic_errors["u"] = code
        h.want("u")
        retriable = error_table.row(code).retriable
        before = len(h.metadata_requests)
        h.run_ms(1_500)
        assert (len(h.metadata_requests) > before) == retriable, code
        assert [told.code for told in h.of(PublishTopicError)] == [code], code
        del h.topic_errors["u"]
        h.want("u", {0: 0})
        h.run_ms(2_500)
        assert h.of(PublishTopic)[-1].name == "u", code


def test_M7_B29_an_older_leader_epoch_is_ignored() -> None:
    h = Harness().ready({0: 0})
    partition = h.partition("t", 0)
    metadata = h.machine.metadata
    metadata.set_leader(partition, 1, 9)
    metadata.set_leader(partition, 0, 8)
    assert (partition.leader, partition.leader_epoch) == (1, 9)


def test_M7_a_leaderless_partition_keeps_its_epoch() -> None:
    h = Harness().ready({0: 0})
    partition = h.partition("t", 0)
    metadata = h.machine.metadata
    metadata.set_leader(partition, -1, 7)
    metadata.set_leader(partition, 0, 6)
    assert (partition.leader, partition.leader_epoch) == (-1, 7)


def test_M7_a_topic_made_again_may_start_with_a_lower_epoch() -> None:
    h = Harness().ready({0: 0})
    h.machine.metadata.set_leader(h.partition("t", 0), 0, 50)
    h.topic_ids["t"] = b"j" * 16
    h.leaders["t"] = {0: (1, 0)}
    h.machine.metadata.request_update()
    h.run_ms(300)
    partition = h.partition("t", 0)
    assert (partition.leader, partition.leader_epoch) == (1, 0)


def test_a_deleted_topic_is_retried_and_its_batches_go_to_the_new_one() -> None:
    h = Harness().ready({0: 0})
    h.warm("t", 0)
    del h.leaders["t"]
    h.open("t", 0)
    h.answer(h.produce_requests()[0], 3)
    h.run_ms(1_000)
    h.answer(h.produce_requests()[0], 3)
    h.topic_ids["t"] = b"j" * 16
    h.leaders["t"] = {0: (1, 0)}
    h.run_ms(2_000)
    (send,) = h.produce_requests()
    assert h.node_of(send) == 1
    h.answer(send)
    assert h.outcomes() == [(a.Kind.ACKED, 0)]


def test_added_partitions_are_published_behind_the_old_ones() -> None:
    h = Harness().ready({0: 0})
    h.leaders["t"] = {0: (0, 1), 1: (1, 1), 2: (0, 1)}
    h.want("t")
    h.run_ms(300)
    assert [action.partition_count for action in h.of(PublishTopic)] == [1, 3]
    h.open("t", 2)
    h.answer(h.produce_requests()[0])
    assert h.outcomes() == [(a.Kind.ACKED, 0)]


def test_fewer_partitions_in_an_answer_take_none_away() -> None:
    h = Harness().ready({0: 0, 1: 0})
    h.leaders["t"] = {0: (0, 2)}
    h.machine.metadata.request_update()
    h.run_ms(300)
    h.open("t", 1)
    assert len(h.produce_requests()) == 1


def test_availability_is_published_when_it_changes_and_only_then() -> None:
    """A partition is published as available; the one without a leader is not from the start on."""
    h = Harness().ready({0: 0, 1: -1})
    first, second = h.topic("t")
    assert h.of(PartitionAvailable) == [PartitionAvailable(second, 0)]
    h.leaders["t"] = {0: (-1, 2), 1: (-1, 1)}
    h.machine.metadata.request_update()
    h.run_ms(1_000)
    assert h.of(PartitionAvailable)[1:] == [PartitionAvailable(first, 0)]
    h.leaders["t"] = {0: (1, 3), 1: (0, 2)}
    h.run_ms(2_000)
    assert h.of(PartitionAvailable)[2:] == [
        PartitionAvailable(first, 1),
        PartitionAvailable(second, 1),
    ]


def test_metadata_older_than_its_maximum_age_is_asked_for_again() -> None:
    h = Harness(metadata_max_age_ms=10_000).ready()
    before = len(h.metadata_requests)
    h.run_ms(9_999)
    assert len(h.metadata_requests) == before
    h.run_ms(1)
    assert len(h.metadata_requests) == before + 1


def test_an_update_asked_for_while_a_request_is_in_flight_is_not_answered_by_it() -> None:
    h = Harness().ready()
    h.run_ms(200)
    h.auto = False
    h.machine.metadata.request_update()
    h.tick()
    first = _hold(h)
    h.machine.metadata.request_update()
    _answer_now(h, first)
    h.run_ms(300)
    assert _hold(h) is not first


def test_an_empty_broker_list_is_a_failure_and_changes_nothing() -> None:
    h = Harness().ready()
    brokers, h.brokers = h.brokers, {}
    h.machine.metadata.request_update()
    h.run_ms(300)
    assert h.machine.counters.metadata_error_total >= 1
    assert set(h.machine.nodes.brokers) == {0, 1}
    h.brokers = brokers
    h.run_ms(2_000)
    errors = h.machine.counters.metadata_error_total
    h.run_ms(5_000)
    assert h.machine.counters.metadata_error_total == errors


def test_S35_a_leader_named_in_the_response_gets_the_batch_at_once() -> None:
    h = Harness(retry_backoff_ms=10_000, retry_backoff_max_ms=10_000).ready({0: 0})
    h.open("t", 0)
    h.answer(h.produce_requests()[0], 6, leader=(1, 5))
    (send,) = h.produce_requests()
    assert h.node_of(send) == 1


def test_S35_a_leader_the_client_has_never_seen_comes_with_its_address() -> None:
    h = Harness(retry_backoff_ms=10_000, retry_backoff_max_ms=10_000).ready({0: 0})
    h.open("t", 0)
    h.answer(h.produce_requests()[0], 6, leader=(7, 5), endpoints=((7, "b7", 9092),))
    (send,) = h.produce_requests()
    assert h.conns[send.conn].address == ("b7", 9092)


def test_S35_without_news_the_batch_waits_and_metadata_is_asked_for() -> None:
    for leader in (None, (-1, -1), (1, 0), (1, 1), (-1, 9)):
        h = Harness().ready({0: 0})
        h.run_ms(200)
        before = len(h.metadata_requests)
        h.open("t", 0)
        h.answer(h.produce_requests()[0], 6, leader=leader)
        assert not h.produce_requests(), leader
        assert h.partition("t", 0).leader == 0, leader
        assert len(h.metadata_requests) == before + 1, leader
        h.run_ms(150)
        assert len(h.produce_requests()) == 1, leader


def test_K7_a_leader_change_seen_in_an_earlier_attempt_does_not_skip_a_backoff() -> None:
    h = Harness(retry_backoff_ms=5_000, retry_backoff_max_ms=5_000).ready({0: 0})
    h.open("t", 0)
    h.answer(h.produce_requests()[0], 6, leader=(1, 5))
    h.answer(h.produce_requests()[0], 19)
    h.run_ms(4_900)
    assert not h.produce_requests()


def test_a_late_answer_that_says_our_picture_is_wrong_asks_for_metadata() -> None:
    h = Harness().ready({0: 0})
    h.run_ms(200)
    h.open("t", 0)
    (send,) = h.produce_requests()
    send.batches[0].deadline_ns = h.now_ns
    h.tick()
    before = len(h.metadata_requests)
    h.answer(send, 6)
    assert len(h.metadata_requests) == before + 1


def test_a_leader_that_is_no_known_broker_yet_gets_its_batches_once_it_is() -> None:
    h = Harness().ready({0: 5})
    h.open("t", 0)
    h.run_ms(3_000)
    assert not h.produce_requests()
    h.brokers[5] = ("b5", 9092)  # the same leader, the same epoch
    h.run_ms(2_000)
    (send,) = h.produce_requests()
    assert h.node_of(send) == 5


def test_a_broker_that_leaves_and_returns_gets_the_batches_that_waited_for_it() -> None:
    h = Harness().ready({0: 1})
    h.warm("t", 0)
    h.connects_fail = True
    h.machine.nodes.close(h.machine.nodes.brokers[1], "test", h.now_ns)
    h.open("t", 0)
    assert h.partition("t", 0).ready_at is not None
    gone = h.brokers.pop(1)
    h.want("u", {0: 0})  # a partial update: no word about t
    h.connects_fail = False
    h.run_ms(1_000)
    h.brokers[1] = gone
    h.run_ms(3_000)
    (send,) = h.produce_requests()
    assert h.node_of(send) == 1


def test_topics_of_another_name_in_an_answer_are_ignored() -> None:
    h = Harness().ready()
    row = h._topic_row("t") | {"name": "stranger"}
    message = h.metadata([]) | {"topics": [row], "throttle_time_ms": 0}
    h.run_ms(200)
    h.auto = False
    h.machine.metadata.request_update()
    h.tick()
    request = _hold(h)
    h.requests[request.conn].remove(request)
    h.feed(a.Response(request.conn, request.correlation_id, message))
    assert set(h.machine.metadata.topics) == {"t"}
    assert h.now_ns > 10 * SECOND


@pytest.mark.parametrize("leader", [(1, 5), (1, 4), (1, -1), (-1, 6)])
def test_S35_a_leader_in_the_response_that_is_no_news_is_ignored(leader: tuple[int, int]) -> None:
    """Only a newer epoch counts: the same one under another leader is a broker that is confused."""
    h = Harness(retry_backoff_ms=100, retry_backoff_max_ms=100).ready()
    h.leaders["t"] = {0: (0, 5)}
    h.machine.metadata.request_update()
    h.run_ms(300)
    h.open("t", 0)
    h.answer(h.produce_requests()[0], 6, leader=leader)
    partition = h.partition("t", 0)
    assert (partition.leader, partition.leader_epoch) == (0, 5)
    assert h.produce_requests() == []
    h.run_ms(100)
    assert h.node_of(h.produce_requests()[0]) == 0


def test_M7_a_hint_about_a_topic_that_was_deleted_does_not_hide_the_leader_of_the_new_one() -> None:
    """The response left before the topic was made again, and comes behind its metadata: no answer
    of the new one ever has the hint's epoch."""
    h = Harness(retry_backoff_ms=100, retry_backoff_max_ms=100).ready({0: 0, 1: 1})
    h.warm("t", 1)
    h.open("t", 0)
    (send,) = h.produce_requests()
    h.topic_ids["t"] = b"j" * 16
    h.leaders["t"] = {0: (0, 0), 1: (1, 0)}
    h.machine.metadata.request_update()
    h.run_ms(300)
    assert h.partition("t", 0).leader_epoch == 0
    h.answer(send, 6, leader=(1, 3))
    nodes = []
    for _ in range(4):  # it may go once more before the metadata are there
        (again,) = h.produce_requests()
        nodes.append(h.node_of(again))
        h.answer(again, 6 if nodes[-1] else 0)
        if not nodes[-1]:
            break
        h.run_ms(300)
    assert nodes in ([1, 0], [1, 1, 0])
    assert h.outcomes() == [(a.Kind.ACKED, 0)]
