"""The Unix socket where workers come in: handshake, control messages, goodbye.

Nothing here waits for a worker. A peer that connects and says nothing is dropped after a while; one
that talks nonsense at once. Who a peer is, the kernel says (SO_PEERCRED, SO_PEERPIDFD); what it
claims about itself is only checked, never believed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mpproducer.config import Config
from mpproducer.errors import ConfigError, SenderError
from mpproducer.sender import actions
from mpproducer.sender.batch import NEVER_NS
from mpproducer.sender.workers import Worker
from mpproducer.shm import control
from mpproducer.version import __version__

if TYPE_CHECKING:
    from mpproducer.sender.loop import Loop

_LOG = logging.getLogger("mpproducer.sender")

MAGIC: Final = "mpproducer"
_HELLO_NS: Final = 5_000_000_000
_REPLY_NS: Final = 100_000_000  # a reply finds an empty socket buffer; this is only a bound
_ACCEPT_PAUSE_NS: Final = 200_000_000
_SO_PEERPIDFD: Final = 77
_CHUNK: Final = 64 * 1024
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass
class Region:
    """What a welcomed worker gets: the descriptors and the geometry behind them."""

    ctl_fd: int
    pool_fd: int
    wake_fd: int
    slots: int
    max_partitions: int
    max_topics: int
    generation: int
    layout_hash: int


@dataclass
class Greeting:
    """A connection that has not said hello yet."""

    sock: socket.socket
    decoder: control.Decoder
    until_ns: int


class Refused(Exception):
    """A worker that is not welcome, and what it is told."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Server:
    """Listens, welcomes, and reads control messages. Lives in the loop's thread."""

    def __init__(
        self,
        listener: socket.socket,
        epoll: select.epoll,
        handlers: dict[int, Callable[[int], None]],
        start: Callable[[Config], tuple[Loop, Region]],
        layout_hash: int,
    ) -> None:
        self._listener = listener
        self._epoll = epoll
        self._handlers = handlers
        self._start = start
        self._layout_hash = layout_hash
        self._greetings: dict[int, Greeting] = {}
        self._accept_again_ns = 0
        self.loop: Loop | None = None
        self.region: Region | None = None
        self.closing = False
        listener.setblocking(False)
        epoll.register(listener.fileno(), select.EPOLLIN)
        handlers[listener.fileno()] = self._accept

    # --- coming in

    def _accept(self, _mask: int) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    raise
                # The peer stays in the backlog and would wake us for ever.
                _LOG.warning("cannot accept a worker now: %s", error)
                self._epoll.modify(self._listener.fileno(), 0)
                self._accept_again_ns = time.monotonic_ns() + _ACCEPT_PAUSE_NS
                return
            sock.setblocking(False)
            fd = sock.fileno()
            until_ns = time.monotonic_ns() + _HELLO_NS
            greeting = Greeting(sock, control.Decoder(), until_ns)
            self._greetings[fd] = greeting
            self._handlers[fd] = lambda _mask, greeting=greeting: self._greet(greeting)  # type: ignore[misc]
            self._epoll.register(fd, select.EPOLLIN)

    def on_turn(self, now_ns: int) -> int:
        """Bounds: peers that never say hello, and the pause after running out of descriptors.
        Returns when there is something to do next."""
        if not self._greetings and not self._accept_again_ns:
            return NEVER_NS
        for greeting in [g for g in self._greetings.values() if g.until_ns <= now_ns]:
            self._drop(greeting)
        if self._accept_again_ns and self._accept_again_ns <= now_ns:
            self._accept_again_ns = 0
            self._epoll.modify(self._listener.fileno(), select.EPOLLIN)
        greetings = [greeting.until_ns for greeting in self._greetings.values()]
        return min([self._accept_again_ns or NEVER_NS, *greetings])

    def _drop(self, greeting: Greeting) -> None:
        self._forget(greeting)
        greeting.sock.close()

    def _forget(self, greeting: Greeting) -> None:
        fd = greeting.sock.fileno()
        self._greetings.pop(fd, None)
        self._handlers.pop(fd, None)
        self._epoll.unregister(fd)

    def _greet(self, greeting: Greeting) -> None:
        try:
            data = greeting.sock.recv(_CHUNK)
            messages = greeting.decoder.feed(data) if data else []
        except BlockingIOError:
            return
        except (OSError, SenderError) as error:
            _LOG.warning("a peer on the control socket was dropped: %s", error)
            self._drop(greeting)
            return
        if not data:
            self._drop(greeting)
            return
        if not messages:
            return
        self._forget(greeting)
        try:
            self._admit(greeting, messages[0])
        except Refused as refused:
            self._refuse(greeting.sock, refused)
            return
        for message in messages[1:]:
            self._on_message_of(greeting.sock, message)

    def _refuse(self, sock: socket.socket, refused: Refused) -> None:
        if self.loop is not None:
            self.loop.counters.worker_refused_total += 1
        answer = {"type": "refused", "reason": refused.reason, "message": str(refused)}
        with contextlib.suppress(OSError):
            control.send_with_fds(sock, answer, [], time.monotonic_ns() + _REPLY_NS)
        sock.close()

    def _admit(self, greeting: Greeting, hello: control.Message) -> None:
        """Check a hello and attach its process. Raises Refused."""
        sock = greeting.sock
        pid, uid, _ = control.peer_credentials(sock)
        if uid != os.getuid():
            raise Refused("uid", f"this sender belongs to uid {os.getuid()}")
        if hello.get("type") in ("status", "stop", "metrics") and self.loop is not None:
            self._serve_visitor(sock, hello)
            return
        config = self._check_hello(hello)
        pidfd = _pidfd_of(sock, pid)
        try:
            if self.loop is None or self.region is None:
                try:
                    self.loop, self.region = self._start(config)
                except (SenderError, OSError) as error:
                    # No memory for the segments is the configuration's fault: say so.
                    raise Refused("memory", str(error)) from error
            self._welcome(self.loop, self.region, sock, pid, pidfd)
        except BaseException:
            os.close(pidfd)
            raise

    def _check_hello(self, hello: control.Message) -> Config:
        if hello.get("type") != "hello" or hello.get("magic") != MAGIC:
            raise Refused("version", "this is the socket of an mpproducer sender: say hello")
        if hello.get("version") != __version__ or hello.get("layout_hash") != self._layout_hash:
            raise Refused(
                "version",
                f"this host's sender runs mpproducer {__version__}, the worker "
                f"{hello.get('version')!s}: stop the processes of one of them",
            )
        if self.closing:
            raise Refused("closing", "this sender is ending")
        try:
            config = Config.from_wire(hello.get("config"))
        except ConfigError as error:
            raise Refused("config", str(error)) from error
        if self.loop is not None and config.sender_key() != self.loop.config.sender_key():
            raise Refused(
                "config", "this rendezvous belongs to a sender with another configuration"
            )
        return config

    def _welcome(
        self, loop: Loop, region: Region, sock: socket.socket, pid: int, pidfd: int
    ) -> None:
        owner = loop.free_owner()
        if not owner:
            raise Refused("full", "this host's sender has no owner id left for one more process")
        worker = Worker(owner, pid, pidfd, sock)
        reader = worker.open_pipe()
        loop.pool.owner_alive(owner, True)
        answer = {
            "type": "welcome",
            "owner": owner,
            "slots": region.slots,
            "max_partitions": region.max_partitions,
            "max_topics": region.max_topics,
            "sender_pid": os.getpid(),
            "generation": region.generation,
            "client_id": loop.config.client_id,
        }
        fds = [region.ctl_fd, region.pool_fd, region.wake_fd, reader]
        try:
            control.send_with_fds(sock, answer, fds, time.monotonic_ns() + _REPLY_NS)
        except (OSError, SenderError) as error:
            _LOG.warning("worker %d left during the handshake: %s", pid, error)
            worker.pidfd = -1  # the caller closes it
            worker.close()
            loop.pool.owner_alive(owner, False)
            loop.workers.retired[owner] = None
            # It may have been the first, and nobody else may come.
            loop.report(actions.WorkerGone(owner))
            raise Refused("closing", "the handshake was broken off") from error
        finally:
            os.close(reader)
        loop.worker_joined(worker)
        self._watch(worker)

    def _watch(self, worker: Worker) -> None:
        self._handlers[worker.pidfd] = lambda _mask: self._gone(worker, died=True)
        self._epoll.register(worker.pidfd, select.EPOLLIN)
        if worker.sock is not None:
            fd = worker.sock.fileno()
            self._handlers[fd] = lambda _mask: self._readable(worker)
            self._epoll.register(fd, select.EPOLLIN)

    def _serve_visitor(self, sock: socket.socket, message: control.Message) -> None:
        """Somebody asks for status or stop, or comes for the metrics, without attaching."""
        fds: list[int] = []
        with contextlib.suppress(OSError, SenderError):
            if message["type"] == "metrics" and self.loop is not None and self.region is not None:
                answer: control.Message | None = self._metrics(self.loop, self.region)
                fds = [self.region.ctl_fd]  # sealed: no writable mapping can be made of it
            else:
                answer = self._answer(message)
            if answer is not None:
                control.send_with_fds(sock, answer, fds, time.monotonic_ns() + _REPLY_NS)
        sock.close()

    # --- control messages

    def _readable(self, worker: Worker) -> None:
        sock = worker.sock
        if sock is None:
            return
        try:
            data = sock.recv(_CHUNK)
            messages = worker.decoder.feed(data) if data else []
        except BlockingIOError:
            return
        except (OSError, SenderError) as error:
            _LOG.warning("worker %d: control socket dropped: %s", worker.pid, error)
            data, messages = b"", []
        if not data:
            # Not a sign of death: the pidfd tells.
            self._drop_socket(worker)
            return
        for message in messages:
            self._on_message(worker, message)
            if worker.sock is None:
                return

    def _drop_socket(self, worker: Worker) -> None:
        if worker.sock is not None:
            fd = worker.sock.fileno()
            self._handlers.pop(fd, None)
            self._epoll.unregister(fd)
            worker.close_socket()

    def _on_message_of(self, sock: socket.socket, message: control.Message) -> None:
        if self.loop is not None:
            for worker in list(self.loop.workers.by_owner.values()):
                if worker.sock is sock:
                    self._on_message(worker, message)

    def _on_message(self, worker: Worker, message: control.Message) -> None:
        loop = self.loop
        if loop is None:
            return
        kind = message["type"]
        if kind == "topic":
            self._want_topic(loop, message.get("name"))
        elif kind == "flush":
            # What the worker appended before it asked is in shared memory already.
            loop.collect()
            loop.report(actions.FlushAsked())
        elif kind == "bye":
            worker.left = True
            self._gone(worker, died=False)
        elif worker.sock is not None:
            answer = self._answer(message)
            if answer is not None:
                with contextlib.suppress(OSError, SenderError):
                    control.send_with_fds(worker.sock, answer, [], time.monotonic_ns() + _REPLY_NS)

    def _want_topic(self, loop: Loop, name: Any) -> None:
        if not isinstance(name, str):
            return
        try:
            index = loop.pool.topic_add(name)
        except (OverflowError, ValueError) as error:
            _LOG.error(
                "topic %.80r has no place in the host's directory (max_topics=%d): %s",
                name,
                loop.config.max_topics,
                error,
            )
            return
        loop.report(actions.TopicWanted(name, index))

    def _answer(self, message: control.Message) -> control.Message | None:
        loop = self.loop
        if loop is None:
            return None
        if message["type"] == "stop":
            self.closing = True
            self.close_soon(loop.config.close_timeout_ms)
            return None
        if message["type"] == "status":
            return self.status(loop)
        return {"type": "error", "message": f"unknown message {message['type']!r:.80}"}

    @staticmethod
    def _metrics(loop: Loop, region: Region) -> control.Message:
        """Where the metrics are: the reader maps the segment and names them itself."""
        loop.publish_counters()
        return {
            "type": "metrics",
            "pid": os.getpid(),
            "client_id": loop.config.client_id,
            "max_partitions": region.max_partitions,
            "max_topics": region.max_topics,
        }

    def status(self, loop: Loop) -> control.Message:
        """What the sender says about itself; no secrets, no payload."""
        loop.publish_counters()
        return {
            "type": "status",
            "pid": os.getpid(),
            "version": __version__,
            "client_id": loop.config.client_id,
            "workers": [worker.pid for worker in loop.workers.by_owner.values()],
            "topics": len(loop.machine.metadata.topics),
            "nodes": [
                {"id": node.node_id, "host": node.host, "port": node.port, "why": node.why}
                | {"state": node.state.name, "in_flight": len(node.in_flight)}
                for node in loop.machine.nodes.all()
            ],
            "counters": loop.counter_values(),
        }

    # --- going

    def _gone(self, worker: Worker, *, died: bool) -> None:
        loop = self.loop
        if loop is None or worker.pidfd < 0:
            return
        if not died:
            # A bye and what was appended before it are in order: appends come first.
            loop.collect()
        self._handlers.pop(worker.pidfd, None)
        self._epoll.unregister(worker.pidfd)
        self._drop_socket(worker)
        loop.worker_gone(worker, died=died)
        worker.close()
        if self.closing and not loop.workers.by_owner:
            self.close_soon(loop.config.close_timeout_ms)

    def close_soon(self, timeout_ms: int) -> None:
        """Deliver until the timeout, then end."""
        self.closing = True
        if self.loop is not None:
            deadline_ns = time.monotonic_ns() + timeout_ms * 1_000_000
            self.loop.report(actions.CloseAsked(deadline_ns))

    def terminate(self, *, at_once: bool) -> None:
        """SIGTERM: serve the workers that are here until they go; the second one ends now."""
        self.closing = True
        if self.loop is None:
            return
        if at_once:
            self.close_soon(0)
        elif not self.loop.workers.by_owner:
            self.close_soon(self.loop.config.close_timeout_ms)

    def refuse_the_rest(self) -> None:
        """The socket is unlinked: who is still in its queue is told to come again."""
        self.closing = True
        self._accept(0)
        for greeting in list(self._greetings.values()):
            self._forget(greeting)
            self._refuse(greeting.sock, Refused("closing", "this sender is ending"))
        fd = self._listener.fileno()
        self._handlers.pop(fd, None)
        self._epoll.unregister(fd)
        self._listener.close()

    def close_workers(self) -> None:
        """Close every pipe and socket: the workers that are left learn that the sender ended."""
        if self.loop is not None:
            for worker in list(self.loop.workers.by_owner.values()):
                worker.close()


def _pidfd_of(sock: socket.socket, pid: int) -> int:
    """A pidfd of the peer. SO_PEERPIDFD names the process that connected even if its pid was
    taken by another one since; older kernels have only the pid."""
    try:
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
        except OSError as error:
            # Whatever else is wrong (it has ended, or we have no descriptor left): its pid may be
            # another process's by now.
            if error.errno != errno.ENOPROTOOPT:
                raise
            return os.pidfd_open(pid)
    except OSError as error:
        raise Refused("uid", f"the process {pid} cannot be watched: {error}") from error
    pidfd: int = struct.unpack("i", raw)[0]
    os.set_inheritable(pidfd, False)
    return pidfd
