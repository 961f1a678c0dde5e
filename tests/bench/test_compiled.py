"""The peers that are not Python: built where their tools are, and measured by the same sink."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import compiled
from bench.config import Setup
from bench.fleet import RunFailed
from bench.target import SinkTarget


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["franz-go", "librdkafka"])
def test_a_compiled_peer_sends_what_it_was_asked_and_says_so(name: str, scratch: Path) -> None:
    if why := compiled.missing(name, scratch):
        pytest.skip(why)
    with SinkTarget(4) as sink:
        setup = Setup(sink.bootstrap, "t", 4)
        found = compiled.burst(name, scratch, setup, 3_000, 100, True, lambda: 0)
        counts = sink.counts()
        assert counts is not None
        assert counts["records"] == 3_001  # one to warm up
        assert found["records_per_s"] > 0 and found["client_cpu_ns"] > 0
        assert 108 < found["wire_bytes"] < 140
        assert found["requests_per_1000"] * 3 == pytest.approx(counts["requests"] - 1)
        taken = compiled.single(name, scratch, Setup(sink.bootstrap, "t", 4, 0), 20, 100)
        assert len(taken) == 20 and min(taken) > 0


@pytest.mark.slow
def test_javas_own_tool_is_run_and_its_cpu_read(scratch: Path) -> None:
    if why := compiled.missing("java", scratch):
        pytest.skip(why)
    with SinkTarget(4) as sink:
        setup = Setup(sink.bootstrap, "t", 4)
        seconds, cpu_ns, broker_ns = compiled._java_run(scratch, setup, 2_000, 100, lambda: 7)
        counts = sink.counts()
    assert counts is not None and counts["records"] == 2_000
    assert seconds > 0 and cpu_ns > 0 and broker_ns == 0


def test_a_peer_that_ends_early_is_told_with_its_own_words(tmp_path: Path) -> None:
    program = compiled._Program(["sh", "-c", "echo no broker there >&2; exit 1"], tmp_path)
    try:
        with pytest.raises(RunFailed, match="no broker there"):
            program.expect(20)
    finally:
        program.end()


def test_a_peer_that_cannot_be_built_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiled.missing("franz-go", tmp_path / "a") == "Go is not installed"
    assert compiled.missing("librdkafka", tmp_path / "a") == "no C compiler is installed"
