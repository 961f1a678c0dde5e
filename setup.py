"""The one extension module; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "scripts"))

import native_build  # noqa: E402 - found through the line above


class BuildNative(build_ext):
    """Compiles with one plain command: the flags Python itself was built with do not leak in."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        native_build.compile_native([ROOT / source for source in ext.sources], target)


setup(
    ext_modules=[
        Extension(
            "mpproducer._core.native",
            sources=[str(p.relative_to(ROOT)) for p in native_build.sources(ROOT)],
            depends=[str(p.relative_to(ROOT)) for p in native_build.headers(ROOT)],
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
