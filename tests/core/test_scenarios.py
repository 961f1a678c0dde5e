"""Single interleavings of the core, made on purpose (scenarios.c), under ASan and UBSan."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.core.sources import CORE, PLAIN

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE = Path(__file__).with_name("scenarios.c")
NAMES = re.findall(r"SCENARIO\((\w+)\),", SOURCE.read_text())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("scenarios") / "scenarios"
    sources = [SOURCE, *PLAIN]
    command = ["gcc", "-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
    command += ["-DMP_TESTPOINTS", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += [f"-I{CORE}", *map(str, sources), "-o", str(target)]
    subprocess.run(command, check=True, timeout=120)
    return target


@pytest.mark.parametrize("name", NAMES)
def test_interleaving(program: Path, name: str) -> None:
    done = subprocess.run(
        [str(program), name], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
