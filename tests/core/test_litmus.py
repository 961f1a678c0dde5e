"""Orders on the hardware that is there (litmus.c): the core's own halves race, millions of times.

Store buffering shows on x86: each mutant puts a plain store in the place of a read-modify-write,
and rounds are lost. Message passing does not; its mutant changes the order of the code.
`models/tso.pml` tries every delay of every buffer; `giveback` has its mutant (of T9) only there,
where more than a store buffer's depth lies between the two halves.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.core.sources import CORE, PLAIN

HERE = Path(__file__).resolve().parent
TESTS = ("announce", "wait", "giveback", "publish")
SECONDS = 1.0
TRIES = 12

# (test that loses rounds, file, text, replacement)
MUTANTS = {
    "dirty_bit_is_a_plain_store": (
        "announce", "wake.c",
        "atomic_fetch_or_explicit(&region->dirty[partition / 64], UINT64_C(1) << partition % 64,\n"
        "                             SEQ_CST);",
        "atomic_store_explicit(&region->dirty[partition / 64], UINT64_C(1) << partition % 64,\n"
        "                             RELAXED);",
    ),
    "sleep_word_is_a_plain_store": (
        "announce", "pool.c",
        "atomic_exchange_explicit(&region->pool->wake, word, SEQ_CST);",
        "atomic_store_explicit(&region->pool->wake, word, RELAXED);",
    ),
    "waiting_bit_is_a_plain_store": (
        "wait", "wait.c",
        "atomic_fetch_or_explicit(&pool->waiting[writer->owner / 64],",
        "atomic_store_explicit(&pool->waiting[writer->owner / 64],",
    ),
    "payload_is_written_after_its_count": (
        "publish", "append.c",
        "    encode(region, slot, 0, record, 0, 0, body);\n    MP_STEP(15);",
        "    MP_STEP(15);",
    ),
}  # fmt: skip
# What goes with a mutant's change: the other half of a move, the order of a store.
ALSO = {
    "waiting_bit_is_a_plain_store": (
        "UINT64_C(1) << writer->owner % 64, SEQ_CST);\n    mp_wake_sender(writer, 0);",
        "UINT64_C(1) << writer->owner % 64, RELAXED);\n    mp_wake_sender(writer, 0);",
    ),
    "payload_is_written_after_its_count": (
        "    MP_STEP(18);\n    writer->opened++;",
        "    encode(region, slot, 0, record, 0, 0, body);\n    writer->opened++;",
    ),
}

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="two threads race only on two CPUs"
)


def build(folder: Path, mutant: str | None = None) -> Path:
    files = []
    for source in PLAIN:
        name, text = source.name, source.read_text()
        if mutant is not None and MUTANTS[mutant][1] == name:
            for before, after in [MUTANTS[mutant][2:], *([ALSO[mutant]] if mutant in ALSO else [])]:
                assert text.count(before) == 1, "the mutant no longer fits the code"
                text = text.replace(before, after)
        files.append(folder / name)
        files[-1].write_text(text)
    target = folder / "litmus"
    command = ["gcc", "-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
    command += [f"-I{CORE}", str(HERE / "litmus.c"), *map(str, files), "-lpthread"]
    subprocess.run([*command, "-o", str(target)], check=True, timeout=60)
    return target


def run(program: Path, test: str, seconds: float, seed: int) -> dict[str, int]:
    done = subprocess.run(
        [str(program), test, str(seconds), str(seed)], check=False, capture_output=True, text=True,
        timeout=60 + 3 * seconds,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def litmus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("litmus"))


@pytest.mark.parametrize("test", TESTS)
def test_no_round_is_lost(litmus: Path, test: str, seed: int) -> None:
    found = run(litmus, test, SECONDS, seed)
    assert found["lost"] == 0
    assert found["rounds"] > 100


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_weaker_order_loses_rounds(tmp_path: Path, mutant: str, seed: int) -> None:
    program = build(tmp_path, mutant)
    for attempt in range(TRIES):
        if run(program, MUTANTS[mutant][0], SECONDS, seed + attempt)["lost"] > 0:
            return
    pytest.fail(f"{mutant} lost no round in {TRIES} s")
