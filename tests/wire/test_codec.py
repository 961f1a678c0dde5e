"""Primitive types: what Kafka writes, and that nothing reads past its bound."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.record.util import encode_varint

from mpproducer.wire import codec
from mpproducer.wire.codec import ProtocolError, Reader

INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


@given(INT64)
def test_varints_are_those_of_kafka_python(value: int) -> None:
    theirs = bytearray()
    encode_varint(value, theirs.append)
    assert codec.varint(value) == theirs
    assert Reader(theirs).varlong() == value


@given(INT32)
def test_varint_of_32_bits_comes_back(value: int) -> None:
    assert Reader(codec.varint(value)).varint() == value


@given(st.integers(0, (1 << 32) - 1))
def test_unsigned_varint_comes_back(value: int) -> None:
    assert Reader(codec.uvarint(value)).uvarint() == value


@pytest.mark.parametrize(
    ("method", "format_", "low", "high"),
    [
        ("int8", ">b", -(1 << 7), (1 << 7) - 1),
        ("int16", ">h", -(1 << 15), (1 << 15) - 1),
        ("uint16", ">H", 0, (1 << 16) - 1),
        ("int32", ">i", -(1 << 31), (1 << 31) - 1),
        ("uint32", ">I", 0, (1 << 32) - 1),
        ("int64", ">q", -(1 << 63), (1 << 63) - 1),
        ("float64", ">d", -1e300, 1e300),
    ],
)
def test_fixed_sizes(method: str, format_: str, low: int, high: int) -> None:
    for value in (low, 0, 1, high):
        reader = Reader(struct.pack(format_, value))
        assert getattr(reader, method)() == value
        assert reader.left() == 0
        with pytest.raises(ProtocolError):
            getattr(reader, method)()


@given(st.one_of(st.none(), st.text(max_size=300)))
def test_strings_come_back(value: str | None) -> None:
    assert Reader(codec.string(value)).string() == value
    assert Reader(codec.compact_string(value)).compact_string() == value


@pytest.mark.parametrize("encode", [codec.string, codec.compact_string])
def test_a_string_kafka_cannot_hold_is_an_error_that_says_so(
    encode: Callable[[str], bytes],
) -> None:
    assert len(encode("x" * 32767)) >= 32767
    with pytest.raises(ProtocolError, match="32768 bytes, at most 32767"):
        encode("x" * 32768)
    with pytest.raises(ProtocolError, match="UTF-8"):
        encode("\ud800")


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (Reader.uvarint, b"\xff\xff\xff\xff\xff\x01"),  # six bytes
        (Reader.uvarint, b"\xff\xff\xff\xff\x1f"),  # 33 bits
        (Reader.varint, b"\x80\x80\x80\x80\x80\x00"),
        (Reader.varlong, b"\xff" * 10 + b"\x01"),
        (Reader.varlong, b"\xff" * 9 + b"\x02"),  # 65 bits
        (Reader.uvarint, b"\x80"),
        (Reader.string, b"\xff\xfe"),  # length -2
        (Reader.string, b"\x7f\xff" + b"x" * 10),
        (Reader.string, b"\x00\x02\xc3\x28"),
        (Reader.compact_string, b"\xff\xff\xff\xff\x0f"),
        (Reader.blob, b"\x80\x00\x00\x00"),
        (Reader.blob, b"\x7f\xff\xff\xff"),
        (Reader.compact_blob, b"\xff\xff\xff\xff\x0f"),
        (Reader.array_length, b"\xff\xff\xff\xfe"),
        (Reader.array_length, b"\x7f\xff\xff\xff"),
        (Reader.compact_array_length, b"\xff\xff\xff\xff\x0f"),
        (Reader.tags, b"\x02\x01\x00\x01\x00"),  # tag 1 twice
        (Reader.tags, b"\x02\x01\x00\x00\x00"),  # tag 0 after 1
        (Reader.tags, b"\x01\x00\x05x"),
        (Reader.tags, b"\xff\xff\xff\xff\x0f"),
    ],
)
def test_a_length_that_lies_is_refused(read: Callable[[Reader], Any], data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read(Reader(data))


def test_a_reader_starts_where_it_is_told_and_gives_views() -> None:
    data = b"..abc"
    reader = Reader(data, 2)
    assert reader.left() == 3
    view = reader.take(3)
    assert bytes(view) == b"abc"
    assert view.obj is data
