"""The way of a record, station by station: CPU time of each, beside what it cannot go below.

One process holds worker and sender (`bench.host`), and one thread: a station's time is the CPU time
of that thread between two readings of its clock. A figure of a round is the median of its
repetitions; each repetition is a mean over many records or batches.
"""

from __future__ import annotations

import array
import fcntl
import gc
import mmap
import os
import random
import socket
import statistics
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Final

from bench import payload, raw
from bench.config import Options, Result
from bench.host import TOPIC, Host, Memory, Stopwatch
from bench.target import Target
from bench.workloads.base import Case, Workload
from mpproducer._core import native
from mpproducer.config import Config
from mpproducer.shm import frames
from mpproducer.wire.crc import crc32c

_MINE, _FLOOR = "mpproducer", "floor"
_WARM, _COLD = "warm", "cold"
_PARTITIONS: Final = 12
_SIZE_BYTES: Final = 100
_RECORDS: Final = 3_000
_MANY: Final = 1_000  # of one send_many
_FRAMED_BYTES: Final = 110  # a record of 100 B with its framing
_OPENED: Final = 240  # batches, of one partition each
_BATCH_BYTES: Final = 256 * 1024
_BATCHES: Final = 4  # of a request: what max_request_size takes
_ANSWER_S: Final = 20.0
_PEER_READS_S: Final = 150e-6  # what the kernel holds of a connection: 256 KiB
_IN_TURN: Final = 24  # batches in memory at once: more than a cache holds
_SWEPT_BYTES: Final = 48 << 20  # read to empty the caches
_POOL_BYTES: Final = 64 << 20
_WORKER_CONFIG: Final = {
    "bootstrap_servers": "nowhere:1", "batch_size": _BATCH_BYTES, "buffer_memory": _POOL_BYTES,
}  # fmt: skip
SENDER_STATIONS: Final = (
    "collect", "freeze", "machine", "encode", "sendmsg", "answer", "frame", "pipe", "release",
    "sleep", "turn",
)  # fmt: skip
Work = Callable[[], object]


@contextmanager
def _no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _cpu_ns(work: Work) -> int:
    started = time.thread_time_ns()
    work()
    return time.thread_time_ns() - started


def _median(work: Work, per: float, repetitions: int, after: Work | None = None) -> float:
    """CPU ns of `work` over `per`; the first repetition only warms."""
    taken = []
    for _ in range(repetitions + 1):
        taken.append(_cpu_ns(work))
        if after is not None:
            after()
    return statistics.median(taken[1:]) / per


# --- the worker


def _sends(memory: Memory) -> dict[str, Work]:
    """Figure name to a call that appends `_RECORDS` records of 100 B."""
    send, send_many = memory.producer.send, memory.producer.send_many
    values = payload.values(_SIZE_BYTES, _RECORDS)
    keyed = payload.keyed(_SIZE_BYTES, _RECORDS)
    data = b"".join(values)
    ends = array.array("i", range(0, len(data) + 1, _SIZE_BYTES))
    kept: list[Any] = [None] * _RECORDS

    def one_by_one() -> None:
        for place, value in enumerate(values):
            kept[place] = send(TOPIC, value)

    def with_keys() -> None:
        for place, (value, key) in enumerate(keyed):
            kept[place] = send(TOPIC, value, key)

    def many(parts: list[Any]) -> Work:
        def work() -> None:
            for part in parts:
                send_many(TOPIC, part)

        return work

    starts = range(0, _RECORDS, _MANY)

    works: dict[str, Work] = {
        "st_send_ns": one_by_one,
        "st_send_keyed_ns": with_keys,
        "st_many_list_ns": many([values[at : at + _MANY] for at in starts]),
        "st_many_columns_ns": many([(ends[at : at + _MANY + 1], data) for at in starts]),
    }
    try:
        import pyarrow
    except ImportError:
        return works
    column = pyarrow.array(values, pyarrow.binary())
    return works | {"st_many_arrow_ns": many([column.slice(at, _MANY) for at in starts])}


def _loop_ns(repetitions: int) -> float:
    """What the loop around `send` costs by itself."""
    values = payload.values(_SIZE_BYTES, _RECORDS)
    kept: list[Any] = [None] * _RECORDS

    def loop() -> None:
        for place, value in enumerate(values):
            kept[place] = value

    return _median(loop, _RECORDS, repetitions)


def _append(repetitions: int) -> Result:
    found: Result = {}
    loop_ns = _loop_ns(repetitions)
    with closing(Memory(Config.from_user(None, dict(_WORKER_CONFIG)), _PARTITIONS)) as memory:
        memory.publish()
        for name, work in _sends(memory).items():
            taken = _median(work, _RECORDS, repetitions, memory.take)
            found[name] = taken - (0 if "many" in name else loop_ns)
    return found


def _open_and_tell(repetitions: int) -> Result:
    """What a batch costs its worker: to open, and to be told."""
    config = Config.from_user(None, {**_WORKER_CONFIG, "max_partitions": 1024})
    with closing(Memory(config, _OPENED)) as memory:
        memory.publish()
        send, drain = memory.producer.send, memory.attachment.drain
        value = payload.values(_SIZE_BYTES, 1)[0]
        kept: list[Any] = []

        def to_each() -> None:
            for partition in range(_OPENED):
                kept.append(send(TOPIC, value, partition=partition))

        opened, again, told, result = [], [], [], []
        for _ in range(repetitions + 1):
            opened.append(_cpu_ns(to_each) / _OPENED)
            again.append(_cpu_ns(to_each) / _OPENED)
            for future in kept[:_OPENED]:
                frame = frames.pack_frame(frames.Kind.ACKED, future.batch_id, 0, 2, base_offset=7)
                os.write(memory.worker.pipe, frame)
            told.append(_cpu_ns(drain) / _OPENED)
            if memory.attachment.pending():
                raise RuntimeError("batches were told and are pending")
            results = [future.result for future in kept]
            result.append(_cpu_ns(lambda r=results: [one() for one in r]) / len(results))  # type: ignore[misc]
            kept.clear()
            memory.take()
        middle = [statistics.median(taken[1:]) for taken in (opened, again, told, result)]
    return {
        "st_open_ns": middle[0] - middle[1],
        "st_told_ns": middle[2],
        "st_result_ns": middle[3],
    }


def _copy_ns(repetitions: int) -> float:
    """The same bytes into as much shared memory as a worker fills in turn, by memcpy alone."""
    size = _MANY * _FRAMED_BYTES
    source = random.Random(1).randbytes(size)
    with mmap.mmap(-1, _POOL_BYTES // size * size) as memory, memoryview(memory) as view:
        places = [view[at : at + size] for at in range(0, len(view), size)]

        def copy() -> None:
            for place in places:
                place[:] = source

        taken = _median(copy, _MANY * len(places), repetitions)
        for place in places:
            place.release()
    return taken


def worker(client: str, _target: Target, options: Options, _before: dict[str, Result]) -> Result:
    """Nanoseconds of the worker's stations."""
    repetitions = 8 if options.quick else 25
    with _no_gc():
        if client == _FLOOR:
            taken = _copy_ns(repetitions)
            names = ("st_send_ns", "st_send_keyed_ns", "st_many_list_ns", "st_many_columns_ns",
                     "st_many_arrow_ns")  # fmt: skip
            return dict.fromkeys(names, taken)
        return _append(repetitions) | _open_and_tell(repetitions)


# --- the sender


def _stations(host: Host, batches: int) -> Result:
    """us per batch since the last call."""
    spent = host.watch.spent_ns
    found = {f"st_{name}_us": spent.get(name, 0) / batches / 1000 for name in SENDER_STATIONS}
    found["st_sender_us"] = sum(found.values())
    found["st_drain_us"] = spent.get("drain", 0) / batches / 1000
    spent.clear()
    return found


def _medians(rounds: list[Result]) -> Result:
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def _full_values() -> list[list[bytes]]:
    """What fills the batches of one partition, in parts for send_many."""
    each = _IN_TURN // _PARTITIONS * _BATCH_BYTES // (_FRAMED_BYTES + 1)
    values = payload.values(_SIZE_BYTES, each)
    return [values[at : at + _MANY] for at in range(0, each, _MANY)]


def _full(host: Host, repetitions: int) -> Result:
    """Memory is filled, then the sender sends it: per batch of about 256 KiB."""
    parts = _full_values()
    each = sum(map(len, parts))
    send_many = host.producer.send_many
    rounds = []
    for _ in range(repetitions + 1):
        before = host.counts()
        for partition in range(_PARTITIONS):
            for part in parts:
                send_many(TOPIC, part, partition=partition)
        host.watch.spent_ns.clear()
        host.finish()
        after = host.counts()
        batches = after["batch-send-total"] - before["batch-send-total"]
        found = _stations(host, batches)
        found["st_record_ns"] = found["st_sender_us"] * 1000 * batches / (each * _PARTITIONS)
        found["st_batch_kib"] = (
            (after["outgoing-byte-total"] - before["outgoing-byte-total"]) / batches / 1024
        )
        rounds.append(found)
    return _medians(rounds[1:])


def _requests(memory: Memory) -> list[tuple[list[Any], int]]:
    """Requests of four batches as buffers for sendmsg, and their bytes: what a worker has
    appended, from where it stands."""
    for partition in range(_PARTITIONS):
        for part in _full_values():
            memory.producer.send_many(TOPIC, part, partition=partition)
    batches: list[tuple[int, native.Body]] = []
    for index, seq, slot, _full, _opened_ns in memory.pool.collect(False)[0]:
        if not seq:
            continue
        (frozen,) = memory.pool.freeze([slot], 0)
        if frozen is None or len(frozen) == 2:
            raise RuntimeError(f"a batch cannot be frozen: {frozen}")
        batches.append((index, frozen[-1]))
    batches.sort(key=lambda batch: -batch[1].size_bytes)  # the rests together
    made = []
    for at in range(0, len(batches), _BATCHES):
        buffers = raw.buffers(TOPIC, batches[at : at + _BATCHES])
        made.append((buffers, sum(map(len, buffers))))
    return made


def _send(sock: socket.socket, sendmsg: Callable[..., Any], buffers: list[Any]) -> None:
    """Send a request; only `sendmsg` is timed, and never refuses.

    Its bytes have just been read, as the sender's have by the CRC, and are in the same caches.
    """
    for buffer in buffers:
        crc32c(buffer)
    left = [memoryview(buffer) for buffer in buffers]
    while left:
        _wait_until_read(sock)
        sent = sendmsg(left)
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if left:
            left[0] = left[0][sent:]


def _wait_until_read(sock: socket.socket) -> None:
    """Until the next call finds an empty buffer, and a peer that does not copy at the same time:
    then it costs half as much again."""
    queued, until = bytearray(4), time.monotonic() + _ANSWER_S
    while True:
        fcntl.ioctl(sock, termios.TIOCOUTQ, queued)
        if not any(queued):
            break
        if time.monotonic() > until:
            raise TimeoutError(f"the sink has not read within {_ANSWER_S:.0f} s")
        time.sleep(0)
    until = time.monotonic() + _PEER_READS_S
    while time.monotonic() < until:  # a sleep would leave the next call with colder caches
        pass


def _send_buffer_bytes() -> int:
    """The same as a producer's: it decides how much a call takes."""
    return Config.from_user(None, dict(_WORKER_CONFIG)).send_buffer_bytes


def _floors(target: Target, repetitions: int) -> Result:
    """CRC and sendmsg of the same bytes in the same memory, into the same sink."""
    with closing(Memory(Config.from_user(None, dict(_WORKER_CONFIG)), _PARTITIONS)) as memory:
        memory.publish()
        requests = _requests(memory)
        try:
            return _floors_of(requests, target, repetitions)
        finally:
            requests.clear()


def _floors_of(requests: list[tuple[list[Any], int]], target: Target, repetitions: int) -> Result:
    kib256 = sum(size for _, size in requests) / _BATCH_BYTES

    def check() -> None:
        for buffers, _size in requests:
            for buffer in buffers:
                crc32c(buffer)

    found = {"st_freeze_us": _median(check, kib256 * 1000, repetitions)}
    host, _, port = target.bootstrap.partition(":")
    taken = []
    with (
        socket.create_connection((host, int(port)), timeout=_ANSWER_S) as sock,
        sock.makefile("rb") as answers,
    ):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        watch = Stopwatch()
        sendmsg = watch.timed("sendmsg", sock.sendmsg)
        if (buffer_bytes := _send_buffer_bytes()) >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        for _ in range(repetitions + 1):
            sock.setblocking(False)
            watch.spent_ns.clear()
            for buffers, _size in requests:
                _send(sock, sendmsg, buffers)
            sock.settimeout(_ANSWER_S)
            for _request in requests:
                answers.read(int.from_bytes(answers.read(4), "big"))
            taken.append(watch.spent_ns["sendmsg"] / kib256 / 1000)
    found["st_sendmsg_us"] = statistics.median(taken[1:])
    return found


def full(client: str, target: Target, options: Options, _before: dict[str, Result]) -> Result:
    """us per full batch of the sender's stations."""
    repetitions = 5 if options.quick else 15
    with _no_gc():
        if client == _FLOOR:
            return _floors(target, repetitions)
        with closing(_host(target, buffer_memory=_POOL_BYTES)) as host:
            return _full(host, repetitions)


def _host(target: Target, **config: Any) -> Host:
    return Host(target.bootstrap, _PARTITIONS, linger_ms=0, batch_size=_BATCH_BYTES, **config)


def alone(client: str, target: Target, options: Options, _before: dict[str, Result]) -> Result:
    """us of every station for a record that travels alone."""
    repetitions = 15 if options.quick else 60
    value = payload.values(_SIZE_BYTES, 1)[0]
    swept = bytes(_SWEPT_BYTES) if client == _COLD else b""
    rounds = []
    with _no_gc(), ExitStack() as stack:
        host = stack.enter_context(closing(_host(target)))
        send = host.watch.timed("send", host.producer.send)
        for _ in range(repetitions + 5):
            swept.count(b"\1")  # reads all of it
            host.watch.spent_ns.clear()
            future = send(TOPIC, value)
            host.finish()
            spent = host.watch.spent_ns
            told_ns = _cpu_ns(future.result)
            found = {
                "st_alone_send_us": spent["send"] / 1000,
                "st_alone_result_us": told_ns / 1000,
            }
            rounds.append(found | _stations(host, 1))
    return _medians(rounds[5:])


def _cases(options: Options) -> list[Case]:
    if not options.wants(_MINE):
        return []
    records = {"record_bytes": _SIZE_BYTES, "statistic": "median of the repetitions of a round"}
    sender = {**records, "partitions": _PARTITIONS, "linger_ms": 0}
    return [
        Case("The worker, 100 B records", (_MINE, _FLOOR), worker, records, _PARTITIONS),
        Case("The sender, full batches", (_MINE, _FLOOR), full, sender, _PARTITIONS),
        Case("One record alone, linger 0", (_WARM, _COLD), alone, sender, _PARTITIONS),
    ]


STATIONS = Workload("stations", "The way of a record", _cases)
