"""libFuzzer targets of everything in C that reads what another process, or a caller, wrote.

Here each replays its corpus and fuzzes for a moment; `scripts/prove --only fuzz` goes on for long.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.core.sources import CORE, PLAIN

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SECONDS = 2
FLAGS = "-fsanitize=fuzzer-no-link,address,undefined"
# What a target is linked with: the core alone, or the binding and an interpreter, too.
TARGETS = {
    "records": False, "pool": False, "segment": False,
    "frames": True, "columns": True, "response": True, "wire": True,
}  # fmt: skip

pytestmark = [
    pytest.mark.skipif(
        shutil.which("clang") is None,
        reason="clang is missing: apt-get install clang libclang-rt-14-dev",
    ),
    pytest.mark.xdist_group("fuzz"),  # the objects are compiled once
]


def compile_core(folder: Path) -> None:
    """Objects of the whole core in `folder`, instrumented; skips without clang's runtime."""
    probe = folder / "probe.c"
    probe.write_text(
        "int LLVMFuzzerTestOneInput(void); int LLVMFuzzerTestOneInput(void){return 0;}"
    )
    have = subprocess.run(
        ["clang", "-fsanitize=fuzzer,address,undefined", str(probe), "-o", str(folder / "probe")],
        check=False, capture_output=True, timeout=60,
    )  # fmt: skip
    if have.returncode != 0:
        pytest.skip("clang's sanitizer runtime is missing: apt-get install libclang-rt-14-dev")
    sources = sorted(map(str, CORE.glob("*.c")))
    command = ["clang", *_flags(), FLAGS, f"-I{sysconfig.get_path('include')}", "-c", *sources]
    subprocess.run(command, check=True, timeout=240, cwd=folder)


def _flags() -> list[str]:
    return [
        "-std=c11", "-O1", "-g", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror",
        "-fno-sanitize-recover=undefined", f"-I{CORE}",
    ]  # fmt: skip


def build(folder: Path, name: str) -> Path:
    """Link one target with the objects in `folder`; skips where Python has no shared library."""
    objects = [str(folder / f"{source.stem}.o") for source in PLAIN]
    extra: list[str] = []
    if TARGETS[name]:
        library = Path(str(sysconfig.get_config_var("LIBDIR")))
        version = sysconfig.get_config_var("LDVERSION")
        if not (library / f"libpython{version}.so").exists():
            pytest.skip(f"this Python has no libpython{version}.so to embed")
        objects = [str(folder / f"{source.stem}.o") for source in CORE.glob("*.c")]
        extra = [f"-I{sysconfig.get_path('include')}", f"-L{library}", f"-Wl,-rpath,{library}"]
        extra += [f"-lpython{version}"]
    target = folder / f"fuzz_{name}"
    main = str(HERE / f"fuzz_{name}.c")
    command = ["clang", *_flags(), "-fsanitize=fuzzer,address,undefined", main, *objects, *extra]
    subprocess.run([*command, "-lpthread", "-o", str(target)], check=True, timeout=120)
    return target


def fuzz(program: Path, seconds: float, seed: int, found: Path) -> subprocess.CompletedProcess[str]:
    """Fuzz from the committed corpus for so long; new inputs go to `found`."""
    found.mkdir(exist_ok=True)
    corpus = HERE / "corpus" / program.name.removeprefix("fuzz_")
    command = [str(program), f"-max_total_time={max(1, int(seconds))}", f"-seed={seed % 2**31}"]
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0" if TARGETS[corpus.name] else "detect_leaks=1",
    }  # fmt: skip
    return subprocess.run(
        [*command, "-timeout=10", str(found), str(corpus)], check=False, capture_output=True,
        text=True, cwd=program.parent, timeout=seconds + 300, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    compile_core(folder)
    return folder


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_bytes_break_no_bound(objects: Path, tmp_path: Path, name: str, seed: int) -> None:
    done = fuzz(build(objects, name), SECONDS, seed, tmp_path / "found")
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    corpus = len(list((HERE / "corpus" / name).iterdir()))
    assert corpus > 0
    assert runs is not None
    assert int(runs[1]) > corpus, done.stderr[-2000:]


def test_every_target_is_in_the_list() -> None:
    assert {path.stem for path in HERE.glob("fuzz_*.c")} == {f"fuzz_{name}" for name in TARGETS}
