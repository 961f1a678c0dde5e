"""The machine as Python source, whatever is compiled: so that a test can reach into it.

    python -m tests.interpreted MODULE [ARGUMENT...]

runs a module, as `python -m MODULE` would, in a process that imports the sender's modules from
their sources.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
_PREFIX = "mpproducer."


class Sources:
    """Finds modules of the sender before the import system does, which prefers extensions."""

    @staticmethod
    def find_spec(
        name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of the source file, for modules of the sender only."""
        source = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        if not name.startswith(_PREFIX) or not source.exists():
            return None
        return importlib.util.spec_from_file_location(name, source)


def run(module: str, *arguments: str, timeout_s: float = 100) -> tuple[int, str]:
    """Run a module in such a process; returns its exit status and all its output."""
    command = [sys.executable, "-m", "tests.interpreted", module, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    return done.returncode, done.stdout + done.stderr


def main() -> None:
    """The command line of this module."""
    sys.meta_path.insert(0, Sources)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
