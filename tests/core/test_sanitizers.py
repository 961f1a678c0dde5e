"""The core under clang's ThreadSanitizer, with seeded relaxed orders."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.core.sources import CORE, PLAIN

HERE = Path(__file__).resolve().parent
SECONDS = 3

pytestmark = pytest.mark.skipif(
    shutil.which("clang") is None,
    reason="clang is missing: apt-get install clang libclang-rt-14-dev",
)

RELAXED_LOADS = '#include "orders.h"\n#undef ACQUIRE\n#define ACQUIRE memory_order_relaxed\n'
# (file, text, replacement), applied in order.
RELAXED = {
    "T2": [
        ("append.c", f"&expected, committed, {order},", "&expected, committed, RELAXED,")
        for order in ("RELEASE", "SEQ_CST")
    ],
    "T5": [
        ("pool.c", "atomic_fetch_or_explicit(word, MP_SEAL, ACQ_REL);",
         "atomic_fetch_or_explicit(word, MP_SEAL, RELAXED);"),
        ("pool.c", '#include "orders.h"\n', RELAXED_LOADS),
        ("walk.c", '#include "orders.h"\n', RELAXED_LOADS),
    ],
    "T6": [("append.c", "~MP_OWNER_MASK, RELEASE)", "~MP_OWNER_MASK, RELAXED)")],
}  # fmt: skip


def build(folder: Path, flags: str, main: str, changes: list[tuple[str, str, str]]) -> Path:
    """Compile a harness with clang, the core changed as asked; skips without its runtime."""
    probe = folder / "probe.c"
    probe.write_text("int main(void){return 0;}\n")
    have = subprocess.run(
        ["clang", flags, str(probe), "-o", str(folder / "probe")], check=False,
        capture_output=True, timeout=60,
    )  # fmt: skip
    if have.returncode != 0:
        pytest.skip("clang's sanitizer runtime is missing: apt-get install libclang-rt-14-dev")
    files = []
    for source in PLAIN:
        name, text = source.name, source.read_text()
        for where, before, after in changes:
            if where == name:
                assert before in text, "the mutant no longer fits the code"
                text = text.replace(before, after)
        files.append(folder / name)
        files[-1].write_text(text)
    target = folder / "program"
    command = ["clang", "-std=c11", "-O1", "-g", "-D_GNU_SOURCE", flags]
    command += ["-fno-sanitize-recover=undefined", f"-I{CORE}", str(HERE / main)]
    subprocess.run(
        [*command, *map(str, files), "-lpthread", "-o", str(target)], check=True, timeout=120
    )
    return target


def run_threads(program: Path, seconds: float, seed: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), str(seconds), str(seed)], check=False, capture_output=True, text=True,
        timeout=60 + seconds * 3,
    )  # fmt: skip


def test_threads_have_no_data_race(tmp_path: Path, seed: int) -> None:
    done = run_threads(build(tmp_path, "-fsanitize=thread", "threads.c", []), SECONDS, seed)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["appended"] > 1000
    assert counts["waits"] > 0


@pytest.mark.parametrize("word", RELAXED)
def test_a_relaxed_order_is_found(tmp_path: Path, word: str, seed: int) -> None:
    program = build(tmp_path, "-fsanitize=thread", "threads.c", RELAXED[word])
    for attempt in range(5):
        done = run_threads(program, SECONDS, seed + attempt)
        if "ThreadSanitizer: data race" in done.stderr:
            return
    pytest.fail(f"{word} relaxed was not found in 5 runs")
