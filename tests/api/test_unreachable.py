"""No cluster, no topic, no memory, a peer that is no Kafka: told apart, and told in time."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mpproducer
from mpproducer import errors
from mpproducer.testing import Broker
from tests.conftest import metric, wait_until

TOPIC = "events"
FORK = multiprocessing.get_context("fork")
FAST: dict[str, Any] = {
    "linger_ms": 0, "sender_idle_ms": 0, "reconnect_backoff_ms": 20, "retry_backoff_ms": 20,
}  # fmt: skip


class Peer:
    """A TCP listener with a handler per connection: at the address of a broker, something else."""

    def __init__(self, handle: Callable[[socket.socket], None]) -> None:
        self.handle = handle
        self.accepted = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(0.05)
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self.run)]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self) -> None:
        while not self.ended.is_set():
            with contextlib.suppress(TimeoutError):
                sock, _ = self.listener.accept()
                self.accepted += 1
                sock.settimeout(0.05)
                thread = threading.Thread(target=self.serve, args=(sock,))
                thread.start()
                self.threads.append(thread)

    def serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            self.handle(sock)

    def read(self, sock: socket.socket) -> bytes:
        while not self.ended.is_set():
            with contextlib.suppress(TimeoutError):
                return sock.recv(65536)
        return b""

    def __enter__(self) -> Peer:
        self.threads[0].start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join(10)
        self.listener.close()


def closes_at_once(_peer: Peer) -> Callable[[socket.socket], None]:
    return lambda _sock: None


def never_answers(peer: Peer) -> Callable[[socket.socket], None]:
    def handle(sock: socket.socket) -> None:
        while peer.read(sock):
            pass

    return handle


def random_bytes(peer: Peer) -> Callable[[socket.socket], None]:
    noise = random.Random(5)

    def handle(sock: socket.socket) -> None:
        while peer.read(sock):
            sock.sendall(noise.randbytes(noise.choice((1, 7, 100, 5000))))

    return handle


def huge_frame(peer: Peer) -> Callable[[socket.socket], None]:
    def handle(sock: socket.socket) -> None:
        peer.read(sock)
        sock.sendall(b"\x7f\xff\xff\xff" + bytes(1000))
        peer.read(sock)

    return handle


def http(peer: Peer) -> Callable[[socket.socket], None]:
    def handle(sock: socket.socket) -> None:
        peer.read(sock)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    return handle


def empty_frames(peer: Peer) -> Callable[[socket.socket], None]:
    def handle(sock: socket.socket) -> None:
        while peer.read(sock):
            sock.sendall(bytes(4) * 3)

    return handle


@contextlib.contextmanager
def peer_of(kind: Callable[[Peer], Callable[[socket.socket], None]]) -> Iterator[Peer]:
    peer = Peer(lambda _sock: None)
    peer.handle = kind(peer)
    with peer:
        yield peer


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.monotonic()
    return call(), time.monotonic() - start


@pytest.mark.parametrize(
    "kind", [closes_at_once, never_answers, random_bytes, huge_frame, http, empty_frames]
)
def test_M1_M2_a_peer_that_is_no_broker_is_a_MetadataTimeout_and_the_next_broker_is_used(
    broker: Broker, kind: Callable[[Peer], Callable[[socket.socket], None]]
) -> None:
    with peer_of(kind) as peer:
        with mpproducer.Producer(
            bootstrap_servers=peer.address, max_block_ms=400, request_timeout_ms=300, **FAST
        ) as producer:
            producer.attach(10)
            future, took_s = timed(lambda: producer.send(TOPIC, b"v"))
            assert peer.accepted > 0
            error = future.exception(0)
            assert isinstance(error, mpproducer.MetadataTimeout)
            assert error.retriable
            assert TOPIC in str(error)
            assert "max_block_ms=400" in str(error)
            assert peer.address in str(error)
            assert took_s >= 0.39
        # Beside a real broker it is only a detour.
        with mpproducer.Producer(
            bootstrap_servers=f"{peer.address},{broker.bootstrap_servers}",
            request_timeout_ms=300,
            max_block_ms=20_000,
            **FAST,
        ) as producer:
            assert producer.send(TOPIC, b"v").result(20).offset == 0


def test_C4_no_broker_at_the_address_is_a_MetadataTimeout_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with mpproducer.Producer(bootstrap_servers=address, max_block_ms=300, **FAST) as producer:
        producer.attach(10)
        future, took_s = timed(lambda: producer.send(TOPIC, b"v"))
        with pytest.raises(mpproducer.MetadataTimeout, match="max_block_ms=300") as found:
            future.result(0)
        assert address in str(found.value)
        assert took_s >= 0.29
        with pytest.raises(mpproducer.MetadataTimeout):
            producer.partitions_for(TOPIC, timeout=0.1)
        many = producer.send_many(TOPIC, [b"1", b"2", b"3"])
        assert [type(error) for _at, error in many.failed] == [mpproducer.MetadataTimeout] * 3
        assert metric(producer, "connection-count") == 0


def test_a_name_that_does_not_resolve_is_a_MetadataTimeout() -> None:
    with mpproducer.Producer(
        bootstrap_servers="no-such-host.invalid:9092", max_block_ms=300, **FAST
    ) as producer:
        producer.attach(10)
        with pytest.raises(mpproducer.MetadataTimeout, match=r"no-such-host\.invalid"):
            producer.send(TOPIC, b"v").result(0)


def test_a_broker_that_comes_up_within_max_block_ms_gets_the_record() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    broker = Broker()
    timer = threading.Timer(0.4, lambda: None)
    with mpproducer.Producer(
        bootstrap_servers=f"127.0.0.1:{port}", max_block_ms=15_000, **FAST
    ) as producer:
        producer.attach(10)
        with broker:
            proxy = Proxy(port, broker)
            timer = threading.Timer(0.4, proxy.__enter__)
            timer.start()
            try:
                assert producer.send(TOPIC, b"v").result(20).offset == 0
            finally:
                timer.join(10)
                proxy.__exit__()


class Proxy(Peer):
    """Passes bytes to a broker from an address that was free before."""

    def __init__(self, port: int, broker: Broker) -> None:
        self.port = port
        self.broker = broker

    def __enter__(self) -> Proxy:
        super().__init__(self.pass_on)
        self.listener.close()
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.listener.settimeout(0.05)
        super().__enter__()
        return self

    def pass_on(self, sock: socket.socket) -> None:
        host, port = self.broker.bootstrap_servers.split(":")
        with socket.create_connection((host, int(port))) as there:
            there.settimeout(0.05)
            back = threading.Thread(target=self.copy, args=(there, sock))
            back.start()
            self.copy(sock, there)
            back.join(10)

    def copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := self.read(source):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def test_C6_a_topic_that_does_not_exist_is_a_MetadataTimeout_with_the_brokers_reason() -> None:
    with Broker(auto_create_topics=False) as broker:
        broker.create_topic(TOPIC)
        with mpproducer.Producer(
            bootstrap_servers=broker.bootstrap_servers, max_block_ms=300, **FAST
        ) as producer:
            producer.attach(10)
            producer.send(TOPIC, b"before").result(20)
            error = producer.send("missing", b"v").exception(0)
            assert isinstance(error, mpproducer.MetadataTimeout)
            assert "'missing' did not appear in the metadata within max_block_ms=300" in str(error)
            assert "UNKNOWN_TOPIC_OR_PARTITION" in str(error)
            producer.send(TOPIC, b"after").result(20)
            broker.create_topic("missing")
            assert wait_until(lambda: producer.send("missing", b"v").exception(5) is None)
        assert [record.value for record in broker.records(TOPIC)] == [b"before", b"after"]
        assert [record.value for record in broker.records("missing")] == [b"v"]


def test_topics_are_not_created_when_the_producer_forbids_it(broker: Broker) -> None:
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers,
        allow_auto_create_topics=False,
        max_block_ms=300,
        **FAST,
    ) as producer:
        producer.attach(10)
        with pytest.raises(mpproducer.MetadataTimeout, match="did not appear"):
            producer.send("unasked", b"v").result(0)
    with pytest.raises(KeyError):
        broker.records("unasked")


SMALL: dict[str, Any] = {
    "buffer_memory": 64 * 16_384, "max_request_size": 500_000, "batch_size": 100_000,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_M1_a_topic_that_comes_wakes_every_thread_and_process_that_waits_for_it() -> None:
    with Broker(auto_create_topics=False) as broker:
        broker.create_topic(TOPIC)
        with mpproducer.Producer(
            bootstrap_servers=broker.bootstrap_servers, max_block_ms=30_000, **FAST
        ) as producer:
            producer.send(TOPIC, b"before").result(20)
            waiting = FORK.Semaphore(0)

            def wait() -> None:
                waiting.release()
                producer.send("late", b"v").result(20)

            processes = [FORK.Process(target=wait) for _ in range(3)]
            threads = [threading.Thread(target=wait) for _ in range(3)]
            everybody: list[Any] = [*processes, *threads]
            for one in everybody:
                one.start()
            for _ in range(6):
                assert waiting.acquire(timeout=20)
            asked = broker.requests["Metadata"]
            assert wait_until(lambda: broker.requests["Metadata"] > asked + 1)
            assert all(one.is_alive() for one in everybody)
            broker.create_topic("late")
            for one in everybody:
                one.join(20)
                assert not one.is_alive()
            assert [process.exitcode for process in processes] == [0] * 3
        assert len(broker.records("late")) == 6


def test_B4_C4_R1_full_memory_is_a_BufferFull_after_max_block_ms_and_comes_back(
    broker: Broker,
) -> None:
    broker.create_topic(TOPIC)
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, max_block_ms=400, **FAST, **SMALL
    ) as producer:
        producer.send(TOPIC, b"before").result(20)
        held = broker.on("Produce", times=1000).delay(3.0)
        futures: list[Any] = []
        value = bytes(50_000)
        while not futures or not futures[-1].done():
            futures.append(producer.send(TOPIC, value))
            assert len(futures) < 100
        error, took_s = timed(lambda: producer.send(TOPIC, value).exception(0))
        assert isinstance(error, mpproducer.BufferFull)
        assert isinstance(error, errors.NotWritten)
        assert not isinstance(error, mpproducer.MetadataTimeout)
        assert error.retriable
        assert "max_block_ms=400" in str(error)
        assert "buffer_memory=1048576" in str(error)
        assert took_s >= 0.39
        assert metric(producer, "buffer-exhausted") >= 2
        # A small record may still fit, and a failed one left nothing behind.
        assert held.hits > 0
        held.remove()
        taken = futures[:-1]
        assert [future.result(30).offset for future in taken] == list(range(1, len(taken) + 1))
        producer.send(TOPIC, b"after").result(20)
        total = SMALL["buffer_memory"]
        assert wait_until(lambda: metric(producer, "buffer-available-bytes") == total)
        assert metric(producer, "batches-quarantined") == 0
    values = [record.value for record in broker.records(TOPIC)]
    assert values == [b"before", *[value] * len(taken), b"after"]


def test_C5_metadata_and_memory_share_one_deadline() -> None:
    """The wait for metadata takes most of max_block_ms; memory gets only the rest."""
    with Broker(brokers=2) as broker:
        broker.create_topic(TOPIC)
        broker.create_topic("late")
        with mpproducer.Producer(
            bootstrap_servers=broker.bootstrap_servers, max_block_ms=1_500, **FAST, **SMALL
        ) as producer:
            producer.send(TOPIC, b"before").result(20)
            # Answers of one node come in order: metadata come from the other one.
            held = broker.on("Produce", topic=TOPIC, times=1000).delay(4.0)
            slow = broker.on("Metadata", topic="late", times=1000).delay(1.2)
            value = bytes(50_000)
            futures: list[Any] = []
            while not futures or not futures[-1].done():
                futures.append(producer.send(TOPIC, value))
            assert isinstance(futures[-1].exception(0), mpproducer.BufferFull)
            future, took_s = timed(lambda: producer.send("late", value))
            held.remove()
            assert isinstance(future.exception(0), mpproducer.BufferFull)
            assert slow.hits > 0
            assert 1.49 <= took_s < 2.6  # 1.2 s for metadata and 1.5 s for memory would be 2.7 s
            for taken in futures[:-1]:
                taken.result(30)


def test_a_pool_smaller_than_its_largest_record_is_refused(broker: Broker) -> None:
    with pytest.raises(mpproducer.ConfigError, match=r"max_request_size=.*buffer_memory=1048576"):
        mpproducer.Producer(
            bootstrap_servers=broker.bootstrap_servers,
            buffer_memory=64 * 16_384,
            max_request_size=2_000_000,
        )


def test_a_topic_beyond_max_topics_is_refused_with_the_way_out(broker: Broker) -> None:
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, max_topics=2, max_block_ms=500, **FAST
    ) as producer:
        producer.attach(10)
        for name in ("a", "b"):
            producer.send(name, b"v").result(20)
        with pytest.raises(mpproducer.MetadataTimeout, match="max_topics=2"):
            producer.send("c", b"v").result(0)
        producer.send("a", b"v").result(20)


def test_partitions_beyond_max_partitions_are_refused_with_the_way_out(broker: Broker) -> None:
    broker.create_topic("wide", partitions=10)
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, max_partitions=4, max_block_ms=500, **FAST
    ) as producer:
        producer.attach(10)
        producer.send("narrow", b"v").result(20)
        with pytest.raises(mpproducer.MetadataTimeout, match="raise max_partitions=4"):
            producer.send("wide", b"v").result(0)
        producer.send("narrow", b"v").result(20)
