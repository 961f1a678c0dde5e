"""Asks a broker which brokers its cluster has: one Metadata request over a plain socket.

The smallest question whose answer proves that a node serves clients and has joined the cluster.
Standard library only, so that scripts need no installation.
"""

from __future__ import annotations

import dataclasses
import socket
import struct
import time

METADATA = 3
VERSION = 1  # the oldest version Kafka 4 speaks that tells the controller
MAX_ANSWER_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class ClusterView:
    """What one broker says about its cluster."""

    brokers: tuple[tuple[int, str, int], ...]  # (node id, host, port)
    controller: int  # node id, -1 while there is none


def ask(host: str, port: int, timeout_s: float = 2.0) -> ClusterView | None:
    """The broker's view of its cluster, or None when it does not answer in time or not sensibly."""
    deadline = time.monotonic() + timeout_s
    client_id = b"probe"
    head = struct.pack(f">hhih{len(client_id)}s", METADATA, VERSION, 1, len(client_id), client_id)
    request = head + struct.pack(">i", 0)  # no topics
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            size = struct.unpack(">i", _read(connection, 4, deadline))[0]
            if not 0 < size <= MAX_ANSWER_BYTES:
                return None
            return _view(_read(connection, size, deadline))
    except (OSError, struct.error, UnicodeDecodeError):
        return None


def _read(connection: socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionError("the broker closed the connection")
        data += piece
    return data


def _view(answer: bytes) -> ClusterView:
    place = 4  # past the correlation id

    def number(form: str) -> int:
        nonlocal place
        value: int = struct.unpack_from(form, answer, place)[0]
        place += struct.calcsize(form)
        return value

    def text() -> str:
        nonlocal place
        size = max(0, number(">h"))  # -1 is null
        place += size
        return answer[place - size : place].decode()

    brokers = []
    for _ in range(number(">i")):
        node, host, port = number(">i"), text(), number(">i")
        text()  # rack
        brokers.append((node, host, port))
    return ClusterView(tuple(sorted(brokers)), number(">i"))
