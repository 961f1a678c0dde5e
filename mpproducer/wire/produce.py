"""Produce on the data path: glue bytes around payload that is never copied or joined."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from mpproducer.wire import codec
from mpproducer.wire.codec import Buffer, ProtocolError, Reader
from mpproducer.wire.framing import read_response_header
from mpproducer.wire.messages import PRODUCE

FLEXIBLE: Final = PRODUCE.flexible
TOPIC_IDS: Final = 13

_HEAD: Final = struct.Struct(">ihhi")
_ACKS: Final = struct.Struct(">hi")
_INDEX: Final = struct.Struct(">i")
_PARTITION: Final = struct.Struct(">ii")
_RESULT: Final = struct.Struct(">ihqqq")
_NOTHING_ELSE: Final = b"\x01\0\0"  # no record errors, no message, no tags: an acknowledgement

# A flexible response about one partition: correlation id, no tags, one topic, its name's length;
_ONE_HEAD: Final = struct.Struct(">iHB")
_ONE_TOPIC: Final = 0x0002
# then, behind the name, one partition, its result, what follows it, throttle time, no tags.
_ONE_REST: Final = struct.Struct(">BihqqqIiB")
_ONE: Final = 2
_NO_ERRORS: Final = 0x01000000  # no record errors, no message, no tags of partition and topic

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


def _decode_one(frame: Buffer, correlation_id: int) -> ProduceResponse | None:
    """A flexible response about one partition without an error text or a newer leader, which is
    what a record that travels alone waits for; None: anything else, also what is malformed."""
    size = len(frame)
    name_end = size - _ONE_REST.size
    if name_end <= _ONE_HEAD.size:
        return None
    found, head, name_size = _ONE_HEAD.unpack_from(frame)
    if head != _ONE_TOPIC or name_size != name_end - _ONE_HEAD.size + 1 or name_size > 0x7F:
        return None
    (
        partitions, number, code, offset, append_ms, start, errors, throttle_ms, tags,
    ) = _ONE_REST.unpack_from(frame, name_end)  # fmt: skip
    if found != correlation_id or partitions != _ONE or errors != _NO_ERRORS or tags:
        return None
    try:
        name = str(frame[_ONE_HEAD.size : name_end], "utf-8")
    except UnicodeDecodeError:
        return None
    result = PartitionResult(number, code, offset, append_ms, start, (), None, None)
    return ProduceResponse([(name, [result])], throttle_ms, ())


def decode_produce_response(frame: Buffer, version: int, correlation_id: int) -> ProduceResponse:
    """Return the content of a response frame (without its length). Raises ProtocolError."""
    if FLEXIBLE <= version < TOPIC_IDS:
        one = _decode_one(frame, correlation_id)
        if one is not None:
            return one
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
    partition, code, offset, append_ms, start = _RESULT.unpack(reader.take(_RESULT.size))
    flexible = version >= FLEXIBLE
    if version < 8 or (flexible and reader.skip(_NOTHING_ELSE)):
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
