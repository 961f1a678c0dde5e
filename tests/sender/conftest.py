"""Tests of the pure machine start no process and open no descriptor: looking for leaks after each
would cost ten times the test. Files that do are named here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

IMPURE = {
    "test_compressor",
    "test_connections",
    "test_loop",
    "test_process",
    "test_server",
    "test_store",
    "test_workers",
}


def _is_pure(request: pytest.FixtureRequest) -> bool:
    return Path(str(request.node.path)).stem not in IMPURE


@pytest.fixture(autouse=True)
def runtime_dir(request: pytest.FixtureRequest) -> Iterator[Any]:
    yield None if _is_pure(request) else request.getfixturevalue("runtime_dir")


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, runtime_dir: Any) -> Iterator[Any]:
    yield None if _is_pure(request) else request.getfixturevalue("nothing_left")
