"""A worker that writes over shared memory: the region is given up, and nobody waits for it."""

from __future__ import annotations

import ctypes
import multiprocessing
import struct
import time
from pathlib import Path
from typing import Any

import pytest

import mpproducer
from mpproducer.testing import Broker
from tests.conftest import senders, wait_until

TOPIC = "events"
PARTITION = 5
FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def writable_segment() -> ctypes.Array[ctypes.c_char]:
    """The pool as this process maps it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, access, *_rest = line.split()
        if "memfd" in line and access.startswith("rw-s"):
            first, last = (int(part, 16) for part in place.split("-"))
            return (ctypes.c_char * (last - first)).from_address(first)
    raise AssertionError("this process maps no pool")


def test_a_worker_that_writes_over_a_partitions_chain_ends_that_region_and_nothing_else(
    broker: Broker, status_of: Any, runtime_dir: Path
) -> None:
    """The chain cannot be followed any more, so its records have no fate that could be found out:
    they are told as unknown, at once, and the next call works on fresh segments."""
    broker.create_topic(TOPIC, partitions=8)
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, linger_ms=0, sender_idle_ms=0
    ) as producer:
        for number in range(7):
            producer.send(TOPIC, b"%d" % number, partition=PARTITION).result(20)

        def scribble() -> None:
            producer.attach(10)
            memory = writable_segment()
            words = struct.unpack(f"<{len(memory) // 8}Q", memory)[::16]
            found = [at for at, word in enumerate(words) if word >> 20 == 7 and word & 0xFFFFF]
            assert len(found) == 1, found
            struct.pack_into("<Q", memory, found[0] * 128, words[found[0]] + (1 << 50))
            written.set()
            time.sleep(60)

        written = FORK.Event()
        pid = status_of(producer)["pid"]
        held = broker.on("Produce", times=1).delay(2.0)
        waiting = producer.send(TOPIC, b"in flight", partition=0)
        assert wait_until(lambda: held.hits == 1)
        worker = FORK.Process(target=scribble)
        worker.start()
        assert written.wait(20)
        lost = producer.send(TOPIC, b"lost", partition=PARTITION)
        for future in (waiting, lost):
            assert isinstance(future.exception(20), mpproducer.Unknown)
        assert producer.send(TOPIC, b"after", partition=PARTITION).result(20).offset == 7
        assert status_of(producer)["pid"] != pid
        assert wait_until(lambda: pid not in [process.pid for process in senders(runtime_dir)])
        worker.kill()
        worker.join(20)
    assert [record.value for record in broker.records(TOPIC, 0)] == [b"in flight"]
    stored = [record.value for record in broker.records(TOPIC, PARTITION)]
    assert stored == [*(b"%d" % number for number in range(7)), b"after"]
