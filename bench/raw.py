"""Produce requests by a bare `sendmsg`: what a producer is held against."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Final

from bench import payload
from mpproducer._core import native
from mpproducer.wire.crc import crc32c
from mpproducer.wire.record_batch import Record, encode_record

_VERSION: Final = 9
_IDENTITY: Final = (1, 0, 0)  # producer id, epoch, sequence: a sink does not look at them
_REQUEST_BYTES: Final = 1 << 20  # max_request_size
_IN_FLIGHT: Final = 5
_TIMEOUT_S: Final = 60


def buffers(topic: str, batches: Sequence[tuple[int, native.Body]]) -> list[Any]:
    """The request of these batches, each (partition, body); their records stay where they are."""
    rows: list[Any] = [(topic, partition, body, *_IDENTITY) for partition, body in batches]
    request = native.produce_request(_VERSION, 1, "raw", -1, 30_000, None, rows)
    whole = request.peek(request.size_bytes)
    made: list[Any] = []
    at = 0
    for _partition, body in batches:
        header = body.header(*_IDENTITY)
        records_at = whole.index(header, at) + len(header)
        made += [whole[at:records_at], *body.pieces]
        at = records_at + body.size_bytes
    return [*made, whole[at:]]


class Requests:
    """Requests full of batches, one after the other in `data`."""

    def __init__(self, size_bytes: int, batch_bytes: int, total_bytes: int) -> None:
        count = max(1, batch_bytes // (size_bytes + 20))
        partitions = max(1, _REQUEST_BYTES // batch_bytes)
        self.record_bytes = 0
        self.places: list[list[tuple[int, int]]] = []  # (offset, bytes) of each request's buffers
        data = bytearray()
        while self.record_bytes + partitions * count * size_bytes <= total_bytes:
            places = []
            for buffer in self._one(size_bytes, count, partitions):
                places.append((len(data), len(buffer)))
                data += buffer
            self.places.append(places)
            self.record_bytes += partitions * count * size_bytes
        self.data = bytes(data)

    def _one(self, size_bytes: int, count: int, partitions: int) -> list[Any]:
        batches = []
        for partition in range(partitions):
            values = payload.values(size_bytes, count, len(self.places) * partitions + partition)
            records = b"".join(
                encode_record(Record(n, 0, None, value)) for n, value in enumerate(values)
            )
            batches.append((partition, native.Body(records, count, 0, 0)))
        return buffers("raw", batches)

    def cut(self, memory: memoryview) -> list[list[memoryview]]:
        """The buffers of each request in a memory that holds `data`."""
        return [[memory[at : at + size] for at, size in places] for places in self.places]


def fill(pipe: Connection, memory: str, requests: tuple[int, int, int]) -> None:
    """In a process: write the requests into shared memory whenever the pipe says so."""
    data = Requests(*requests).data
    with open(memory, "r+b") as file, mmap.mmap(file.fileno(), len(data)) as shared:

        def write() -> None:
            shared[:] = data

        _serve(pipe, write)


def send(
    pipe: Connection, bootstrap: str, memory: str, requests: tuple[int, int, int], crc: bool
) -> None:
    """In a process: send the requests, in shared memory or (no `memory`) in its own, whenever the
    pipe says so; at most five without an answer, as a producer does."""
    made = Requests(*requests)
    data = memoryview(made.data)
    if memory:
        fd = os.open(memory, os.O_RDWR)
        data = memoryview(mmap.mmap(fd, len(made.data)))
        os.close(fd)
    whole = made.cut(data)
    host, _, port = bootstrap.partition(":")
    with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _serve(pipe, lambda: _send_all(sock, whole, crc))


def _serve(pipe: Connection, work: Callable[[], None]) -> None:
    pipe.send("ready")
    while pipe.recv() == "go":
        work()
        pipe.send("done")


def _send_all(sock: socket.socket, requests: list[list[memoryview]], crc: bool) -> None:
    waiting = 0
    for request in requests:
        if crc:
            for buffer in request:
                crc32c(buffer)
        _send(sock, request)
        waiting += 1
        if waiting == _IN_FLIGHT:
            _answer(sock)
            waiting -= 1
    for _ in range(waiting):
        _answer(sock)


def _send(sock: socket.socket, request: list[memoryview]) -> None:
    left = list(request)
    while left:
        sent = sock.sendmsg(left)
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if left and sent:
            left[0] = left[0][sent:]


def _answer(sock: socket.socket) -> None:
    size = int.from_bytes(_exactly(sock, 4), "big")
    _exactly(sock, size)


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise ConnectionError("the sink closed the connection")
        data += more
    return data
