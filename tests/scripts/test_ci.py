""".ci/run: fails when tests or checks fail, is bounded, and ends with the summary of the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / ".ci" / "run"


def ci(folder: Path, test: str, check: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it in a checkout whose scripts are these."""
    (folder / ".ci").mkdir()
    (folder / "scripts").mkdir()
    shutil.copy(RUN, folder / ".ci" / "run")
    for name, body in (("test", test), ("check", check)):
        script = folder / "scripts" / name
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
    return subprocess.run(
        [str(folder / ".ci" / "run")], capture_output=True, text=True, timeout=60, check=False,
        cwd="/", env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("test", "check", "good"),
    [
        ("echo '3 passed in 0.10s'", "echo ok", True),
        ("echo '1 failed, 2 passed in 0.10s'; exit 1", "echo ok", False),
        ("echo '3 passed in 0.10s'", "echo wrong; exit 1", False),
        ("echo '===== 2 errors in 0.10s ====='; exit 1", "exit 1", False),
        ("echo 'no tests ran in 0.01s'; exit 5", "echo ok", False),
    ],
)
def test_the_status_is_that_of_both_and_the_summary_comes_last(
    test: str, check: str, good: bool, tmp_path: Path
) -> None:
    done = ci(tmp_path, test, check)
    assert (done.returncode == 0) == good
    summary = test.split("'")[1]
    assert done.stdout.splitlines()[-1] == summary
    assert ("scripts/check failed" in done.stdout) == ("exit 1" in check)


def test_the_tests_are_those_of_the_readme_and_need_kafka(tmp_path: Path) -> None:
    done = ci(tmp_path, 'echo "kafka=$MPPRODUCER_REQUIRE_KAFKA"; echo "1 passed in 1s"', "true")
    assert done.returncode == 0
    assert "kafka=1" in done.stdout


def test_what_does_not_end_is_ended(tmp_path: Path) -> None:
    started_s = time.monotonic()
    done = ci(tmp_path, "echo half; sleep 100", "sleep 100",
              MPPRODUCER_CI_TEST_S="1", MPPRODUCER_CI_CHECK_S="1")  # fmt: skip
    assert time.monotonic() - started_s < 30
    assert done.returncode == 1
    assert "the tests did not end within 1 s" in done.stdout
    assert "the checks did not end within 1 s" in done.stdout
