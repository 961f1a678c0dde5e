"""The core's CRC-32C against the library's: by folding, in lanes, and with tables."""

from __future__ import annotations

import ctypes
import platform
import random
import shutil
import subprocess
from pathlib import Path

import crc32c
import pytest

SOURCE = Path(__file__).resolve().parent.parent.parent / "mpproducer" / "_core" / "crc.c"


@pytest.fixture(
    scope="module",
    params=[[], ["-DMP_CRC_LANES"], ["-DMP_CRC_TABLES"]],
    ids=["best", "lanes", "tables"],
)
def core(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    target = tmp_path_factory.mktemp("crc") / "crc.so"
    command = ["gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-shared"]
    command += ["-fPIC", "-pthread", *request.param, str(SOURCE), "-o", str(target)]
    subprocess.run(command, check=True, timeout=60)
    made = ctypes.CDLL(str(target))
    made.mp_crc32c.argtypes = [ctypes.c_uint32, ctypes.c_char_p, ctypes.c_size_t]
    made.mp_crc32c.restype = ctypes.c_uint32
    made.mp_crc32c_join.argtypes = [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64]
    made.mp_crc32c_join.restype = ctypes.c_uint32
    return made


def test_it_is_the_librarys_at_every_length_and_from_every_start(
    core: ctypes.CDLL, rng: random.Random
) -> None:
    assert core.mp_crc32c(0, b"123456789", 9) == 0xE3069283
    lengths = [*range(20), *range(240, 280), 511, 512, 513, 768]
    lengths += [4079, 4080, 4081, 8160, 16384, 70_001]
    lengths += [rng.randrange(20_000) for _ in range(200)]
    for length in lengths:
        data = rng.randbytes(length)
        before = rng.randrange(1 << 32)
        assert core.mp_crc32c(before, data, length) == crc32c.crc32c(data, before), length


def test_two_parts_are_joined_whatever_their_lengths(core: ctypes.CDLL, rng: random.Random) -> None:
    for _ in range(300):
        first = rng.randbytes(rng.randrange(100))
        second = rng.randbytes(rng.choice([0, 1, rng.randrange(100_000)]))
        parts = crc32c.crc32c(first), crc32c.crc32c(second), len(second)
        whole = crc32c.crc32c(first + second)
        assert core.mp_crc32c_join(*parts) == whole


@pytest.mark.skipif(platform.machine() != "x86_64", reason="its instruction")
@pytest.mark.skipif(shutil.which("clang") is None, reason="clang is missing: apt-get install clang")
def test_it_compiles_where_the_compiler_has_the_instruction_switched_off(tmp_path: Path) -> None:
    """As Zig has, which takes its place on a machine without a compiler."""
    command = ["clang", "-std=c11", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-mno-crc32"]
    command += ["-c", str(SOURCE), "-o", str(tmp_path / "crc.o")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
