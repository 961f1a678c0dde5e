"""Compression off the loop's thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

import pytest

from mpproducer.sender.compressor import Compressor, Done

WAIT_S = 10.0


class Bench:
    """A compressor over a scripted function."""

    def __init__(self) -> None:
        self.woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.go = threading.Event()
        self.go.set()
        self.running = 0
        self.most = 0
        self._lock = threading.Lock()
        self.compressor = Compressor(self._compress, lambda: self.woken.put(None), threads=2)

    def _compress(self, pieces: Sequence[memoryview]) -> bytes:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            assert self.go.wait(WAIT_S)
            data = b"".join(pieces)
            if data == b"bad":
                raise ValueError("cannot")
            return data[::-1]
        finally:
            with self._lock:
                self.running -= 1

    def take(self, count: int) -> list[Done]:
        """Wait for so many jobs."""
        taken: list[Done] = []
        while len(taken) < count:
            self.woken.get(timeout=WAIT_S)
            taken += self.compressor.take()
        return taken


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.go.set()
    made.compressor.close()
    for thread in made.compressor._threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_a_job_comes_back_with_its_subject_and_stream(bench: Bench) -> None:
    bench.compressor.submit("s", [memoryview(b"ab"), memoryview(b"cd")])
    assert bench.take(1) == [Done("s", b"dcba", None)]
    assert bench.compressor.pending == 0


def test_an_error_is_reported_and_the_thread_goes_on(bench: Bench) -> None:
    bench.compressor.submit(1, [memoryview(b"bad")])
    (done,) = bench.take(1)
    assert isinstance(done.error, ValueError)
    assert done.data == b""
    bench.compressor.submit(2, [memoryview(b"ok")])
    assert bench.take(1) == [Done(2, b"ko", None)]


def test_no_thread_without_work_and_never_more_than_wanted(bench: Bench) -> None:
    assert bench.compressor._threads == []
    bench.go.clear()
    for number in range(10):
        bench.compressor.submit(number, [memoryview(b"x")])
    assert bench.compressor.pending == 10
    bench.go.set()
    assert {done.subject for done in bench.take(10)} == set(range(10))
    assert bench.most <= 2
    assert len(bench.compressor._threads) == 2


def test_the_memory_is_free_when_the_job_is_taken(bench: Bench) -> None:
    memory = bytearray(b"abc")
    bench.compressor.submit(1, [memoryview(memory)])
    bench.take(1)
    memory.append(1)  # raises BufferError while a view of it is alive
