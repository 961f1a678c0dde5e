"""The sender's sleep where the kernel, or a container's filter, refuses the newer call."""

from __future__ import annotations

import subprocess
import sys

import pytest

# 441 is epoll_pwait2 on every architecture. BPF: load the number of the call; is it that one?
SLEEPS = """
import ctypes, errno, os, select, struct, sys, time
from mpproducer._core import native
refused = getattr(errno, sys.argv[1])
ctl, memory, wake = os.memfd_create("ctl"), os.memfd_create("pool"), os.eventfd(0)
for fd, size in zip((ctl, memory), native.segment_sizes(4, 1, 1)):
    os.ftruncate(fd, size)
pool = native.Pool(
    ctl, memory, 4, 1, 1, batch_size=1, max_request_size=1000, linger_us=1, generation=1
)
code = b"".join(struct.pack("HBBI", *one) for one in (
    (0x20, 0, 0, 0), (0x15, 0, 1, 441), (0x06, 0, 0, 0x50000 | refused), (0x06, 0, 0, 0x7fff0000),
))
held = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(held)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0, "no filter"
assert libc.syscall(441, -1, None, 0, None, None, 0) == -1 and ctypes.get_errno() == refused
epoll = select.epoll()
epoll.register(wake, select.EPOLLIN)
until = time.monotonic_ns() + 3_000_000
assert pool.sleep(epoll.fileno(), until) == [] and time.monotonic_ns() >= until
os.eventfd_write(wake, 1)
assert pool.sleep(epoll.fileno(), time.monotonic_ns() + 10**10) == [(wake, select.EPOLLIN)]
assert pool.sleeps == 2
"""


@pytest.mark.parametrize("refused", ["ENOSYS", "EPERM"])
def test_the_sender_sleeps_without_the_newer_call(refused: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLEEPS, refused],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if "no filter" in done.stderr:
        pytest.skip("this system lets no process filter its own calls")
    assert done.returncode == 0, done.stderr
