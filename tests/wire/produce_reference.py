"""The Produce request and response in plain Python, to hold the core's against."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from mpproducer.wire import codec
from mpproducer.wire.codec import Buffer, ProtocolError, Reader
from mpproducer.wire.framing import read_response_header
from mpproducer.wire.messages import PRODUCE
from mpproducer.wire.produce import PartitionResult, ProduceResponse

FLEXIBLE: Final = PRODUCE.flexible
TOPIC_IDS: Final = 13

_HEAD: Final = struct.Struct(">ihhi")
_ACKS: Final = struct.Struct(">hi")
_INDEX: Final = struct.Struct(">i")
_PARTITION: Final = struct.Struct(">ii")

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
    glue += codec.string(client_id)
    if flexible:
        glue += b"\0" + codec.compact_string(transactional_id)
    else:
        glue += codec.string(transactional_id)
    glue += _ACKS.pack(acks, timeout_ms)
    glue += codec.uvarint(len(topics) + 1) if flexible else codec.int32(len(topics))
    out: list[Buffer] = []
    payload_bytes = glue_bytes = 0
    first = glue
    for name, topic_id, batches in topics:
        if version >= TOPIC_IDS:
            glue += topic_id
        else:
            glue += codec.compact_string(name) if flexible else codec.string(name)
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


def decode_produce_response(frame: Buffer, version: int, correlation_id: int) -> ProduceResponse:
    """Return the content of a response frame (without its length). Raises ProtocolError."""
    found, reader = read_response_header(frame, PRODUCE, version)
    if found != correlation_id:
        raise ProtocolError(f"response to request {found} where {correlation_id} was expected")
    flexible = version >= FLEXIBLE
    topics: list[tuple[str | bytes, list[PartitionResult]]] = []
    for _ in range(_length(reader, flexible=flexible)):
        name: str | bytes | None
        if version >= TOPIC_IDS:
            name = reader.uuid()
        else:
            name = reader.compact_string() if flexible else reader.string()
        if name is None:
            raise ProtocolError("a Produce response has a topic without a name")
        count = _length(reader, flexible=flexible)
        topics.append((name, [_partition(reader, version) for _ in range(count)]))
        if flexible:
            reader.tags()
    throttle_time_ms = reader.int32()
    endpoints: tuple[tuple[int, str, int], ...] = ()
    if flexible:
        tags = reader.tags()
        if version >= 10 and 0 in tags:
            endpoints = tuple(_endpoints(Reader(tags[0])))
    if reader.left():
        raise ProtocolError(f"a Produce response has {reader.left()} bytes too many")
    return ProduceResponse(topics, throttle_time_ms, endpoints)


def _length(reader: Reader, *, flexible: bool) -> int:
    count = reader.compact_array_length() if flexible else reader.array_length()
    if count is None:
        raise ProtocolError("an array of a Produce response is null")
    return count


def _partition(reader: Reader, version: int) -> PartitionResult:
    if version < 5:
        partition, code, offset = reader.int32(), reader.int16(), reader.int64()
        return PartitionResult(partition, code, offset, reader.int64(), -1, (), None, None)
    partition, code, offset = reader.int32(), reader.int16(), reader.int64()
    append_ms, start = reader.int64(), reader.int64()
    flexible = version >= FLEXIBLE
    if version < 8:
        return PartitionResult(partition, code, offset, append_ms, start, (), None, None)
    errors = []
    for _ in range(_length(reader, flexible=flexible)):
        index = reader.int32()
        errors.append((index, reader.compact_string() if flexible else reader.string()))
        if flexible:
            reader.tags()
    message = reader.compact_string() if flexible else reader.string()
    leader = None
    if flexible:
        tags = reader.tags()
        if version >= 10 and 0 in tags:
            tagged = Reader(tags[0])
            leader = (tagged.int32(), tagged.int32())
    return PartitionResult(
        partition, code, offset, append_ms, start, tuple(errors), message, leader
    )


def _endpoints(reader: Reader) -> Iterable[tuple[int, str, int]]:
    for _ in range(_length(reader, flexible=True)):
        node_id, host, port = reader.int32(), reader.compact_string(), reader.int32()
        reader.compact_string()
        reader.tags()
        yield node_id, host or "", port
