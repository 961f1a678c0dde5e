"""What a worker loads: the way to a first acknowledgement brings no heavy module with it.

In fresh interpreters without `site`, where nothing else can have loaded them.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mpproducer
from mpproducer.testing import Broker
from tests.conftest import metric, wait_until

TOPIC = "events"
ROOT = Path(mpproducer.__file__).resolve().parent.parent
HEAVY = {
    "argparse", "array", "ast", "asyncio", "base64", "collections", "concurrent", "contextlib",
    "copy", "crc32c", "ctypes", "dataclasses", "datetime", "difflib", "email", "enum", "functools",
    "hashlib", "heapq", "importlib.metadata", "importlib.util", "inspect", "ipaddress", "json",
    "logging", "mpproducer.cli", "mpproducer.net", "mpproducer.reason", "mpproducer.sender",
    "mpproducer.testing", "mpproducer.wire", "mpproducer.worker.awaiting", "multiprocessing",
    "numpy", "operator", "pathlib", "pickle", "psutil", "queue", "random", "re", "rich",
    "selectors", "shutil", "signal", "socket", "ssl", "string", "struct", "subprocess", "tempfile",
    "threading", "traceback", "types", "typing", "urllib", "warnings", "weakref", "zlib",
}  # fmt: skip

SEND = """
with Producer(bootstrap_servers={bootstrap!r}, sender_idle_ms=0, **{config}) as producer:
    producer.send("events", b"v", key=b"k").result(30)
    producer.send_many("events", [b"v"] * 3).result(30)
    producer.flush(30)
    {more}
"""


def loaded(code: str) -> set[str]:
    """The modules of a new interpreter after running `code`."""
    script = f"import sys\n{code}\nprint(sorted(sys.modules))"
    path = [str(ROOT), *(entry for entry in sys.path if "site-packages" in entry)]
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modules: list[str] = ast.literal_eval(done.stdout)
    return set(modules)


def heavy(modules: set[str]) -> set[str]:
    return {name for name in HEAVY if name in modules}


def test_a_bare_interpreter_has_none_of_the_heavy_modules() -> None:
    assert heavy(loaded("")) == set()


def test_importing_the_package_and_its_producer_loads_no_heavy_module() -> None:
    assert "mpproducer.errors" in loaded("import mpproducer")
    found = loaded("from mpproducer import *; Producer(bootstrap_servers='k:9092', linger_ms='9')")
    assert "mpproducer.producer" in found
    assert heavy(found) == set()


def test_the_first_acknowledgement_loads_no_heavy_module_whoever_starts_the_sender(
    broker: Broker,
) -> None:
    send = "from mpproducer import Producer" + SEND.format(
        bootstrap=broker.bootstrap_servers, config={}, more=""
    )
    assert heavy(loaded(send)) == set()  # starts the sender
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, sender_idle_ms=0
    ) as running:
        running.attach(20)
        assert heavy(loaded(send)) == set()
        # It did find the running one.
        assert wait_until(lambda: metric(running, "worker-joined-total") == 2)
    assert len(broker.records(TOPIC)) == 8


@pytest.mark.parametrize(
    ("config", "more", "brought"),
    [
        ({"compression_type": "gzip"}, "", {"mpproducer.wire", "zlib"}),
        ({}, "producer.send('', b'v').exception(0)", {"copy"}),
        ({}, "producer.send('events', b'v').add_done_callback(id)", {"threading"}),
    ],
)
def test_what_a_worker_uses_later_it_loads_then(
    broker: Broker, config: dict[str, str], more: str, brought: set[str]
) -> None:
    send = SEND.format(bootstrap=broker.bootstrap_servers, config=config, more=more)
    found = heavy(loaded("from mpproducer import Producer" + send))
    assert brought <= found
    assert "asyncio" not in found
