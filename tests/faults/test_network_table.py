"""The table of network faults in docs/RELIABILITY.md against the tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FAULTS = [f"N{number:02}" for number in range(1, 17)]
NOT_YET = {"N12", "N13"}  # TLS, SASL


class Row(NamedTuple):
    fault: str
    happens: str
    comes_of_it: str
    files: list[str]
    kafka: str


def _rows() -> dict[str, Row]:
    text = (ROOT / "docs" / "RELIABILITY.md").read_text()
    section = text.split("\n## Network faults\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (N\d\d) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", section, re.M)
    rows = [Row(a, b, c, files.split(", "), kafka) for a, b, c, files, kafka in cells]
    assert [row.fault for row in rows] == FAULTS
    return {row.fault: row for row in rows}


def _tests(file: str) -> dict[str, bool]:
    """Names of a file's tests of faults, and whether each runs against real Kafka as well."""
    found = {}
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_fault_"):
            marks = [ast.unparse(mark) for mark in node.decorator_list]
            found[node.name] = any(mark == "both" or "_kafka(" in mark for mark in marks)
    return found


def test_every_fault_has_a_test_of_its_name_where_the_table_says() -> None:
    for fault, row in _rows().items():
        tests: list[tuple[str, bool]] = []
        for file in row.files:
            if fault in NOT_YET:
                assert row.comes_of_it.startswith("does not apply: ")
                assert "sasl" in (ROOT / file).read_text()
                continue
            of_it = [item for item in _tests(file).items() if f"_{fault}_" in item[0]]
            assert of_it, (fault, file)
            tests += of_it
        assert row.kafka.startswith(("yes", "no: ")) or fault in NOT_YET
        assert any(real for _, real in tests) == row.kafka.startswith("yes"), fault


def test_every_test_of_a_fault_stands_in_the_table() -> None:
    rows = _rows()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        file = str(path.relative_to(ROOT))
        for name in _tests(file):
            for fault in re.findall(r"_(N\d\d)(?=_)", name):
                assert file in rows[fault].files, name
