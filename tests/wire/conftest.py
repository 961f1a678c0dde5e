"""The wire layer opens nothing: its many small tests do without the search for leftovers."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def runtime_dir() -> None:
    """No sender is started here."""


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """No process or descriptor is made here."""
