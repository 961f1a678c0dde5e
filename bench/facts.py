"""Facts of processes from the kernel: CPU, memory, wake-ups, connections."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, Final

_SCHED: Final = 2  # CPUCLOCK_SCHED: user and system time of all threads, in nanoseconds
_ESTABLISHED: Final = "01"
_LISTEN: Final = "0A"


def cpu_ns(pids: Iterable[int]) -> int:
    """User and system CPU of whole processes so far; a process that is gone counts nothing."""
    total = 0
    for pid in pids:
        # The CPU clock of another process, as clock_getcpuclockid(3) names it.
        with contextlib.suppress(OSError):
            total += time.clock_gettime_ns((~pid << 3) | _SCHED)
    return total


def uss_kib(pid: int) -> float:
    """Memory that belongs to one process alone (private clean and dirty pages)."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:", "Private_Hugetlb:")):
            total += int(line.split()[1])
    return float(total)


def shared_memory_kib(pid: int) -> float:
    """Resident pages of the memfds that a process has mapped."""
    total, counts = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            counts = "/memfd:" in line
        elif counts and first == "Rss:":
            total += int(line.split()[1])
    return float(total)


def wakeups(pids: Iterable[int]) -> int:
    """How often the threads of these processes gave up the CPU of their own will, and came back."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    for line in (thread / "status").read_text().splitlines():
                        if line.startswith("voluntary_ctxt_switches:"):
                            total += int(line.split()[1])
    return total


def threads(pid: int) -> int:
    """Number of threads of a process."""
    return len(os.listdir(f"/proc/{pid}/task"))


def ports_of(bootstrap: str) -> set[int]:
    """The ports named by bootstrap servers."""
    return {int(item.rpartition(":")[2]) for item in bootstrap.split(",")}


def _sockets(state: str, column: int, ports: set[int]) -> set[str]:
    """Inodes of TCP sockets in a state whose local (1) or remote (2) port is one of these."""
    found = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
                parts = line.split()
                if parts[3] == state and int(parts[column].rpartition(":")[2], 16) in ports:
                    found.add(f"socket:[{parts[9]}]")
    return found


def _held(pid: int, sockets: set[str]) -> int:
    count = 0
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                count += os.readlink(f"/proc/{pid}/fd/{name}") in sockets
    return count


def connections(pids: Iterable[int], ports: set[int]) -> int:
    """Established TCP connections of these processes to brokers at these ports."""
    sockets = _sockets(_ESTABLISHED, 2, ports)
    return sum(_held(pid, sockets) for pid in pids)


def listeners(ports: set[int]) -> list[int]:
    """Processes of this host that listen on these ports; none for a remote cluster."""
    sockets = _sockets(_LISTEN, 1, ports)
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return sorted(pid for pid in pids if _held(pid, sockets))


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Versions of the Python clients."""
    found = {}
    for name in ("mpproducer", "confluent-kafka", "kafka-python", "aiokafka"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
