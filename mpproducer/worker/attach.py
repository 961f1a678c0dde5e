"""One attachment per process and rendezvous, whatever the number of `Producer` objects (D15).

A pickled producer is a new object in every task and garbage right after, so the attachment
belongs to the process: it is found here by its rendezvous, made under a lock, and lives until the
process detaches, exits, or its sender dies. After a fork the child starts with an empty table.
"""

from __future__ import annotations

import atexit
import os
import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket

from mpproducer._core import native
from mpproducer.config import Config
from mpproducer.errors import KafkaError, SenderError, SenderStartFailed, SenderVersionMismatch
from mpproducer.light import Lock, RLock, logger, ref, suppress
from mpproducer.shm import control
from mpproducer.shm.rendezvous import Rendezvous, lock, unlock
from mpproducer.version import __version__
from mpproducer.worker.start import log_tail, start_sender

TYPE_CHECKING = False  # typing is dear: see light.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_LOG = "mpproducer.worker"

NS = 1_000_000_000
_ENDING_NS = NS // 5
_BUSY_NS = NS


class Link:
    """The attachment of this process to one sender, with its control socket."""

    def __init__(
        self,
        place: Rendezvous,
        config: Config,
        attachment: native.Attachment,
        sock: socket,
        sender_pid: int,
    ) -> None:
        self.place = place
        self.config = config
        self.attachment = attachment
        self.sock = sock
        self.sender_pid = sender_pid
        self.send_lock = Lock()
        self.handles: set[ref[Any]] = set()
        """`Producer` objects that use this link: neither closed nor garbage."""
        self.unsent = b""
        """The rest of a message that the socket did not take: it goes before any other."""
        self.answer_lock = Lock()
        self.decoder = control.Decoder()

    def tell(self, message: control.Message, deadline_ns: int) -> None:
        """Send a control message. Raises SenderError when the sender is gone or silent."""
        if not self.send_lock.acquire(timeout=_left_s(deadline_ns)):
            raise SenderError("the host's sender does not answer: its socket is full")
        try:
            for data in (self.unsent, control.encode(message)):
                self.unsent = data[control.send_bytes(self.sock, data, deadline_ns) :]
                if self.unsent:
                    raise SenderError("the host's sender does not answer: its socket is full")
        except OSError as error:
            raise SenderError(f"the host's sender does not answer: {error}") from error
        finally:
            self.send_lock.release()

    def status(self, deadline_ns: int) -> control.Message:
        """Ask the sender how it is. Raises SenderError by the deadline."""
        if not self.answer_lock.acquire(timeout=_left_s(deadline_ns)):
            raise SenderError("another thread of this process is asking the sender")
        try:
            self.tell({"type": "status"}, deadline_ns)
            return control.receive(self.sock, self.decoder, deadline_ns)
        except OSError as error:
            raise SenderError(f"the host's sender does not answer: {error}") from error
        finally:
            self.answer_lock.release()

    def usable(self) -> bool:
        """Whether records can still be appended through this link."""
        return not self.attachment.closed and not self.attachment.sender_dead

    def flush(self, deadline_ns: int) -> int:
        """Have everything sealed and wait for this process's records; returns pending batches."""
        pending = self.attachment.pending_ids()
        if not pending:
            return 0
        with suppress(SenderError):
            # A dead sender resolves what is pending by itself, at the next read of the pipe.
            self.tell({"type": "flush"}, deadline_ns)
        return self.attachment.wait_for(pending, deadline_ns)

    def detach(self) -> None:
        """Leave cleanly: no further append under this owner id; the sender delivers the rest."""
        self.attachment.drain()
        if not self.leave(_BUSY_NS):
            logger(_LOG).warning(
                "detached while another thread still compresses a batch or waits for memory; "
                "the sender keeps this process's place until it ends"
            )

    def leave(self, patience_ns: int) -> bool:
        """Close the attachment, and say bye once nobody acts under its owner id any more.

        1. Another thread compresses a batch, or waits for memory; this one says bye.
        2. The sender reaps the owner, and gives its slots to others.
        3. The other thread goes on writing into them.

        So who is still at it then leaves without a word, which returns False: to the sender a
        closed socket means nothing, and the owner lasts until its process ends.
        """
        self.attachment.close()
        until_ns = time.monotonic_ns() + patience_ns
        while self.attachment.busy and time.monotonic_ns() < until_ns:
            time.sleep(0.001)
        idle = not self.attachment.busy
        if idle:
            with suppress(SenderError):
                self.tell({"type": "bye"}, time.monotonic_ns() + NS)
        self.sock.close()
        return idle


def _left_s(deadline_ns: int) -> float:
    return max(0.0, (deadline_ns - time.monotonic_ns()) / NS)


class _Table:
    """The links of this process, by rendezvous folder."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        # Never held while anything is waited for. Reentrant, for signal handlers that send.
        self.lock = RLock()
        self.turns: dict[str, Lock] = {}  # who attaches to a rendezvous now
        self.links: dict[str, Link] = {}
        self.known: dict[str, tuple[Config, Rendezvous]] = {}  # of process 1 only

    def forget(self) -> None:
        """In a forked child: give up what was inherited, without touching anything shared."""
        inherited = list(self.links.values())
        self.__init__()  # type: ignore[misc]  # fresh locks: the old ones may be held for ever
        for link in inherited:
            link.attachment.forget()
            link.sock.close()


_table = _Table()
_exit_registered = False
_link_hooks: list[Callable[[Link], None]] = []


def on_link(hook: Callable[[Link], None]) -> None:
    """Have `hook` called with every new link (the producer installs its compressor so)."""
    _link_hooks.append(hook)


def find(place: Rendezvous) -> Link | None:
    """Return the usable link of this process to a rendezvous, if there is one."""
    with _table.lock:
        link = _table.links.get(place.folder)
        return link if link is not None and link.usable() else None


def link_of(attachment: native.Attachment) -> Link | None:
    """Return the link that an attachment belongs to."""
    with _table.lock:
        for link in _table.links.values():
            if link.attachment is attachment:
                return link
    return None


def attach(config: Config, place: Rendezvous, deadline_ns: int) -> Link:
    """Return this process's link, attaching, and starting the host's sender, where needed.

    Thread-safe; one thread of a process attaches, the others wait for it. Raises
    SenderStartFailed, SenderVersionMismatch or another SenderError by the deadline.
    """
    known = find(place)
    if known is not None:
        return known
    name = place.folder
    with _table.lock:
        turn = _table.turns.setdefault(name, Lock())
    if not turn.acquire(timeout=_left_s(deadline_ns)):
        raise SenderStartFailed("another thread of this process is still attaching")
    try:
        return _attach_in_turn(config.lasting(), place, deadline_ns)
    except OSError as error:
        raise SenderStartFailed(
            f"this process cannot attach to the sender of {place.folder}: {error}"
        ) from error
    finally:
        turn.release()


def _attach_in_turn(config: Config, place: Rendezvous, deadline_ns: int) -> Link:
    name = place.folder
    known = _table.links.get(name)
    if known is not None:
        if known.usable():
            return known
        _drop(known)
    link = _connect(config, place, deadline_ns)
    if known is not None:
        link.handles = known.handles
    with _table.lock:
        _table.links[name] = link
    _register_exit()
    for hook in _link_hooks:
        hook(link)
    return link


def _drop(link: Link) -> None:
    # Its sender may live: a worker that let its completions overflow has its pipe closed.
    link.leave(0)
    _table.links.pop(link.place.folder, None)


def use(link: Link, handle: object) -> bool:
    """Note that a `Producer` uses the link, until it says `leave` or is garbage.

    False when another thread has detached it since it was found: it ends, attach again.
    """
    with _table.lock:
        if _table.links.get(link.place.folder) is not link:
            return False
        link.handles.add(ref(handle, link.handles.discard))
        return True


def leave(place: Rendezvous, handle: object) -> None:
    """A `Producer` was closed: when no other one uses the link, the process detaches."""
    with _table.lock:
        link = _table.links.get(place.folder)
        if link is None or ref(handle) not in link.handles:
            return
        link.handles.discard(ref(handle))
        last = not link.handles
    if last:
        detach(link)


def detach(link: Link) -> None:
    """Detach this process from a sender, if the link still is the current one."""
    with _table.lock:
        if _table.links.get(link.place.folder) is link:
            del _table.links[link.place.folder]
    link.detach()
    _remove_leftovers(link)


def _connect(config: Config, place: Rendezvous, deadline_ns: int) -> Link:
    """Connect to the sender of the rendezvous, starting it if there is none.

    Connecting without a lock is the common case. Only who finds nobody takes `start.lock`, looks
    again, and starts a sender; everybody else finds that one when the lock is free.
    """
    start_deadline_ns = min(
        deadline_ns, time.monotonic_ns() + config.sender_start_timeout_ms * 1_000_000
    )
    refused: SenderError | None = None
    while time.monotonic_ns() < start_deadline_ns or refused is None:
        place.create()
        try:
            link = _try_connect(config, place, start_deadline_ns)
            if link is None:
                link = _start_and_connect(config, place, start_deadline_ns)
        except _Closing as closing:
            refused = closing
            time.sleep(0.005)  # the sender of that socket is on its way out
            continue
        if link is not None:
            return link
        refused = SenderStartFailed("no sender could be reached")
        if time.monotonic_ns() >= start_deadline_ns:
            break
    raise SenderStartFailed(
        f"no sender for {place.folder} could be reached in time: {refused}"
    ) from refused


def _start_and_connect(config: Config, place: Rendezvous, deadline_ns: int) -> Link | None:
    try:
        held = lock(place.start_lock, deadline_ns)
    except FileNotFoundError:
        return None  # a sender that ended removed the folder: create it again
    if held is None:
        raise SenderStartFailed(f"another process holds {place.start_lock} while starting a sender")
    try:
        link = _try_connect(config, place, deadline_ns)
        if link is not None:
            return link
        try:
            start_sender(place, config.sender_python, deadline_ns)
            return _try_connect(config, place, deadline_ns)
        except _Ended as ended:
            # Not a sender on its way out: the one started just now. Another would fare no better.
            text = f"the host's sender process ended with its first worker{log_tail(place.log)}"
            _remove_if_dead(place)
            raise SenderStartFailed(text) from ended
        except BaseException:
            # A sender that ends now leaves the folder to us, who hold start.lock.
            _remove_if_dead(place)
            raise
    finally:
        unlock(held)


class _Closing(SenderError):
    """The sender that was reached is shutting down."""


class _Ended(_Closing):
    """It closed the connection without a word."""


def _try_connect(config: Config, place: Rendezvous, deadline_ns: int) -> Link | None:
    """Shake hands with the sender of the socket; None when nobody listens there."""
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    fds: list[int] = []
    welcome = False
    try:
        sock.setblocking(False)
        try:
            sock.connect(place.socket)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        except BlockingIOError:
            raise _Closing("the sender's socket accepts nobody at the moment") from None
        pid, uid, _gid = control.peer_credentials(sock)
        if uid != os.getuid():
            raise SenderStartFailed(f"the sender at {place.socket} belongs to uid {uid}")
        hello: dict[str, Any] = {
            "type": "hello",
            "magic": "mpproducer",
            "version": __version__,
            "layout_hash": native.LAYOUT_HASH,
            "pid": os.getpid(),
            "config": config.to_wire(),
        }
        try:
            control.send_with_fds(sock, hello, [], deadline_ns)
            answer, fds = control.recv_with_fds(sock, deadline_ns)
        except ConnectionError:
            raise _Ended("the sender ended during the handshake") from None
        except TimeoutError:
            raise SenderStartFailed(
                f"the sender (pid {pid}) took the connection but did not answer in time"
            ) from None
        welcome = answer["type"] == "welcome"
        if not welcome:
            _raise_refusal(answer)
        link = Link(place, config, _map(answer, fds), sock, pid)
    except BaseException:
        if welcome:
            # Or the sender would count this process among its workers until it ends.
            with suppress(OSError):
                control.send_bytes(sock, control.encode({"type": "bye"}), deadline_ns)
        sock.close()
        for fd in fds:
            with suppress(OSError):
                os.close(fd)
        raise
    return link


def _map(answer: control.Message, fds: list[int]) -> native.Attachment:
    if len(fds) != 4:
        raise SenderError(
            f"{len(fds)} of the sender's 4 descriptors arrived: does this process have as many "
            "open files as it may (ulimit -n)?"
        )
    ctl_fd, pool_fd, wake_fd, completion_fd = fds
    try:
        attachment = native.Attachment(
            ctl_fd,
            pool_fd,
            wake_fd,
            completion_fd,
            int(answer["owner"]),
            int(answer["slots"]),
            int(answer["max_partitions"]),
            int(answer["max_topics"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SenderError(f"the sender's welcome makes no sense: {error}") from error
    fds.clear()  # the attachment owns them now
    return attachment


def _raise_refusal(answer: control.Message) -> None:
    reason = answer.get("reason")
    message = str(answer.get("message", "the sender refused this worker"))
    if reason == "closing":
        raise _Closing(message)
    if reason == "version":
        raise SenderVersionMismatch(message)
    raise SenderStartFailed(message)


def _remove_leftovers(link: Link) -> None:
    """Remove what a killed sender left."""
    if not link.attachment.sender_dead:
        return
    with suppress(OSError):
        held = lock(link.place.start_lock, None)
        if held is not None:
            try:
                _remove_if_dead(link.place)
            finally:
                unlock(held)


def _remove_if_dead(place: Rendezvous) -> None:
    """Remove the folder unless a sender lives; the caller holds `start.lock`, so none is born."""
    with suppress(OSError):
        held = lock(place.sender_lock, time.monotonic_ns() + _ENDING_NS)
        if held is not None:
            try:
                place.remove()
            finally:
                unlock(held)


def on_setup(config: Config, place: Rendezvous) -> None:
    """A `Producer` was made; process 1 has to know of it even if only its children send."""
    if os.getpid() == 1:
        with _table.lock:
            _table.known[place.folder] = (config.lasting(), place)
        _register_exit()


def _register_exit() -> None:
    global _exit_registered
    if not _exit_registered:
        _exit_registered = True
        atexit.register(_at_exit)


def _at_exit() -> None:
    """Flush within `close_timeout_ms` and detach. Registered once per process.

    A child that inherited the handler without attaching has an empty table (see `forget`). What is
    not delivered in time stays in shared memory and is sent by the sender all the same, unless
    this is process 1: the kernel kills the sender with it.
    """
    if os.getpid() != _table.pid:
        return
    if _table.pid == 1:
        _attach_again()
    for link in list(_table.links.values()):
        deadline_ns = time.monotonic_ns() + link.config.close_timeout_ms * 1_000_000
        try:
            left = link.flush(deadline_ns) if link.usable() else 0
            if left:
                logger(_LOG).warning(
                    "%d batches were not acknowledged within close_timeout_ms=%d; the host's "
                    "sender goes on delivering them",
                    left,
                    link.config.close_timeout_ms,
                )
            if _table.pid == 1:
                _drain_host(link, deadline_ns)
            detach(link)
        except (KafkaError, OSError, ValueError) as error:
            logger(_LOG).warning("detaching from the sender failed: %s", error)


def _attach_again() -> None:
    """Process 1 goes: it needs a link to every sender that may have records of its children."""
    for config, place in list(_table.known.values()):
        if find(place) is None and os.path.exists(place.socket):
            with suppress(SenderError):
                attach(config, place, time.monotonic_ns() + config.close_timeout_ms * 1_000_000)


def _drain_host(link: Link, deadline_ns: int) -> None:
    """Wait until the sender has nothing left to deliver for anybody, or the deadline."""
    left = -1
    while link.usable():
        link.tell({"type": "flush"}, deadline_ns)
        left = link.status(deadline_ns)["counters"]["batches-incomplete"]
        if left == 0 or time.monotonic_ns() >= deadline_ns:
            break
        time.sleep(0.02)
    if left:
        logger(_LOG).warning(
            "process 1 ends and its sender with it: %d batches are not delivered", left
        )


os.register_at_fork(after_in_child=_table.forget)
