"""Segments: preallocated, of fixed size, and writable only where they should be."""

from __future__ import annotations

import mmap
import os
import resource

import pytest

import mpproducer
from mpproducer.shm import segment


def test_R4_a_segment_can_be_neither_truncated_nor_grown() -> None:
    fd = segment.create_memfd("test", 8192)
    try:
        assert os.fstat(fd).st_size == 8192
        assert os.fstat(fd).st_blocks * 512 >= 8192  # allocated
        assert not os.get_inheritable(fd)
        for size in (0, 4096, 16384):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        segment.seal_size(fd)
        with pytest.raises(PermissionError):
            segment.seal_future_writes(fd)
    finally:
        os.close(fd)


def test_M3_after_the_seal_nobody_can_write_but_who_has_mapped_before() -> None:
    fd = segment.create_memfd("test", 4096)
    try:
        with mmap.mmap(fd, 4096) as ours:
            segment.seal_future_writes(fd)
            ours[0:5] = b"hello"
            with pytest.raises(PermissionError):
                mmap.mmap(fd, 4096)
            with pytest.raises(PermissionError):
                os.pwrite(fd, b"x", 0)
            with mmap.mmap(fd, 4096, prot=mmap.PROT_READ) as theirs:
                assert theirs[0:5] == b"hello"
    finally:
        os.close(fd)


def test_R3_no_memory_is_an_error_that_names_the_size() -> None:
    before = len(os.listdir("/proc/self/fd"))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
            with pytest.raises(
                mpproducer.SenderStartFailed, match=r"test segment of 1048576 .*buffer_memory"
            ):
                segment.create_memfd("test", 1 << 20)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert len(os.listdir("/proc/self/fd")) == before
