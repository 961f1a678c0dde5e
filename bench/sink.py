"""An instant-ack sink: speaks as much Kafka as a producer asks for, keeps nothing, checks nothing.

In place of a broker it isolates what a client costs; it counts requests, bytes, batches, records
and producer ids for every client alike. One process, one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import selectors
import socket
import struct
import sys
import time
from typing import Any, Final

from mpproducer.wire.codec import ProtocolError
from mpproducer.wire.framing import encode_response, read_request_header
from mpproducer.wire.messages import (
    API_VERSIONS,
    APIS,
    FETCH,
    FIND_COORDINATOR,
    INIT_PRODUCER_ID,
    METADATA,
    PRODUCE,
)

_SPOKEN: Final = (PRODUCE, METADATA, API_VERSIONS, FIND_COORDINATOR, INIT_PRODUCER_ID)
# librdkafka takes a broker without Fetch v4 for one that knows no record batches.
_ADVERTISED: Final = (*_SPOKEN, FETCH)
_BUFFER_BYTES: Final = 8 << 20
_RECEIVE_BYTES: Final = 4 << 20
_PRODUCER_ID_AT: Final = 43
_COUNT_AT: Final = 57
_UNSUPPORTED_VERSION: Final = 35
_TOPIC_IDS: Final = 13
_NODE: Final = 1


class Counts:
    """What came in."""

    def __init__(self) -> None:
        self.requests = self.batches = self.records = 0
        self.bytes = self.connections = 0
        self.producer_ids: set[int] = set()

    def shown(self) -> dict[str, int]:
        """As plain numbers."""
        return {
            "requests": self.requests,
            "batches": self.batches,
            "records": self.records,
            "bytes": self.bytes,
            "connections": self.connections,
            "producer_ids": len(self.producer_ids),
        }


class _Connection:
    """Reassembles frames in one buffer that is moved only when its end is reached."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = bytearray(_BUFFER_BYTES)
        self._start = self._end = 0
        self.out = b""

    def frames(self) -> list[memoryview] | None:
        """Receive once; the whole frames that are there, None at the end of the stream."""
        view = memoryview(self._buffer)
        try:
            got = self.sock.recv_into(view[self._end : self._end + _RECEIVE_BYTES])
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not got:
            return None
        self._end += got
        found = []
        while self._end - self._start >= 4:
            size = int.from_bytes(view[self._start : self._start + 4], "big")
            if self._end - self._start < 4 + size:
                break
            found.append(view[self._start + 4 : self._start + 4 + size])
            self._start += 4 + size
        return found

    def make_room(self) -> None:
        """After the frames were used: have space for the rest of the next one."""
        rest = self._end - self._start
        if not rest:
            self._start = self._end = 0
            return
        need = _RECEIVE_BYTES
        if rest >= 4:
            need = int.from_bytes(self._buffer[self._start : self._start + 4], "big") + 4 - rest
        if self._end + max(need, 65536) > len(self._buffer):
            made = bytearray(max(_BUFFER_BYTES, 2 * (rest + need)))
            made[:rest] = memoryview(self._buffer)[self._start : self._end]
            self._buffer, self._start, self._end = made, 0, rest

    def flush(self) -> None:
        """Send what is left of the answers; raises OSError."""
        if self.out:
            with contextlib.suppress(BlockingIOError):
                self.out = self.out[self.sock.send(self.out) :]


class Sink:
    """The server; `run` returns when stdin ends. `counts` on stdin is answered with the counts."""

    def __init__(self, partitions: int, spin_s: float = 0.0) -> None:
        self._partitions = partitions
        self._spin_s = spin_s  # how long it looks for more before it sleeps
        self._names: dict[bytes, str] = {}
        self._offsets: dict[tuple[Any, int], int] = {}
        self._next_producer_id = 1000
        self.counts = Counts()
        self._complained = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]

    def run(self) -> None:
        """Serve until stdin ends."""
        selector = selectors.DefaultSelector()
        selector.register(self._listener, selectors.EVENT_READ)
        selector.register(sys.stdin.buffer, selectors.EVENT_READ)
        until = 0.0
        while True:
            ready = selector.select(0 if time.monotonic() < until else None)
            if ready:
                until = time.monotonic() + self._spin_s
            for key, events in ready:
                if key.fileobj is self._listener:
                    self._accept(selector)
                elif isinstance(key.data, _Connection):
                    self._serve(selector, key.data, events)
                elif not self._answer_parent():
                    return

    def _answer_parent(self) -> bool:
        if not os.read(sys.stdin.fileno(), 4096):
            return False
        sys.stdout.write(json.dumps(self.counts.shown()) + "\n")
        sys.stdout.flush()
        return True

    def _accept(self, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _address = self._listener.accept()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.counts.connections += 1
            selector.register(sock, selectors.EVENT_READ, _Connection(sock))

    def _serve(
        self, selector: selectors.BaseSelector, connection: _Connection, events: int
    ) -> None:
        try:
            if events & selectors.EVENT_READ:
                frames = connection.frames()
                if frames is None:
                    raise ConnectionError
                for frame in frames:
                    self.counts.bytes += len(frame) + 4
                    connection.out += self._respond(frame)
                connection.make_room()
            connection.flush()
        except (OSError, ProtocolError, struct.error) as error:
            if not isinstance(error, OSError) and not self._complained:
                self._complained = True
                sys.stderr.write(f"sink: {error!r}\n")
            selector.unregister(connection.sock)
            connection.sock.close()
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.out else 0)
        if selector.get_key(connection.sock).events != wanted:
            selector.modify(connection.sock, wanted, connection)

    def _respond(self, frame: memoryview) -> bytes:
        header, body = read_request_header(frame)
        api = APIS.get(header.api_key)
        if api not in _SPOKEN:
            raise ProtocolError(f"API {header.api_key} is not spoken here")
        low, high = api.versions
        if api is API_VERSIONS and not low <= header.version <= high:
            apis = {**self._apis(), "error_code": _UNSUPPORTED_VERSION}
            return encode_response(api, 0, header.correlation_id, apis)
        request = api.request.read(header.version, body)
        if api is PRODUCE:
            response = self._produce(header.version, request)
            if request["acks"] == 0:
                return b""
        elif api is METADATA:
            response = self._metadata(request)
        elif api is INIT_PRODUCER_ID:
            self._next_producer_id += 1
            response = {"producer_id": self._next_producer_id, "producer_epoch": 0}
        else:
            response = self._apis() if api is API_VERSIONS else {}
        return encode_response(api, header.version, header.correlation_id, response)

    def _apis(self) -> dict[str, Any]:
        return {
            "api_keys": [
                {"api_key": api.key, "min_version": api.versions[0], "max_version": api.versions[1]}
                for api in _ADVERTISED
            ]
        }

    def _metadata(self, request: dict[str, Any]) -> dict[str, Any]:
        partitions = [
            {"partition_index": n, "leader_id": _NODE, "leader_epoch": 0,
             "replica_nodes": [_NODE], "isr_nodes": [_NODE]}
            for n in range(self._partitions)
        ]  # fmt: skip
        topics = []
        for wanted in request["topics"] or ():
            name = wanted["name"] or self._names[bytes(wanted["topic_id"])]
            topic_id = hashlib.md5(name.encode(), usedforsecurity=False).digest()
            self._names[topic_id] = name
            topics.append({"name": name, "topic_id": topic_id, "partitions": partitions})
        brokers = [{"node_id": _NODE, "host": "127.0.0.1", "port": self.port}]
        return {"brokers": brokers, "controller_id": _NODE, "cluster_id": "sink", "topics": topics}

    def _produce(self, version: int, request: dict[str, Any]) -> dict[str, Any]:
        counts = self.counts
        counts.requests += 1
        topics = []
        for topic in request["topics"]:
            name = bytes(topic["topic_id"]) if version >= _TOPIC_IDS else topic["name"]
            results = []
            for entry in topic["partitions"]:
                batch = entry["records"]
                (producer_id,) = struct.unpack_from(">q", batch, _PRODUCER_ID_AT)
                (records,) = struct.unpack_from(">i", batch, _COUNT_AT)
                counts.producer_ids.add(producer_id)
                counts.batches += 1
                counts.records += records
                place = (name, entry["index"])
                offset = self._offsets.get(place, 0)
                self._offsets[place] = offset + records
                results.append(
                    {"index": entry["index"], "base_offset": offset, "log_start_offset": 0}
                )
            topics.append(
                {"name": topic["name"], "topic_id": topic["topic_id"], "partitions": results}
            )
        return {"topics": topics}


def main() -> None:
    """Print the port, then serve."""
    parser = argparse.ArgumentParser(prog="python -m bench.sink", description=__doc__)
    parser.add_argument("--partitions", type=int, default=12)
    parser.add_argument("--spin-ms", type=float, default=0.0)
    args = parser.parse_args()
    sink = Sink(args.partitions, args.spin_ms / 1000)
    sys.stdout.write(f"{sink.port}\n")
    sys.stdout.flush()
    sink.run()


if __name__ == "__main__":
    main()
