"""The broker's life, its nodes and what it tells about itself; as a thread and as a process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from mpproducer.testing import Broker, BrokerProcess
from mpproducer.wire import error_codes as codes
from mpproducer.wire.codec import ProtocolError
from mpproducer.wire.messages import APIS, FETCH, LIST_OFFSETS, METADATA, PRODUCE
from tests.probes import batches as b
from tests.probes.client import Closed, Raw, Topic
from tests.testing import clients
from tests.wire import peers

T = Topic("t", b"")
WAIT_S = 10.0


def _until(what: Callable[[], bool]) -> bool:
    until = time.monotonic() + WAIT_S
    while not what() and time.monotonic() < until:
        time.sleep(0.01)
    return what()


def _node(broker: Broker, number: int) -> Raw:
    return Raw(broker.bootstrap_servers.split(",")[number - 1])


# --- life


def _threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "mpproducer-broker"]


def test_a_stopped_broker_leaves_no_thread_and_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    broker = Broker(brokers=3)
    for _ in range(3):
        broker.start()
        assert _threads() == ["mpproducer-broker"]
        connections = [_node(broker, n) for n in (1, 2, 3)]
        for raw in connections:
            raw.api_versions()
        broker.on("Metadata").half_reply()
        broker.create_topic(f"t{time.monotonic_ns()}")
        broker.stop()
        for raw in connections:
            with pytest.raises(Closed):
                raw.receive()
            raw._socket.close()
        assert _threads() == []
    broker.stop()  # idempotent
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_broker_that_cannot_listen_leaves_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    broker = Broker(host="192.0.2.1")  # nobody's address (RFC 5737)
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):
        broker.start()
    assert _threads() == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_that_cannot_listen_is_gone_again() -> None:
    broker = BrokerProcess(host="192.0.2.1")
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):
        broker.start()
    with pytest.raises(RuntimeError, match="does not run"):
        _ = broker.pid


def test_it_starts_once_and_answers_only_while_it_runs() -> None:
    broker = Broker()
    with pytest.raises(RuntimeError, match="does not run"):
        broker.stop_node(1)
    with broker, pytest.raises(RuntimeError, match="runs already"):
        broker.start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"brokers": 0}, "brokers=0: must be at least 1"),
        ({"versions": {"Prod": (3, 9)}}, "no API 'Prod'"),
        ({"versions": {"Produce": (3, 99)}}, "Produce has v3 to v13"),
        ({"versions": {"Produce": (9, 3)}}, "Produce has v3 to v13"),
    ],
)
@pytest.mark.parametrize("kind", [Broker, BrokerProcess])
def test_wrong_arguments_are_named(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options).start()


# --- topics


def test_topics_grow_and_end(broker: Broker) -> None:
    broker.create_topic("t", partitions=2)
    broker.add_partitions("t", 5)
    assert broker.partitions("t") == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="topic 't' exists"):
        broker.create_topic("t")
    with pytest.raises(ValueError, match="'a b' is not a legal topic name"):
        broker.create_topic("a b")
    broker.delete_topic("t")
    for ask in (broker.partitions, broker.records, broker.delete_topic):
        with pytest.raises(KeyError):
            ask("t")
    with pytest.raises(KeyError):
        broker.leader("t", 0)


@pytest.mark.parametrize("auto", [True, False])
def test_unknown_topics_are_created_where_that_is_wanted(auto: bool) -> None:
    with (
        Broker(auto_create_topics=auto, default_partitions=3) as broker,
        Raw(broker.bootstrap_servers) as raw,
    ):
        told = [raw.metadata("t", create=True)["topics"][0]["error_code"] for _ in range(2)]
        unknown = codes.UNKNOWN_TOPIC_OR_PARTITION
        assert told == [unknown, 0 if auto else unknown]
        if auto:
            assert broker.partitions("t") == [0, 1, 2]


def test_leaders_and_replicas_go_round_the_nodes() -> None:
    with Broker(brokers=3) as broker, Raw(broker.bootstrap_servers) as raw:
        broker.create_topic("t", partitions=6, replication=2)
        found = raw.metadata("t")["topics"][0]["partitions"]
        assert [p["leader_id"] for p in found] == [1, 2, 3, 1, 2, 3]
        assert [p["replica_nodes"] for p in found][:3] == [[1, 2], [2, 3], [3, 1]]
        assert broker.leader("t", 4) == 2


# --- nodes


def test_a_node_that_does_not_lead_says_who_does() -> None:
    with Broker(brokers=3) as broker:
        broker.create_topic("t")
        broker.set_leader("t", 0, 2)
        address = broker.bootstrap_servers.split(",")[1]
        with _node(broker, 1) as raw:
            raw.send_produce(10, {T: [(0, b.sound())]})
            response = raw.produce_response(10)
            result = response.topics[0][1][0]
            assert result.error_code == codes.NOT_LEADER_OR_FOLLOWER
            assert result.leader == (2, 1)
            assert [f"{host}:{port}" for _n, host, port in response.node_endpoints] == [address]
        with _node(broker, 2) as raw:
            assert raw.produce(T, b.sound()).error_code == 0


def test_a_killed_node_hands_over_and_comes_back_with_its_data() -> None:
    with Broker(brokers=2) as broker:
        broker.create_topic("t", replication=2)
        broker.create_topic("alone")
        with _node(broker, 1) as first, _node(broker, 2) as second:
            assert first.produce(T, b.sound()).error_code == 0
            broker.stop_node(1)
            with pytest.raises(Closed):
                first.receive()
            with pytest.raises(ConnectionRefusedError):
                _node(broker, 1)
            (partition,) = second.metadata("t")["topics"][0]["partitions"]
            assert (partition["leader_id"], partition["leader_epoch"]) == (2, 1)
            assert (partition["isr_nodes"], partition["offline_replicas"]) == ([2], [1])
            assert second.produce(T, b.sound()).base_offset == 3
            (alone,) = second.metadata("alone")["topics"][0]["partitions"]
            assert (alone["error_code"], alone["leader_id"]) == (codes.LEADER_NOT_AVAILABLE, -1)
        broker.start_node(1)
        with _node(broker, 1) as again:
            assert again.produce(Topic("alone", b""), b.sound()).error_code == 0


def test_a_consumer_with_an_old_leader_epoch_is_told(broker: Broker) -> None:
    broker.create_topic("t")
    broker.set_leader("t", 0, 1)
    with Raw(broker.bootstrap_servers) as raw:
        told = []
        for epoch in (0, 1, 2):
            wanted = {"partition_index": 0, "current_leader_epoch": epoch, "timestamp": -1}
            request = {"topics": [{"name": "t", "partitions": [wanted]}]}
            answer = raw.ask(LIST_OFFSETS, 5, request)
            told.append(answer["topics"][0]["partitions"][0]["error_code"])
        assert told == [codes.FENCED_LEADER_EPOCH, 0, codes.UNKNOWN_LEADER_EPOCH]


def test_fewer_versions_are_offered_and_the_others_refused() -> None:
    with Broker(versions={"Produce": (3, 7), "Metadata": (1, 5)}) as broker:
        broker.create_topic("t")
        with Raw(broker.bootstrap_servers) as raw:
            spoken = raw.api_versions()
            assert (spoken[PRODUCE.key], spoken[METADATA.key]) == ((3, 7), (1, 5))
            assert raw.produce(T, b.sound(), version=7).error_code == 0
            with pytest.raises(Closed):
                raw.produce(T, b.sound(), version=9)
        assert broker.malformed == ["Produce v9 is not spoken here"]


# --- what it tells


def test_it_counts_what_it_saw(broker: Broker) -> None:
    broker.create_topic("t")
    with Raw(broker.bootstrap_servers) as raw:
        for version in (9, 9, 13):
            raw.produce(Topic("t", _topic_id(raw)), b.sound(), version=version)
        assert broker.requests["Produce"] == 3
        assert broker.requests_by_node == {1: broker.requests.total()}
        assert broker.versions_seen["Produce"] == {9, 13}
        assert broker.request_bytes["Produce"] > 3 * len(b.sound())
        assert broker.clients == {"probe"}
        assert broker.connections == broker.connections_now == 1
    assert _until(lambda: broker.connections_now == 0)
    assert broker.batch_facts("t", 0) == (3, {-1})
    assert len(broker.batches("t", 0)) == 3


def _topic_id(raw: Raw) -> bytes:
    return bytes(raw.metadata("t")["topics"][0]["topic_id"])


def test_what_is_malformed_is_told_and_ends_that_connection_only(rng: Any) -> None:
    with Broker() as broker, Raw(broker.bootstrap_servers) as sound:
        for size in (4, 20, 100):
            with Raw(broker.bootstrap_servers) as raw:
                raw.send(size.to_bytes(4, "big") + b"\x7f" + rng.randbytes(size - 1))
                with pytest.raises(Closed):
                    raw.receive()
        assert len(broker.malformed) == 3
        assert sound.api_versions()


def test_requests_that_make_no_sense_are_answered_or_end_their_connection(
    rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    """Legal messages of random content, to every API in every version."""
    answered = 0
    with Broker() as broker:
        broker.create_topic("t")
        for case in peers.cases(rng, 10, [api.request for api in APIS.values()]):
            api = next(api for api in APIS.values() if api.request is case.schema)
            waits = {FETCH: {"max_wait_ms": 0}, PRODUCE: {"acks": 7}}.get(api, {})
            message = case.message | waits
            for topic in message.get("topics") or ():
                if isinstance(topic, dict) and rng.random() < 0.5:
                    topic["topic" if api is FETCH else "name"] = "t"
            with Raw(broker.bootstrap_servers) as raw:
                try:
                    raw.ask(api, case.version, message)
                    answered += 1
                except Closed:
                    assert api is PRODUCE or broker.malformed, case.name
        assert broker.requests.total() > 0
    assert answered > 500
    assert [r for r in caplog.records if r.name == "asyncio"] == []


# --- in a process of its own


@pytest.fixture
def process() -> Iterator[BrokerProcess]:
    with BrokerProcess(brokers=2, max_message_bytes=1000) as running:
        yield running


def test_a_process_does_what_the_thread_does(process: BrokerProcess) -> None:
    process.create_topic("t", partitions=2)
    fault = process.on("Produce").error(codes.REQUEST_TIMED_OUT)
    rows: clients.Rows = [(n % 2, b"k", b"%d" % n) for n in range(10)]
    told = clients.with_confluent(process.bootstrap_servers, "t", rows, "none")
    assert fault.hits == 1
    assert sorted(told) == [(p, n) for p in (0, 1) for n in range(5)]
    assert [r.value for r in process.records("t", 1)] == [b"1", b"3", b"5", b"7", b"9"]
    assert process.partitions("t") == [0, 1]
    assert process.batch_facts("t", 0)[0] >= 1
    assert process.requests["Produce"] >= 2
    assert process.malformed == []
    found = clients.by_kafka_python(process.bootstrap_servers, "t", {0: 5, 1: 5})
    assert [got.value for got in found[0]] == [b"0", b"2", b"4", b"6", b"8"]
    with pytest.raises(KeyError):
        process.records("nobody")
    with pytest.raises(AttributeError):
        process.no_such_thing  # noqa: B018


def test_a_stopped_process_is_gone() -> None:
    before = set(psutil.Process().children(recursive=True))
    broker = BrokerProcess().start()
    assert set(psutil.Process().children(recursive=True)) - before
    broker.stop()
    broker.stop()
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [p for p in left if "resource_tracker" not in " ".join(p.cmdline())]
    with pytest.raises(AttributeError):
        _ = broker.bootstrap_servers


_PARENT = """
from mpproducer.testing import BrokerProcess
import time
if __name__ == "__main__":
    broker = BrokerProcess().start()
    print(broker.pid, flush=True)
    time.sleep(60)
"""


def test_a_process_ends_with_its_parent_however_that_ends(tmp_path: Any) -> None:
    program = tmp_path / "parent.py"
    program.write_text(_PARENT)
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        parent.wait(WAIT_S)
    assert _until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_response_cannot_be_read_as_another_version(broker: Broker) -> None:
    """The client of these tests is strict itself."""
    broker.create_topic("t")
    with Raw(broker.bootstrap_servers) as raw:
        raw.send_produce(9, {T: [(0, b.sound())]})
        with pytest.raises(ProtocolError):
            raw.produce_response(13)
