"""What README.md and docs/DEPENDENCIES.md tell a user to type works as written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mpproducer.cli import build_parser
from mpproducer.testing import Broker

tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "latest.json"
README = (ROOT / "README.md").read_text()
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    lines += re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    found = []
    for line in lines:
        for part in line.partition("#")[0].split("|"):
            words = shlex.split(part)
            if words and (words[0].startswith("./scripts/") or words[0] == "mpproducer"):
                found.append(words)
    return found


def test_every_command_exists_and_takes_its_options() -> None:
    seen = set()
    for words in commands():
        seen.add(words[0])
        if words[0] == "mpproducer":
            build_parser().parse_args(words[1:])
        else:
            assert os.access(ROOT / words[0], os.X_OK), words
    assert seen == {"./scripts/demo", "./scripts/test", "mpproducer"}
    for name in re.findall(r"`(scripts/\w+)", README):
        assert os.access(ROOT / name, os.X_OK), name


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_programs_run(number: int, broker: Broker, tmp_path: Path) -> None:
    text = blocks("python")[number].replace("k1:9092", broker.bootstrap_servers)
    text = text.replace("100_000", "4_000")
    (tmp_path / "program.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if "print(" in text:
        assert len(done.stdout.splitlines()) == 4
        assert len(broker.records("events", 0)) == 4_000


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if target.startswith("pictures/") and not RESULTS.exists():
                continue  # drawn from the results of the first run of the benchmark
            assert target.startswith("http") or (page.parent / target).exists(), (page, target)


def requirement(text: str) -> str:
    found = re.match(r"[\w-]+", text)
    assert found is not None
    return found[0]


def test_every_dependency_has_a_line_and_every_line_a_dependency() -> None:
    page = (ROOT / "docs" / "DEPENDENCIES.md").read_text()
    runtime, _, rest = page.partition("With `pip install")
    extra, _, development = rest.partition("Development (")

    def listed(part: str) -> set[str]:
        first = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
        return {name for cell in first for name in re.findall(r"`([\w-]+)`", cell)}

    assert listed(runtime) == {requirement(text) for text in PYPROJECT["dependencies"]}
    for part, name in ((extra, "prometheus"), (development, "dev")):
        wanted = {requirement(text) for text in PYPROJECT["optional-dependencies"][name]}
        assert listed(part) == wanted, name
    for line in page.splitlines():
        if line.startswith("| `"):
            assert all(cell.strip() for cell in line.strip("|").split("|")), line


def test_the_dependencies_are_imported_somewhere() -> None:
    module_of = {"kafka-python": "kafka", "confluent-kafka": "confluent_kafka"}
    text = "".join(path.read_text() for path in (ROOT / "mpproducer").rglob("*.py"))
    for name in map(requirement, PYPROJECT["dependencies"]):
        module = module_of.get(name, name)
        assert re.search(rf"\b(import|from) {module}\b", text), name
