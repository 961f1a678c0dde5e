"""The Spin models: what must hold holds in every interleaving, and each mutant is found.

Short configurations complete here; `scripts/prove` runs the larger ones of LONG, too.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parent.parent.parent / "models"

# (model, definitions): complete, without error.
HOLDS = [
    ("slot", "-DCRASHES=1 -DSTEALS=1 -DK=1"),
    ("slot", "-DCRASHES=0 -DSTEALS=1 -DK=1"),
    ("slot", "-DCRASHES=0 -DSTEALS=0 -DK=1 -DK2=2"),
    ("wake", "-DK=1 -DSTOPS=2"),
    ("grant", "-DK=1 -DCRASHES=0"),
]
LONG = [
    ("slot", "-DCRASHES=1 -DSTEALS=0 -DK=2 -DK2=1"),
    ("slot", "-DCRASHES=0 -DSTEALS=1 -DK=2 -DK2=1"),
    ("slot", "-DCRASHES=0 -DSTEALS=0"),
    ("wake", "-DK=2 -DSTOPS=1"),
    ("grant", "-DK=1 -DCRASHES=1"),
    ("grant", "-DK=2 -DK2=1 -DCRASHES=0"),
    ("grant", "-DANY_SIZE=1 -DK=2 -DCRASHES=0"),
]
# (model, mutant, definitions, what fails)
SLOT = "-DCRASHES=1 -DSTEALS=1 -DK=2 -DK2=1"
FOUND = [
    ("slot", 1, SLOT, r"S\[slot\]\.owner==me"),
    ("slot", 2, SLOT, r"sent==committed"),
    ("slot", 3, SLOT, r"S\[at\]\.ext&&"),
    ("slot", 4, SLOT, r"S\[at\]\.ext&&"),
    ("slot", 5, "-DCRASHES=0 -DSTEALS=0 -DK=1 -DK2=2", r"S\[slot\]\.batch=="),
    ("slot", 6, SLOT, r"S\[s\]\.owner==0"),
    ("slot", 7, SLOT, r"S\[cur\]\.n==counted"),
    ("slot", 8, SLOT, r"S\[cur\]\.batch==seq"),
    *(("wake", mutant, "", r"collected>=told") for mutant in (1, 2, 3, 4, 7)),
    *(("wake", mutant, "", r"collected==committed") for mutant in (5, 6)),
    *(("grant", mutant, "-DANY_SIZE=1", r"free==2") for mutant in (1, 6, 8, 10)),
    ("grant", 4, "-DANY_SIZE=1", r"dead\[w\]"),
]
FOUND_LONG = [
    *(("grant", mutant, "-DANY_SIZE=1 -DCRASHES=0", r"assertion") for mutant in (2, 3, 5, 7, 9)),
]


def check(
    folder: Path, model: str, definitions: str, limit_s: float, bitstate: bool = False
) -> str:
    """Build the model's checker in `folder`, run it, and return what it prints."""
    spin = shutil.which("spin")
    assert spin, "spin is missing: scripts/setup-env --dev installs it"
    source = str(MODELS / f"{model}.pml")
    subprocess.run(
        [spin, "-a", *definitions.split(), source], cwd=folder, check=True, timeout=30,
        capture_output=True,
    )  # fmt: skip
    flags = ["-DSAFETY", "-DMEMLIM=6000", *(["-DBITSTATE"] if bitstate else [])]
    subprocess.run(
        ["gcc", "-O2", "-w", *flags, "-o", "pan", "pan.c"], cwd=folder, check=True, timeout=60
    )
    size = "-w30" if bitstate else "-w21"
    done = subprocess.run(
        ["./pan", "-m1000000", size], cwd=folder, check=False, capture_output=True, text=True,
        timeout=limit_s,
    )  # fmt: skip
    return done.stdout


def holds(output: str) -> bool:
    """Complete and without error."""
    complete = "Search not completed" not in output and "max search depth too small" not in output
    return complete and re.search(r"errors: 0$", output, re.M) is not None


@pytest.mark.parametrize(("model", "definitions"), HOLDS)
def test_a_model_holds(tmp_path: Path, model: str, definitions: str) -> None:
    output = check(tmp_path, model, definitions, 90)
    assert holds(output), output


@pytest.mark.parametrize(("model", "mutant", "definitions", "what"), FOUND)
def test_a_mutant_of_a_model_is_found(
    tmp_path: Path, model: str, mutant: int, definitions: str, what: str
) -> None:
    output = check(tmp_path, model, f"{definitions} -DMUTANT={mutant}", 90)
    assert re.search(rf"assertion violated .*{what}", output), output


def test_every_mutant_of_a_model_is_in_the_lists() -> None:
    listed = {(model, mutant) for model, mutant, _, _ in [*FOUND, *FOUND_LONG]}
    for model in ("slot", "wake", "grant"):
        text = (MODELS / f"{model}.pml").read_text().split("*/")[0]
        written = {int(number) for number in re.findall(r"^ \* +(\d+) ", text, re.M)}
        assert written == {number for name, number in listed if name == model}, model
