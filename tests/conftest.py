"""Fixtures of all tests: a seed, a private place for senders, Kafka, and nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mpproducer import Producer
from mpproducer.testing import Broker

ROOT = Path(__file__).resolve().parent.parent
KAFKA = [sys.executable, str(ROOT / "scripts" / "kafka_cluster.py")]
END_S = 15.0
_HELPERS = ("resource_tracker", "forkserver", "kafka_supervisor")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="repeat a run: printed at its head")


def pytest_configure(config: pytest.Config) -> None:
    import sender_build  # here: others import this file where scripts/ is not on the path

    if (source := sender_build.stale(ROOT)) is not None:
        raise pytest.UsageError(
            f"{source.relative_to(ROOT)} is newer than its compiled form: compile it again with "
            "python scripts/native_build.py (MPPRODUCER_INTERPRETED=1: remove that)"
        )
    seed = config.getoption("--seed")
    if seed is None:
        # pytest-randomly's seed orders the tests; the same number makes their data.
        given = config.getoption("randomly_seed", default=None)
        seed = given if isinstance(given, int) else random.SystemRandom().getrandbits(32)
    workerinput = getattr(config, "workerinput", None)
    config.stash[_SEED] = workerinput["mpproducer_seed"] if workerinput is not None else seed


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["mpproducer_seed"] = node.config.stash[_SEED]


_SEED = pytest.StashKey[int]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tests of a group share what only one process may start and stop."""
    for item in session.items if getattr(session.config.option, "loadgroup", False) else ():
        if item.get_closest_marker("xdist_group") and "@" not in item.nodeid:
            raise pytest.UsageError(f"pytest-xdist does not group with pytest {pytest.__version__}")


def pytest_report_header(config: pytest.Config) -> str:
    import sender_build

    sender = "compiled" if sender_build.there(ROOT) else "interpreted"
    return f"seed of the tests' data: --seed={config.stash[_SEED]}; the sender is {sender}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A number that differs by test and run; `--seed` repeats it."""
    name = request.node.nodeid.partition("@")[0]  # xdist adds the group
    return request.config.stash[_SEED] ^ zlib.crc32(name.encode())


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


# --- nothing is left behind


def _children() -> set[psutil.Process]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            if not any(name in line for name in _HELPERS):
                found.add(process)
    return found


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _is_ours(target: str) -> bool:
    return target.startswith(("socket:", "/memfd:")) or "eventfd" in target or "pidfd" in target


def wait_until(what: Callable[[], bool], seconds: float = END_S) -> bool:
    """Whether something becomes true in time."""
    until = time.monotonic() + seconds
    while not what():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def metric(producer: Producer, name: str) -> float:
    """A value of `metrics()` that no broker or topic has of its own; 0 while not attached."""
    groups = producer.metrics()
    homes = [groups[g] for g in ("producer-metrics", "sender-metrics", "worker-metrics") if groups]
    values = [values[name] for values in homes if name in values]
    assert values or not homes, name
    return values[0] if values else 0


def grown_bytes(work: Callable[[], object], times: int) -> int:
    """What is allocated after `work` was done `times` times and was not after the first time."""
    work()
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(times):
            work()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def received(peer: socket.socket, count: int) -> bytes:
    """At least `count` bytes from a socket that has a timeout."""
    data = bytearray()
    while len(data) < count:
        piece = peer.recv(1 << 16)
        assert piece, "the stream ended early"
        data += piece
    return bytes(data)


def run_child(job: Callable[[], object]) -> None:
    """Run in a forked child that ends without atexit; what it raises fails the test."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            job()
            code = 0
        except BaseException:  # noqa: BLE001 - told by the exit status
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def senders(folder: Path) -> list[psutil.Process]:
    """The sender processes of a runtime folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        program = any(part.endswith("/mpproducer/sender/__main__.py") for part in line)
        if program and any(part.startswith(str(folder)) for part in line):
            found.append(process)
    return found


@pytest.fixture(autouse=True)
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A private, short folder for rendezvous; it must be empty after the test."""
    folder = Path(tempfile.mkdtemp(prefix="mpp-"))
    monkeypatch.setenv("MPPRODUCER_RUNTIME_DIR", str(folder))
    yield folder
    _detach()
    empty = wait_until(lambda: not any(folder.iterdir()))
    left = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    logs = [path.read_text() for path in folder.glob("*/sender.log")]
    # The folder goes a moment before its process does.
    wait_until(lambda: not senders(folder), 5.0)
    alive = senders(folder)
    for process in alive:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)
    assert empty, f"left behind: {left}, senders {alive}\n" + "\n".join(logs)
    assert not alive, f"senders left behind: {alive}"


def _detach() -> None:
    if "mpproducer.worker.attach" in sys.modules:
        from mpproducer.worker import attach

        for link in list(attach._table.links.values()):
            attach.detach(link)


@pytest.fixture(autouse=True)
def nothing_left(runtime_dir: Path) -> Iterator[None]:
    """No child process and no descriptor of ours may outlive a test."""
    children, descriptors = _children(), _descriptors()
    yield
    _detach()
    gc.collect()
    ended = wait_until(lambda: not (_children() - children), 5.0)
    late = _children() - children
    for process in late:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert ended, f"processes left behind: {late}"

    def more() -> dict[int, str]:
        now = _descriptors()
        return {
            fd: target
            for fd, target in now.items()
            if _is_ours(target) and descriptors.get(fd) != target
        }

    assert wait_until(lambda: gc.collect() >= 0 and not more(), 3.0), f"left open: {more()}"


# --- brokers


@pytest.fixture
def broker() -> Iterator[Broker]:
    """An in-memory broker of one node."""
    with Broker() as running:
        yield running
        assert not running.malformed, running.malformed


def cluster_name(name: str) -> str:
    """The name of a cluster of this run: its processes share it."""
    controller = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    return f"{name}-{controller}"


def start_cluster(name: str, brokers: int, *properties: str) -> str:
    """Bootstrap servers of a real cluster that ends with this run. Skips where there is none."""
    given = os.environ.get("MPPRODUCER_BOOTSTRAP")
    if given:
        return given
    full = cluster_name(name)
    command = [*KAFKA, "start", "--name", full, "--brokers", str(brokers), "--print"]
    command += ["--owner-pid", full.rpartition("-")[2]]
    command += [word for pair in properties for word in ("--property", pair)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    if done.returncode != 0:
        if os.environ.get("MPPRODUCER_REQUIRE_KAFKA") == "1":
            pytest.fail(f"Kafka does not start: {done.stderr}")
        pytest.skip(f"no real Kafka here: {done.stderr.strip()}")
    return done.stdout.strip()


@pytest.fixture(scope="session")
def kafka() -> str:
    """Bootstrap servers of one real broker."""
    return start_cluster("test1", 1)


@pytest.fixture(scope="session")
def kafka3() -> str:
    """Bootstrap servers of three real brokers."""
    return start_cluster("test3", 3)


@pytest.fixture
def dump() -> Callable[[str, int], str]:
    """What the brokers of `kafka3` stored for a partition (DumpLogSegments)."""

    def run(topic: str, partition: int) -> str:
        if os.environ.get("MPPRODUCER_BOOTSTRAP"):
            pytest.skip("the log segments of MPPRODUCER_BOOTSTRAP are out of reach")
        command = [*KAFKA, "dump", "--name", cluster_name("test3"), topic, str(partition)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        return done.stdout

    return run


@pytest.fixture
def status_of() -> Callable[[Any], dict[str, Any]]:
    """What the sender of a producer says about itself."""
    from mpproducer import visitor

    def ask(producer: Any) -> dict[str, Any]:
        answer = visitor.ask(producer._place, "status")
        assert answer is not None
        return dict(json.loads(json.dumps(answer)))

    return ask
