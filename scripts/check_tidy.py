"""Checks sizes of files and functions, docstrings, and words that have no place here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 550
MAX_FUNCTION_LINES = 75
CODE = {".py", ".c", ".h", ".pyi"}
PROSE = {".md", ".toml", ".sh", ".pml", ""}
# Spelt so that this file does not find itself.
FORBIDDEN = re.compile(
    r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b|NotImplemented" r"Error|/wo" r"rk/|/ro" r"ot/|/ho" r"me/"
)


def tracked() -> list[Path]:
    """Files of the repository, those not added yet included."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def check_sizes(path: Path, name: str, lines: list[str]) -> Iterator[str]:
    """Files that are too long."""
    if len(lines) > MAX_FILE_LINES:
        yield f"{name}: {len(lines)} lines, at most {MAX_FILE_LINES}"


def check_functions(name: str, tree: ast.Module) -> Iterator[str]:
    """Functions that are too long, and public ones that say nothing of themselves."""
    public = name.startswith(("mpproducer/", "scripts/"))
    if public and not ast.get_docstring(tree) and tree.body:
        yield f"{name}: no docstring"
    for node, inside in _definitions(tree):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MAX_FUNCTION_LINES and not isinstance(node, ast.ClassDef):
            yield f"{name}:{node.lineno}: {node.name} has {length} lines"
        hidden = node.name.startswith("_") or inside
        if public and not hidden and not ast.get_docstring(node):
            yield f"{name}:{node.lineno}: {node.name} has no docstring"


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _definitions(tree: ast.Module) -> Iterator[tuple[Definition, bool]]:
    """(definition, whether it is inside a private class, a function, or a Protocol)."""
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:
        node, hidden = waiting.pop()
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                waiting.append((child, hidden))
                continue
            yield child, hidden
            waiting.append((child, hidden or _hides(child)))


def _hides(node: Definition) -> bool:
    return (
        not isinstance(node, ast.ClassDef)
        or node.name[0] == "_"
        or any("Protocol" in ast.unparse(base) for base in node.bases)
    )


def check_words(name: str, lines: list[str]) -> Iterator[str]:
    """Leftovers and places of one machine."""
    for number, line in enumerate(lines, 1):
        if found := FORBIDDEN.search(line):
            yield f"{name}:{number}: {found.group()}"


def main() -> int:
    """Print what is wrong; the exit status says whether anything is."""
    wrong: list[str] = []
    for path in tracked():
        name = str(path.relative_to(ROOT))
        if path.suffix not in CODE | PROSE or "corpus" in path.parts:
            continue
        lines = path.read_text().splitlines()
        wrong += check_words(name, lines)
        if path.suffix in CODE:
            wrong += check_sizes(path, name, lines)
        if path.suffix == ".py" and not name.startswith(("tests/", "bench/")):
            wrong += check_functions(name, ast.parse("\n".join(lines)))
    sys.stdout.writelines(f"{line}\n" for line in wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
