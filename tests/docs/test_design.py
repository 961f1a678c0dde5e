"""docs/DESIGN.md says what the code says: names, tables of states, files, imports."""

from __future__ import annotations

import ast
import re
import subprocess
from enum import IntEnum
from pathlib import Path
from typing import Any

import check_imports
import pytest

from mpproducer.sender.batch import MEMORY_NEXT, STATE_NEXT
from mpproducer.sender.idempotence import IdState
from mpproducer.sender.machine import Phase
from mpproducer.sender.nodes import NodeState

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mpproducer"
PAGE = (ROOT / "docs" / "DESIGN.md").read_text()
LAYOUT = (PACKAGE / "_core" / "layout.h").read_text()
REFERENCE = re.compile(r"`([\w/]+\.(?:py|c|h)):([\w.]+)`")


def table(name: str) -> list[list[str]]:
    """The rows of the table behind `<!-- table: NAME -->`, without its head."""
    _, found, rest = PAGE.partition(f"<!-- table: {name} -->\n")
    assert found, f"docs/DESIGN.md has no table {name!r}"
    rows = []
    for line in rest.splitlines():
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert len(rows) > 2
    return rows[2:]


def names(cell: str) -> list[str]:
    return [part.strip().strip("`") for part in cell.split(",") if part.strip()]


def python_names(tree: ast.AST, prefix: str = "") -> set[str]:
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found |= {prefix + node.name} | python_names(node, f"{prefix}{node.name}.")
    return found


def defines(path: Path, name: str) -> bool:
    text = path.read_text()
    if path.suffix == ".py":
        return name in python_names(ast.parse(text))
    # A definition starts in the first column and its parameters are followed by a brace.
    pattern = rf"^[A-Za-z][\w \*]*\b{name}\([^;{{]*\)\s*\{{"
    return re.search(pattern, text, re.MULTILINE) is not None


@pytest.mark.parametrize(("path", "name"), sorted(set(REFERENCE.findall(PAGE))))
def test_every_function_named_exists(path: str, name: str) -> None:
    assert defines(PACKAGE / path, name), f"{path} defines no {name}"


def test_enough_is_named_and_what_does_not_exist_is_noticed() -> None:
    assert len(set(REFERENCE.findall(PAGE))) > 80
    assert defines(PACKAGE / "_core" / "append.c", "mp_append_run")
    assert not defines(PACKAGE / "_core" / "append.c", "mp_claim")  # called there only
    assert not defines(PACKAGE / "sender" / "drain.py", "_fill")  # a method of Drain


def test_files_named_without_a_function_exist() -> None:
    text = PAGE.partition("## File map")[0]
    for name in set(re.findall(r"`([\w/]+\.(?:py|c|h))`", text)):
        assert (PACKAGE / name).is_file() or (ROOT / name).is_file(), name


def test_the_file_map_lists_every_file_of_the_package_and_nothing_else() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "mpproducer"],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=60,
    ).stdout.split()  # fmt: skip
    files = [name.removeprefix("mpproducer/") for name in listed if (ROOT / name).is_file()]
    mapped = [row[0].strip("`") for row in table("files")]
    assert sorted(mapped) == sorted(files)
    assert all(row[1] for row in table("files"))


@pytest.mark.parametrize(
    ("name", "code"), [("batch states", STATE_NEXT), ("memory states", MEMORY_NEXT)]
)
def test_state_tables_are_those_of_the_code(name: str, code: dict[Any, tuple[Any, ...]]) -> None:
    said = {row[0]: names(row[2]) for row in table(name)}
    assert said == {state.name: [to.name for to in after] for state, after in code.items()}


@pytest.mark.parametrize(
    ("name", "code"), [("node states", NodeState), ("id states", IdState), ("phases", Phase)]
)
def test_states_are_those_of_the_code(name: str, code: type[IntEnum]) -> None:
    assert [row[0] for row in table(name)] == [state.name for state in code]


@pytest.mark.parametrize(("name", "prefix"), [("compress", "MP_C_"), ("waiter", "MP_W_")])
def test_states_of_shared_words_are_those_of_the_code(name: str, prefix: str) -> None:
    listed = re.search(rf"enum \{{ ({prefix}\w+(?:, {prefix}\w+)*) \}}", LAYOUT)
    assert listed is not None
    assert [prefix + row[0] for row in table(name)] == listed[1].split(", ")


def test_compression_moves_only_as_the_core_moves_it() -> None:
    """Every CAS of the compress word in the core is a listed step, and every listed step is one."""
    said = {(row[0], to) for row in table("compress") for to in names(row[2])}
    text = "".join((PACKAGE / "_core" / name).read_text() for name in ("compress.c", "pool.c"))
    # Both a change and what it starts from are named in the function that makes it.
    made = set()
    for function in re.split(r"^\}$", text, flags=re.MULTILINE):
        if "compare_exchange" not in function or "compress" not in function:
            continue
        states = set(re.findall(r"MP_C_(\w+)", function))
        states |= {word.upper() for word in re.findall(r"mp_compress_(busy|recalled)\(", function)}
        made |= {(a, b) for a in states for b in states}
    assert said <= made, said - made


def test_the_slot_word_is_laid_out_as_said() -> None:
    def number(name: str) -> int:
        pattern = rf"#define {name} .*?(?:<< |\b)(\d+)\)?$"
        found = re.search(pattern, LAYOUT, re.MULTILINE)
        assert found is not None, name
        return int(found[1])

    def width(name: str) -> int:
        found = re.search(rf"#define {name} .*?UINT64_C\((0x[0-9a-f]+)\)", LAYOUT)
        assert found is not None, name
        return int(found[1], 0).bit_length()

    at = {
        "SEAL": (number("MP_SEAL"), 1),
        "LIVE": (number("MP_LIVE"), 1),
        "owner": (number("MP_OWNER_SHIFT"), width("MP_OWNER_MASK")),
        "gen": (number("MP_GEN_SHIFT"), width("MP_GEN_MASK")),
        "records": (number("MP_COUNT_SHIFT"), width("MP_COUNT_MASK")),
        "bytes": (0, width("MP_BYTES_MASK")),
    }
    code = {name: str(low) if bits == 1 else f"{low}-{low + bits - 1}"
            for name, (low, bits) in at.items()}  # fmt: skip
    assert {row[0]: row[1] for row in table("slot word")} == code
    assert sum(bits for _low, bits in at.values()) == 64


def test_the_transitions_of_a_slot_are_those_of_the_header() -> None:
    assert [row[0] for row in table("slot transitions")] == re.findall(
        r"^ \*  (?:slot\.word)? +(T\d) ", LAYOUT, re.MULTILINE
    )


def test_every_step_a_process_can_be_killed_at_has_a_row_that_names_its_function() -> None:
    where = {}
    for path in sorted((PACKAGE / "_core").glob("*.c")):
        function = ""
        for line in path.read_text().splitlines():
            if found := re.match(r"[A-Za-z][\w \*]*?\b(\w+)\(", line):
                function = found[1]
            for step in re.findall(r"MP_STEP\((\d+)\)", line):
                where[int(step)] = f"`_core/{path.name}:{function}`"
    said = {int(step): row[1] + row[2] for row in table("steps") for step in row[0].split(",")}
    assert sorted(said) == sorted(where)
    for step, function in where.items():
        assert function in said[step], (step, function)


def test_the_import_table_is_the_one_that_is_enforced() -> None:
    said = {row[0].strip("`"): set(names(row[1])) for row in table("imports")}
    assert said == check_imports.ALLOWED


def test_links_and_anchors_lead_somewhere() -> None:
    heads = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
    for target in re.findall(r"\]\(#([^)]+)\)", PAGE):
        assert target in anchors, target
