"""Checks the one direction of imports, the purity of the state machine, and what stays lazy.

    cli -> testing, producer -> worker -> shm -> errors
    sender -> shm, net, wire -> errors

The sender's machine, and everything it imports, knows no socket, clock, thread or process.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mpproducer"

BASE = {"errors", "version"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "light": set(),
    "reason": {"errors"},
    "config_keys": {"errors"},
    "config": {"config_keys", "errors", "light"},
    "_core": set(),
    "future": {"_core", "light"},
    "net": set(),
    "wire": {"errors"},
    "shm": {"errors", "light"},
    "worker": BASE | {"_core", "config", "light", "shm", "wire"},
    "producer": BASE | {"_core", "config", "future", "light", "reason", "shm", "worker"},
    "sender": BASE | {"_core", "config", "net", "reason", "shm", "wire"},
    "testing": BASE | {"net", "wire"},
    "visitor": {"_core", "errors", "shm"},
    "prometheus": {"errors", "shm", "visitor"},
    "cli": BASE | {"config", "producer", "prometheus", "shm", "testing", "visitor", "wire"},
    "__main__": {"cli"},
    "__init__": BASE | {"future", "producer"},
}
MACHINE = "mpproducer.sender.machine"
IMPURE = {
    "asyncio", "fcntl", "multiprocessing", "os", "resource", "select", "selectors", "signal",
    "socket", "ssl", "subprocess", "threading", "time",
}  # fmt: skip
NATIVE = "mpproducer._core"
LAZY = {"aiokafka", "confluent_kafka", "kafka", "numpy", "prometheus_client", "pyarrow", "rich"}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree: ast.Module, *, nested: bool) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of the imports at module level, or of all; not those for typing only."""
    waiting: list[ast.AST] = list(ast.iter_child_nodes(tree))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno
        elif nested or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting += ast.iter_child_nodes(node)


def station(module: str) -> str:
    """The folder or file below the package that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def check_directions(trees: dict[str, ast.Module]) -> Iterator[str]:
    """Imports that run against the direction."""
    for module, tree in trees.items():
        here = station(module)
        if here not in ALLOWED:
            yield f"{module}: no row for {here!r} in scripts/check_imports.py"
            continue
        for name, line in imports(tree, nested=True):
            if not name.startswith("mpproducer."):
                continue
            there = station(name)
            if there not in ALLOWED:  # a name of mpproducer itself, not a module
                continue
            if there != here and there not in ALLOWED[here]:
                yield f"{module}:{line}: {here} must not import {name}"


def check_machine(trees: dict[str, ast.Module]) -> Iterator[str]:
    """What the pure machine reaches by imports and must not."""
    waiting, seen = [MACHINE], {MACHINE}
    while waiting:
        module = waiting.pop()
        for name, line in imports(trees[module], nested=True):
            if name.split(".")[0] in IMPURE or name.startswith(NATIVE):
                yield f"{module}:{line}: imports {name}, and {MACHINE} imports it"
            if name in trees and name not in seen:
                seen.add(name)
                waiting.append(name)


def check_lazy(trees: dict[str, ast.Module]) -> Iterator[str]:
    """Heavy packages at module level."""
    for module, tree in trees.items():
        for name, line in imports(tree, nested=False):
            if name.split(".")[0] in LAZY:
                yield f"{module}:{line}: import {name} inside the function that needs it"


def main() -> int:
    """Print what is wrong; the exit status says whether anything is."""
    trees = {name: ast.parse(path.read_text()) for name, path in modules().items()}
    wrong = [*check_directions(trees), *check_machine(trees), *check_lazy(trees)]
    sys.stdout.writelines(f"{line}\n" for line in wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
