"""Kill and stop at every step of the slot protocol, with real processes (steps.c)."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.core.sources import CORE, PLAIN

ROOT = Path(__file__).resolve().parent.parent.parent
WORKER_STEPS = range(1, 29)
SENDER_STEPS = range(40, 44)
TRIES = 60
WANTED_HITS = 3

# Each breaks one rule of layout.h in the code itself: (file, text, replacement).
MUTANTS = {
    "T2_commit_is_a_store": (
        "append.c",
        "if (!atomic_compare_exchange_strong_explicit(&header->word, &expected, committed, "
        "RELEASE,\n"
        "                                                 RELAXED)) {\n"
        "        /* Sealed over us",
        "if (atomic_store_explicit(&header->word, committed, RELEASE), 0) {\n"
        "        /* Sealed over us",
    ),
    "T6_is_never_said": (
        "append.c",
        "atomic_fetch_and_explicit(&region->slot[slot].word, ~MP_OWNER_MASK, RELEASE);",
        "(void)region; (void)slot;",
    ),
    "R2_no_quarantine": (
        "pool.c",
        "if (owner && sender->alive[owner]) return 0;",
        "(void)owner;",
    ),
    "R7_extensions_of_the_dead_are_freed_unseen": (
        "pool.c",
        "if (mp_is_extension(word) ? is_counted(sender, header) : sender->known[slot]) continue;",
        "if (mp_is_extension(word) ? (void)is_counted(sender, header), 0 : sender->known[slot])"
        " continue;",
    ),
    "lost_commit_counts_as_appended": (
        "append.c",
        "keep(writer, run.first, run.more);\n"
        "        acknowledge(region, slot);\n"
        "        return TURN_RETRY;\n"
        "    }\n"
        "    MP_STEP(14);",
        "keep(writer, run.first, run.more);\n"
        "        acknowledge(region, slot);\n"
        "    }\n"
        "    MP_STEP(14);",
    ),
    "a_run_counts_as_one_record": (
        "append.c",
        "(uint64_t)run.index << MP_COUNT_SHIFT | run.end;",
        "(uint64_t)(index + 1) << MP_COUNT_SHIFT | run.end;",
    ),
    "released_chains_keep_their_tail": (
        "pool.c",
        "mp_slots_for(sender->committed[slot]) - 1, batch_id, 1);",
        "0, batch_id, 1);",
    ),
}


def build(folder: Path, *flags: str, mutant: str | None = None) -> Path:
    """Compile the harness, with one line of the core changed if a mutant is named."""
    files = []
    for source in PLAIN:
        name, text = source.name, source.read_text()
        if mutant is not None and MUTANTS[mutant][0] == name:
            before, after = MUTANTS[mutant][1:]
            assert text.count(before) == 1, "the mutant no longer fits the code"
            text = text.replace(before, after)
        files.append(folder / name)
        files[-1].write_text(text)
    target = folder / "steps"
    command = ["gcc", "-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-D_GNU_SOURCE"]
    command += ["-DMP_TESTPOINTS", f"-I{CORE}", *flags, str(Path(__file__).with_name("steps.c"))]
    subprocess.run([*command, *map(str, files), "-o", str(target)], check=True, timeout=120)
    return target


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("steps"), "-Werror")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    return build(folder, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def run(program: Path, action: str, step: int, nth: int, seed: int) -> dict[str, Any]:
    """One run; fails the test with what the harness says."""
    command = [str(program), action, str(step), str(nth), str(seed)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def hit(program: Path, action: str, step: int, seed: int, wanted: int = WANTED_HITS) -> None:
    """Run until the fault has really happened several times."""
    hits = 0
    for attempt in range(TRIES):
        hits += run(program, action, step, 1 + attempt % 5, seed + attempt)["hits"]
        if hits >= wanted:
            return
    pytest.fail(f"step {step} was reached {hits} times in {TRIES} runs, not {wanted}")


@pytest.mark.parametrize("step", WORKER_STEPS)
def test_W3_W4_X1_a_worker_killed_at_a_step_loses_nothing_that_was_appended(
    steps: Path, step: int, seed: int
) -> None:
    hit(steps, "kill", step, seed)


@pytest.mark.parametrize("step", WORKER_STEPS)
def test_W5_W6_X6_a_worker_stopped_at_a_step_holds_up_nobody(
    steps: Path, step: int, seed: int
) -> None:
    hit(steps, "stop", step, seed, wanted=2)


@pytest.mark.parametrize("step", [step for step in SENDER_STEPS if step != 42])
def test_the_sender_held_up_at_a_step_only_delays(steps: Path, step: int, seed: int) -> None:
    hit(steps, "stop", step, seed)


def test_A7_many_appenders_one_drainer_and_the_runs_reach_what_they_are_for(
    steps: Path, seed: int
) -> None:
    total: dict[str, int] = {}
    for attempt in range(10):
        for name, count in run(steps, "none", 0, 1, seed + attempt).items():
            total[name] = total.get(name, 0) + count
    for name in ("steals", "lost", "waits", "compressed", "runs", "value_runs"):
        assert total[name] > 0, total


@pytest.mark.parametrize("step", (3, 5, 10, 13, 17, 24, 26))
def test_steps_under_sanitizers(sanitized: Path, step: int, seed: int) -> None:
    hit(sanitized, "kill", step, seed, wanted=1)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_seeded_bug_is_found(tmp_path: Path, mutant: str, seed: int) -> None:
    program = build(tmp_path, "-Wno-unused", mutant=mutant)
    for attempt in range(100):
        step = (13, 11, 14, 12, 18)[attempt % 5]
        command = [str(program), ("none", "kill", "stop")[attempt % 3], str(step), "1"]
        done = subprocess.run(
            [*command, str(seed + attempt)],
            check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        if done.returncode != 0:
            assert done.stderr.startswith("steps: "), done.stderr
            return
    pytest.fail(f"{mutant} was not found in 100 runs")


def test_every_step_of_the_code_is_in_the_lists() -> None:
    found = {
        int(number)
        for path in CORE.glob("*.c")
        for number in re.findall(r"MP_STEP\((\d+)\)", path.read_text())
    }
    assert found == {*WORKER_STEPS, *SENDER_STEPS}
