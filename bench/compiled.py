"""The peers that are not Python: franz-go, librdkafka from C, Java's ProducerPerformance.

The first two are small programs of this folder with the same words on stdin and stdout; Java's own
tool has no such words, so what it costs is the slope between a short and a long run.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import facts, payload
from bench.config import Result, Setup
from bench.fleet import RUN_S, RunFailed

_NATIVE = Path(__file__).resolve().parent / "native"
_ROOT = _NATIVE.parent.parent
_BUILD_S = 300.0
_START_S = 60.0
_VALUES = 2_000
_JAVA_SHORT = 0.25
Readings = Callable[[], int]
"""Reads the brokers' CPU clock."""


def _run(command: list[str], folder: Path, **environment: str) -> str | None:
    """Run a build step; why it failed, or None."""
    try:
        done = subprocess.run(
            command, cwd=folder, check=False, capture_output=True, text=True, timeout=_BUILD_S,
            env=os.environ | environment,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr or done.stdout).strip()[-500:]


@functools.cache
def franz_go(scratch: Path) -> tuple[Path, str | None]:
    """(program, why it is missing or None)."""
    program = scratch / "franz-go"
    if shutil.which("go") is None:
        return program, "Go is not installed"
    why = _run(
        ["go", "build", "-mod=readonly", "-buildvcs=false", "-o", str(program), "."],
        _NATIVE / "franz",
    )
    return program, why and f"the Go build failed: {why}"


@functools.cache
def librdkafka(scratch: Path) -> tuple[Path, str | None]:
    """(program, why it is missing or None)."""
    program = scratch / "rdkafka"
    compiler = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if compiler is None:
        return program, "no C compiler is installed"
    why = _run(
        [compiler, "-O2", "-Wall", "-Wextra", "-Werror", str(_NATIVE / "rdkafka.c"),
         "-o", str(program), "-lrdkafka"], _NATIVE,
    )  # fmt: skip
    if why and "rdkafka.h" in why:
        why = "librdkafka's headers are missing: apt-get install librdkafka-dev"
    return program, why and f"{why}"


def _script(name: str) -> Any:
    """A module of scripts/."""
    sys.path.insert(0, str(_ROOT / "scripts"))
    return importlib.import_module(name)


@functools.cache
def java(scratch: Path) -> tuple[list[str], str | None]:
    """(command of ProducerPerformance, why it is missing or None)."""
    kafka_jars = _script("kafka_jars")
    try:
        if not kafka_jars.ready():
            return [], "Kafka's jars are not there: scripts/kafka prepare"
        command = [
            kafka_jars.java(), "-Xmx512m", "-cp", str(kafka_jars.cache_folder() / "lib" / "*"),
            "org.apache.kafka.tools.ProducerPerformance",
        ]  # fmt: skip
    except kafka_jars.ClusterError as error:
        return [], str(error)
    return command, None


def sender_missing() -> bool:
    """Whether the sender of this checkout would not run as one that was installed does: it is not
    compiled, or was before its sources changed."""
    due: bool = _script("sender_build").due(_ROOT)
    return due


def missing(name: str, scratch: Path) -> str | None:
    """Why a compiled peer cannot run here, or None."""
    return {"franz-go": franz_go, "librdkafka": librdkafka, "java": java}[name](scratch)[1]


def versions() -> dict[str, str]:
    """Versions of the compiled peers, as far as they can be told without running them."""
    found = {}
    if match := re.search(r"franz-go v(\S+)", (_NATIVE / "franz" / "go.mod").read_text()):
        found["franz-go"] = match[1]
    header = Path("/usr/include/librdkafka/rdkafka.h")
    if header.exists():
        match = re.search(r"RD_KAFKA_VERSION\s+0x(\w\w)(\w\w)(\w\w)", header.read_text())
        if match:
            found["librdkafka"] = ".".join(str(int(part, 16)) for part in match.groups())
    return found


class _Program:
    """A running peer: ready, go, done, one line of JSON."""

    def __init__(self, command: list[str], values: Path) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=os.environ | {"BENCH_VALUES": str(values)},
        )  # fmt: skip
        self.pid = self._process.pid
        self._read = b""

    def expect(self, timeout_s: float) -> str:
        assert self._process.stdout is not None and self._process.stderr is not None
        fd, until = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self._read:
            ready, _, _ = select.select([fd], [], [], max(0.0, until - time.monotonic()))
            data = os.read(fd, 65536) if ready else b""
            if not data:
                self._process.kill()
                raise RunFailed(
                    self._process.stderr.read().strip() or f"no answer within {timeout_s:.0f} s"
                )
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


def _values_file(scratch: Path, size_bytes: int) -> Path:
    path = scratch / f"values-{size_bytes}"
    if not path.exists():
        path.write_bytes(b"".join(payload.values(size_bytes, _VALUES)))
    return path


def _command(
    name: str, scratch: Path, mode: str, setup: Setup, records: int, size_bytes: int, keyed: bool
) -> list[str]:
    program, why = {"franz-go": franz_go, "librdkafka": librdkafka}[name](scratch)
    if why:
        raise RunFailed(why)
    return [
        str(program), mode, setup.bootstrap, setup.topic, str(records), str(size_bytes),
        "1" if keyed else "0", str(setup.linger_ms), setup.codec, str(setup.batch_bytes),
    ]  # fmt: skip


def burst(
    name: str,
    scratch: Path,
    setup: Setup,
    records: int,
    size_bytes: int,
    keyed: bool,
    broker_cpu: Readings,
) -> Result:
    """The saturation run of a compiled peer, one process."""
    if name == "java":
        return _java_burst(scratch, setup, records, size_bytes, broker_cpu)
    command = _command(name, scratch, "burst", setup, records, size_bytes, keyed)
    program = _Program(command, _values_file(scratch, size_bytes))
    try:
        program.expect(_START_S)
        cpu, broker, started = facts.cpu_ns([program.pid]), broker_cpu(), time.monotonic()
        program.go()
        program.expect(RUN_S)
        seconds = time.monotonic() - started
        cpu, broker = facts.cpu_ns([program.pid]) - cpu, broker_cpu() - broker
        told: dict[str, Any] = json.loads(program.expect(_START_S))
    finally:
        program.end()
    if told["acked"] < records:
        raise RunFailed(f"{told['acked']} of {records} records acknowledged")
    return {
        "records_per_s": records / seconds,
        "mb_per_s": records * size_bytes / seconds / 1e6,
        "client_cpu_ns": cpu / records,
        "broker_cpu_ns": broker / records,
        "requests_per_1000": told["requests"] / records * 1000,
        "wire_bytes": told["wire_bytes"] / records,
    }


def single(name: str, scratch: Path, setup: Setup, records: int, size_bytes: int) -> list[int]:
    """Send-to-ack times in ns, one record at a time."""
    command = _command(name, scratch, "single", setup, records, size_bytes, False)
    program = _Program(command, _values_file(scratch, size_bytes))
    try:
        program.expect(_START_S)
        program.go()
        program.expect(RUN_S)
        told = json.loads(program.expect(_START_S))
    finally:
        program.end()
    return [int(taken) for taken in told["taken_ns"]]


def _java_burst(
    scratch: Path, setup: Setup, records: int, size_bytes: int, broker_cpu: Readings
) -> Result:
    short = max(1, int(records * _JAVA_SHORT))
    first = _java_run(scratch, setup, short, size_bytes, broker_cpu)
    second = _java_run(scratch, setup, short + records, size_bytes, broker_cpu)
    seconds, cpu, broker = (after - before for before, after in zip(first, second, strict=True))
    if seconds <= 0 or cpu <= 0:
        raise RunFailed("the long run was not longer than the short one: more records are needed")
    return {
        "records_per_s": records / seconds,
        "mb_per_s": records * size_bytes / seconds / 1e6,
        "client_cpu_ns": cpu / records,
        "broker_cpu_ns": broker / records,
    }


def _java_run(
    scratch: Path, setup: Setup, records: int, size_bytes: int, broker_cpu: Readings
) -> tuple[float, float, float]:
    """(seconds, CPU ns of the process, CPU ns of the brokers) of one run."""
    command, why = java(scratch)
    if why:
        raise RunFailed(why)
    values = scratch / f"lines-{size_bytes}"
    if not values.exists():
        values.write_bytes(b"\n".join(payload.values(size_bytes, _VALUES)) + b"\n")
    properties = [
        f"bootstrap.servers={setup.bootstrap}", "acks=all", "enable.idempotence=true",
        f"linger.ms={setup.linger_ms}", f"compression.type={setup.codec}",
    ]  # fmt: skip
    if setup.batch_bytes:
        properties.append(f"batch.size={setup.batch_bytes}")
    before = broker_cpu()
    started = time.monotonic()
    # fmt: off
    process = subprocess.Popen(
        [*command, "--topic", setup.topic, "--num-records", str(records), "--throughput", "-1",
         "--payload-file", str(values), "--producer-props", *properties],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )
    # fmt: on
    try:
        assert process.stdout is not None
        # Its life is watched by the pipe; the CPU of a child is known when it has been waited for.
        text = _read_until_end(process.stdout.fileno(), RUN_S)
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
    sent = re.findall(r"(\d+) records sent", text)
    if process.returncode or not sent or int(sent[-1]) != records:
        raise RunFailed(f"ProducerPerformance: {text.strip()[-300:]}")
    cpu_ns = (usage.ru_utime + usage.ru_stime) * 1e9
    return time.monotonic() - started, cpu_ns, float(broker_cpu() - before)


def _read_until_end(fd: int, timeout_s: float) -> str:
    until, text = time.monotonic() + timeout_s, b""
    while True:
        ready, _, _ = select.select([fd], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            raise RunFailed(f"ProducerPerformance did not finish within {timeout_s:.0f} s")
        data = os.read(fd, 65536)
        if not data:
            return text.decode(errors="replace")
        text += data
