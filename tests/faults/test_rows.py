"""The tables of faults in docs/RELIABILITY.md against the tests that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLES = {"Faults B: brokers": ("B", 30)}


class Row(NamedTuple):
    id: str
    what: str
    strict: str
    real: str


def rows(heading: str) -> list[Row]:
    text = (ROOT / "docs" / "RELIABILITY.md").read_text()
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [
        Row(*line) for line in re.findall(r"\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|\n", section)
    ][1:]


def named(cell: str) -> list[str]:
    return re.findall(r"tests/\S+?\.py", cell)


@pytest.mark.parametrize("heading", TABLES)
def test_every_fault_has_a_row(heading: str) -> None:
    letter, count = TABLES[heading]
    assert [row.id for row in rows(heading)] == [f"{letter}{n:02}" for n in range(1, count + 1)]


@pytest.mark.parametrize("heading", TABLES)
def test_every_named_file_has_a_test_of_that_row(heading: str) -> None:
    shown = 0
    for row in rows(heading):
        assert named(row.strict), row
        assert named(row.real) or row.real.startswith(("no: ", "`scripts/soak ")), row
        for file in named(row.strict) + named(row.real):
            defined = re.findall(r"^def (test_\w+)\(", (ROOT / file).read_text(), re.MULTILINE)
            assert any(f"_{row.id}_" in f"{name}_" for name in defined), (row.id, file)
            shown += 1
    print(f"{heading}: {shown} files of tests for {len(rows(heading))} rows")


def test_every_test_of_a_broker_fault_is_in_the_table() -> None:
    table = {row.id: row.strict + row.real for row in rows("Faults B: brokers")}
    files = (
        "faults/test_broker_answers",
        "faults/test_brokers_away",
        "integration/test_broker_faults",
    )
    for file in files:
        text = (ROOT / "tests" / f"{file}.py").read_text()
        for name in re.findall(r"^def (test_\w+)\(", text, re.MULTILINE):
            ids = re.findall(r"B\d\d", name)
            assert ids, name
            for row in ids:
                assert f"tests/{file}.py" in table[row], (name, row)
