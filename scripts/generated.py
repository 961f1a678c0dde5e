"""A page of docs/ that is made from code: written, or compared with what is there."""

from __future__ import annotations

import sys
from pathlib import Path


def write_or_check(target: Path, page: str, script: str) -> int:
    """Write the page, or with `--check` compare it; the exit status says if it is up to date."""
    if "--check" in sys.argv[1:]:
        if target.is_file() and target.read_text() == page:
            return 0
        sys.stdout.write(f"docs/{target.name} is not up to date: run scripts/{script}\n")
        return 1
    target.write_text(page)
    return 0
