"""Shared-memory segments: sealed memfds, preallocated, passed between processes by descriptor.

A memfd has no name, so nothing can be left behind in /dev/shm, no other process can open it, and
the resource tracker of `multiprocessing` cannot unlink it (D4).
"""

from __future__ import annotations

import fcntl
import os

from mpproducer.errors import SenderStartFailed

_F_ADD_SEALS = 1033
_F_SEAL_SEAL = 0x0001
_F_SEAL_SHRINK = 0x0002
_F_SEAL_GROW = 0x0004
_F_SEAL_FUTURE_WRITE = 0x0010


def create_memfd(name: str, size_bytes: int) -> int:
    """Return the descriptor (close-on-exec) of a new zeroed segment of exactly `size_bytes`.

    The memory is allocated now, so that a full memory or cgroup is an error here and never a
    SIGBUS in a worker; the size is sealed, so that nobody can truncate it under the others.

    Raises SenderStartFailed, naming the size, when the system has no memory for it.
    """
    if not hasattr(os, "memfd_create"):
        raise SenderStartFailed("mpproducer needs Linux: this system has no memfd_create")
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, size_bytes)
        fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW)
    except OSError as error:
        os.close(fd)
        raise SenderStartFailed(
            f"no shared memory for the {name} segment of {size_bytes} bytes: {error.strerror}; "
            "lower buffer_memory, or raise the memory limit of this host or container"
        ) from error
    return fd


def seal_future_writes(fd: int) -> None:
    """Refuse every further writable mapping and write(); mappings that exist keep working."""
    fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_FUTURE_WRITE | _F_SEAL_SEAL)


def seal_size(fd: int) -> None:
    """Refuse further seals, so that no worker can forbid writing to the others."""
    fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SEAL)
