"""Where the processes of a host find the one sender of a configuration.

`<root>/<hash of the sender's configuration>/` holds `socket`, `start.lock` (held by the worker
that starts a sender), `sender.lock` (held by the sender for its life) and `sender.log`. The root
depends on the uid alone, never on cwd, HOME, TMPDIR or XDG variables, or one host would get
several senders. Only our own uid may reach into it (0700, checked, no symlink).
"""

from __future__ import annotations

import fcntl
import os
import stat
import time

from mpproducer.errors import SenderStartFailed
from mpproducer.light import suppress

RUNTIME_DIR_VARIABLE = "MPPRODUCER_RUNTIME_DIR"
MAX_SOCKET_PATH_BYTES = 107
_CREATE_TRIES = 100
_LARGEST_PRIME_64 = 2**64 - 59

_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


def default_base() -> str:
    """Where rendezvous folders are unless something else is configured."""
    return f"/tmp/mpproducer-{os.getuid()}"  # noqa: S108 - owner and mode are checked


def fingerprint(text: str) -> str:
    """16 digits that differ where texts do, or a sender says that it serves another configuration.

    What the text leaves as a number (Rabin 1981). Nobody attacks with his own configuration, and
    `hashlib` would bring all of OpenSSL into every worker.
    """
    return f"{int.from_bytes(text.encode(), 'big') % _LARGEST_PRIME_64:016x}"


class Rendezvous:
    """The folder of one sender configuration. A value: holds no descriptor."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.socket = f"{folder}/socket"
        self.start_lock = f"{folder}/start.lock"
        self.sender_lock = f"{folder}/sender.lock"
        self.log = f"{folder}/sender.log"

    @classmethod
    def of(cls, sender_key: str, runtime_dir: str | None) -> Rendezvous:
        """Return the rendezvous of a configuration (`Config.sender_key()`); creates nothing."""
        root = runtime_dir or os.environ.get(RUNTIME_DIR_VARIABLE)
        base = os.path.abspath(root or default_base())
        found = cls(os.path.join(base, fingerprint(sender_key)))
        if len(os.fsencode(found.socket)) > MAX_SOCKET_PATH_BYTES:
            raise SenderStartFailed(
                f"{found.socket} is too long for a Unix socket (at most {MAX_SOCKET_PATH_BYTES} "
                f"bytes); choose a shorter runtime_dir"
            )
        return found

    def create(self) -> None:
        """Make the folder, or check that what is there is ours alone. Raises SenderStartFailed."""
        for _ in range(_CREATE_TRIES):
            # The parent may go between the two steps: the last sender in it removes it.
            with suppress(FileNotFoundError):
                for folder in (os.path.dirname(self.folder), self.folder):
                    with suppress(FileExistsError):
                        os.mkdir(folder, mode=0o700)
                    _check_private(folder)
                return
        above = os.path.dirname(os.path.dirname(self.folder))
        missing = not os.path.isdir(above)
        why = f"there is no folder {above}" if missing else "somebody keeps removing it"
        raise SenderStartFailed(f"{self.folder} cannot be made: {why}")

    def remove(self) -> None:
        """Remove everything; the caller holds `sender.lock`, or knows that no sender lives."""
        for path in (self.socket, self.log, self.start_lock, self.sender_lock):
            with suppress(FileNotFoundError):
                os.unlink(path)
        # Another rendezvous may live in the parent, or a worker may just start here anew. A folder
        # that was configured is not ours to remove.
        with suppress(OSError):
            os.rmdir(self.folder)
            if os.path.dirname(self.folder) == default_base():
                os.rmdir(default_base())


def _check_private(folder: str) -> None:
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise SenderStartFailed(
            f"{folder} is not a directory of this user; remove it, or set runtime_dir"
        )
    if found.st_mode & 0o077:
        raise SenderStartFailed(
            f"{folder} is open to other users (mode {stat.S_IMODE(found.st_mode):o}); "
            f"chmod 700 it, or set runtime_dir"
        )


def lock(path: str | os.PathLike[str], deadline_ns: int | None) -> int | None:
    """Take an exclusive flock on `path`, creating it; returns its descriptor.

    With a deadline of None the lock is tried once. Returns None when it is held by another process
    until the deadline. `unlock` gives it back.

    1. A waits for the lock on inode 1, held by the sender.
    2. The sender removes the file and ends: A now holds a lock that nobody else can see.
    3. So the path is compared with the locked inode afterwards, and the attempt repeated.
    """
    pause_s = 0.001
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            if deadline_ns is None or time.monotonic_ns() >= deadline_ns:
                return None
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.02)
            continue
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                _held.add(fd)
                return fd
        os.close(fd)


def unlock(fd: int) -> None:
    """Give a lock back.

    Not by closing alone: another thread may have forked meanwhile, and the lock belongs to every
    copy of the descriptor.
    """
    _held.discard(fd)
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _forget_locks() -> None:
    """In a forked child: its copies would keep the parent's locks if the parent were killed."""
    for fd in _held:
        os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks)
