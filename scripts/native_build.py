"""Compiles the C core and most of the sender (sender_build.py), with the system's compiler or with
Zig's from a wheel.

Used three ways: by setup.py, as the PEP 517 build backend (it adds `ziglang` to the build
requirements where no compiler is found), and as a command that rebuilds in place what is older
than its sources: `python scripts/native_build.py`.

Environment: CC (compiler command), CFLAGS and LDFLAGS (added at the end, e.g. for sanitizers),
MPPRODUCER_WERROR=1 (warnings are errors; the project's own scripts set it, an install from a
package does not, since a future compiler may warn about something new), MPPRODUCER_INTERPRETED=1
(the sender is not compiled, and what was is removed: for debugging, and for a Python that mypyc
does not know).
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import sender_build

ROOT = Path(__file__).resolve().parent.parent
NATIVE = "mpproducer._core.native"
# Without vectors made of neighbouring fields: one load of 16 bytes of what two stores have just
# written waits until both have reached the cache, 7 of the 51 ns of a send.
FLAGS = [
    "-std=c11", "-O3", "-g", "-fPIC", "-shared", "-Wall", "-Wextra", "-fvisibility=hidden",
    "-fno-semantic-interposition", "-fno-tree-slp-vectorize",
]  # fmt: skip
# Zig compiles for the CPU it runs on and traps undefined behaviour unless told otherwise; a wheel
# must run elsewhere too.
ZIG_FLAGS = ["-mcpu=baseline", "-fno-sanitize=undefined"]
ZIG = "ziglang>=0.13"
COMPILE_TIMEOUT_S = 600


class BuildError(SystemExit):
    """Ends the build with a message for people instead of a traceback."""


def sources(root: Path) -> list[Path]:
    """The C files of the core, in a stable order."""
    return sorted((root / "mpproducer" / "_core").glob("*.c"))


def headers(root: Path) -> list[Path]:
    """The header files of the core."""
    return sorted((root / "mpproducer" / "_core").glob("*.h"))


def system_compiler() -> list[str] | None:
    """The command of $CC, else of the first compiler found on PATH, else None."""
    if given := os.environ.get("CC"):
        return shlex.split(given)
    for name in ("gcc", "clang", "cc"):
        if found := shutil.which(name):
            return [found]
    return None


def compiler() -> list[str]:
    """The command to compile with; raises BuildError if there is none."""
    if command := system_compiler():
        return command
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", *ZIG_FLAGS]
    raise BuildError(
        "no C compiler: neither $CC nor gcc, clang or cc, nor the ziglang wheel. Install one of "
        f"them (apt-get install gcc, or pip install '{ZIG}')"
    )


def header_package() -> str:
    """The Debian package with the header files of this Python."""
    return f"python{sys.version_info.major}.{sys.version_info.minor}-dev"


def include_folders() -> list[str]:
    """Where Python.h is; raises BuildError naming the package to install where it is missing."""
    folders = list(dict.fromkeys(sysconfig.get_path(key) for key in ("include", "platinclude")))
    if not any(Path(folder, "Python.h").is_file() for folder in folders):
        major_minor = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise BuildError(
            f"Python.h of Python {major_minor} is missing (looked in {', '.join(folders)}). "
            f"Install it: apt-get install {header_package()} (Debian, Ubuntu), "
            f"dnf install python{major_minor}-devel (Fedora), apk add python3-dev (Alpine)"
        )
    return folders


def compile_native(files: list[Path], target: Path) -> None:
    """Compile `files`, the core, into the extension module `target`."""
    if platform.system() != "Linux":
        raise BuildError(
            f"mpproducer needs Linux (memfd, pidfd, futex); this is {platform.system()}"
        )
    werror = ["-Werror"] if os.environ.get("MPPRODUCER_WERROR") == "1" else []
    _compile([*FLAGS, *werror], [], files, target)


def compile_unit(unit: sender_build.Unit, target: Path) -> None:
    """Compile an extension module of the sender."""
    _compile(sender_build.FLAGS, unit.includes, unit.files, target)


def _compile(flags: list[str], includes: list[str], files: list[Path], target: Path) -> None:
    """One command for one extension module, which is replaced in one step.

    A process that has the old module mapped keeps it: the file is replaced, never written over.
    """
    command = compiler()
    folders = [f"-I{folder}" for folder in [*includes, *include_folders()]]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        made = Path(folder, target.name)
        full = [
            *command, *flags, *shlex.split(os.environ.get("CFLAGS", "")), *folders,
            *map(str, files), "-o", str(made), *shlex.split(os.environ.get("LDFLAGS", "")),
        ]  # fmt: skip
        sys.stdout.write(f"{shlex.join(full)}\n")
        sys.stdout.flush()
        done = subprocess.run(full, check=False, timeout=COMPILE_TIMEOUT_S)
        if done.returncode != 0:
            raise BuildError(f"the C compiler failed with status {done.returncode}; see above")
        made.replace(target)


def _zig_if_needed() -> list[str]:
    return [] if system_compiler() else [ZIG]


# --- PEP 517 and PEP 660 hooks: setuptools' own, plus the compiler as a build requirement.
# setuptools is imported inside: the command line use must not need it.


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """setuptools' requirements, and Zig where the system has no compiler."""
    from setuptools import build_meta

    return [*build_meta.get_requires_for_build_wheel(config_settings), *_zig_if_needed()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """As for a wheel."""
    from setuptools import build_meta

    return [*build_meta.get_requires_for_build_editable(config_settings), *_zig_if_needed()]


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    """Nothing is compiled for a source distribution."""
    from setuptools import build_meta

    return [*build_meta.get_requires_for_build_sdist(config_settings)]


def __getattr__(name: str) -> Any:
    """Every other hook is setuptools' own."""
    if name.startswith(("build_", "prepare_metadata_")):
        from setuptools import build_meta

        return getattr(build_meta, name)
    raise AttributeError(name)


def main() -> None:
    """Rebuild in place for the Python that runs this."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--sender", action="store_true", help="leave the core as it is")
    options = parser.parse_args()
    if not options.sender:
        compile_native(sources(ROOT), sender_build.target(ROOT, NATIVE))
    if not sender_build.wanted():
        sender_build.remove(ROOT)
    elif sender_build.due(ROOT):
        place = functools.partial(sender_build.target, ROOT)
        sender_build.compile_sender(ROOT, place, compile_unit)


if __name__ == "__main__":
    main()
