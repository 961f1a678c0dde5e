"""The sender as a process: what it sheds of its starter, and what it needs of it."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import mpproducer
from mpproducer.shm import control
from mpproducer.testing import Broker
from mpproducer.worker import start
from tests.conftest import senders, wait_until

TOPIC = "events"

PRELUDE = """
import json, os, signal, sys, time
import mpproducer
from mpproducer.worker import attach
bootstrap = sys.argv[1]
def make(**config):
    config = {"linger_ms": 0, "sender_idle_ms": 200} | config
    return mpproducer.Producer(bootstrap_servers=bootstrap, **config)
def sender_of(producer):
    return next(iter(attach._table.links.values())).sender_pid
"""


def start_script(broker: Broker, body: str, **options: Any) -> subprocess.Popen[str]:
    """A Python process of its own that ran `body`."""
    script = PRELUDE + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, broker.bootstrap_servers],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run_script(broker: Broker, body: str, **options: Any) -> str:
    """Its standard output; it must end well and say nothing else."""
    process = start_script(broker, body, **options)
    output, noise = process.communicate(timeout=60)
    assert process.returncode == 0, noise
    assert noise == ""
    return output


STATUS = {
    "HUP": signal.SIGHUP,
    "INT": signal.SIGINT,
    "PIPE": signal.SIGPIPE,
    "XFSZ": signal.SIGXFSZ,
}


def bits(pid: int, field: str) -> set[int]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            mask = int(line.split()[1], 16)
            return {n for n in range(1, 65) if mask >> (n - 1) & 1}
    raise AssertionError(field)


def test_the_sender_sheds_environment_signals_limits_folder_and_session(
    broker: Broker, tmp_path: Path
) -> None:
    body = """
        import resource
        for name in ("INT", "TERM", "HUP", "CHLD", "USR1"):
            signal.signal(getattr(signal, "SIG" + name), signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2])
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))
        os.umask(0o077 ^ 0o777)
        stray = os.open("/dev/zero", os.O_RDONLY)
        os.set_inheritable(stray, True)
        producer = make()
        producer.send("events", b"v").result(30)
        print(json.dumps([sender_of(producer), os.getsid(0), os.getpgid(0)]), flush=True)
        sys.stdin.read()
    """
    process = start_script(
        broker,
        body,
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        env=os.environ
        | {"SECRET_TOKEN": "hunter2", "PYTHONHASHSEED": "0", "PYTHONPATH": os.getcwd()},
    )
    assert process.stdout is not None
    try:
        pid, session, group = json.loads(process.stdout.readline())
        sender = psutil.Process(pid)
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"hunter2" not in environ
        assert b"PYTHONHASHSEED" not in environ
        names = {entry.split(b"=")[0].decode() for entry in environ.split(b"\0") if entry}
        assert names <= {*start._KEPT_VARIABLES, "PYTHONPATH"}
        assert sender.cwd() == "/"
        assert os.getsid(pid) not in (session, os.getsid(0))
        assert os.getpgid(pid) != group
        assert sender.ppid() != process.pid  # nobody's child
        assert psutil.Process(process.pid).children() == []
        assert bits(pid, "SigBlk") == set()
        # glibc's posix_spawn ignores 32 and 33, which are its own, until it needs them.
        assert bits(pid, "SigIgn") - {32, 33} == {int(number) for number in STATUS.values()}
        assert signal.SIGTERM in bits(pid, "SigCgt")
        limits = Path(f"/proc/{pid}/limits").read_text()
        files = next(line for line in limits.splitlines() if line.startswith("Max open files"))
        assert files.split()[3:5] == ["4096", "4096"]
        umask = next(
            line
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if line.startswith("Umask")
        )
        assert umask.split()[1] == "0077"
        opened = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert "/dev/zero" not in opened
        assert [name for name in opened if name.startswith("pipe:")] != []  # the completions
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
        assert os.readlink(f"/proc/{pid}/fd/2").endswith("sender.log")
        command = sender.cmdline()
        assert not any("hunter2" in part or broker.bootstrap_servers in part for part in command)
    finally:
        process.communicate("", timeout=30)
    assert process.returncode == 0


def test_M12_what_is_created_is_ours_alone_whatever_the_umask(
    broker: Broker, runtime_dir: Path
) -> None:
    before = os.umask(0)
    try:
        with mpproducer.Producer(
            bootstrap_servers=broker.bootstrap_servers, sender_idle_ms=0
        ) as producer:
            producer.send(TOPIC, b"v").result(20)
            for path in runtime_dir.rglob("*"):
                assert path.stat().st_mode & 0o077 == 0, path
                assert path.stat().st_uid == os.getuid()
    finally:
        os.umask(before)


def test_L8_the_sender_survives_signals_to_its_starters_group(
    broker: Broker, runtime_dir: Path
) -> None:
    body = """
        for number in (signal.SIGINT, signal.SIGHUP):  # a run in the background ignores them
            signal.signal(number, signal.SIG_DFL)
        producer = make(sender_idle_ms=3000)
        producer.send("events", b"v").result(30)
        print(sender_of(producer), flush=True)
        time.sleep(30)
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGKILL):
        process = start_script(broker, body, start_new_session=True)
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.killpg(process.pid, number)
        process.communicate(timeout=30)
        assert process.returncode != 0
        assert psutil.Process(pid).is_running()
    assert len(broker.records(TOPIC)) == 3
    assert len(senders(runtime_dir)) == 1
    os.kill(pid, signal.SIGTERM)


def test_sys_executable_that_is_no_python_is_not_run(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/sbin/uwsgi")
    assert Path(start.interpreter(None)).parent == Path(sys.prefix) / "bin"
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, sender_idle_ms=0
    ) as producer:
        producer.send(TOPIC, b"v").result(20)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "")
    producer = mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers, client_id="other")
    with pytest.raises(mpproducer.SenderStartFailed, match="set sender_python"):
        producer.send(TOPIC, b"v")


def test_modules_of_the_program_do_not_hide_the_standard_library_from_the_sender(
    broker: Broker, tmp_path: Path
) -> None:
    for name in ("enum", "random", "logging"):
        (tmp_path / f"{name}.py").write_text("raise ZeroDivisionError")
    body = f"""
        sys.path.insert(0, {str(tmp_path)!r})
        make().send("events", b"v").result(30)
    """
    run_script(broker, body)
    assert len(broker.records(TOPIC)) == 1


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("/does/not/exist", "could not be started with /does/not/exist: .*set sender_python"),
        ("/bin/false", "ended while starting"),
    ],
)
def test_S6_a_sender_that_cannot_start_is_an_error_with_the_reason(
    broker: Broker, python: str, message: str
) -> None:
    producer = mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, sender_python=python, max_block_ms=3000
    )
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(mpproducer.SenderStartFailed, match=message) as found:
            producer.send(TOPIC, b"v")
        assert found.value.retriable
    assert len(os.listdir("/proc/self/fd")) == before
    producer.close()


def test_S6_a_sender_that_fails_while_starting_is_quoted(broker: Broker, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'the disk is on fire' >&2\nexit 3\n")
    script.chmod(0o755)
    producer = mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, sender_python=str(script)
    )
    with pytest.raises(mpproducer.SenderStartFailed, match="the disk is on fire"):
        producer.send(TOPIC, b"v")


def test_a_sender_that_does_not_answer_is_given_up_in_time(broker: Broker, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 30\n")
    script.chmod(0o755)
    producer = mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers,
        sender_python=str(script),
        sender_start_timeout_ms=300,
    )
    start_s = time.monotonic()
    with pytest.raises(mpproducer.SenderStartFailed, match="did not come up in time"):
        producer.send(TOPIC, b"v")
    assert 0.25 < time.monotonic() - start_s < 10


def test_S5_a_stopped_sender_is_an_error_in_time_and_serves_again_afterwards(
    broker: Broker, status_of: Any
) -> None:
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers,
        sender_idle_ms=0,
        linger_ms=0,
        max_block_ms=500,
    ) as producer:
        producer.attach(10)
        producer.send(TOPIC, b"v").result(20)
        pid = status_of(producer)["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            future = producer.send(TOPIC, b"v")  # known topic: memory needs no sender
            assert not future.done()
            with pytest.raises(mpproducer.MetadataTimeout):
                producer.send("new", b"v").result(0)
            with pytest.raises(TimeoutError):
                producer.flush(0.1)
            child = os.fork()
            if child == 0:
                try:
                    with pytest.raises(mpproducer.SenderStartFailed, match="did not answer"):
                        producer.send(TOPIC, b"v")
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
        finally:
            os.kill(pid, signal.SIGCONT)
        assert future.result(20).offset == 1
        assert producer.send("new", b"v").exception(20) is None
        assert wait_until(lambda: status_of(producer)["workers"] == [os.getpid()])


def test_W18_a_sender_whose_first_worker_dies_in_the_handshake_ends(
    broker: Broker, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hello_and_die(_sock: socket.socket, _deadline_ns: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    producer = mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers, sender_idle_ms=0)
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(control, "recv_with_fds", hello_and_die)
        producer.attach(10)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert wait_until(lambda: not senders(runtime_dir), 10)
    assert list(runtime_dir.iterdir()) == []


def test_R6_a_small_address_space_is_a_clear_error_or_enough(broker: Broker) -> None:
    """Spark sets RLIMIT_AS, soft and hard, in its workers: the sender inherits the hard one."""
    producer_config = {"bootstrap_servers": broker.bootstrap_servers, "sender_idle_ms": 0}
    outcomes = []
    for megabytes in (1024, 512, 160):
        child = os.fork()
        if child == 0:
            code = 9
            try:
                used = psutil.Process().memory_info().vms
                limit = megabytes * 2**20
                # What other tests have imported into this process counts as well.
                least = used + (2**28 if megabytes == 1024 else 2**23)
                resource.setrlimit(resource.RLIMIT_AS, (max(limit, least), limit + used))
                producer = mpproducer.Producer(producer_config)
                try:
                    producer.send(TOPIC, b"v").result(30)
                    code = 0
                except mpproducer.SenderError as error:
                    text = str(error).lower()
                    code = 2 if "memory" in text else 3
                    if code == 3:
                        os.write(2, text.encode())
                producer.close()
            finally:
                os._exit(code)
        outcomes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert set(outcomes) <= {0, 2}
    assert outcomes[0] == 0


def test_R3_no_memory_for_the_segments_is_a_clear_error(broker: Broker, tmp_path: Path) -> None:
    """A limit on file size stands for a full tmpfs: preallocation fails, nobody gets a SIGBUS."""
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nulimit -f 4096\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    producer = mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, sender_python=str(wrapper)
    )
    with pytest.raises(
        mpproducer.SenderStartFailed, match=r"no shared memory for .* lower buffer_memory"
    ):
        producer.send(TOPIC, b"v")
    producer.close()


def test_no_ResourceWarning_and_no_noise_however_a_script_ends(
    broker: Broker, runtime_dir: Path
) -> None:
    scripts = {
        "closed": "with make() as p: p.send('events', b'1').result(30)",
        "not closed": "p = make(); p.send('events', b'1')",
        "two": "p = make(); q = make(linger_ms=1); p.send('events', b'1'); q.send('events', b'1')",
        "pending": "p = make(linger_ms=60_000); f = p.send('events', b'1')",
        "callback": "p = make(linger_ms=20); p.send('events', b'1').add_done_callback(lambda f: 0)",
        "exit": "p = make(linger_ms=60_000); p.send('events', b'1'); sys.exit(0)",
        "thread": """
            import threading
            p = make()
            def job():
                try:
                    while True:
                        p.send('events', b'1').result(30)
                        sent.set()
                except mpproducer.KafkaError:
                    pass  # the process detached
            sent = threading.Event()
            threading.Thread(target=job, daemon=True).start()
            sent.wait(30)
        """,
        "collected": "import gc; p = make(); p.send('events', b'1'); del p; gc.collect()",
        "asyncio": """
            import asyncio
            p = make()
            async def main():
                await asyncio.gather(*[p.send('events', b'1') for _ in range(10)])
                p.send('events', b'1')
            asyncio.run(main())
        """,
    }
    stored = 0
    for name, body in scripts.items():
        started = time.monotonic()
        run_script(broker, body)
        assert time.monotonic() - started < 10, name
        assert wait_until(lambda least=stored: len(broker.records(TOPIC)) > least), name  # type: ignore[misc]
        stored = len(broker.records(TOPIC))
    assert wait_until(lambda: not any(runtime_dir.iterdir()))


def test_L10_exit_waits_at_most_close_timeout_ms_and_says_what_is_left(
    broker: Broker, runtime_dir: Path
) -> None:
    broker.create_topic(TOPIC)
    held = broker.on("Produce", times=1).delay(1.5)
    process = start_script(
        broker, "p = make(close_timeout_ms=200); p.send('events', b'1', partition=0)"
    )
    _output, noise = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "1 batches were not acknowledged within close_timeout_ms=200" in noise
    assert held.hits == 1
    assert wait_until(lambda: not senders(runtime_dir))
    assert len(broker.records(TOPIC)) == 1


def test_SIGTERM_to_the_sender_and_its_workers_together_loses_nothing(
    broker: Broker, runtime_dir: Path
) -> None:
    """systemd's KillMode=control-group: the sender serves until the workers are gone."""
    broker.create_topic(TOPIC)
    body = """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        producer = make(linger_ms=50)
        count = 0
        try:
            producer.send("events", b"0").result(30)
            count = 1
            print(sender_of(producer), flush=True)
            while True:
                producer.send("events", b"%d" % count)
                count += 1
                if count % 100 == 0:
                    time.sleep(0.001)
        finally:
            print(count, flush=True)
    """
    workers = [start_script(broker, body) for _ in range(2)]
    for worker in workers:
        assert worker.stdout is not None
        sender = int(worker.stdout.readline())
    time.sleep(0.3)
    for pid in (sender, *[worker.pid for worker in workers]):
        os.kill(pid, signal.SIGTERM)
    sent = []
    for worker in workers:
        output, noise = worker.communicate(timeout=30)
        assert noise == ""
        sent.append(int(output))
    assert wait_until(lambda: not senders(runtime_dir))
    stored = [record.value for record in broker.records(TOPIC)]
    # A record may be appended and not yet counted when the signal comes: one per worker.
    assert 0 <= len(stored) - sum(sent) <= 2
    expected = [b"%d" % n for count in sent for n in range(count)]
    assert set(stored) >= set(expected)


UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc"]


def _unshare_works() -> bool:
    done = subprocess.run([*UNSHARE, "true"], check=False, capture_output=True, timeout=10)
    return done.returncode == 0


@pytest.mark.skipif(not _unshare_works(), reason="unshare --pid is not permitted here")
@pytest.mark.parametrize("who", ["main", "child"])
def test_PID_1_waits_for_the_delivery_of_what_anybody_sent(
    broker: Broker, runtime_dir: Path, who: str
) -> None:
    """The kernel kills the sender with process 1: its exit waits, also for children's records."""
    broker.create_topic(TOPIC)
    broker.on("Produce", times=1).delay(0.7)
    body = f"""
        assert os.getpid() == 1
        producer = make(linger_ms=500)
        if {who!r} == "main":
            producer.send("events", b"v")
        else:
            pid = os.fork()
            if pid == 0:
                producer.send("events", b"v")
                os._exit(0)  # as in a Pool: nothing runs at exit
            os.waitpid(pid, 0)
    """
    script = PRELUDE + textwrap.dedent(body)
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-c", script, broker.bootstrap_servers],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert [record.value for record in broker.records(TOPIC)] == [b"v"]
    for folder in runtime_dir.iterdir():  # whatever the kernel left
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
