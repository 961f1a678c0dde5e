"""What a process holds, in figures that must come back to where they were."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import psutil

SAMPLES: Final = 3
_APART_S: Final = 0.05


class Footprint(NamedTuple):
    """Counts of one process, and of what the host holds for all."""

    descriptors: int
    threads: int
    children: int
    segments: int
    """Mappings of our shared memory."""
    shm_files: int
    """Entries of /dev/shm; semaphores of multiprocessing come and go with others."""


def take(pid: int = 0) -> Footprint:
    """The footprint of a process, by default this one. Raises psutil.NoSuchProcess."""
    process = psutil.Process(pid or os.getpid())
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    return Footprint(
        descriptors=process.num_fds(),
        threads=process.num_threads(),
        children=len(process.children(recursive=True)),
        segments=maps.count("memfd:mpproducer"),
        shm_files=len([n for n in os.listdir("/dev/shm") if not n.startswith("sem.mp-")]),
    )


def samples(pid: int = 0, wait: Callable[[float], None] = time.sleep) -> list[Footprint]:
    """Three footprints, a moment apart: what is on its way out is no leak."""
    found = []
    for _ in range(SAMPLES):
        wait(_APART_S)
        found.append(take(pid))
    return found
