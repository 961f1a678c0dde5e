"""The sender's machine under simulated faults: promises, invariants, liveness, seed by seed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.sim import runner
from tests.sim.plan import Fault
from tests.sim.runner import Case, Result

CHUNKS = 20
SEEDS_PER_CHUNK = 100
_SEED_SPACE = 1 << 32


def _chunk(place: int, seed: int) -> range:
    """Half of the chunks are the same in every run; the others are new ones, from `--seed`."""
    first = place * SEEDS_PER_CHUNK
    if place % 2:
        first += seed % _SEED_SPACE
    return range(first, first + SEEDS_PER_CHUNK)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(CHUNKS))
def test_promises_hold_under_faults_and_everything_finishes_after_them(
    place: int, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    result = runner.run_seeds(_chunk(place, request.getfixturevalue("seed")))
    assert not result.failures, "\n" + runner.describe(result.failures)
    hits = _hits_of_all_chunks(place, result, tmp_path_factory)
    if hits is not None:
        never = [kind.name for kind in Fault if not hits[kind.name]]
        assert not never, f"these faults never happened: {never}"


def _hits_of_all_chunks(
    place: int, result: Result, tmp_path_factory: pytest.TempPathFactory
) -> Counter[str] | None:
    """Hits by kind over the whole run, for the chunk that ends last; None for the others.

    The chunks run in several processes: each leaves its hits in the folder they share.
    """
    folder = tmp_path_factory.getbasetemp()
    if folder.name.startswith("popen-"):
        folder = folder.parent
    own = folder / f"simulation-hits-{place}.json"
    part = own.with_suffix(".part")
    part.write_text(json.dumps({kind.name: count for kind, count in result.hits.items()}))
    part.rename(own)
    found = list(folder.glob("simulation-hits-*.json"))
    if len(found) < CHUNKS:
        return None
    total: Counter[str] = Counter()
    for path in found:
        total.update(json.loads(path.read_text()))
    return total


@pytest.mark.parametrize(("case", "why"), runner.kept(), ids=lambda value: str(value)[:60])
def test_cases_that_once_failed_stay_mended(case: Case, why: str) -> None:
    result = runner.run(case)
    assert not result.failures, f"again: {why}\n{runner.describe(result.failures)}"


def test_a_seed_is_one_run_whatever_the_hash_seed_of_the_process() -> None:
    code = (
        "from tests.sim.runner import Case, run; import zlib; lines = [];"
        "run(Case(7), lines); run(Case(11), lines);"
        "print(len(lines), zlib.crc32(chr(10).join(lines).encode()))"
    )
    root = Path(runner.__file__).resolve().parent.parent.parent
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)},
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(seen) == 1
    assert int(seen.pop().split()[0]) > 100


def test_a_case_is_written_as_the_arguments_that_repeat_it() -> None:
    case = Case(5, frozenset({Fault.CLOSED, Fault.BROKER_DOWN}), 8, 2)
    assert runner.parse(case.words().split()) == case
    assert case.plan().records <= 8
    assert not {Fault.CLOSED, Fault.BROKER_DOWN} & set(case.plan().rates)
