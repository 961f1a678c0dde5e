"""The decoders' corpus: replayed, and fuzzed on from for a moment where atheris is installed."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wire import fuzz_decoders

SECONDS = 5


def fuzz(seconds: float, seed: int, found: Path) -> subprocess.CompletedProcess[str]:
    """Fuzz from the committed corpus for so long; new inputs go to `found`."""
    found.mkdir(exist_ok=True)
    command = [sys.executable, fuzz_decoders.__file__, f"-max_total_time={max(1, int(seconds))}"]
    command += [f"-seed={seed % 2**31}", "-timeout=10", "-rss_limit_mb=2000", str(found)]
    root = Path(__file__).resolve().parent.parent.parent
    return subprocess.run(
        [*command, str(fuzz_decoders.CORPUS)], check=False, capture_output=True, text=True,
        timeout=seconds + 300, cwd=found.parent, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip


def test_inputs_that_once_were_interesting_are_decoded_or_refused() -> None:
    paths = sorted(fuzz_decoders.CORPUS.iterdir())
    taken = sum(fuzz_decoders.one_input(path.read_bytes()) for path in paths)
    assert 0 < taken < len(paths)


def test_the_corpus_has_sound_inputs_of_every_decoder(rng: random.Random) -> None:
    sound = fuzz_decoders.seeds(rng)
    assert {data[0] for data in sound.values()} == set(range(len(fuzz_decoders.DECODERS)))
    assert [name for name, data in sound.items() if not fuzz_decoders.one_input(data)] == []
    assert {*sound} <= {path.stem for path in fuzz_decoders.CORPUS.iterdir()}


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python"
)
def test_fuzzed_decoders_raise_nothing_but_refusals(tmp_path: Path, seed: int) -> None:
    done = fuzz(SECONDS, seed, tmp_path / "found")
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"Done (\d+) (?:runs|in)", done.stderr)
    assert runs is not None, done.stderr[-2000:]
    assert int(runs[1]) > len(list(fuzz_decoders.CORPUS.iterdir()))
