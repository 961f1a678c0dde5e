"""Single interleavings of the core, made on purpose (scenarios*.c), under ASan and UBSan."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.core.sources import CORE, PLAIN

SOURCES = sorted(Path(__file__).parent.glob("scenarios*.c"))
NAMES = [
    (source.stem, name)
    for source in SOURCES
    for name in re.findall(r"SCENARIO\((\w+)\),", source.read_text())
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scenarios")
    command = ["gcc", "-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
    command += ["-DMP_TESTPOINTS", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    for source in SOURCES:
        files = [source, *PLAIN]
        subprocess.run(
            [*command, f"-I{CORE}", *map(str, files), "-o", str(folder / source.stem)],
            check=True,
            timeout=120,
        )
    return {source.stem: folder / source.stem for source in SOURCES}


@pytest.mark.parametrize(("program", "name"), NAMES)
def test_interleaving(programs: dict[str, Path], program: str, name: str) -> None:
    done = subprocess.run(
        [str(programs[program]), name], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
