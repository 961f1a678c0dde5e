"""The long form of the proofs; see scripts/prove."""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # tests import each other by package
MODEL_LIMIT_S = 3600.0
THREE_WORKERS_S = 1200
PARTS = ("steps", "threads", "litmus", "fuzz", "models")
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
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            output = runner.check(Path(folder), model, definitions, MODEL_LIMIT_S)
            what = f"{model} {definitions}: {runner.size(output)}, {_since(began)}"
            good &= report(what, runner.holds(output))
    for model, mutant, definitions, what in [*runner.FOUND, *runner.FOUND_LONG]:
        with tempfile.TemporaryDirectory() as folder:
            asked = f"{definitions} -DMUTANT={mutant}"
            output = runner.check(Path(folder), model, asked, MODEL_LIMIT_S)
            good &= report(f"{model} mutant {mutant} is found", runner.finds(output, what))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        output = runner.check(
            Path(folder), "slot", THREE_WORKERS, MODEL_LIMIT_S, bitstate_s=THREE_WORKERS_S
        )
        what = f"slot {THREE_WORKERS} (bitstate): {runner.size(output)}, {_since(began)}"
        good &= report(what, "errors: 0" in output)
    return good


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.0f} s"


def threads(minutes: float, seed: int) -> bool:
    """ThreadSanitizer on the right orders."""
    sanitizers = load("core/test_sanitizers")
    with tempfile.TemporaryDirectory() as folder:
        program = sanitizers.build(Path(folder), "-fsanitize=thread", "threads.c", [])
        done = sanitizers.run_threads(program, minutes * 60, seed)
    return report(f"threads {done.stdout.strip()}", done.returncode == 0, done.stderr)


def litmus(minutes: float, seed: int) -> bool:
    """The orders on this hardware, the time shared among the tests."""
    runner = load("core/test_litmus")
    good = True
    with tempfile.TemporaryDirectory() as folder:
        program = runner.build(Path(folder))
        for test in runner.TESTS:
            found = runner.run(program, test, minutes * 60 / len(runner.TESTS), seed)
            good &= report(f"litmus {test} {json.dumps(found)}", found["lost"] == 0)
    return good


def fuzz(minutes: float, seed: int) -> bool:
    """All targets, the time shared among them."""
    runner, decoders = load("core/test_fuzz"), load("wire/test_fuzz_corpus")
    seconds = minutes * 60 / (len(runner.TARGETS) + 1)
    good = True
    with tempfile.TemporaryDirectory() as folder:
        runner.compile_core(Path(folder))
        for name in runner.TARGETS:
            program = runner.build(Path(folder), name)
            done = runner.fuzz(program, seconds, seed, Path(folder, f"found_{name}"))
            good &= report(f"fuzzed {name}{_runs(done)}", done.returncode == 0, done.stderr[-3000:])
        done = decoders.fuzz(seconds, seed, Path(folder, "found_decoders"))
        good &= report(f"fuzzed decoders{_runs(done)}", done.returncode == 0, done.stderr[-3000:])
    return good


def _runs(done: subprocess.CompletedProcess[str]) -> str:
    found = re.search(r"Done (\d+)", done.stderr)
    cover = re.findall(r"cov: (\d+)", done.stderr)
    return f": {found[1]} runs, {cover[-1] if cover else 0} edges" if found else ""


def steps(minutes: float, seed: int) -> bool:
    """Kill and stop at random steps, with real processes. Each run checks its own records: one that
    was lost, doubled, changed or out of order ends it with an error."""
    harness = load("core/test_steps")
    rng = random.Random(seed)  # noqa: S311 - a repeatable choice of faults
    began = time.monotonic()
    totals: dict[str, int] = {"rounds": 0, "kill": 0, "stop": 0, "none": 0}
    with tempfile.TemporaryDirectory() as folder:
        program = harness.build(Path(folder), "-Werror")
        while time.monotonic() < began + minutes * 60:
            action = rng.choice(("kill", "kill", "stop", "stop", "none"))
            step, nth = rng.choice(list(harness.WORKER_STEPS)), rng.randrange(1, 6)
            try:
                found = harness.run(program, action, step, nth, rng.getrandbits(32))
            except AssertionError as error:
                return report("kill and stop", False, str(error))
            totals["rounds"] += 1
            hits = found.pop("hits")
            totals[action] += 1 if action == "none" else hits
            for name, count in found.items():
                totals[name] = totals.get(name, 0) + count
    good = totals["kill"] > 0 and totals["stop"] > 0
    return report(f"kill and stop, {_since(began)}: {json.dumps(totals)}", good)


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
    parser.add_argument("--only", choices=PARTS)
    given = parser.parse_args()
    sys.stdout.write(f"seed {given.seed}\n")
    parts: dict[str, Callable[[], bool]] = {
        "steps": lambda: steps(given.minutes, given.seed),
        "threads": lambda: threads(given.minutes, given.seed),
        "litmus": lambda: litmus(given.minutes, given.seed),
        "fuzz": lambda: fuzz(given.minutes, given.seed),
        "models": models,
    }
    began = time.monotonic()
    good = [run() for name, run in parts.items() if given.only in (None, name)]
    sys.stdout.write(f"in all {_since(began)}\n")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
