"""The sender process: from the worker that starts it to an empty rendezvous folder.

1. Detach: own session (given), signals to defaults, umask 077, limits raised where allowed, second
   fork; the first process exits at once and its starter reaps it.
2. Take `sender.lock`; whoever finds it held says "running" and leaves.
3. Listen under a temporary name, rename to `socket`, say "ready".
4. The first hello brings the configuration; the segments are made, and the loop runs.
5. At the end: unlink the socket, refuse who is still in its queue, close the region, remove the
   folder unless a worker is starting the next sender in it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

from mpproducer._core import native
from mpproducer.config import Config
from mpproducer.sender import abort
from mpproducer.sender.loop import Loop, dispatch
from mpproducer.sender.server import Region, Server
from mpproducer.shm import segment
from mpproducer.shm.rendezvous import Rendezvous, lock, unlock

_LOG = logging.getLogger("mpproducer.sender")

FIRST_HELLO_NS: Final = 10_000_000_000
_DYING_NS: Final = 20_000_000
_BACKLOG: Final = 1024
_NAME: Final = "socket.new"
EXIT_CRASHED: Final = 70


def main(folder: str, ready_fd: int) -> int:
    """Run a sender for the rendezvous of a folder; returns the exit code."""
    close_inherited(ready_fd)
    if os.getsid(0) != os.getpid():
        os.setsid()  # where the starter could not ask for it
    if os.fork():
        # The starter waits for this process only: no zombie, and the sender is nobody's child.
        os._exit(0)
    prepare_process()
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s",
    )
    logging.raiseExceptions = False  # a full or closed log never reaches the loop
    return serve(Rendezvous(folder), ready_fd)


def close_inherited(ready_fd: int) -> None:
    """What libraries of the starter opened without close-on-exec is not for the sender."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd != ready_fd:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(fd)


def prepare_process() -> None:
    """Undo what a starter may have left: signal handlers, masks, limits, umask, directory."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    # XFSZ: a memfd obeys the limit on file size; that is to be an error, not the end.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.umask(0o077)
    os.chdir("/")
    # A limit that the host program set for itself is not meant for a process of the whole host.
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE):
        with contextlib.suppress(OSError, ValueError):
            _, hard = resource.getrlimit(limit)
            resource.setrlimit(limit, (hard, hard))


def serve(place: Rendezvous, ready_fd: int) -> int:
    """Own the rendezvous until the last worker is gone. Returns the exit code."""
    held = lock(place.sender_lock, None)
    if held is None:
        _tell(ready_fd, b"running\n")
        return 0
    try:
        listener = listen(place)
        _tell(ready_fd, b"ready\n")
        return Process(place, listener).run()
    finally:
        unlock(held)


def _tell(ready_fd: int, what: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(ready_fd, what)
        os.close(ready_fd)


def listen(place: Rendezvous) -> socket.socket:
    """Listen under a temporary name first: nobody ever connects to a socket without a listener
    that was meant for him. The name is relative, for long folder names."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    here = os.open(".", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.chdir(place.folder)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_NAME)
        listener.bind(_NAME)
        os.chmod(_NAME, 0o600)
        listener.listen(_BACKLOG)
        os.rename(_NAME, os.path.basename(place.socket))
    except BaseException:
        listener.close()
        raise
    finally:
        os.fchdir(here)
        os.close(here)
    return listener


class Process:
    """One life of the sender: server, loop, segments, signals, end."""

    def __init__(self, place: Rendezvous, listener: socket.socket) -> None:
        self._place = place
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._server = Server(
            listener, self._epoll, self._handlers, self._start, native.LAYOUT_HASH
        )
        self._terms = 0
        self._fds: list[int] = []
        self._pool: native.Pool | None = None

    def run(self) -> int:
        """Serve until the end; returns the exit code."""
        code = 0
        try:
            self._watch_signals()
            loop = self._first_worker()
            if loop is not None:
                loop.on_turn = self._on_turn
                _LOG.info("sender ends: %s", loop.run())
                loop.tell_the_rest(abort.ENDED)
        except Exception:  # noqa: BLE001 - logged, told, and the exit status
            _LOG.exception("sender crashed: a bug; the workers are told what is known")
            code = EXIT_CRASHED
            self._abort()
        finally:
            self._end()
        return code

    def _watch_signals(self) -> None:
        """A signal just before the loop sleeps must not wait for the end of the sleep: the
        interpreter's own handler writes to a pipe that the loop watches."""
        there, here = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._keep(there)
        self._keep(here)
        signal.set_wakeup_fd(here, warn_on_full_buffer=False)
        self._epoll.register(there, select.EPOLLIN)
        self._handlers[there] = lambda _mask: self._forget_signals(there)
        signal.signal(signal.SIGTERM, self._on_term)

    @staticmethod
    def _forget_signals(pipe: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(pipe, 4096)

    def _on_term(self, _number: int, _frame: FrameType | None) -> None:
        self._terms += 1

    def _on_turn(self, now_ns: int) -> int:
        due_ns = self._server.on_turn(now_ns)
        if self._terms:
            at_once = self._terms > 1
            if at_once or not self._server.closing:
                self._server.terminate(at_once=at_once)
        return due_ns

    def _first_worker(self) -> Loop | None:
        """Wait for the first hello, which brings the configuration; bounded."""
        until_ns = time.monotonic_ns() + FIRST_HELLO_NS
        while self._server.loop is None and not self._terms:
            now_ns = time.monotonic_ns()
            if now_ns >= until_ns:
                _LOG.info("no worker said hello")
                return None
            dispatch(self._handlers, self._epoll.poll(min(0.1, (until_ns - now_ns) / 1e9)))
            self._server.on_turn(time.monotonic_ns())
        return self._server.loop

    def _start(self, config: Config) -> tuple[Loop, Region]:
        """Make the segments and the loop for the configuration of the first hello."""
        ctl_size, pool_size = native.segment_sizes(
            config.slots, config.max_partitions, config.max_topics
        )
        ctl_fd = self._keep(segment.create_memfd("mpproducer-ctl", ctl_size))
        pool_fd = self._keep(segment.create_memfd("mpproducer-pool", pool_size))
        wake_fd = self._keep(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        generation = random.SystemRandom().getrandbits(31)
        pool = native.Pool(
            ctl_fd,
            pool_fd,
            config.slots,
            config.max_partitions,
            config.max_topics,
            batch_size=max(1, config.batch_size),
            max_request_size=config.max_request_size,
            linger_us=config.linger_ms * 1000,
            generation=generation,
            ignore_keys=config.partitioner_ignore_keys,
            compress=config.compression_type != "none",
        )
        self._pool = pool
        # Our own mapping stays writable; no worker can make one.
        segment.seal_future_writes(ctl_fd)
        segment.seal_size(pool_fd)
        loop = Loop(
            config,
            pool,
            native.CorruptBatch,
            wake_fd,
            self._epoll,
            self._handlers,
            random=random.Random(),  # noqa: S311 - jitter
            max_owners=native.MAX_OWNERS,
        )
        region = Region(
            ctl_fd,
            pool_fd,
            wake_fd,
            config.slots,
            config.max_partitions,
            config.max_topics,
            generation,
            native.LAYOUT_HASH,
        )
        _LOG.info("sender %d serves %r", os.getpid(), config)
        return loop, region

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _abort(self) -> None:
        """After a crash: nobody may wait for a sender that does not work any more."""
        loop = self._server.loop
        if loop is None:
            return
        try:
            loop.tell_the_rest(abort.CRASHED)
        except Exception:  # noqa: BLE001 - the last resort of a crash
            _LOG.exception("telling the workers failed too; their pipes are closed")

    def _end(self) -> None:
        """Leave nothing behind: socket, segments, folder."""
        if self._pool is not None:
            # Appends fail from now on, so nobody adds to what nobody will send.
            self._pool.close_region()
        with contextlib.suppress(OSError):
            os.unlink(self._place.socket)
        self._server.refuse_the_rest()
        loop = self._server.loop
        if loop is not None:
            loop.close()
        self._server.close_workers()
        self._epoll.close()
        if self._pool is not None:
            # A thread in the midst of a compression reads from it: then it goes with the process.
            with contextlib.suppress(BufferError):
                self._pool.close()
        signal.set_wakeup_fd(-1)
        for fd in self._fds:
            os.close(fd)
        self._remove_folder()

    def _remove_folder(self) -> None:
        """Who holds start.lock is about to start the next sender here: leave the folder to him.

        Unless he is dying: a killed worker's socket may close before its lock, hence the patience.
        """
        with contextlib.suppress(OSError):
            starting = lock(self._place.start_lock, time.monotonic_ns() + _DYING_NS)
            if starting is None:
                return
            try:
                self._place.remove()
            finally:
                unlock(starting)
