"""scripts/check_imports.py and scripts/check_tidy.py notice what they are there for."""

from __future__ import annotations

import ast
import functools
import subprocess
from pathlib import Path

import check_imports
import check_tidy
import pytest


@functools.cache
def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(path.read_text()) for name, path in check_imports.modules().items()}


def with_line(module: str, line: str) -> dict[str, ast.Module]:
    """The package's trees with one more statement in a module."""
    changed = ast.parse(f"{check_imports.modules()[module].read_text()}\n{line}\n")
    return trees() | {module: changed}


def test_the_package_passes() -> None:
    assert check_imports.main() == 0


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("mpproducer.wire.codec", "import mpproducer.sender.machine"),
        ("mpproducer.worker.attach", "from mpproducer.sender import frames"),
        ("mpproducer.sender.loop", "from mpproducer.worker.attach import Link"),
        ("mpproducer.net.stream", "from mpproducer import errors"),
        ("mpproducer.shm.control", "def f():\n    from mpproducer.worker import attach"),
        ("mpproducer.errors", "from mpproducer.config import Config"),
        ("mpproducer.sender.drain", "import mpproducer.cli"),
    ],
)
def test_an_import_against_the_direction_is_found(module: str, line: str) -> None:
    assert not list(check_imports.check_directions(trees()))
    (wrong,) = list(check_imports.check_directions(with_line(module, line)))[:1]
    assert wrong.startswith(f"{module}:")
    assert "must not import" in wrong


def test_a_new_station_needs_a_row() -> None:
    found = trees() | {"mpproducer.extra": ast.parse("x = 1")}
    (wrong,) = check_imports.check_directions(found)
    assert "no row for 'extra'" in wrong


@pytest.mark.parametrize("line", ["import time", "from os import environ", "import select"])
@pytest.mark.parametrize("module", ["mpproducer.sender.machine", "mpproducer.sender.retry"])
def test_an_impure_import_of_the_machine_is_found_however_deep(module: str, line: str) -> None:
    assert not list(check_imports.check_machine(trees()))
    wrong = list(check_imports.check_machine(with_line(module, line)))
    assert wrong
    assert all(each.startswith(f"{module}:") for each in wrong)


def test_an_import_for_typing_only_is_no_import() -> None:
    line = "if TYPE_CHECKING:\n    import time\n    from mpproducer.cli import main"
    found = with_line("mpproducer.sender.machine", line)
    assert not list(check_imports.check_machine(found))
    assert not list(check_imports.check_directions(found))


def test_a_heavy_package_at_module_level_is_found_and_inside_a_function_is_not() -> None:
    assert list(check_imports.check_lazy(with_line("mpproducer.cli", "import rich.table")))
    assert not list(check_imports.check_lazy(with_line("mpproducer.cli", "def f():\n import rich")))


# --- tidiness


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, timeout=30)
    monkeypatch.setattr(check_tidy, "ROOT", tmp_path)
    (tmp_path / "mpproducer").mkdir()
    return tmp_path


GOOD = '"""Says what it is."""\n\n\ndef public() -> None:\n    """Do nothing."""\n'
MANY = check_tidy.MAX_FUNCTION_LINES
LONG = '"""Doc."""\ndef public() -> None:\n    """Doc."""\n' + "    x = 1\n" * MANY
BARE = GOOD.replace('"""Says what it is."""', "x = 1")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("mpproducer/a.py", GOOD, ""),
        ("mpproducer/a.py", BARE, "no docstring"),
        ("mpproducer/a.py", GOOD.replace('"""Do nothing."""', "pass"), "public has no docstring"),
        ("mpproducer/a.py", LONG, f"public has {MANY + 2} lines"),
        ("mpproducer/a.py", '"""D."""\n' + "x = 1\n" * check_tidy.MAX_FILE_LINES, "lines, at most"),
        ("mpproducer/a.c", "int x;\n" * (check_tidy.MAX_FILE_LINES + 1), "lines, at most"),
        ("tests/a.py", "def test_x():\n    pass\n", ""),
        ("docs/a.md", "left to do: TO" + "DO\n", "TO" + "DO"),
        ("mpproducer/a.py", GOOD + "# FIX" + "ME\n", "FIX" + "ME"),
        ("mpproducer/a.py", GOOD + "P = '/ho" + "me/me/x'\n", "/ho" + "me/"),
        ("mpproducer/a.py", GOOD + "raise NotImplemented" + "Error\n", "NotImplemented"),
    ],
)  # fmt: skip
def test_tidiness_finds_what_is_wrong(
    name: str, text: str, says: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = repository / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)  # not added to git: still seen
    status = check_tidy.main()
    said = capsys.readouterr().out
    assert status == bool(says)
    assert (says in said and name in said) if says else said == ""


def test_private_nested_and_protocol_functions_need_no_docstring(repository: Path) -> None:
    (repository / "mpproducer" / "a.py").write_text(
        '"""D."""\n\n\ndef _hidden():\n    pass\n\n\nclass P(Protocol):\n    """D."""\n\n'
        "    def method(self): ...\n\n\ndef public():\n    '''D.'''\n\n"
        "    def inner():\n        pass\n"
    )
    assert check_tidy.main() == 0
