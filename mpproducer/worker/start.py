"""Starting the host's sender: one process per configuration, whoever comes first.

The sender is started with `subprocess`, not `multiprocessing`: daemonic workers (Pool, Celery,
Dask) may not have multiprocessing children. It forks again at once, so that it is nobody's child
and leaves no zombie, and runs in a session of its own, so that it outlives its starter.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

from mpproducer.errors import SenderStartFailed
from mpproducer.shm.rendezvous import Rendezvous

LOG_TAIL_BYTES = 2000
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "RES_OPTIONS")

_SPAWN_S = 1.0

_spawning = threading.Lock()
"""Held while `Popen` runs, and across a fork of this process:

1. Thread A is in `Popen`, which reads a pipe until its child's exec has closed the other end.
2. Thread B forks: its child has that end too, and keeps it.
3. The child sends, finds that a sender is being started, and waits for A; A waits for the child.
"""
_forking = threading.local()


def start_sender(place: Rendezvous, python: str | None, deadline_ns: int) -> None:
    """Start a sender and wait until it listens; the caller holds `start.lock`.

    Returns also when another sender turns out to be running. Raises SenderStartFailed with the
    tail of the sender's log when it ends early, or at the deadline (CLOCK_MONOTONIC ns).
    """
    command = [interpreter(python), "-m", "mpproducer.sender", "--rendezvous", str(place.folder)]
    log = os.open(
        place.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    try:
        ready_read, ready_write = os.pipe()
    except OSError:
        os.close(log)
        raise
    try:
        command += ["--ready-fd", str(ready_write)]
        try:
            with _spawning:
                starter = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    pass_fds=(ready_write,),
                    cwd="/",
                    env=_environment(),
                    start_new_session=True,
                )
        except OSError as error:
            os.close(ready_read)
            raise SenderStartFailed(
                f"the sender could not be started with {command[0]}: {error}; "
                "set sender_python to a Python interpreter that has mpproducer"
            ) from error
    finally:
        os.close(ready_write)
        os.close(log)
    try:
        answer = _read_answer(ready_read, deadline_ns)
    finally:
        os.close(ready_read)
        _reap(starter, deadline_ns)
    if answer not in (b"ready\n", b"running\n"):
        why = "did not come up in time" if answer is None else "ended while starting"
        raise SenderStartFailed(f"the host's sender process {why}{log_tail(place.log)}")


def interpreter(configured: str | None) -> str:
    """Return the interpreter for the sender: `sys.executable` is not one under embedding hosts."""
    if configured:
        return configured
    if sys.executable and Path(sys.executable).name.startswith(("python", "pypy")):
        return sys.executable
    for name in (f"python3.{sys.version_info.minor}", "python3", "python"):
        found = Path(sys.prefix) / "bin" / name
        if found.exists():
            return str(found)
    raise SenderStartFailed(
        f"{sys.executable!r} is not a Python interpreter; set sender_python to one"
    )


def _environment() -> dict[str, str]:
    """Return a minimal environment: no secrets of the host program, the same import path.

    The standard library goes first. The host program had it loaded before its own folder came on
    the path; the sender would find an `enum.py` there instead.
    """
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    library = os.path.dirname(os.__file__)
    standard = (library, os.path.join(library, "lib-dynload"))
    path = [os.path.abspath(entry or ".") for entry in sys.path]
    path.sort(key=lambda entry: entry not in standard)
    kept["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path))
    return kept


def _read_answer(fd: int, deadline_ns: int) -> bytes | None:
    """Return what the sender wrote before it closed the pipe, None at the deadline."""
    answer = b""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while b"\n" not in answer:
        left_ms = (deadline_ns - time.monotonic_ns()) / 1e6
        if left_ms <= 0 or not poller.poll(left_ms):
            return None
        data = os.read(fd, 256)
        if not data:
            break
        answer += data
    return answer


def _reap(starter: subprocess.Popen[bytes], deadline_ns: int) -> None:
    left_s = max(0.1, (deadline_ns - time.monotonic_ns()) / 1e9)
    try:
        starter.wait(timeout=left_s)
    except subprocess.TimeoutExpired:
        starter.kill()
        starter.wait(timeout=5)


def log_tail(path: Path) -> str:
    """Return the end of a sender's log, as a clause for an error message; empty without one."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - LOG_TAIL_BYTES))
            tail = log.read().decode(errors="replace").strip()
    except OSError:
        return ""
    return f"; its log ends with:\n{tail}" if tail else ""


def _before_fork() -> None:
    # Bounded: a signal handler that forks may have interrupted the thread that holds it.
    _forking.held = _spawning.acquire(timeout=_SPAWN_S)


def _after_fork() -> None:
    if _forking.held:
        _spawning.release()


def _after_fork_in_child() -> None:
    global _spawning
    _spawning = threading.Lock()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
)
