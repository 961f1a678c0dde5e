"""Compiles the sender's modules: typed Python to C by mypyc, then C to an extension.

What is named here is compiled: the state machine, and what turns its actions into bytes and bytes
into its events. It is the same code, two to three times as fast. The `.py` files stay beside it and
are what runs where it is not compiled. What runs seldom is left to the interpreter.
"""

from __future__ import annotations

import os
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PACKAGE = "mpproducer"
MODULES = (
    "net.stream", "sender.actions", "sender.batch", "sender.codec",
    "sender.connections", "sender.counters", "sender.delivery", "sender.discovery", "sender.drain",
    "sender.error_table", "sender.idempotence", "sender.inflight", "sender.load", "sender.loop",
    "sender.machine", "sender.metadata", "sender.metrics", "sender.nodes", "sender.partition",
    "sender.replies", "sender.requests", "sender.retry", "sender.store", "sender.timers",
    "sender.workers", "shm.frames", "wire.produce",
)  # fmt: skip
GROUP = f"{PACKAGE}.sender._compiled"  # what mypyc names the library after that holds all of them
LIBRARY = f"{GROUP}__mypyc"
NAMES = (LIBRARY, *(f"{PACKAGE}.{module}" for module in MODULES))
# What the interpreter itself is compiled with where it matters: integers wrap.
FLAGS = ["-O3", "-g0", "-fPIC", "-shared", "-fwrapv", "-DNDEBUG", "-w"]
_OPTIONS = [
    "--config-file=", "--cache-dir=/dev/null", "--ignore-missing-imports",
    "--follow-imports=silent",
]  # fmt: skip


class Unit(NamedTuple):
    """One extension module: its name, its C files, and where their headers are."""

    name: str
    files: list[Path]
    includes: list[str]


def wanted() -> bool:
    """Whether anything is compiled: not with MPPRODUCER_INTERPRETED=1."""
    return os.environ.get("MPPRODUCER_INTERPRETED") != "1"


def sources(root: Path) -> list[Path]:
    """The Python files that are compiled."""
    return [root.joinpath(PACKAGE, *module.split(".")).with_suffix(".py") for module in MODULES]


def target(root: Path, name: str) -> Path:
    """Where the extension of this name is under `root`."""
    return root.joinpath(*name.split(".")).with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))


def there(root: Path) -> bool:
    """Whether the sender under `root` is compiled."""
    return target(root, LIBRARY).exists()


def stale(root: Path) -> Path | None:
    """A source that is newer than its compiled form, which is there; None: all is up to date, or
    interpreted."""
    made = [target(root, name) for name in NAMES]
    times = [path.stat().st_mtime for path in made if path.exists()]
    if not times:
        return None
    if len(times) < len(made):
        return made[0]
    oldest = min(times)
    for source in sources(root):
        if source.stat().st_mtime > oldest:
            return source
    return None


def due(root: Path) -> bool:
    """Whether there is something to compile: nothing is compiled yet, or it is stale."""
    return not there(root) or stale(root) is not None


def remove(root: Path) -> None:
    """Let the interpreter run the sources."""
    for name in NAMES:
        target(root, name).unlink(missing_ok=True)


def compile_sender(
    root: Path, place: Callable[[str], Path], compile_c: Callable[[Unit, Path], None]
) -> None:
    """Compile the modules; `place` says where the extension of a name goes."""
    from mypyc.build import mypycify

    with tempfile.TemporaryDirectory(prefix="mpproducer-sender-") as folder:
        before = os.getcwd()
        os.chdir(root)
        try:
            made = mypycify(
                [*_OPTIONS, *(str(path.relative_to(root)) for path in sources(root))],
                target_dir=folder,
                group_name=GROUP,
            )
        finally:
            os.chdir(before)
        for extension in made:
            files = [Path(path) for path in extension.sources]
            unit = Unit(extension.name, files, list(extension.include_dirs))
            compile_c(unit, place(extension.name))
