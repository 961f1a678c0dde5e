"""The table of behaviours in docs/RELIABILITY.md against the tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {"B": 12, "A": 31, "K": 7, "S": 37, "N": 17, "M": 7, "C": 14, "T": 15}
OURS = {"X": 12}
_ROW = re.compile(r"\| ([A-Z]\d+(?:-[A-Z]\d+|(?:, [A-Z]\d+)+)?) \| (.+?) \| (.+?) \|\n")


def _ids(cell: str) -> list[str]:
    """`T13`, `T14, T15` or `T1-T12`."""
    if "-" not in cell:
        return cell.split(", ")
    first, last = cell.split("-")
    return [f"{first[0]}{n}" for n in range(int(first[1:]), int(last[1:]) + 1)]


def _rows() -> dict[str, str]:
    text = (ROOT / "docs" / "RELIABILITY.md").read_text()
    text = text.partition("\n## Behaviours\n")[2].partition("\n## ")[0]
    found = [(name, row[2]) for row in _ROW.findall(text) for name in _ids(row[0])]
    assert len(found) == len(dict(found)), "an id stands there twice"
    return dict(found)


def _tests(file: str) -> list[str]:
    tree = ast.parse((ROOT / file).read_text())
    return [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("test_")
    ]


def test_every_behaviour_has_a_row() -> None:
    counts = COUNTS | OURS
    wanted = {f"{kind}{n}" for kind, count in counts.items() for n in range(1, count + 1)}
    rows = _rows()
    assert set(rows) == wanted
    assert sum(COUNTS.values()) == 140
    covered = [name for name, shown in rows.items() if "does not apply" not in shown]
    java = [name for name in covered if name[0] in COUNTS]
    print(f"behaviours covered: {len(java)} of 140, and {len(covered) - len(java)} of 12 of ours")
    assert len(java) >= 119
    assert len(covered) - len(java) == 12


def test_every_named_file_has_a_test_of_that_name() -> None:
    named = 0
    for behaviour, shown in _rows().items():
        files = re.findall(r"tests/\S+?\.py", shown)
        named += len(files)
        assert bool(files) != ("does not apply" in shown), behaviour
        for name in files:
            assert any(f"_{behaviour}_" in test for test in _tests(name)), (behaviour, name)
    assert named > 140


def test_X11_the_wall_clock_is_read_for_timestamps_and_logs_alone() -> None:
    """Every deadline is monotonic: setting the clock moves none of them."""
    reading = re.compile(
        r"\btime\.(?:time|time_ns|localtime)\(|\bdatetime\.(?:now|utcnow)\(|CLOCK_REALTIME\w*"
        r"|\bgettimeofday\b|(?<!\w)time\(NULL\)"
    )
    found = {
        (str(path.relative_to(ROOT / "mpproducer")), match)
        for pattern in ("*.py", "*.c", "*.h")
        for path in (ROOT / "mpproducer").rglob(pattern)
        for match in reading.findall(path.read_text())
    }
    sender_and_workers = {row for row in found if not row[0].startswith(("testing/", "cli/"))}
    assert sender_and_workers == {("_core/py_producer.h", "CLOCK_REALTIME_COARSE")}
