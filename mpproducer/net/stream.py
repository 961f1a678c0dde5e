"""A non-blocking stream to one broker.

`write` takes a `Send`, whose bytes may be in shared memory, and has it hand them to the kernel
without copying. What the kernel does not take stays in the stream, in order, until `flush`: the
caller must keep that memory unchanged until `flush` has returned True or the stream is closed.

TLS and SASL fit behind the same methods: `finish_connect` returns True only when the peer may be
sent Kafka requests; `Send.peek`, `Send.advance` and `FrameReader.read` are there for a stream that
changes the bytes on their way.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from mpproducer.net.errors import StreamClosed

if TYPE_CHECKING:
    from mpproducer._core.native import FrameReader, Send

MAX_FRAME_BYTES: Final = 100 * 1024 * 1024  # socket.request.max.bytes of a broker
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

    def write(self, send: Send) -> bool:
        """Send; True when everything was handed to the kernel. Raises OSError."""
        ...

    def flush(self) -> bool:
        """Go on with what `write` left behind; True when nothing is left. Raises OSError."""
        ...

    def receive(self, reader: FrameReader) -> tuple[int, list[bytes]]:
        """Receive once into `reader`: (bytes, whole frames); 0 bytes when nothing is there. Raises
        StreamClosed at the end, FrameTooLarge, or OSError."""
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
        self._left: deque[Send] = deque()
        self._connecting = True
        self._socket = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._fd = self._socket.fileno()
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
        return self._fd

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

    def write(self, send: Send) -> bool:
        """Send now what the kernel takes; True when that was everything. Raises OSError."""
        if not self._left and send.write_to(self._fd):
            return True
        self._left.append(send)
        return False

    def flush(self) -> bool:
        """Send what is left as far as the kernel takes it. Raises OSError."""
        left = self._left
        while left:
            if not left[0].write_to(self._fd):
                return False
            left.popleft()
        return True

    def receive(self, reader: FrameReader) -> tuple[int, list[bytes]]:
        """Receive what is there, once. Raises StreamClosed, FrameTooLarge, OSError."""
        count, frames = reader.receive(self._fd)
        if count < 0:
            raise StreamClosed("the broker closed the connection")
        return count, frames

    def close(self) -> None:
        """Close at once. Memory that was still to be sent is let go of."""
        self._left.clear()
        self._socket.close()
        self._fd = -1
