"""Running the command as a user does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-c", "import sys; from mpproducer.cli import main; sys.exit(main())"]
TIMEOUT_S = 100.0


def mpproducer(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run to the end; output as text."""
    done = subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, timeout=TIMEOUT_S, check=False
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def write(folder: Path, name: str, data: bytes) -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)
