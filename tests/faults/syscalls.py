"""Lets calls of a sender fail: a library preloaded into it, and the block that controls it."""

from __future__ import annotations

import ctypes
import mmap
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).with_name("syscalls.c")
_FLAGS: Final = ("-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE")


class Call(ctypes.Structure):
    """Every `every`-th call fails with `error`, or, with 0, moves one byte; `every` 0: none."""

    _fields_ = tuple((name, ctypes.c_int32) for name in ("every", "error", "calls", "hits"))
    every: int
    error: int
    calls: int
    hits: int

    def fail(self, error: int, every: int = 1) -> Call:
        """From now on."""
        self.error, self.every = error, every
        return self

    def heal(self) -> int:
        """No more; returns how many failed."""
        self.every = 0
        return self.hits


class Control(ctypes.Structure):
    """`struct control` of syscalls.c."""

    _fields_ = (
        *((name, Call) for name in ("send", "receive", "connect", "wait")),
        *((n, ctypes.c_int32) for n in ("resolve_error", "resolve_ms", "resolving", "resolved")),
        ("addresses", ctypes.c_int32),
        ("address", ctypes.c_uint32 * 8),
    )
    send: Call
    receive: Call
    connect: Call
    wait: Call
    resolve_error: int
    resolve_ms: int
    resolving: int
    resolved: int
    addresses: int
    address: ctypes.Array[ctypes.c_uint32]


class Syscalls:
    """`python` is an interpreter for `sender_python` whose calls `control` governs."""

    def __init__(self, folder: Path) -> None:
        library, block = folder / "syscalls.so", folder / "control"
        command = ["gcc", *_FLAGS, "-shared", "-fPIC", str(_SOURCE), "-o", str(library), "-ldl"]
        subprocess.run(command, check=True, timeout=60)
        block.write_bytes(bytes(ctypes.sizeof(Control)))
        with block.open("r+b") as file:
            self.control = Control.from_buffer(mmap.mmap(file.fileno(), 0))
        python = folder / "python"
        python.write_text(
            f"#!/bin/sh\nMPP_SYSCALLS='{block}' LD_PRELOAD='{library}' "
            f"exec '{sys.executable}' \"$@\"\n"
        )
        python.chmod(0o700)
        self.python = str(python)

    def names(self, *addresses: str) -> None:
        """Every name has these IPv4 addresses from now on."""
        control = self.control
        for place, address in enumerate(addresses):
            control.address[place] = int.from_bytes(socket.inet_aton(address), sys.byteorder)
        control.addresses = len(addresses)
