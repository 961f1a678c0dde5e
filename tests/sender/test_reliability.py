"""The table of behaviours in docs/RELIABILITY.md against the tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {"A": 31, "K": 7, "S": 37, "N": 17, "M": 7}
_ROW = re.compile(r"\| ([AKSNM]\d+) \| (.+?) \| (.+?) \|")


def _rows() -> dict[str, str]:
    text = (ROOT / "docs" / "RELIABILITY.md").read_text()
    found = _ROW.findall(text)
    assert len(found) == len({row[0] for row in found}), "an id stands there twice"
    return {row[0]: row[2] for row in found}


def test_every_behaviour_has_a_row() -> None:
    wanted = {f"{kind}{n}" for kind, count in COUNTS.items() for n in range(1, count + 1)}
    assert set(_rows()) == wanted


def test_every_named_file_has_a_test_of_that_name() -> None:
    named = 0
    for behaviour, shown in _rows().items():
        files = re.findall(r"tests/\S+?\.py", shown)
        named += len(files)
        assert files or "does not apply" in shown, behaviour
        for name in files:
            tests = re.findall(r"def (test_\w+)", (ROOT / name).read_text())
            assert any(f"_{behaviour}_" in test for test in tests), (behaviour, name)
    assert named > 90
