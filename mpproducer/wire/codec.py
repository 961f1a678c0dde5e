"""Primitive types of the Kafka protocol, big endian, read with a bound on every length."""

from __future__ import annotations

import struct
from typing import Final

from mpproducer.errors import KafkaError

MAX_VARINT_BYTES: Final = 5
MAX_VARLONG_BYTES: Final = 10
MAX_STRING_BYTES: Final = 32767

_I16: Final = struct.Struct(">h")
_I32: Final = struct.Struct(">i")
_I64: Final = struct.Struct(">q")
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_F64: Final = struct.Struct(">d")

Buffer = bytes | bytearray | memoryview


class ProtocolError(KafkaError):
    """The peer sent bytes that are no message of the Kafka protocol."""


class Reader:
    """Reads values from one message; every read past the end raises ProtocolError."""

    __slots__ = ("_data", "_end", "at")

    def __init__(self, data: Buffer, at: int = 0) -> None:
        self._data = memoryview(data)
        self._end = len(self._data)
        self.at = at

    def left(self) -> int:
        """Bytes not read yet."""
        return self._end - self.at

    def take(self, count: int) -> memoryview:
        """The next `count` bytes, as a view."""
        if count < 0 or count > self._end - self.at:
            raise ProtocolError(
                f"a field of {count} bytes at {self.at} leaves a message of {self._end} bytes"
            )
        start = self.at
        self.at = start + count
        return self._data[start : self.at]

    def int8(self) -> int:
        """One signed byte."""
        value = self.take(1)[0]
        return value - 256 if value > 127 else value

    def boolean(self) -> bool:
        """One byte, zero or not."""
        return self.take(1)[0] != 0

    def int16(self) -> int:
        """Signed 16 bits."""
        return int(_I16.unpack(self.take(2))[0])

    def uint16(self) -> int:
        """Unsigned 16 bits."""
        return int(_U16.unpack(self.take(2))[0])

    def int32(self) -> int:
        """Signed 32 bits."""
        return int(_I32.unpack(self.take(4))[0])

    def uint32(self) -> int:
        """Unsigned 32 bits."""
        return int(_U32.unpack(self.take(4))[0])

    def int64(self) -> int:
        """Signed 64 bits."""
        return int(_I64.unpack(self.take(8))[0])

    def float64(self) -> float:
        """A double."""
        return float(_F64.unpack(self.take(8))[0])

    def uuid(self) -> bytes:
        """16 bytes."""
        return bytes(self.take(16))

    def _unsigned(self, limit: int, bits: int) -> int:
        at = self.at
        if at < self._end and self._data[at] < 0x80:  # most are counts and lengths of one byte
            self.at = at + 1
            return self._data[at]
        value = shift = 0
        for _ in range(limit):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                if value >> bits:
                    break
                return value
            shift += 7
        raise ProtocolError(f"a varint at {self.at} has more than {bits} bits")

    def uvarint(self) -> int:
        """Unsigned varint of at most 32 bits."""
        return self._unsigned(MAX_VARINT_BYTES, 32)

    def varint(self) -> int:
        """Zigzag varint of at most 32 bits."""
        value = self._unsigned(MAX_VARINT_BYTES, 32)
        return value >> 1 ^ -(value & 1)

    def varlong(self) -> int:
        """Zigzag varint of at most 64 bits."""
        value = self._unsigned(MAX_VARLONG_BYTES, 64)
        return value >> 1 ^ -(value & 1)

    def _text(self, length: int) -> str:
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError as error:
            raise ProtocolError(f"a string before {self.at} is not UTF-8") from error

    def string(self) -> str | None:
        """String with a 16-bit length; -1 is None."""
        length = self.int16()
        return None if length == -1 else self._text(length)

    def compact_string(self) -> str | None:
        """String with an unsigned varint of length + 1; 0 is None."""
        length = self.uvarint()
        return None if length == 0 else self._text(length - 1)

    def blob(self) -> memoryview | None:
        """Bytes with a 32-bit length; -1 is None."""
        length = self.int32()
        return None if length == -1 else self.take(length)

    def compact_blob(self) -> memoryview | None:
        """Bytes with an unsigned varint of length + 1; 0 is None."""
        length = self.uvarint()
        return None if length == 0 else self.take(length - 1)

    def _count(self, count: int) -> int:
        # Every element takes at least one byte, so a count beyond the rest is a lie.
        if count < 0 or count > self.left():
            raise ProtocolError(f"an array of {count} elements does not fit {self.left()} bytes")
        return count

    def array_length(self) -> int | None:
        """Element count with 32 bits; -1 is None."""
        count = self.int32()
        return None if count == -1 else self._count(count)

    def compact_array_length(self) -> int | None:
        """Element count + 1 as unsigned varint; 0 is None."""
        count = self.uvarint()
        return None if count == 0 else self._count(count - 1)

    def tags(self) -> dict[int, memoryview]:
        """Tagged fields: tag -> bytes. Ascending tags, each once (KIP-482)."""
        found: dict[int, memoryview] = {}
        last = -1
        for _ in range(self._count(self.uvarint())):
            tag = self.uvarint()
            if tag <= last:
                raise ProtocolError(f"tagged field {tag} follows {last}")
            last = tag
            found[tag] = self.take(self.uvarint())
        return found


def uvarint(value: int) -> bytes:
    """Encode an unsigned varint."""
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def varint(value: int) -> bytes:
    """Encode a zigzag varint (of 32 or 64 bits)."""
    return uvarint(value << 1 if value >= 0 else (-value << 1) - 1)


def int16(value: int) -> bytes:
    """Encode 16 signed bits."""
    return _I16.pack(value)


def int32(value: int) -> bytes:
    """Encode 32 signed bits."""
    return _I32.pack(value)


def text(value: str) -> bytes:
    """Return a string's bytes. Raises ProtocolError for what no Kafka string can hold."""
    try:
        data = value.encode()
    except UnicodeEncodeError as error:
        raise ProtocolError(f"{value[:40]!r} cannot be encoded as UTF-8") from error
    if len(data) > MAX_STRING_BYTES:
        raise ProtocolError(f"a string of {len(data)} bytes, at most {MAX_STRING_BYTES}")
    return data


def string(value: str | None) -> bytes:
    """Encode a string with a 16-bit length. Raises ProtocolError."""
    if value is None:
        return b"\xff\xff"
    data = text(value)
    return _I16.pack(len(data)) + data


def compact_string(value: str | None) -> bytes:
    """Encode a string with a varint length. Raises ProtocolError."""
    if value is None:
        return b"\0"
    data = text(value)
    return uvarint(len(data) + 1) + data
