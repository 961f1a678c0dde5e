"""The word of a batch where it lies in shared memory, as another process finds it."""

from __future__ import annotations

import mmap
import struct
from typing import Final

SEAL: Final = 1 << 63
LIVE: Final = 1 << 62
OWNER_SHIFT: Final = 52
OWNER: Final = 0x3FF << OWNER_SHIFT
RECORDS_SHIFT: Final = 24
COMMITTED: Final = (1 << 38) - 1  # records and bytes; all ones in a slot that heads no batch
SEQ_BITS: Final = 44  # of a batch id, below the partition's index


def heads_batch(word: int) -> bool:
    """Whether a slot with this word is the first one of a batch."""
    return word & LIVE != 0 and word & COMMITTED != COMMITTED


def find_word(memory: mmap.mmap, batch_id: int) -> int:
    """Where the word of this batch is: its id stands behind it."""
    needle = struct.pack("<Q", batch_id)
    at = memory.find(needle)
    while at >= 0:
        if at % 128 == 8 and heads_batch(struct.unpack_from("<Q", memory, at - 8)[0]):
            return at - 8
        at = memory.find(needle, at + 1)
    raise AssertionError(f"there is no batch {batch_id >> SEQ_BITS}, {batch_id % 2**SEQ_BITS}")
