"""The extension modules; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "scripts"))

import native_build  # noqa: E402 - found through the line above
import sender_build  # noqa: E402


class BuildNative(build_ext):
    """Compiles with plain commands: the flags Python itself was built with do not leak in."""

    def build_extensions(self) -> None:
        native_build.compile_native(native_build.sources(ROOT), self._place(native_build.NATIVE))
        if sender_build.wanted():
            sender_build.compile_sender(ROOT, self._place, native_build.compile_unit)

    def _place(self, name: str) -> Path:
        return Path(self.get_ext_fullpath(name))


def _relative(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def _extensions() -> list[Extension]:
    core = Extension(
        native_build.NATIVE,
        sources=_relative(native_build.sources(ROOT)),
        depends=_relative(native_build.headers(ROOT)),
    )
    # Their C is made when they are built: mypyc is there then, and not for a metadata query.
    sender = _relative(sender_build.sources(ROOT)) if sender_build.wanted() else []
    return [core, *(Extension(name, sources=sender) for name in sender_build.NAMES if sender)]


setup(ext_modules=_extensions(), cmdclass={"build_ext": BuildNative})
