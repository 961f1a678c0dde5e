"""A non-blocking stream to one broker.

`write` takes a list of buffers, some of them views of shared memory, and hands them to the kernel
without copying. What the kernel does not take stays in the stream, in order, until `flush`: the
caller must keep that memory unchanged until `flush` has returned True or the stream is closed.

TLS and SASL fit behind the same methods: `finish_connect` returns True only when the peer may be
sent Kafka requests.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from mpproducer.net.errors import StreamClosed

Buffer: TypeAlias = bytes | bytearray | memoryview
# Linux takes at most IOV_MAX buffers per call; more would fail with EMSGSIZE.
_IOV_MAX: Final = min(os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 1024, 1024)
_IN_PROGRESS: Final = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY})
# Nothing more can be done for a peer that vanished without a FIN; the request timeout is the
# first line, this bounds connections without requests.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 5))


class Address(NamedTuple):
    """One socket address of a host, as getaddrinfo gives it."""

    family: int
    sockaddr: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.sockaddr[0]}:{self.sockaddr[1]}"


class Stream(Protocol):
    """What the loop needs of a connection, whatever the security protocol."""

    def fileno(self) -> int:
        """The descriptor to wait for."""
        ...

    def finish_connect(self) -> bool:
        """Go on with connecting; True when requests may be sent. Raises OSError."""
        ...

    def write(self, buffers: Sequence[Buffer]) -> bool:
        """Send; True when everything was handed to the kernel. Raises OSError."""
        ...

    def flush(self) -> bool:
        """Go on with what `write` left behind; True when nothing is left. Raises OSError."""
        ...

    def read_into(self, view: memoryview) -> int:
        """Receive; 0 when nothing is there. Raises StreamClosed at the end, or OSError."""
        ...

    @property
    def wants_write(self) -> bool:
        """Wait for writability: connecting, or a write is unfinished."""
        ...

    def close(self) -> None:
        """Close at once; unsent bytes are dropped and their memory is no longer read."""
        ...


class TcpStream:
    """Plain TCP. Construction starts connecting and returns at once."""

    def __init__(self, address: Address, send_buffer_bytes: int, receive_buffer_bytes: int) -> None:
        """Raises OSError if the attempt fails at once (no route, no descriptors)."""
        self._left: list[memoryview] = []
        self._connecting = True
        self._socket = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._configure(send_buffer_bytes, receive_buffer_bytes)
            code = self._socket.connect_ex(address.sockaddr)
            if code and code not in _IN_PROGRESS:
                raise OSError(code, os.strerror(code))
        except BaseException:
            self._socket.close()
            raise

    def _configure(self, send_buffer_bytes: int, receive_buffer_bytes: int) -> None:
        sock = self._socket
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if send_buffer_bytes >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        if receive_buffer_bytes >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)

    def fileno(self) -> int:
        """The socket's descriptor; -1 once closed."""
        return self._socket.fileno()

    def finish_connect(self) -> bool:
        """Called when the socket became writable; True: connected. Raises OSError."""
        if self._connecting:
            code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            try:
                self._socket.getpeername()
            except OSError as error:
                if error.errno == errno.ENOTCONN:
                    return False
                raise
            self._connecting = False
        return True

    @property
    def wants_write(self) -> bool:
        """Connecting, or bytes are left."""
        return self._connecting or bool(self._left)

    def write(self, buffers: Sequence[Buffer]) -> bool:
        """Send now what the kernel takes; True when that was everything. Raises OSError."""
        if self._left:
            self._left.extend(memoryview(buffer).cast("B") for buffer in buffers if len(buffer))
            return self.flush()
        try:
            sent = self._socket.sendmsg(buffers if len(buffers) <= _IOV_MAX else buffers[:_IOV_MAX])
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent == sum(map(len, buffers)):
            return True
        self._left = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        self._sent(sent)
        return bool(sent) and self.flush()

    def flush(self) -> bool:
        """Send what is left as far as the kernel takes it. Raises OSError.

        Its buffer is full only when it refuses: the peer reads meanwhile, and one more call costs
        less than a turn of the loop."""
        left = self._left
        while left:
            offered = left if len(left) <= _IOV_MAX else left[:_IOV_MAX]
            try:
                sent = self._socket.sendmsg(offered)
            except (BlockingIOError, InterruptedError):
                return False
            self._sent(sent)
        return True

    def _sent(self, count: int) -> None:
        """Drop what was sent of what is left."""
        left = self._left
        done = 0
        while done < len(left) and count >= len(left[done]):
            count -= len(left[done])
            done += 1
        del left[:done]
        if count:
            left[0] = left[0][count:]

    def read_into(self, view: memoryview) -> int:
        """Receive into `view`; 0 when nothing is there. Raises StreamClosed, OSError."""
        try:
            count = self._socket.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return 0
        if count == 0:
            raise StreamClosed("the broker closed the connection")
        return count

    def close(self) -> None:
        """Close at once. Views of shared memory are let go of."""
        self._left.clear()
        self._socket.close()
