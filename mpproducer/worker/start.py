"""Starting the host's sender: one process per configuration, whoever comes first.

Not with `multiprocessing`: daemonic workers (Pool, Celery, Dask) may not have such children. Not
with `subprocess` either, which forks, and reads a pipe until the child's exec has closed it: a
child that another thread forks meanwhile would keep that pipe. The sender forks again at once, so
that it is nobody's child and leaves no zombie, and runs in a session of its own, so that it
outlives its starter.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import time

from mpproducer.errors import SenderStartFailed
from mpproducer.light import suppress

TYPE_CHECKING = False  # typing is dear: see light.py
if TYPE_CHECKING:
    from mpproducer.shm.rendezvous import Rendezvous

LOG_TAIL_BYTES = 2000
READY_FD = 3
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_MAIN = os.path.join(_PACKAGE, "sender", "__main__.py")
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "RES_OPTIONS")
_REAP_NS = 100_000_000
_SIGKILL = 9  # `signal` would bring enum for it


def start_sender(place: Rendezvous, python: str | None, deadline_ns: int) -> None:
    """Start a sender and wait until it listens; the caller holds `start.lock`.

    Returns also when another sender turns out to be running. Raises SenderStartFailed with the
    tail of the sender's log when it ends early, or at the deadline (CLOCK_MONOTONIC ns).
    """
    program = interpreter(python)
    ready_read, ready_write = os.pipe()
    try:
        starter = _spawn(program, place, ready_write)
    except OSError as error:
        os.close(ready_read)
        raise SenderStartFailed(
            f"the sender could not be started with {program}: {error}; "
            "set sender_python to a Python interpreter that has mpproducer"
        ) from error
    finally:
        os.close(ready_write)
    try:
        answer = _read_answer(ready_read, deadline_ns)
    finally:
        os.close(ready_read)
        _reap(starter, max(deadline_ns, time.monotonic_ns() + _REAP_NS))
    if answer not in (b"ready\n", b"running\n"):
        why = "did not come up in time" if answer is None else "ended while starting"
        raise SenderStartFailed(f"the host's sender process {why}{log_tail(place.log)}")


def _spawn(program: str, place: Rendezvous, ready_fd: int) -> int:
    """Run the sender's program; returns the pid of the process that will fork it.

    Without `site`: whatever that would put on the path, this process has on its own. By file name:
    `-m` would look for modules in the current directory first.
    """
    command = [program, "-S", _MAIN, place.folder, str(READY_FD)]
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    # Out of the way of the numbers below, which a host program may have closed.
    ready_fd = fcntl.fcntl(ready_fd, fcntl.F_DUPFD_CLOEXEC, READY_FD + 1)
    actions = (
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, place.log, flags, 0o600),
        (os.POSIX_SPAWN_DUP2, ready_fd, READY_FD),
    )
    try:
        try:
            return os.posix_spawn(
                program, command, _environment(), file_actions=actions, setsid=True
            )
        except RuntimeError:  # Python was built on an old system; the sender does it
            return os.posix_spawn(program, command, _environment(), file_actions=actions)
    finally:
        os.close(ready_fd)


def interpreter(configured: str | None) -> str:
    """Return the interpreter for the sender: `sys.executable` is not one under embedding hosts."""
    if configured:
        return configured
    if sys.executable and os.path.basename(sys.executable).startswith(("python", "pypy")):
        return sys.executable
    for name in (f"python3.{sys.version_info.minor}", "python3", "python"):
        found = os.path.join(sys.prefix, "bin", name)
        if os.path.exists(found):
            return found
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
    path.append(os.path.dirname(_PACKAGE))  # an import hook may have found this package
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


def _reap(pid: int, deadline_ns: int) -> None:
    """Wait for the starter, which ends as soon as it has forked; kill it at the deadline."""
    with suppress(ChildProcessError):  # where SIGCHLD is ignored the kernel reaps
        pause_s = 0.0005
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic_ns() >= deadline_ns:
                with suppress(ProcessLookupError):
                    os.kill(pid, _SIGKILL)
                os.waitpid(pid, 0)
                return
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.02)


def log_tail(path: str) -> str:
    """Return the end of a sender's log, as a clause for an error message; empty without one."""
    try:
        with open(path, "rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - LOG_TAIL_BYTES))
            tail = log.read().decode(errors="replace").strip()
    except OSError:
        return ""
    return f"; its log ends with:\n{tail}" if tail else ""
