"""Nothing is left behind: process, socket, descriptor, shared memory, folder, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import mpproducer
from mpproducer.testing import Broker
from tests.checker.check import check
from tests.checker.journal import Journal
from tests.checker.log import BrokerLog
from tests.conftest import ROOT, senders, wait_until

TOPIC = "events"

RUN = 99
SCRIPT = """
import os, signal, sys, time, threading
from pathlib import Path
import mpproducer
from tests.checker.journal import Journal
from tests.checker.writer import Writer
producer = mpproducer.Producer(bootstrap_servers=sys.argv[1], linger_ms=20, sender_idle_ms=0)
def stream(path):  # in the process that uses it
    return Writer(producer, Journal(Path(path)))
writer = stream(sys.argv[2])
for _ in range(100):
    writer.send()
print("sent", flush=True)
"""

ENDS = {
    "normal": "",
    "close": "writer.finish(30); producer.close()",
    "flush": "writer.finish(30)",
    "exception": "raise ZeroDivisionError",
    "sys.exit": "sys.exit(3)",
    "os._exit": "os._exit(3)",
    "kill -9": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "SIGINT": "os.kill(os.getpid(), signal.SIGINT); time.sleep(5)",
    "abort": "os.abort()",
    "exec": "os.execv('/bin/true', ['true'])",
    "child outlives": """
pid = os.fork()
if pid == 0:
    time.sleep(0.3)
    child = stream(sys.argv[3])
    child.send().result(30)
    child.finish(30)
    os._exit(0)
os._exit(0)
""",
    "idle child outlives": """
if os.fork() == 0:
    time.sleep(1.0)
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
""",
    "child of a thread": """
def job():
    if os.fork() == 0:
        child = stream(sys.argv[3])
        child.send().result(30)
        child.finish(30)
        os._exit(0)
    os.wait()
thread = threading.Thread(target=job); thread.start(); thread.join()
""",
    "daemon": """
import subprocess
subprocess.Popen(["sleep", "1"])
os._exit(0)
""",
}


def shm_entries() -> set[str]:
    # Semaphores of multiprocessing come and go with other tests.
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.mp-")}


def unix_sockets(folder: Path) -> list[str]:
    lines = Path("/proc/net/unix").read_text().splitlines()
    return [line for line in lines if str(folder) in line]


def memfd_holders() -> set[int]:
    """Processes that have our segments open or mapped."""
    found = set()
    for process in psutil.process_iter(["pid"]):
        try:
            maps = Path(f"/proc/{process.pid}/maps").read_text()
        except OSError:
            continue
        if "memfd:mpproducer" in maps:
            found.add(process.pid)
    return found


@pytest.mark.parametrize("how", ENDS)
def test_P8_S12_however_the_last_worker_ends(
    broker: Broker, runtime_dir: Path, tmp_path: Path, how: str
) -> None:
    broker.create_topic(TOPIC)
    before = shm_entries()
    journals = [Journal.create(tmp_path / f"{n}.journal", RUN, n, TOPIC, 100) for n in range(2)]
    paths = [str(journal.path) for journal in journals]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT + ENDS[how], broker.bootstrap_servers, *paths],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "sent\n"
    process.communicate(timeout=30)
    assert wait_until(lambda: not any(runtime_dir.iterdir()))
    assert wait_until(lambda: not senders(runtime_dir), 5)
    assert shm_entries() <= before
    assert unix_sockets(runtime_dir) == []
    assert wait_until(lambda: broker.connections_now == 0, 5)
    report = check(RUN, journals, BrokerLog(broker, [TOPIC])).require()
    also = how in ("child outlives", "child of a thread")
    assert report.counts["in_log"] == report.counts["attempted"] == 100 + also
    assert journals[0].finished == (how in ("close", "flush"))
    assert journals[1].finished == also


def test_P8_a_process_that_detaches_keeps_no_segment_no_thread_and_no_descriptor(
    broker: Broker, runtime_dir: Path
) -> None:
    def state() -> tuple[int, int, bool]:
        tcp = [c for c in psutil.Process().net_connections("tcp") if c.fd >= 0]
        fds = len(os.listdir("/proc/self/fd")) - len(tcp)
        return fds, psutil.Process().num_threads(), os.getpid() in memfd_holders()

    broker.create_topic(TOPIC)
    before = state()
    for _ in range(5):
        with mpproducer.Producer(
            bootstrap_servers=broker.bootstrap_servers, linger_ms=0, sender_idle_ms=0
        ) as producer:
            for _ in range(50):
                producer.send(TOPIC, b"v").add_done_callback(lambda _future: None)
            assert os.getpid() in memfd_holders()
        assert wait_until(lambda: state() == before)
    assert wait_until(lambda: not any(runtime_dir.iterdir()))


def test_S1_after_the_sender_was_killed_its_last_worker_cleans_up(
    broker: Broker, runtime_dir: Path, tmp_path: Path
) -> None:
    script = SCRIPT + (
        "assert writer.finish(30) == 0\n"
        "from mpproducer.worker import attach\n"
        "pid = next(iter(attach._table.links.values())).sender_pid\n"
        "os.kill(pid, signal.SIGKILL)\n"
        "while not producer._attachment.sender_dead:\n"
        "    producer._attachment.drain()\n"
    )
    broker.create_topic(TOPIC)
    journals = [Journal.create(tmp_path / f"{n}.journal", RUN, n, TOPIC, 100) for n in range(2)]
    subprocess.run(
        [sys.executable, "-c", script, broker.bootstrap_servers, *(str(j.path) for j in journals)],
        check=True,
        timeout=30,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    assert list(runtime_dir.iterdir()) == []
    report = check(RUN, journals, BrokerLog(broker, [TOPIC])).require()
    assert report.counts["acked"] == 100


def test_a_folder_left_by_a_killed_host_is_taken_over(broker: Broker, runtime_dir: Path) -> None:
    """Sender and workers died together: the next sender finds stale files, and its own way."""
    producer = mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, linger_ms=0, sender_idle_ms=0
    )
    child = os.fork()
    if child == 0:
        producer.send(TOPIC, b"1").result(20)
        for sender in senders(runtime_dir):
            sender.send_signal(signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    stale = {path.name for path in Path(producer._place.folder).iterdir()}
    assert "socket" in stale
    with producer:
        assert producer.send(TOPIC, b"2").result(20).offset == 1
