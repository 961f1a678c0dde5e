"""`mpproducer sender`: status, stop, run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from mpproducer import Producer
from mpproducer.testing import Broker
from tests.cli.conftest import Start
from tests.cli.support import TIMEOUT_S, mpproducer
from tests.conftest import senders, wait_until


def test_without_a_sender_status_and_stop_say_so(runtime_dir: Path) -> None:
    for verb in ("status", "stop"):
        done = mpproducer("sender", verb)
        assert done.returncode == 1
        assert done.stderr == f"no sender runs in {runtime_dir}\n"
    assert mpproducer("sender", "status", "--json").stdout == "[]\n"


def test_status_tells_who_works_and_what_was_done(broker: Broker, runtime_dir: Path) -> None:
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        producer.send("t", b"x").result(10)
        (sender,) = senders(runtime_dir)
        text = mpproducer("sender", "status")
        assert text.returncode == 0, text.stderr
        assert text.stdout.startswith(f"sender {sender.pid} in {runtime_dir}")
        rows = dict(line.split(maxsplit=1) for line in text.stdout.splitlines()[1:])
        assert rows["workers"] == str(os.getpid())
        assert rows["record-acked-total"] == "1"
        (told,) = json.loads(mpproducer("sender", "status", "--json").stdout)
        assert told["workers"] == [os.getpid()]
        assert told["counters"]["record-acked-total"] == 1
        assert [node["state"] for node in told["nodes"] if node["id"] > 0] == ["READY"]


def test_status_looks_where_it_is_told(tmp_path: Path) -> None:
    done = mpproducer("sender", "status", "--runtime-dir", str(tmp_path))
    assert done.stderr == f"no sender runs in {tmp_path}\n"


def test_a_socket_nobody_answers_is_no_sender(runtime_dir: Path) -> None:
    import socket

    folder = runtime_dir / "dead"
    folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    assert mpproducer("sender", "status").returncode == 1
    (folder / "socket").unlink()
    folder.rmdir()


def test_stop_delivers_what_the_sender_holds_and_waits_for_its_end(
    broker: Broker, runtime_dir: Path
) -> None:
    with Producer(bootstrap_servers=broker.bootstrap_servers, linger_ms=60_000,
                  delivery_timeout_ms=120_000) as producer:  # fmt: skip
        producer.partitions_for("t")
        future = producer.send("t", b"lingers")
        (sender,) = senders(runtime_dir)
        done = mpproducer("sender", "stop")
        assert done.returncode == 0, done.stderr
        assert "has delivered what it held, and ended" in done.stdout
        assert sender.pid not in [each.pid for each in senders(runtime_dir)]
        assert future.result(5).offset == 0
    assert [record.value for record in broker.records("t", 0)] == [b"lingers"]


def test_stop_says_when_a_sender_is_not_done_in_time(broker: Broker, runtime_dir: Path) -> None:
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        producer.partitions_for("t")
        broker.on("Produce").drop_reply()
        producer.send("t", b"no answer")
        assert wait_until(lambda: broker.requests["Produce"] == 1)
        done = mpproducer("sender", "stop", "--timeout", "0.1")
        assert done.returncode == 1
        assert "still delivering what it holds" in done.stdout
        (sender,) = senders(runtime_dir)
        sender.kill()  # it would wait for the answer that never comes


def only_sender(folder: Path) -> psutil.Process:
    """The one sender of a folder, once it listens (while it starts there are two processes)."""
    assert wait_until(lambda: len(senders(folder)) == 1 and any(folder.glob("*/socket")))
    return senders(folder)[0]


def keeper(start: Start, broker: Broker) -> subprocess.Popen[bytes]:
    return start("sender", "run", "-b", broker.bootstrap_servers, "-X", "sender.idle.ms=0")


def told_pid(process: subprocess.Popen[bytes]) -> int:
    """The sender that `run` says it keeps now."""
    assert process.stderr is not None
    line = process.stderr.readline().decode()
    assert " runs in " in line, line
    return int(line.split()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_keeps_the_sender_that_producers_of_its_configuration_use(
    number: signal.Signals, start: Start, broker: Broker, runtime_dir: Path
) -> None:
    process = keeper(start, broker)
    sender = only_sender(runtime_dir)
    assert told_pid(process) == sender.pid
    for offset in range(2):
        with Producer(bootstrap_servers=broker.bootstrap_servers, sender_idle_ms=0) as producer:
            assert producer.send("t", b"x").result(10).offset == offset
        assert [each.pid for each in senders(runtime_dir)] == [sender.pid]
    process.send_signal(number)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    assert b"leaving the sender" in errors
    assert b"Traceback" not in errors
    assert wait_until(lambda: not senders(runtime_dir))


def test_run_starts_another_sender_when_the_first_one_dies(
    start: Start, broker: Broker, runtime_dir: Path
) -> None:
    process = keeper(start, broker)
    first = only_sender(runtime_dir)
    assert told_pid(process) == first.pid
    first.kill()
    assert process.stderr is not None
    assert process.stderr.readline() == f"sender {first.pid} ended; starting another\n".encode()
    assert told_pid(process) == only_sender(runtime_dir).pid
    with Producer(bootstrap_servers=broker.bootstrap_servers, sender_idle_ms=0) as producer:
        assert producer.send("t", b"x").result(10).offset == 0
    process.terminate()
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors


def test_run_refuses_a_configuration_that_cannot_be(runtime_dir: Path) -> None:
    done = mpproducer("sender", "run", "-b", "x:1", "-X", "lingr.ms=1")
    assert done.returncode == 2
    assert "did you mean 'linger_ms'" in done.stderr
    assert mpproducer("sender", "run").returncode == 2
    assert not any(runtime_dir.iterdir())
