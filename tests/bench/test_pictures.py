"""Pictures and tables come from the JSON alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import pictures, report, svg

PAGE = """# Title
<!-- bench:summary -->
old
<!-- /bench -->
between
<!-- bench:saturation -->
<!-- /bench -->
<!-- bench:single -->
x
<!-- /bench -->
<!-- bench:setup -->
<!-- /bench -->
end
"""


@pytest.fixture
def found() -> dict[str, Any]:
    setup = {"linger_ms": 5, "compression": "none"}
    fixed = [
        {
            "label": f"8,000 records/s, {n} process{'es' if n > 1 else ''}, 12 partitions, "
            "linger 5 ms",
            "setup": setup,
            "failed": {},
            "results": {
                "nothing": {"client_cpu_us": [1.0]},
                "mpproducer": {"requests_per_s": [500.0, 510.0], "connections": [1.0, 1.0]},
                "confluent": {"requests_per_s": [500.0 * n], "connections": [float(n)]},
            },
        }
        for n in (1, 16)
    ]
    saturation = {
        "label": "100 B, none, unkeyed, 1 worker",
        "setup": setup,
        "failed": {"queue": "round 1: <too> slow & old"},
        "results": {
            "mpproducer": {"client_cpu_ns": [100.0, 300.0, 200.0], "records_per_s": [9e5]},
            "confluent": {"client_cpu_ns": [1500.0, 1400.0, 1600.0], "records_per_s": [3e5]},
        },
    }
    return {
        "machine": {"cpus": 2, "cpu": "", "python": "3.11.7"},
        "versions": {"mpproducer": "0.1.0"},
        "options": {"rounds": 3},
        "started": "some day",
        "target": "a broker",
        "clients": {"mpproducer": "send()", "confluent": "produce()", "aiokafka": "unused"},
        "left_out": {"franz-go": "Go is not installed"},
        "workloads": {
            "saturation": {"title": "S", "cases": [saturation]},
            "fixed-rate": {"title": "F", "cases": fixed},
        },
    }


def test_pictures_are_svg_with_every_client_and_value(found: dict[str, Any]) -> None:
    made = pictures.pictures(found)
    assert {"cpu.svg", "rate.svg", "processes-requests.svg"} <= set(made)
    assert "single.svg" not in made and "call.svg" not in made  # not part of this run
    for text in made.values():
        ElementTree.fromstring(text)
    assert ">mpproducer<" in made["cpu.svg"] and ">confluent<" in made["cpu.svg"]
    assert ">200<" in made["cpu.svg"] and ">1,500<" in made["cpu.svg"]
    assert ">16<" in made["processes-requests.svg"]
    assert "nothing" not in made["processes-requests.svg"]


def test_documents_are_filled_between_their_marks_only(found: dict[str, Any]) -> None:
    once = pictures.filled(PAGE, found)
    assert pictures.filled(once, found) == once
    assert once.startswith("# Title\n<!-- bench:summary -->\n") and "\nbetween\n" in once
    assert once.endswith("<!-- /bench -->\nend\n")
    assert "old" not in once.split("between")[0]
    assert "| CPU per record, one worker | 200 ns | 1,500 ns | 0.133 |" in once
    assert "| connections | 1  | 16  | 0.0625 |" in once
    assert "Not part of the last run." in once
    assert "| franz-go | left out: Go is not installed |" in once
    assert "unused" not in once


def test_what_was_added_later_is_shown_with_its_own_rounds(found: dict[str, Any]) -> None:
    assert "Medians of 3 interleaved rounds." in pictures.filled(PAGE, found)
    found["workloads"]["fixed-rate"]["run"] = {"rounds": 1, "started": "later"}
    text = pictures.filled(PAGE, found)
    assert "Medians of 1 to 3 interleaved rounds." in text
    # One case and one client are there of all that a whole run has.
    assert "`python -m bench saturation` has" in text
    assert "There are clients that this run did not have: aiokafka." in text


def test_the_command_writes_pictures_and_documents(found: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "PERFORMANCE.md").write_text(PAGE)
    results = tmp_path / "found.json"
    results.write_text(json.dumps(found))
    assert pictures.main([str(results), "--root", str(tmp_path)]) == 0
    assert (tmp_path / "docs" / "pictures" / "cpu.svg").read_text().startswith("<svg")
    assert "100 / 200 / 300" in (tmp_path / "docs" / "PERFORMANCE.md").read_text()


def test_committed_documents_have_the_places_that_are_filled() -> None:
    readme = (pictures.ROOT / "README.md").read_text()
    performance = (pictures.ROOT / "docs" / "PERFORMANCE.md").read_text()
    assert readme.count("<!-- bench:summary -->") == 1
    from bench.workloads import WORKLOADS

    for name in ("setup", *WORKLOADS):
        assert performance.count(f"<!-- bench:{name} -->\n") == 1
    assert performance.count("<!-- /bench -->") == 1 + len(WORKLOADS)


def test_the_report_names_spread_ratio_and_failures(found: dict[str, Any]) -> None:
    text = report.text(found)
    assert "100 / 200 / 300" in text
    assert "0.133" in text
    assert "no figures for queue: round 1: <too> slow & old" in text
    assert "left out: franz-go (Go is not installed)" in text


def test_equal_ratios_are_equal_distances() -> None:
    a, b = svg._scale(1, 100, 0, 200)
    assert a + b * 0 == pytest.approx(0)
    assert svg._ticks(1, 100) == [1, 2, 5, 10, 20, 50, 100]
    assert svg.short(1_234_567) == "1.23 M" and svg.short(9_876) == "9,876"
