"""Scripted faults: each does what it says, to whom it names, as often as it says."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from mpproducer.testing import Broker, Fault
from mpproducer.wire import error_codes as codes
from mpproducer.wire import framing
from mpproducer.wire.codec import ProtocolError
from mpproducer.wire.messages import (
    API_VERSIONS,
    APIS,
    CREATE_TOPICS,
    DELETE_TOPICS,
    FETCH,
    FIND_COORDINATOR,
    INIT_PRODUCER_ID,
    LIST_OFFSETS,
    METADATA,
    OFFSET_COMMIT,
    OFFSET_FETCH,
    Api,
)
from tests.probes import batches as b
from tests.probes.client import Closed, Message, Raw, Topic

T, OTHER = Topic("t", b""), Topic("other", b"")


@pytest.fixture
def raw(broker: Broker) -> Iterator[Raw]:
    broker.create_topic("t", partitions=2)
    broker.create_topic("other")
    with Raw(broker.bootstrap_servers) as connection:
        yield connection


def test_an_error_is_told_and_nothing_stored(broker: Broker, raw: Raw) -> None:
    fault = broker.on("Produce", times=2).error(codes.NOT_ENOUGH_REPLICAS)
    told = [raw.produce(T, b.sound()).error_code for _ in range(3)]
    assert told == [codes.NOT_ENOUGH_REPLICAS, codes.NOT_ENOUGH_REPLICAS, 0]
    assert fault.hits == 2
    assert len(broker.records("t")) == 3


def test_an_error_of_a_topic_leaves_the_others_alone(broker: Broker, raw: Raw) -> None:
    fault = broker.on("Produce", topic="t").error(codes.NOT_LEADER_OR_FOLLOWER)
    assert raw.produce(OTHER, b.sound()).error_code == 0
    assert fault.hits == 0
    raw.send_produce(9, {T: [(0, b.sound())], OTHER: [(0, b.sound())]})
    told = {name: results[0].error_code for name, results in raw.produce_response(9).topics}
    assert told == {"t": codes.NOT_LEADER_OR_FOLLOWER, "other": 0}
    assert fault.hits == 1
    assert broker.records("t") == []
    assert len(broker.records("other")) == 6


def test_a_connection_ends_although_a_child_forked_meanwhile_has_it_too(
    broker: Broker, raw: Raw
) -> None:
    fault = broker.on("Produce").close_after()
    raw.api_versions()  # the broker has taken the connection
    held, let_go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(let_go)
        os.read(held, 1)
        os._exit(0)
    try:
        with pytest.raises(Closed):
            raw.produce(T, b.sound())
    finally:
        os.close(held)
        os.close(let_go)
        os.waitpid(child, 0)
    assert fault.hits == 1
    assert len(broker.records("t")) == 3


def test_a_killed_node_does_not_listen_although_a_child_forked_meanwhile_could(
    broker: Broker, raw: Raw
) -> None:
    raw.api_versions()
    held, let_go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(let_go)
        os.read(held, 1)
        os._exit(0)
    try:
        broker.stop_node(1)
        with pytest.raises(ConnectionError):
            Raw(broker.bootstrap_servers)
        broker.start_node(1)
        with Raw(broker.bootstrap_servers) as again:
            again.api_versions()
    finally:
        os.close(held)
        os.close(let_go)
        os.waitpid(child, 0)


def test_error_after_is_told_of_what_was_stored(broker: Broker, raw: Raw) -> None:
    fault = broker.on("Produce").error_after(codes.REQUEST_TIMED_OUT)
    assert raw.produce(T, b.sound()).error_code == codes.REQUEST_TIMED_OUT
    assert fault.hits == 1
    assert len(broker.records("t")) == 3


def test_a_reply_comes_twice(broker: Broker, raw: Raw) -> None:
    fault = broker.on("ApiVersions").reply_twice()
    raw.api_versions()
    with pytest.raises(ProtocolError):
        raw.api_versions()  # gets the second answer to the first request
    assert fault.hits == 1


def test_a_fault_of_a_node_leaves_the_others_alone() -> None:
    with Broker(brokers=2) as broker:
        broker.create_topic("t", partitions=2)
        fault = broker.on("Produce", node=2, times=9).error(7)
        for partition in (0, 1):
            node = broker.leader("t", partition)
            with Raw(broker.bootstrap_servers.split(",")[node - 1]) as raw:
                told = raw.produce(T, b.sound(), partition=partition).error_code
                assert told == (7 if node == 2 else 0)
        assert fault.hits == 1


def _place(api: Api, answer: Message) -> int:
    """The error code of an answer, wherever the API has it."""
    if api in (API_VERSIONS, INIT_PRODUCER_ID, OFFSET_FETCH):
        return int(answer["error_code"])
    for name in ("topics", "responses", "coordinators"):
        if name in answer:
            first = answer[name][0]
            if "error_code" in first:
                return int(first["error_code"])
            return int(first["partitions"][0]["error_code"])
    raise AssertionError(answer)


ASKS: dict[Api, tuple[int, Message]] = {
    API_VERSIONS: (3, {"client_software_name": "a", "client_software_version": "1"}),
    METADATA: (9, {"topics": [{"name": "t"}], "allow_auto_topic_creation": False}),
    INIT_PRODUCER_ID: (4, {"transactional_id": None, "transaction_timeout_ms": 1}),
    CREATE_TOPICS: (7, {"topics": [{"name": "n", "num_partitions": 1, "replication_factor": 1}]}),
    DELETE_TOPICS: (5, {"topic_names": ["t"], "timeout_ms": 1}),
    FIND_COORDINATOR: (4, {"coordinator_keys": ["g"]}),
    FETCH: (11, {"max_wait_ms": 0, "min_bytes": 0, "max_bytes": 100, "topics": [
        {"topic": "t", "partitions": [
            {"partition": 0, "fetch_offset": 0, "partition_max_bytes": 100}]}]}),
    LIST_OFFSETS: (5, {"topics": [
        {"name": "t", "partitions": [{"partition_index": 0, "timestamp": -1}]}]}),
    OFFSET_COMMIT: (7, {"group_id": "g", "member_id": "", "topics": [
        {"name": "t", "partitions": [{"partition_index": 0, "committed_offset": 5}]}]}),
    OFFSET_FETCH: (5, {"group_id": "g", "topics": [{"name": "t", "partition_indexes": [0]}]}),
}  # fmt: skip


def test_an_error_can_be_scripted_for_every_api(broker: Broker, raw: Raw) -> None:
    assert {api.name for api in ASKS} | {"Produce"} == {api.name for api in APIS.values()}
    for api, (version, message) in ASKS.items():
        fault = broker.on(api.name).error(codes.UNKNOWN_SERVER_ERROR)
        found = raw.ask(api, version, message)
        assert _place(api, found) == codes.UNKNOWN_SERVER_ERROR, api.name
        assert fault.hits == 1
        if api is OFFSET_FETCH:
            continue
        assert _place(api, raw.ask(api, version, message)) == 0, api.name
        if api is DELETE_TOPICS:
            broker.create_topic("t")


@pytest.mark.parametrize(("kind", "stored"), [("close_before", 0), ("close_after", 3)])
def test_a_connection_closed_before_or_after(
    broker: Broker, raw: Raw, kind: str, stored: int
) -> None:
    fault: Fault = getattr(broker.on("Produce"), kind)()
    with pytest.raises(Closed):
        raw.produce(T, b.sound())
    assert fault.hits == 1
    assert len(broker.records("t")) == stored


def test_a_dropped_reply_leaves_the_connection_open(broker: Broker, raw: Raw) -> None:
    fault = broker.on("Produce").drop_reply()
    raw.send_produce(9, {T: [(0, b.sound())]})
    assert raw.end_offset(T) == 3  # that is the next answer
    assert fault.hits == 1


def test_garbage_and_a_wrong_correlation_are_no_answers(broker: Broker, raw: Raw) -> None:
    for fault in (broker.on("Metadata").garbage(), broker.on("Metadata").wrong_correlation()):
        with pytest.raises(ProtocolError):
            raw.metadata("t")
        assert fault.hits == 1
    assert raw.metadata("t")["topics"][0]["error_code"] == 0


def test_half_a_reply_and_then_silence(broker: Broker, raw: Raw) -> None:
    broker.on("Metadata").half_reply()
    message = {"topics": [{"name": "t"}], "allow_auto_topic_creation": False}
    raw.send(framing.encode_request(METADATA, 9, 1, "c", message))
    raw._socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        raw.receive()
    with Raw(broker.bootstrap_servers) as other:  # everybody else is served
        assert other.metadata("t")["topics"][0]["error_code"] == 0


def test_partitions_left_out_or_named_twice(broker: Broker, raw: Raw) -> None:
    rows = {T: [(0, b.sound()), (1, b.sound())]}
    told = []
    for kind in ("omit_partition", "duplicate_partition"):
        getattr(broker.on("Produce"), kind)()
        raw.send_produce(9, rows)
        told.append([r.partition for _name, rs in raw.produce_response(9).topics for r in rs])
    assert told == [[0], [0, 1, 0]]


def test_delay_and_throttle(broker: Broker, raw: Raw) -> None:
    broker.on("Metadata").delay(0.2)
    start = time.monotonic()
    raw.metadata("t")
    assert time.monotonic() - start >= 0.2
    broker.on("Produce").throttle(1234)
    raw.send_produce(9, {T: [(0, b.sound())]})
    response = raw.produce_response(9)
    assert response.throttle_time_ms == 1234
    assert response.topics[0][1][0].error_code == 0


def test_a_fault_without_a_kind_yet_or_removed_does_nothing(broker: Broker, raw: Raw) -> None:
    unfinished = broker.on("Metadata")
    removed = broker.on("Metadata").close_before()
    removed.remove()
    assert raw.metadata("t")["topics"][0]["error_code"] == 0
    assert (unfinished.hits, removed.hits) == (0, 0)
    unfinished.error(codes.LEADER_NOT_AVAILABLE)
    assert raw.metadata("t")["topics"][0]["error_code"] == codes.LEADER_NOT_AVAILABLE


def test_an_unknown_api_is_refused(broker: Broker) -> None:
    with pytest.raises(ValueError, match="no API 'Prodce'"):
        broker.on("Prodce")
