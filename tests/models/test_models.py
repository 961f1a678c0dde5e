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
    *(("compress", f"-DORDER={order}") for order in (0, 1, 2)),
    ("free", ""),
    ("free", "-DNS=1 -DSTOPS=0 -DCRASHES=2"),
    ("tso", ""),
    ("tso", "-DPSO=1"),
]
LONG = [
    ("slot", "-DCRASHES=1 -DSTEALS=0 -DK=2 -DK2=1"),
    ("slot", "-DCRASHES=0 -DSTEALS=1 -DK=2 -DK2=1"),
    ("slot", "-DCRASHES=0 -DSTEALS=0"),
    ("wake", "-DK=2 -DSTOPS=1"),
    ("grant", "-DK=1 -DCRASHES=1"),
    ("grant", "-DK=2 -DK2=1 -DCRASHES=0"),
    ("grant", "-DANY_SIZE=1 -DK=2 -DK2=1 -DCRASHES=0"),
    *(("compress", f"-DORDER={order} -DK=2 -DCRASHES=2 -DNO=2") for order in (0, 1, 2)),
    *(("compress", f"-DVARIANT={variant}") for variant in (1, 2)),
    ("free", "-DNW=3 -DNS=1 -DK=1 -DSTOPS=0"),
    ("free", "-DK=3 -DCRASHES=2"),
    ("tso", "-DMUTANT=5"),  # a plain store of the count: x86 keeps the order of stores
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
    *(("wake", mutant, "", r"collected>=told") for mutant in (1, 2, 3, 4, 6, 7, 8, 9)),
    ("wake", 5, "", r"collected==committed"),
    *(("grant", mutant, "-DANY_SIZE=1", r"free==2") for mutant in (1, 6, 8, 10)),
    ("grant", 4, "-DANY_SIZE=1", r"dead\[w\]"),
    *(("compress", mutant, "", r"live&&\(id==batch") for mutant in (2, 4)),
    *(("compress", mutant, "", r"o_live\[i\]") for mutant in (1, 3, 7, 11)),
    *(("compress", mutant, "", r"batch==0") for mutant in (5, 8, 10)),
    ("compress", 9, "-DORDER=2", r"batch==0"),
    *(("compress", mutant, "", r"o_live\[using\]") for mutant in (6, 12)),
    ("compress", 13, "", r"told!=batch"),
    *(("free", mutant, "", r"w<=between") for mutant in (1, 2, 3, 5, 7)),
    ("free", 4, "-DNS=1 -DSTOPS=0", r"over\+between"),
    ("free", 6, "-DNW=3 -DNS=1 -DK=1 -DSTOPS=0", r"holder\[i\]==0"),
    ("free", 8, "", r"over\+between"),
    *(("tso", mutant, "", r"collected&&") for mutant in (1, 2, 3, 4)),
    ("tso", 5, "-DPSO=1", r"memory\[0\]"),
]
FOUND_LONG = [
    *(("grant", mutant, "-DANY_SIZE=1 -DCRASHES=0", r"assertion") for mutant in (2, 3, 5, 7, 9)),
]


def check(folder: Path, model: str, definitions: str, limit_s: float, bitstate_s: int = 0) -> str:
    """Build the model's checker in `folder`, run it, and return what it prints.

    With `bitstate_s` the states are hashed to bits (1 GiB of them), and the search ends after so
    long: what it has not seen by then it has not seen.
    """
    spin = shutil.which("spin")
    assert spin, "spin is missing: scripts/setup-env --dev installs it"
    source = str(MODELS / f"{model}.pml")
    subprocess.run(
        [spin, "-a", *definitions.split(), source], cwd=folder, check=True, timeout=30,
        capture_output=True,
    )  # fmt: skip
    small = model in ("compress", "free", "tso")  # compiling takes longer than checking
    flags = ["-O1" if small else "-O2", "-w", "-DSAFETY", "-DMEMLIM=6000"]
    flags += ["-DBITSTATE"] if bitstate_s else []
    subprocess.run(["gcc", *flags, "-o", "pan", "pan.c"], cwd=folder, check=True, timeout=60)
    size = ["-w33", "-k3", f"-Q{max(1, bitstate_s // 60)}"] if bitstate_s else ["-w21"]
    done = subprocess.run(
        ["./pan", "-m1000000", *size], cwd=folder, check=False, capture_output=True, text=True,
        timeout=limit_s,
    )  # fmt: skip
    return done.stdout


def size(output: str) -> str:
    """How far the search went: states, depth, and what of it was hashed."""
    states = re.search(r"(\S+) states, stored", output)
    depth = re.search(r"depth reached (\d+)", output)
    factor = re.search(r"hash factor: (\S+)", output)
    what = f"{states[1] if states else '?'} states, depth {depth[1] if depth else '?'}"
    return f"{what}, hash factor {factor[1]}" if factor else what


def finds(output: str, what: str) -> bool:
    """Whether the assertion that must fail has failed."""
    return re.search(rf"assertion violated .*{what}", output) is not None


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
    assert finds(output, what), output


def test_every_mutant_of_a_model_is_in_the_lists() -> None:
    listed = {(model, mutant) for model, mutant, _, _ in [*FOUND, *FOUND_LONG]}
    for model in sorted(path.stem for path in MODELS.glob("*.pml")):
        text = (MODELS / f"{model}.pml").read_text().split("*/")[0]
        written = {int(number) for number in re.findall(r"^ \* +(\d+) ", text, re.M)}
        assert written == {number for name, number in listed if name == model}, model
