"""Records that say who they are, so that a copy read back anywhere can be judged by itself.

A value is a head of 48 bytes and a filler. The head says which run and stream sent it under which
number, to which topic and partition, with which key, timestamp and length; the filler follows from
the head. So a record that is torn, mixed with another one, altered, or in a place it was not sent
to is found without any table of what was sent.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

ANY: Final = -1
"""No partition was asked for, or no timestamp given."""
NO_KEY: Final = 0xFFFFFFFF

_HEAD: Final = struct.Struct("<QIiQqIII")
_CRC: Final = struct.Struct("<I")
HEAD: Final = np.dtype(
    [
        ("run", "<u8"),
        ("stream", "<u4"),
        ("partition", "<i4"),
        ("seq", "<u8"),
        ("timestamp_ms", "<i8"),
        ("key", "<u4"),
        ("topic", "<u4"),
        ("length", "<u4"),
        ("crc", "<u4"),
    ]
)
HEAD_BYTES: Final = HEAD.itemsize
_CHECKED_BYTES: Final = HEAD_BYTES - _CRC.size

_PAD_BITS: Final = 20
_PAD: Final = random.Random(0).randbytes(1 << _PAD_BITS) * 2
MAX_BYTES: Final = HEAD_BYTES + (1 << _PAD_BITS)
_MASK: Final = (1 << 64) - 1
_STREAM_STEP: Final = 0x9E3779B97F4A7C15
_SEQ_STEP: Final = 0xBF58476D1CE4E5B9
_SHIFT: Final = 64 - _PAD_BITS

Heads = npt.NDArray[np.void]


class Identity(NamedTuple):
    """Who sent a record where."""

    run: int
    stream: int
    seq: int
    topic: str
    partition: int = ANY
    key: int = NO_KEY
    timestamp_ms: int = ANY


def topic_hash(name: str) -> int:
    """The topic as a head has it."""
    return zlib.crc32(name.encode())


def key_bytes(number: int) -> bytes | None:
    """The key of that number."""
    return None if number == NO_KEY else b"key-%d" % number


def encode(who: Identity, size: int) -> bytes:
    """A value of `size` bytes. Raises ValueError."""
    if not HEAD_BYTES <= size <= MAX_BYTES:
        raise ValueError(f"size={size}: a record has {HEAD_BYTES} to {MAX_BYTES} bytes")
    run, stream, seq, topic, partition, key, timestamp_ms = who
    head = _HEAD.pack(run, stream, partition, seq, timestamp_ms, key, topic_hash(topic), size)
    start = ((run + stream * _STREAM_STEP + seq * _SEQ_STEP) & _MASK) >> _SHIFT
    return b"".join((head, _CRC.pack(zlib.crc32(head)), _PAD[start : start + size - HEAD_BYTES]))


def encode_many(first: Identity, count: int, size: int, keys: Sequence[int] = ()) -> list[bytes]:
    """`count` values from `first.seq` on, as `encode` makes them; `keys` as many, or none."""
    heads = np.zeros(count, HEAD)
    heads["run"], heads["stream"], heads["partition"] = first.run, first.stream, first.partition
    heads["seq"] = np.arange(first.seq, first.seq + count, dtype=np.uint64)
    heads["timestamp_ms"], heads["topic"] = first.timestamp_ms, topic_hash(first.topic)
    heads["key"] = np.array(keys, np.uint32) if len(keys) else first.key
    heads["length"] = size
    raw = heads.tobytes()
    starts = _starts(heads).tolist()
    filler = size - HEAD_BYTES
    found = []
    for place, start in zip(range(0, len(raw), HEAD_BYTES), starts, strict=True):
        head = raw[place : place + _CHECKED_BYTES]
        found.append(head + _CRC.pack(zlib.crc32(head)) + _PAD[start : start + filler])
    return found


def _starts(heads: Heads) -> npt.NDArray[np.uint64]:
    """Where in the pad each filler starts."""
    with np.errstate(over="ignore"):
        mixed = (
            heads["run"]
            + heads["stream"].astype(np.uint64) * np.uint64(_STREAM_STEP)
            + heads["seq"] * np.uint64(_SEQ_STEP)
        )
    return np.asarray(mixed >> np.uint64(_SHIFT))


def decode(values: Sequence[bytes | None]) -> tuple[Heads, dict[int, str]]:
    """The heads of values, and what is wrong with the bytes of some: their heads are nonsense."""
    short = bytes(HEAD_BYTES)
    whole = [value if value and len(value) >= HEAD_BYTES else short for value in values]
    heads = np.frombuffer(b"".join([value[:HEAD_BYTES] for value in whole]), HEAD)
    wrong: dict[int, str] = {}
    crcs, lengths, starts = heads["crc"].tolist(), heads["length"].tolist(), _starts(heads).tolist()
    for place, value in enumerate(values):
        crc, length, start = crcs[place], lengths[place], starts[place]
        if value is None or len(value) < HEAD_BYTES:
            wrong[place] = f"no record of a run: {value!r}"
        elif zlib.crc32(value[:_CHECKED_BYTES]) != crc:
            wrong[place] = f"its head is altered: {value[:HEAD_BYTES].hex()}"
        elif len(value) != length:
            wrong[place] = f"{len(value)} bytes, sent with {length}"
        elif value[HEAD_BYTES:] != _PAD[start : start + length - HEAD_BYTES]:
            wrong[place] = "its filler is not that of its head"
    return heads, wrong
