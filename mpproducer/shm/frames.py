"""Completion frames: what the sender tells a worker about one batch, over the worker's pipe.

Little endian, 48 bytes and a message, padded to 8. `_core/py_pending.c:take_frame` is the
other half.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

HEADER = struct.Struct("<IHhQIIqqII")
_HEADER_BYTES: Final = HEADER.size
_pack: Final = HEADER.pack  # compiled code looks up what is not Final each time
MORE: Final = 0x100
"""Set in `kind` when further frames about the same batch follow for this worker."""
MAX_MESSAGE_BYTES: Final = 4096


class Kind(enum.IntEnum):
    """The fate of the records of a frame."""

    ACKED = 1
    NOT_WRITTEN = 2
    UNKNOWN = 3


def pack_frame(
    kind: int,
    batch_id: int,
    first: int,
    count: int,
    base_offset: int = -1,
    log_append_time_ms: int = -1,
    error_code: int = 0,
    reason: int = 0,
    message: str = "",
    more: bool = False,
) -> bytes:
    """Return the frame for records [first, first + count) of a batch.

    `base_offset` is the offset of record `first`, -1 when unknown; `log_append_time_ms` is -1 when
    the topic keeps the records' own timestamps; `reason` is an `reason.Reason`.
    """
    if more:
        kind |= MORE
    text = message.encode("utf-8", "replace")[:MAX_MESSAGE_BYTES] if message else b""
    size = (_HEADER_BYTES + len(text) + 7) & ~7
    head = _pack(
        size, kind, error_code, batch_id, first, count, base_offset, log_append_time_ms, reason,
        len(text),
    )  # fmt: skip
    return (head + text).ljust(size, b"\0") if text else head
