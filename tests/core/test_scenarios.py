"""Single interleavings of the core, made on purpose (scenarios*.c), under ASan and UBSan."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.core.sources import CORE, PLAIN

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = [Path(__file__).with_name(name) for name in ("scenarios.c", "scenarios_memory.c")]
NAMES = [
    (source.stem, name)
    for source in SOURCES
    for name in re.findall(r"SCENARIO\((\w+)\),", source.read_text())
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenarios")
    for source in SOURCES:
        command = ["gcc", "-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
        command += ["-DMP_TESTPOINTS", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        command += [f"-I{CORE}", *map(str, [source, *PLAIN]), "-o", str(folder / source.stem)]
        subprocess.run(command, check=True, timeout=120)
    return folder


@pytest.mark.parametrize(("program", "name"), NAMES)
def test_interleaving(programs: Path, program: str, name: str) -> None:
    done = subprocess.run(
        [str(programs / program), name], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
