"""Control messages between worker and sender: a u32 length and a plain dict, over a Unix socket.

Small and rare (attach, a new topic, flush, detach); records and completions never come this way.
"""

from __future__ import annotations

import select
import time

# Not `socket`: it makes enums of some hundred constants, for a worker that needs six. Sockets of
# that module are of this class too.
from _socket import (
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    SCM_RIGHTS,
    SO_PEERCRED,
    SOL_SOCKET,
    close,
    socket,
)
from sys import byteorder

from mpproducer.errors import SenderError
from mpproducer.shm import plain

TYPE_CHECKING = False  # typing is dear: see light.py
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Message: TypeAlias = dict[str, Any]

MAX_MESSAGE_BYTES = 1 << 20
MAX_FDS = 8
_LENGTH_BYTES = 4
_INT_BYTES = 4


class ControlError(SenderError):
    """The other side of the control socket sent something that is no control message."""


def encode(message: Message) -> bytes:
    """Return the message as it goes over the socket."""
    body = plain.dump(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise ControlError(f"a control message of {len(body)} bytes exceeds {MAX_MESSAGE_BYTES}")
    return len(body).to_bytes(_LENGTH_BYTES, "little") + body


class Decoder:
    """Turns received bytes into messages; keeps an incomplete one, never more than 1 MiB of it."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Add bytes, return the messages that are complete by now. Raises ControlError."""
        self._buffer += data
        messages: list[Message] = []
        while len(self._buffer) >= _LENGTH_BYTES:
            length = int.from_bytes(self._buffer[:_LENGTH_BYTES], "little")
            if length > MAX_MESSAGE_BYTES:
                raise ControlError(f"a control message claims {length} bytes")
            if len(self._buffer) < _LENGTH_BYTES + length:
                break
            body = bytes(self._buffer[_LENGTH_BYTES : _LENGTH_BYTES + length])
            del self._buffer[: _LENGTH_BYTES + length]
            messages.append(_parse(body))
        return messages


def _parse(body: bytes) -> Message:
    try:
        message = plain.load(body)
    except ValueError as error:
        raise ControlError(f"a control message makes no sense: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ControlError("a control message is not a dict with a type")
    return message


def _wait(sock: socket, events: int, deadline_ns: int) -> None:
    poller = select.poll()
    poller.register(sock, events)
    left_ms = (deadline_ns - time.monotonic_ns()) / 1e6
    if left_ms <= 0 or not poller.poll(left_ms):
        raise TimeoutError("the control socket did not answer in time")


def send_bytes(sock: socket, data: bytes, deadline_ns: int) -> int:
    """Send what the peer takes by the deadline; returns how many bytes that was.

    Raises OSError when the peer is gone.
    """
    view = memoryview(data)
    sent = 0
    while sent < len(data):
        try:
            sent += sock.send(view[sent:])
        except BlockingIOError:
            try:
                _wait(sock, select.POLLOUT, deadline_ns)
            except TimeoutError:
                break
    return sent


def send_with_fds(sock: socket, message: Message, fds: list[int], deadline_ns: int) -> None:
    """Send one message, with descriptors if any, on a non-blocking socket.

    Raises TimeoutError at the deadline (CLOCK_MONOTONIC ns), OSError when the peer is gone.
    """
    data = memoryview(encode(message))
    numbers = b"".join(fd.to_bytes(_INT_BYTES, byteorder) for fd in fds)
    rights = [(SOL_SOCKET, SCM_RIGHTS, numbers)] if fds else []
    while data:
        try:
            sent = sock.sendmsg([data], rights) if rights else sock.send(data)
        except BlockingIOError:
            _wait(sock, select.POLLOUT, deadline_ns)
            continue
        rights = []
        data = data[sent:]


def recv_with_fds(sock: socket, deadline_ns: int) -> tuple[Message, list[int]]:
    """Receive one message and the descriptors that came with it.

    Raises TimeoutError at the deadline, ConnectionError at EOF, ControlError for nonsense. The
    caller owns the descriptors.
    """
    decoder = Decoder()
    fds: list[int] = []
    try:
        while True:
            try:
                # Not socket.recv_fds: it drops its flags.
                data, ancillary, _flags, _address = sock.recvmsg(
                    65536, CMSG_SPACE(MAX_FDS * _INT_BYTES), MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                _wait(sock, select.POLLIN, deadline_ns)
                continue
            for level, kind, payload in ancillary:
                if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
                    fds += _ints(payload)
            if not data:
                raise ConnectionError("the control socket was closed")
            messages = decoder.feed(data)
            if messages:
                return messages[0], fds
    except BaseException:
        for fd in fds:
            close(fd)
        raise


def receive(sock: socket, decoder: Decoder, deadline_ns: int) -> Message:
    """Receive the newest message that is there, waiting for one until the deadline.

    The decoder belongs to the socket: it keeps what is incomplete. Raises as `recv_with_fds`.
    """
    while True:
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            _wait(sock, select.POLLIN, deadline_ns)
            continue
        if not data:
            raise ConnectionError("the control socket was closed")
        if messages := decoder.feed(data):
            return messages[-1]


def peer_credentials(sock: socket) -> tuple[int, int, int]:
    """Return (pid, uid, gid) of the process at the other end (SO_PEERCRED)."""
    pid, uid, gid = _ints(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 3 * _INT_BYTES))
    return pid, uid, gid


def _ints(data: bytes) -> list[int]:
    """The whole C ints in the bytes."""
    whole = len(data) // _INT_BYTES * _INT_BYTES
    return memoryview(data)[:whole].cast("i").tolist()
