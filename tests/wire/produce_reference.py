"""The Produce response in plain Python, to hold the core's decoder against."""

from __future__ import annotations

from collections.abc import Iterable

from mpproducer.wire.codec import Buffer, ProtocolError, Reader
from mpproducer.wire.framing import read_response_header
from mpproducer.wire.messages import PRODUCE
from mpproducer.wire.produce import FLEXIBLE, TOPIC_IDS, PartitionResult, ProduceResponse


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
