"""A Produce request as the buffers that a bare `sendmsg` takes: what a producer is held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mpproducer._core import native

_VERSION: Final = 9
_IDENTITY: Final = (1, 0, 0)  # producer id, epoch, sequence: a sink does not look at them


def buffers(topic: str, batches: Sequence[tuple[int, native.Body]]) -> list[Any]:
    """The request of these batches, each (partition, body); their records stay where they are."""
    rows: list[Any] = [(topic, partition, body, *_IDENTITY) for partition, body in batches]
    request = native.produce_request(_VERSION, 1, "raw", -1, 30_000, None, rows)
    whole = request.peek(request.size_bytes)
    made: list[Any] = []
    at = 0
    for _partition, body in batches:
        header = body.header(*_IDENTITY)
        records_at = whole.index(header, at) + len(header)
        made += [whole[at:records_at], *body.pieces]
        at = records_at + body.size_bytes
    return [*made, whole[at:]]
