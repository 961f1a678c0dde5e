"""The command as a whole: how it is called, and what it says of itself."""

from __future__ import annotations

import subprocess
import sys

import mpproducer
from mpproducer.cli import build_parser


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mpproducer", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_python_m_is_the_command() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"mpproducer {mpproducer.__version__}\n")


def test_without_a_command_the_usage_names_them_all() -> None:
    done = run()
    assert done.returncode == 2
    assert "COMMAND" in done.stderr
    text = build_parser().format_help()
    for name in ("produce", "demo", "sender", "top"):
        assert f"\n    {name} " in text
