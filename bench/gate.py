"""Figures that do not depend on the machine, against the committed ones: a regression gate.

    python -m bench.gate            measure, compare with bench/baseline.json; status 1 if worse
    python -m bench.gate --update   measure, and write what was found as the new baseline

Counted, not timed: requests and bytes at the sink, system calls by strace, memory by tracemalloc,
instructions by callgrind. What a machine cannot measure is skipped, and the reason said.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench import payload
from bench.target import ROOT, SinkTarget
from mpproducer import Producer, visitor

BASELINE: Final = Path(__file__).resolve().with_name("baseline.json")
_WAVES: Final = 40
_WAVE_RECORDS: Final = 240
_PARTITIONS: Final = 12
_SENDS: Final = 20_000
_LINGER_MS: Final = 2_000  # only flush and full batches send: no clock in the figures
_WAIT_S: Final = 60.0
_STRACE_S: Final = 20.0
_VALGRIND_S: Final = 120.0
_BULK_BYTES: Final = 48 << 20


class Skip(RuntimeError):
    """This machine cannot measure it."""


@dataclass(frozen=True)
class Figure:
    """One gated number: less is better."""

    name: str
    what: str
    slack: float
    """How much more than the baseline still passes, as a part of it."""
    by_python: bool = False
    """Depends on the interpreter: compared with a baseline of the same minor version only."""


FIGURES: Final[tuple[Figure, ...]] = (
    Figure("requests_per_1000", "produce requests per 1,000 records, 12 partitions flushed", 0.10),
    Figure("batches_per_1000", "batches per 1,000 records, 12 partitions flushed", 0.05),
    Figure("wire_bytes", "bytes on the wire per 182 B record, uncompressed", 0.02),
    Figure("wire_bytes_zstd", "the same with zstd", 0.06),
    Figure("fill_wire_bytes", "bytes on the wire per 100 B record, full batches", 0.02),
    Figure("syscalls_per_batch", "system calls of the sender per batch", 0.50),
    Figure("sender_alloc_kib", "memory the sender's Python allocates while 48 MiB pass", 0.50),
    Figure("send_instructions", "instructions per send(topic, value)", 0.05, by_python=True),
    Figure("send_keyed_instructions", "instructions per send with a key", 0.05, by_python=True),
    Figure("send_many_instructions", "instructions per record of send_many", 0.05, by_python=True),
)
Found = dict[str, float]


@contextlib.contextmanager
def _producer(sink: SinkTarget, **config: Any) -> Iterator[Producer]:
    """A producer with a sender of its own, gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mppg-"))
    try:
        producer = Producer(
            bootstrap_servers=sink.bootstrap, linger_ms=_LINGER_MS, runtime_dir=str(folder),
            **config,
        )  # fmt: skip
        with producer:
            producer.partitions_for("gate")
            yield producer
        until = time.monotonic() + _WAIT_S
        while any(folder.iterdir()) and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _waves(producer: Producer) -> int:
    """Many times: a few keyed records for every partition, then flush. Returns the records."""
    events = payload.events(_WAVE_RECORDS, 1)
    for _ in range(_WAVES):
        for value, key in events:
            producer.send("gate", value, key)
        producer.flush(_WAIT_S)
    return _WAVES * _WAVE_RECORDS


def _sent(sink: SinkTarget, work: Callable[[], int]) -> tuple[int, dict[str, int]]:
    before = sink.counts()
    records = work()
    after = sink.counts()
    assert before is not None and after is not None
    got = {name: after[name] - before[name] for name in after}
    if got["records"] != records:
        raise RuntimeError(f"{got['records']} of {records} records arrived")
    return records, got


def _wire() -> Found:
    found = {}
    with SinkTarget(_PARTITIONS) as sink:
        for codec in ("none", "zstd"):
            with _producer(sink, compression_type=codec) as producer:
                _waves(producer)  # connections, producer id, metadata
                records, got = _sent(sink, lambda p=producer: _waves(p))  # type: ignore[misc]
            if codec == "none":
                found["requests_per_1000"] = got["requests"] / records * 1000
                found["batches_per_1000"] = got["batches"] / records * 1000
                found["wire_bytes"] = got["bytes"] / records
            else:
                found["wire_bytes_zstd"] = got["bytes"] / records
        with _producer(sink) as producer:

            def fill() -> int:
                for value in payload.values(100, 5 * _SENDS):
                    producer.send("gate", value)
                producer.flush(_WAIT_S)
                return 5 * _SENDS

            records, got = _sent(sink, fill)
            found["fill_wire_bytes"] = got["bytes"] / records
    return found


def _sender_pid(producer: Producer) -> int:
    answer = visitor.ask(producer._place, "status")
    assert answer is not None
    return int(answer["pid"])


def _syscalls() -> Found:
    if shutil.which("strace") is None:
        raise Skip("strace is not installed")
    with SinkTarget(_PARTITIONS) as sink, _producer(sink) as producer:
        _waves(producer)
        with tempfile.NamedTemporaryFile("r", prefix="mppg-") as out:
            tracer = subprocess.Popen(
                ["strace", "-c", "-f", "-o", out.name, "-p", str(_sender_pid(producer))],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            try:
                assert tracer.stderr is not None
                said = tracer.stderr.readline()
                if "attached" not in said:
                    raise Skip(f"strace may not attach: {said.strip()}")
                _records, got = _sent(sink, lambda: _waves(producer))
            finally:
                tracer.send_signal(signal.SIGINT)
                try:
                    tracer.wait(_STRACE_S)
                except subprocess.TimeoutExpired:
                    tracer.kill()
                    tracer.wait()
                if tracer.stderr is not None:
                    tracer.stderr.close()
            # % time, seconds, usecs/call, calls, [errors], "total"
            totals = [line.split() for line in out if line.rstrip().endswith(" total")]
        if not totals:
            raise Skip("strace counted nothing")
        return {"syscalls_per_batch": int(totals[0][3]) / got["batches"]}


_TRACED = """\
import runpy, sys, tracemalloc
assert sys.argv[1] == "-S", sys.argv
out, program = {out!r}, sys.argv[2]
sys.argv = sys.argv[2:]
def tell():
    with open(out, "w") as file:
        file.write(str(tracemalloc.get_traced_memory()[1]))
sys.path.insert(0, {root!r})
import mpproducer.sender.process
tracemalloc.start()
try:
    runpy.run_path(program, run_name="__main__")
finally:
    tell()
"""


def _allocations() -> Found:
    """What the sender allocates while large batches pass; a copy of them would show."""
    with tempfile.TemporaryDirectory(prefix="mppg-") as text:
        folder = Path(text)
        out = folder / "peak"
        script = folder / "traced.py"
        script.write_text(_TRACED.format(out=str(out), root=str(ROOT)))
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
        python.chmod(0o755)
        value = payload.values(50_000, 1)[0]
        with SinkTarget(_PARTITIONS) as sink:
            with _producer(sink, sender_python=str(python)) as producer:
                for _ in range(_BULK_BYTES // len(value)):
                    producer.send("gate", value)
                producer.flush(_WAIT_S)
            until = time.monotonic() + _WAIT_S
            while not (out.exists() and out.read_text()):
                if time.monotonic() > until:
                    raise RuntimeError("the traced sender said nothing")
                time.sleep(0.02)
        return {"sender_alloc_kib": int(out.read_text()) / 1024}


_FUNCTIONS: Final = ("producer_send", "producer_send_many")
_MARK: Final = "method_stats"  # a call of it ends a part: callgrind writes what it has, and zeroes
_PARTS: Final = ("send_instructions", "send_keyed_instructions", "send_many_instructions")
_PROGRAM: Final = f"""
import sys
from bench import payload
from mpproducer import Producer
producer = Producer(bootstrap_servers=sys.argv[1], linger_ms={_LINGER_MS}, runtime_dir=sys.argv[2])
producer.attach(60)
producer.partitions_for("gate")
values = payload.values(100, {_SENDS})
send, send_many, mark = producer.send, producer.send_many, producer._attachment.stats
for value in values:
    send("gate", value)
mark()
for value in values:
    send("gate", value, b"user-00017")
mark()
for at in range(0, len(values), 1000):
    send_many("gate", values[at : at + 1000])
mark()
producer.flush(60)
"""


def _instructions() -> Found:
    if shutil.which("valgrind") is None:
        raise Skip("valgrind is not installed")
    with SinkTarget(_PARTITIONS) as sink, _producer(sink) as producer:
        # That one keeps the sender alive, outside of valgrind; the child attaches to it.
        place = os.path.dirname(producer._place.folder)
        counted = _counted([_PROGRAM, sink.bootstrap, place])
    return {name: count / _SENDS for name, count in zip(_PARTS, counted, strict=True)}


def _counted(arguments: list[str]) -> list[int]:
    """Instructions inside the functions, callees included, part by part."""
    with tempfile.TemporaryDirectory(prefix="mppg-") as folder:
        out = Path(folder, "out")
        toggles = [f"--toggle-collect={function}" for function in _FUNCTIONS]
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", *toggles, f"--dump-before={_MARK}",
             f"--callgrind-out-file={out}", sys.executable, "-c", *arguments],
            cwd=ROOT, check=False, capture_output=True, text=True, timeout=_VALGRIND_S,
            env=os.environ | {"PYTHONHASHSEED": "0"},
        )  # fmt: skip
        if done.returncode != 0:
            raise Skip(f"valgrind cannot run it: {done.stderr.strip()[-300:]}")
        counted = []
        for part in range(1, len(_PARTS) + 1):
            text = out.with_name(f"out.{part}").read_text()
            total = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
            if total is None or not int(total[1]):
                raise Skip(f"callgrind saw no call of {_FUNCTIONS}: are there debug symbols?")
            counted.append(int(total[1]))
    return counted


MEASURES: Final[dict[str, Callable[[], Found]]] = {
    "wire": _wire,
    "syscalls": _syscalls,
    "allocations": _allocations,
    "instructions": _instructions,
}


def measure(names: list[str]) -> tuple[Found, dict[str, str]]:
    """(figures, why the others are missing)."""
    found: Found = {}
    skipped = {}
    for name in names:
        try:
            found |= MEASURES[name]()
        except Skip as why:
            skipped[name] = str(why)
    return found, skipped


def compare(found: Found, baseline: dict[str, Any], python: str) -> Iterator[tuple[str, bool]]:
    """(line, whether it passes) for every figure that was measured."""
    for figure in FIGURES:
        if figure.name not in found:
            continue
        now, was = found[figure.name], baseline["figures"].get(figure.name)
        line = f"{figure.name:26} {now:12,.2f}"
        if figure.by_python and baseline["python"] != python:
            yield f"{line}  not compared: the baseline is of Python {baseline['python']}", True
        elif was is None:
            yield f"{line}  not in the baseline: python -m bench.gate --update", False
        else:
            limit = was * (1 + figure.slack)
            verdict = "ok" if now <= limit else f"WORSE than {limit:,.2f}"
            if now < was * (1 - figure.slack):
                verdict = "better: --update keeps it so"
            yield f"{line}  baseline {was:12,.2f}  {verdict:30} {figure.what}", now <= limit


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gate", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help=f"of {', '.join(MEASURES)}")
    parser.add_argument("--update", action="store_true", help="write the baseline")
    args = parser.parse_args(argv)
    for name in args.measures:
        if name not in MEASURES:
            parser.error(f"{name!r} is no measure; there are {', '.join(MEASURES)}")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    found, skipped = measure(args.measures or list(MEASURES))
    for name, why in skipped.items():
        print(f"skipped: {name}: {why}")
    baseline: dict[str, Any] = {"python": python, "figures": {}}
    if BASELINE.exists():
        baseline = json.loads(BASELINE.read_text())
    if args.update:
        kept = baseline["figures"] | {name: round(value, 3) for name, value in found.items()}
        BASELINE.write_text(json.dumps({"python": python, "figures": kept}, indent=1) + "\n")
        print(f"written: {BASELINE}")
        return 0
    passed = True
    for line, good in compare(found, baseline, python):
        print(line)
        passed = passed and good
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
