"""`mpproducer produce`, as a user runs it."""

from __future__ import annotations

import collections
import fcntl
import gzip
import json
import os
import shutil
import signal
import subprocess
import termios
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import zstandard

from mpproducer.testing import Broker
from tests.cli.conftest import Start
from tests.cli.support import TIMEOUT_S, mpproducer, write
from tests.conftest import senders, wait_until

WORDS = [b"line %d" % number for number in range(2_000)]


def stored(broker: Broker, topic: str = "t") -> list[Any]:
    """All records of a topic, partition by partition."""
    try:
        numbers = broker.partitions(topic)
    except KeyError:  # nobody has asked for it yet
        return []
    return [record for number in numbers for record in broker.records(topic, number)]


def values(broker: Broker, topic: str = "t") -> list[bytes | None]:
    return [record.value for record in stored(broker, topic)]


def to(broker: Broker, *more: str) -> list[str]:
    return ["produce", "-b", broker.bootstrap_servers, "-t", "t", *more]


@pytest.mark.parametrize("name", ["w.txt", "w.txt.gz", "w.txt.zst", "-"])
def test_every_line_of_the_input_is_a_record(name: str, broker: Broker, tmp_path: Path) -> None:
    data = b"\n".join(WORDS) + b"\n"
    packed = {".gz": gzip.compress(data), ".zst": zstandard.compress(data)}
    path = name if name == "-" else write(tmp_path, name, packed.get(Path(name).suffix, data))
    done = mpproducer(*to(broker, path), stdin=data)
    assert done.returncode == 0, done.stderr
    assert values(broker) == WORDS
    assert "2,000 of 2,000 records delivered" in done.stderr
    assert done.stdout == ""


def test_stdin_is_read_when_no_file_is_named_and_several_files_in_turn(
    broker: Broker, tmp_path: Path
) -> None:
    assert mpproducer(*to(broker), stdin=b"a\nb").returncode == 0
    first, second = write(tmp_path, "1", b"c\n"), write(tmp_path, "2", b"d\ne")
    assert mpproducer(*to(broker, first, second)).returncode == 0
    assert values(broker) == [b"a", b"b", b"c", b"d", b"e"]


def test_empty_lines_are_records_and_may_become_null(broker: Broker) -> None:
    assert mpproducer(*to(broker), stdin=b"\n\nx\n").returncode == 0
    assert values(broker) == [b"", b"", b"x"]
    assert mpproducer(*to(broker, "-Z"), stdin=b"\nx\n").returncode == 0
    assert values(broker)[3:] == [None, b"x"]


def test_no_input_is_no_error(broker: Broker) -> None:
    done = mpproducer(*to(broker))
    assert (done.returncode, values(broker)) == (0, [])
    assert "0 of 0 records" in done.stderr


def test_keys_come_from_a_field_a_delimiter_or_an_option(broker: Broker) -> None:
    rows = [{"id": "a"}, {"id": 7}, {"id": None}, {"id": {"x": [1, 2]}}]
    data = b"\n".join(json.dumps(row).encode() for row in rows)
    assert mpproducer(*to(broker, "--key-field", "id"), stdin=data).returncode == 0
    found = stored(broker)
    assert [record.key for record in found] == [b"a", b"7", None, b'{"x":[1,2]}']
    assert [json.loads(record.value) for record in found] == rows
    assert mpproducer(*to(broker, "-K", r"\t"), stdin=b"k\tv\tw\n\tv\n").returncode == 0
    assert mpproducer(*to(broker, "-k", "all"), stdin=b"v\n").returncode == 0
    assert [(record.key, record.value) for record in stored(broker)[4:]] == [
        (b"k", b"v\tw"), (b"", b"v"), (b"all", b"v"),
    ]  # fmt: skip


def test_the_letters_of_kcat_mean_what_they_mean_there(broker: Broker) -> None:
    broker.create_topic("t", 4)
    done = mpproducer(
        *to(broker, "-p", "3", "-D", "<>", "-c", "2", "-l", "-z", "zstd", "-q"),
        *("-H", "trace=1=2", "-H", "trace=", "-H", "none", "-X", "linger.ms=0"),
        stdin=b"a\nb<>c<>d<>",
    )
    assert (done.returncode, done.stderr) == (0, "")
    (first, second) = broker.records("t", 3)
    assert [first.value, second.value] == [b"a\nb", b"c"]
    assert list(first.headers) == [("trace", b"1=2"), ("trace", b""), ("none", None)]
    assert mpproducer(*to(broker, "-p", "-1"), stdin=b"any\n").returncode == 0
    assert b"any" in values(broker)


def test_count_ends_an_input_that_does_not_end(start: Start, broker: Broker) -> None:
    process = start(*to(broker, "-c", "3"))
    assert process.stdin is not None
    process.stdin.write(b"1\n2\n3\n4\n")
    process.stdin.flush()
    assert process.wait(TIMEOUT_S) == 0  # with stdin still open
    _, errors = process.communicate()
    assert b"3 of 3 records delivered" in errors
    assert values(broker) == [b"1", b"2", b"3"]


def test_many_workers_send_every_line_once_and_a_key_stays_together(broker: Broker) -> None:
    broker.create_topic("t", 6)
    rows = [b'{"user":"u%d","n":%d}' % (n % 50, n) for n in range(20_000)]
    options = ("-w", "4", "--key-field", "user", "--json")
    done = mpproducer(*to(broker, *options), stdin=b"\n".join(rows))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["lines"], told["delivered"], told["failed"]) == (20_000, 20_000, 0)
    assert told["bytes"] == sum(map(len, rows))
    assert collections.Counter(values(broker)) == collections.Counter(rows)
    homes = collections.defaultdict(set)
    for number in broker.partitions("t"):
        for record in broker.records("t", number):
            homes[record.key].add(number)
    assert all(len(partitions) == 1 for partitions in homes.values())


def test_any_start_method_works(broker: Broker) -> None:
    for method in ("fork", "spawn", "forkserver"):
        done = mpproducer(*to(broker, "--start-method", method, "-w", "2"), stdin=b"x\n")
        assert done.returncode == 0, done.stderr
    assert values(broker) == [b"x"] * 3


def test_any_configuration_key_can_be_given(broker: Broker, tmp_path: Path) -> None:
    config = write(tmp_path, "c", b"# ours\nbootstrap.servers = nowhere:1\nclient.id=from-file\n")
    assert mpproducer(*to(broker, "-F", config), stdin=b"1\n").returncode == 0
    given = ["-F", config, "-X", "client.id=from-option", "-X", "acks=1"]
    assert mpproducer(*to(broker, *given), stdin=b"2\n").returncode == 0
    assert {"from-file", "from-option"} <= broker.clients


# --- what goes wrong


def test_lines_without_their_key_are_counted_by_reason_and_the_others_are_sent(
    broker: Broker, tmp_path: Path
) -> None:
    path = write(tmp_path, "in", b'{"id":1}\nno json\n{"x":1}\n[1]\n{"id":2}\nno, too\n')
    done = mpproducer(*to(broker, "--key-field", "id", "--json", path))
    assert done.returncode == 1
    assert values(broker) == [b'{"id":1}', b'{"id":2}']
    assert json.loads(done.stdout)["reasons"] == {
        "bad line: not JSON": 2, "bad line: no field 'id'": 2,
    }  # fmt: skip
    assert f"2 not delivered: bad line: not JSON ({path}:2)" in done.stderr
    assert "2 of 6 records delivered" in done.stderr


def test_records_the_cluster_refuses_are_counted_by_reason(broker: Broker) -> None:
    broker.create_topic("t", 1)
    broker.on("Produce", times=1).error(29)
    done = mpproducer(*to(broker, "--json"), stdin=b"a\nb\n")
    assert done.returncode == 1
    assert json.loads(done.stdout)["reasons"] == {"AuthorizationFailed 29": 2}
    assert "2 not delivered: AuthorizationFailed 29 (" in done.stderr


def test_a_record_that_is_too_large_does_not_hold_up_the_others(broker: Broker) -> None:
    lines = b"a\n" + b"x" * 2000 + b"\nb\n"
    done = mpproducer(*to(broker, "-X", "max.request.size=1000"), stdin=lines)
    assert done.returncode == 1
    assert values(broker) == [b"a", b"b"]
    assert "1 not delivered: RecordTooLarge" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-X", "lingerms=1"], "unknown configuration key 'lingerms'; did you mean 'linger_ms'"),
        (["-X", "linger.ms=soon"], "linger_ms='soon' is not valid: expected a whole number"),
        (["-X", "linger.ms"], "--config 'linger.ms': must be KEY=VALUE"),
        (["-X", "security.protocol=SSL"], "security_protocol"),
        (["-F", "/nonexistent"], "cannot read /nonexistent: No such file"),
        (["-z", "brotli"], "compression_type='brotli' is not valid"),
        (["-w", "0"], "--workers 0: must be at least 1"),
        (["-c", "0"], "--count 0: must be at least 1"),
        (["-p", "-2"], "--partition -2: must not be negative"),
        (["-p", "7"], "topic 't' has partitions 0 to 1"),
        (["-k", "a", "--key-field", "b"], "--key and --key-field exclude each other"),
        (["-K", ""], "--key-delimiter: must not be empty"),
        (["-H", "=x"], "--header '=x': must be NAME=VALUE"),
        (["/nonexistent"], "cannot read /nonexistent: No such file"),
        (["/"], "cannot read /: Is a directory"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_named_and_nothing_is_sent(
    arguments: list[str], says: str, broker: Broker
) -> None:
    broker.create_topic("t", 2)
    done = mpproducer(*to(broker, *arguments), stdin=b"x\n")
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert values(broker) == []


def test_without_brokers_the_way_out_is_named() -> None:
    done = mpproducer("produce", "-t", "t")
    assert (done.returncode, done.stderr) == (2, "mpproducer: which brokers? give -b HOST:PORT\n")


def test_a_cluster_out_of_reach_and_a_missing_topic_end_it_before_a_line_is_read(
    tmp_path: Path,
) -> None:
    big = write(tmp_path, "big", b"x\n" * 1_000_000)
    started_s = time.monotonic()
    done = mpproducer("produce", "-b", "127.0.0.1:1", "-t", "t", "-X", "max.block.ms=500", big)
    assert done.returncode == 2
    assert "topic 't' did not appear in the metadata within max_block_ms=500" in done.stderr
    with Broker(auto_create_topics=False) as broker:
        done = mpproducer(*to(broker, "-X", "max.block.ms=500", big))
        assert done.returncode == 2
        assert "topic 't' did not appear" in done.stderr
    assert time.monotonic() - started_s < 20  # not once per chunk


def test_a_long_wait_for_the_cluster_says_what_it_waits_for(tmp_path: Path) -> None:
    lines = write(tmp_path, "lines", b"x\n")
    arguments = ("produce", "-b", "127.0.0.1:1", "-t", "t", "-X", "max.block.ms=4000", lines)
    done = mpproducer(*arguments)
    assert done.returncode == 2
    waiting = "waiting for 127.0.0.1:1 to name the partitions of 't', at most 4 s (max_block_ms)"
    assert waiting in done.stderr
    assert waiting not in mpproducer(*arguments, "-q").stderr


def test_a_damaged_file_is_an_error_after_what_was_read_is_delivered(
    broker: Broker, tmp_path: Path
) -> None:
    good = write(tmp_path, "good", b"a\nb\n")
    cut = write(tmp_path, "cut.zst", zstandard.compress(os.urandom(50_000))[:20_000])
    done = mpproducer(*to(broker, good, cut))
    assert done.returncode == 2
    assert values(broker)[:2] == [b"a", b"b"]
    assert f"cannot read {cut}: compressed data ended before the end of its frame" in done.stderr


# --- signals and deaths


def started(start: Start, broker: Broker, *more: str) -> subprocess.Popen[bytes]:
    """A run that has sent its first line and waits for more."""
    process = start(*to(broker, *more))
    assert process.stdin is not None
    process.stdin.write(b"first\n")
    process.stdin.flush()
    assert wait_until(lambda: b"first" in values(broker), 20.0)
    return process


def give(process: subprocess.Popen[bytes], data: bytes) -> None:
    """Write to its stdin, and wait until it has read that."""
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()
    pipe = process.stdin.fileno()
    assert wait_until(
        lambda: int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), "little") == 0
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_ctrl_c_delivers_what_was_read_and_ends_well(
    number: signal.Signals, method: str, start: Start, broker: Broker
) -> None:
    process = started(start, broker, "-w", "2", "--start-method", method, "-X", "linger.ms=200")
    give(process, b"second\nunfinish")
    if number is signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: the workers get it too
    else:
        process.terminate()
    assert process.wait(TIMEOUT_S) == 0  # with stdin still open
    _, errors = process.communicate()
    assert values(broker) == [b"first", b"second"]
    assert b"interrupted: delivering what was read" in errors
    assert b"2 of 2 records delivered" in errors
    assert b"Traceback" not in errors


def test_a_second_ctrl_c_abandons_and_says_what_is_not_known(
    start: Start, broker: Broker, runtime_dir: Path
) -> None:
    broker.create_topic("t", 1)
    process = started(start, broker)
    broker.on("Produce").drop_reply()
    assert process.stdin is not None
    process.stdin.write(b"second\n")
    process.stdin.flush()
    assert wait_until(lambda: b"second" in values(broker))
    process.send_signal(signal.SIGINT)
    assert wait_until(lambda: process.poll() is not None, 1.0) is False
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, errors
    assert b"1 of 2 records delivered" in errors
    assert b"1 not delivered: abandoned" in errors
    assert b"Traceback" not in errors
    (sender,) = senders(runtime_dir)
    sender.kill()  # it would wait for the reply that never comes
    shutil.rmtree(runtime_dir)
    runtime_dir.mkdir(mode=0o700)


def test_a_killed_worker_is_told_and_the_others_go_on(start: Start, broker: Broker) -> None:
    broker.create_topic("t", 1)
    process = started(start, broker, "-w", "2", "--json")
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    time.sleep(0.5)  # the first line is reported
    broker.on("Produce", times=100).delay(3.0)
    for number in range(2):  # a chunk for each worker
        give(process, b"line %d\n" % number)
    time.sleep(0.5)  # taken, and sent; the broker has not answered
    workers[0].kill()
    output, errors = process.communicate(b"last\n", timeout=TIMEOUT_S)
    told = json.loads(output)
    assert process.returncode == 1, errors
    assert told["lines"] == 4
    ((reason, count),) = told["reasons"].items()
    assert reason == "outcome unknown: a worker process was killed by SIGKILL"
    assert count >= 1
    assert told["delivered"] == 4 - count
    assert b"a worker process was killed by SIGKILL; 1 go on" in errors
    # What the killed one had sent is in shared memory, and is sent all the same.
    assert wait_until(lambda: len(values(broker)) == 4)
    assert sorted(map(str, values(broker))) == sorted(
        map(str, [b"first", b"line 0", b"line 1", b"last"])
    )


def test_progress_is_a_plain_line_per_interval_off_a_terminal(start: Start, broker: Broker) -> None:
    process = started(start, broker)
    assert process.stdin is not None
    for number in range(12):
        process.stdin.write(b"%d\n" % number)
        process.stdin.flush()
        time.sleep(0.2)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    lines = errors.decode().splitlines()
    assert any(line.startswith("t: ") and "records" in line for line in lines), lines
    assert lines[-1].startswith("13 of 13 records delivered in ")
    assert "\x1b" not in errors.decode()
