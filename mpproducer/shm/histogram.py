"""Quantiles of the histograms in shared memory: log-linear buckets, 16 to the octave.

A value below 16 us has a bucket of its own. Above, the buckets of an octave are a sixteenth of it
wide, and what is told for a bucket differs from every value in it by less than 1/33.
`_core/metrics.h` counts; this file knows the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

SUB_BITS: Final = 4
BUCKETS: Final = 464
MAX_RELATIVE_ERROR: Final = 1 / 33


def bounds(bucket: int) -> tuple[int, int]:
    """The smallest and the largest value (us) of a bucket. The last one also has all larger."""
    if bucket < 1 << SUB_BITS:
        return bucket, bucket
    shift = (bucket >> SUB_BITS) - 1
    first = (1 << SUB_BITS | bucket & (1 << SUB_BITS) - 1) << shift
    return first, first + (1 << shift) - 1


def quantile(counts: Sequence[int], q: float, largest: int | None = None) -> float:
    """The value (us) that a share `q` (0 to 1) of the counted ones does not exceed, by nearest
    rank; nan when nothing was counted. `largest`, where known, bounds the answer."""
    total = sum(counts)
    if total == 0:
        return math.nan
    rank = max(1, math.ceil(q * total))
    for bucket, count in enumerate(counts):
        rank -= count
        if rank <= 0:
            first, last = bounds(bucket)
            # Not the middle: the place from which both ends are equally far, relatively.
            value = 2 * first * last / (first + last) if last else 0.0
            return value if largest is None else min(value, float(largest))
    raise AssertionError("the counts changed")


def since(now: Sequence[int], then: Sequence[int] | None) -> list[int]:
    """What was counted between two readings."""
    return list(now) if then is None else [a - b for a, b in zip(now, then, strict=True)]


def cumulative(counts: Sequence[int], octaves: range) -> list[tuple[int, int]]:
    """(2**k us, how many are below it) for each k, all at least SUB_BITS: exact, since the buckets
    end there."""
    found = []
    for octave in octaves:
        end = (octave - SUB_BITS + 1) << SUB_BITS
        found.append((1 << octave, sum(counts[:end])))
    return found
