"""The long form of the core's proofs; see scripts/prove."""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
MODEL_LIMIT_S = 3600.0
THREE_WORKERS = "-DNW=3 -DNS=4 -DK=1 -DCRASHES=1 -DSTEALS=1"


def load(name: str) -> ModuleType:
    """A test module as a library: the short forms are built by the same code."""
    path = ROOT / "tests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def models() -> bool:
    """Every configuration and every mutant, then three workers as far as bitstate goes."""
    runner = load("models/test_models")
    good = True
    for model, definitions in [*runner.HOLDS, *runner.LONG]:
        with tempfile.TemporaryDirectory() as folder:
            good &= report(
                f"{model} {definitions}",
                runner.holds(runner.check(Path(folder), model, definitions, MODEL_LIMIT_S)),
            )
    for model, mutant, definitions, _ in [*runner.FOUND, *runner.FOUND_LONG]:
        with tempfile.TemporaryDirectory() as folder:
            asked = f"{definitions} -DMUTANT={mutant}"
            output = runner.check(Path(folder), model, asked, MODEL_LIMIT_S)
            good &= report(f"{model} mutant {mutant} is found", "assertion violated" in output)
    with tempfile.TemporaryDirectory() as folder:
        output = runner.check(Path(folder), "slot", THREE_WORKERS, MODEL_LIMIT_S, bitstate=True)
        good &= report(f"slot {THREE_WORKERS} (bitstate)", "errors: 0" in output)
    return good


def threads(minutes: float, seed: int) -> bool:
    """ThreadSanitizer on the right orders."""
    sanitizers = load("core/test_sanitizers")
    with tempfile.TemporaryDirectory() as folder:
        program = sanitizers.build(Path(folder), "-fsanitize=thread", "threads.c", [])
        done = sanitizers.run_threads(program, minutes * 60, seed)
    return report(f"threads {done.stdout.strip()}", done.returncode == 0, done.stderr)


def fuzz(minutes: float, seed: int) -> bool:
    """The record walk on arbitrary bytes."""
    sanitizers = load("core/test_sanitizers")
    flags = "-fsanitize=fuzzer,address,undefined"
    with tempfile.TemporaryDirectory() as folder:
        program = sanitizers.build(Path(folder), flags, "fuzz_records.c", [])
        found = Path(folder, "found")
        found.mkdir()
        command = [str(program), f"-max_total_time={int(minutes * 60)}", f"-seed={seed}"]
        done = subprocess.run(
            [*command, str(found), str(sanitizers.CORPUS)], check=False, capture_output=True,
            text=True, cwd=folder, timeout=minutes * 60 + 300,
        )  # fmt: skip
    return report("fuzzed walk", done.returncode == 0, done.stderr[-3000:])


def steps(minutes: float, seed: int) -> bool:
    """Kill and stop at random steps, with real processes."""
    harness = load("core/test_steps")
    rng = random.Random(seed)  # noqa: S311 - a repeatable choice of faults
    until = time.monotonic() + minutes * 60
    totals: dict[str, int] = {"runs": 0}
    with tempfile.TemporaryDirectory() as folder:
        program = harness.build(Path(folder), "-Werror")
        while time.monotonic() < until:
            action = rng.choice(("kill", "stop", "none"))
            step, nth = rng.choice(list(harness.WORKER_STEPS)), rng.randrange(1, 6)
            try:
                found = harness.run(program, action, step, nth, rng.getrandbits(32))
            except AssertionError as error:
                return report("kill and stop", False, str(error))
            totals["runs"] += 1
            for name, count in found.items():
                totals[name] = totals.get(name, 0) + count
    return report(f"kill and stop {json.dumps(totals)}", totals["runs"] > 0)


def report(what: str, good: bool, why: str = "") -> bool:
    """One line a proof."""
    sys.stdout.write(f"{'holds ' if good else 'FAILS '} {what}\n{why if not good else ''}")
    sys.stdout.flush()
    return good


def main() -> int:
    """Run all parts; 1 when one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for each timed part")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(31))
    parser.add_argument("--only", choices=("models", "threads", "fuzz", "steps"))
    given = parser.parse_args()
    sys.stdout.write(f"seed {given.seed}\n")
    parts: dict[str, Callable[[], bool]] = {
        "steps": lambda: steps(given.minutes, given.seed),
        "threads": lambda: threads(given.minutes, given.seed),
        "fuzz": lambda: fuzz(given.minutes, given.seed),
        "models": models,
    }
    good = [run() for name, run in parts.items() if given.only in (None, name)]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
