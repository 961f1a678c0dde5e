"""Produce on the data path: glue bytes around payload that is never copied or joined."""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from mpproducer.wire import codec
from mpproducer.wire.codec import Buffer
from mpproducer.wire.messages import PRODUCE

FLEXIBLE: Final = PRODUCE.flexible
TOPIC_IDS: Final = 13

_HEAD: Final = struct.Struct(">ihhi")
_ACKS: Final = struct.Struct(">hi")
_INDEX: Final = struct.Struct(">i")
_PARTITION: Final = struct.Struct(">ii")

# Topics come again in every request.
_string: Final = functools.lru_cache(maxsize=1024)(codec.string)
_compact_string: Final = functools.lru_cache(maxsize=1024)(codec.compact_string)


@functools.lru_cache(maxsize=16)
def _settings(
    flexible: bool, client_id: str | None, transactional_id: str | None, acks: int, timeout_ms: int
) -> bytes:
    """What is the same in all requests of a producer."""
    tail = _ACKS.pack(acks, timeout_ms)
    if flexible:
        return codec.string(client_id) + b"\0" + codec.compact_string(transactional_id) + tail
    return codec.string(client_id) + codec.string(transactional_id) + tail


Batch = tuple[int, Sequence[Buffer], int]
"""(partition, buffers of the record batch with its header first, their bytes)."""
Topic = tuple[str, bytes, Sequence[Batch]]
"""(name, topic id, batches)."""


def encode_produce_request(
    version: int,
    correlation_id: int,
    client_id: str | None,
    acks: int,
    timeout_ms: int,
    transactional_id: str | None,
    topics: Sequence[Topic],
) -> list[Buffer]:
    """Return the request as buffers for `sendmsg`, frame length first; payload as it was given.

    `transactional_id` is None without transactions. From v13 topics go by id (KIP-516).
    """
    flexible = version >= FLEXIBLE
    glue = bytearray(_HEAD.pack(0, 0, version, correlation_id))  # the length comes last
    glue += _settings(flexible, client_id, transactional_id, acks, timeout_ms)
    glue += codec.uvarint(len(topics) + 1) if flexible else codec.int32(len(topics))
    out: list[Buffer] = []
    payload_bytes = glue_bytes = 0
    first = glue
    for name, topic_id, batches in topics:
        if version >= TOPIC_IDS:
            glue += topic_id
        else:
            glue += _compact_string(name) if flexible else _string(name)
        glue += codec.uvarint(len(batches) + 1) if flexible else codec.int32(len(batches))
        for partition, buffers, size_bytes in batches:
            if flexible:
                glue += _INDEX.pack(partition)
                glue += codec.uvarint(size_bytes + 1)
            else:
                glue += _PARTITION.pack(partition, size_bytes)
            # The batch header is small: with it in the glue each batch costs one buffer less.
            glue += buffers[0]
            glue_bytes += len(glue)
            payload_bytes += size_bytes - len(buffers[0])
            out.append(glue)
            out += buffers[1:]
            glue = bytearray(b"\0" if flexible else b"")
        if flexible:
            glue += b"\0"
    if flexible:
        glue += b"\0"
    if glue:
        glue_bytes += len(glue)
        out.append(glue)
    _INDEX.pack_into(first, 0, glue_bytes + payload_bytes - 4)
    return out


class PartitionResult(NamedTuple):
    """What a Produce response says about one partition."""

    partition: int
    error_code: int
    base_offset: int
    log_append_time_ms: int
    log_start_offset: int
    record_errors: tuple[tuple[int, str | None], ...]
    error_message: str | None
    leader: tuple[int, int] | None
    """(leader id, leader epoch) when the broker told a newer leader (KIP-951)."""


class ProduceResponse(NamedTuple):
    """A decoded Produce response: results by topic (name, or id from v13)."""

    topics: list[tuple[str | bytes, list[PartitionResult]]]
    throttle_time_ms: int
    node_endpoints: tuple[tuple[int, str, int], ...]
