"""Objects with the Arrow C data interface that are not as they should be; releases counted."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

import mpproducer
from mpproducer.testing import Broker


@pytest.fixture
def producer(broker: Broker) -> Iterator[mpproducer.Producer]:
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, linger_ms=0, max_block_ms=8000, sender_idle_ms=0
    ) as made:
        yield made


class Stream:
    """An Arrow stream that fails in the middle."""

    def __arrow_c_stream__(self, requested: object = None) -> Any:
        def batches() -> Iterator[Any]:
            yield pa.record_batch({"a": [b"x"]})
            raise RuntimeError("the disk is on fire")

        schema = pa.schema([("a", pa.binary())])
        return pa.RecordBatchReader.from_batches(schema, batches()).__arrow_c_stream__(requested)


class Odd:
    """Whatever it is told to return instead of capsules."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __arrow_c_array__(self, requested: object = None) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class _Schema(ctypes.Structure):
    pass


class _Array(ctypes.Structure):
    pass


_RELEASE_SCHEMA = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Schema))
_RELEASE_ARRAY = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Array))
_END_CAPSULE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Schema._fields_ = [
    ("format", ctypes.c_char_p), ("name", ctypes.c_char_p), ("metadata", ctypes.c_char_p),
    ("flags", ctypes.c_int64), ("n_children", ctypes.c_int64), ("children", ctypes.c_void_p),
    ("dictionary", ctypes.c_void_p), ("release", _RELEASE_SCHEMA), ("private", ctypes.c_void_p),
]  # fmt: skip
_Array._fields_ = [
    ("length", ctypes.c_int64), ("null_count", ctypes.c_int64), ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64), ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)), ("children", ctypes.c_void_p),
    ("dictionary", ctypes.c_void_p), ("release", _RELEASE_ARRAY), ("private", ctypes.c_void_p),
]  # fmt: skip


class Counted:
    """A binary array of its own making, as the C data interface tells; counts its releases."""

    def __init__(self, format_: bytes, offsets: list[int], data: bytes, length: int) -> None:
        self.schemas_released = self.arrays_released = 0
        self._offsets = (ctypes.c_int32 * max(1, len(offsets)))(*offsets)
        self._data = ctypes.create_string_buffer(data)
        self._buffers = (ctypes.c_void_p * 3)(
            None, ctypes.addressof(self._offsets), ctypes.addressof(self._data)
        )
        self._functions = (
            _RELEASE_SCHEMA(self._release_schema), _RELEASE_ARRAY(self._release_array),
            _END_CAPSULE(self._end_schema), _END_CAPSULE(self._end_array),
        )  # fmt: skip
        self.schema = _Schema(format=format_, name=b"", release=self._functions[0])
        self.array = _Array(
            length=length, n_buffers=3, buffers=self._buffers, release=self._functions[1]
        )

    def _release_schema(self, schema: Any) -> None:
        self.schemas_released += 1
        ctypes.memset(ctypes.addressof(schema.contents) + _Schema.release.offset, 0, 8)

    def _release_array(self, moved: Any) -> None:
        self.arrays_released += 1
        ctypes.memset(ctypes.addressof(moved.contents) + _Array.release.offset, 0, 8)

    def _end_schema(self, _capsule: int) -> None:
        if self.schema.release:
            self.schema.release(ctypes.byref(self.schema))

    def _end_array(self, _capsule: int) -> None:
        if self.array.release:
            self.array.release(ctypes.byref(self.array))

    def __arrow_c_array__(self, requested: object = None) -> Any:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _END_CAPSULE]
        return (
            new(ctypes.addressof(self.schema), b"arrow_schema", self._functions[2]),
            new(ctypes.addressof(self.array), b"arrow_array", self._functions[3]),
        )


def test_an_arrow_array_is_released_once_whatever_happens(
    broker: Broker, producer: mpproducer.Producer
) -> None:
    broker.create_topic("once", 1)
    good = Counted(b"z", [0, 1, 3], b"abb", 2)
    assert producer.send_many("once", good).result(20)[1].offset == 1
    bad: list[tuple[Counted, dict[str, Any]]] = [
        (Counted(b"l", [0, 1], b"a", 1), {}),
        (Counted(b"z", [0, 2, 1], b"abb", 2), {}),
        (Counted(b"z", [0, 1], b"a", -1), {}),
        (Counted(b"z", [0, 1], b"a", 1), {"keys": [b"1", b"2"]}),
        (Counted(b"z", [0, 1], b"a", 1), {"keys": Odd(None)}),
        (Counted(b"z", [0, 1], b"a", 1), {"partition": -1}),
    ]
    for column, arguments in bad[:-1]:
        with pytest.raises((TypeError, ValueError)):
            producer.send_many("once", column, **arguments)
    for column in (good, *(column for column, _arguments in bad[:-1])):
        assert (column.schemas_released, column.arrays_released) == (1, 1)
    column, arguments = bad[-1]
    with pytest.raises(ValueError, match="partition"):
        producer.send_many("once", column, **arguments)
    assert column.arrays_released == 0  # was not asked for yet
    assert [record.value for record in broker.records("once")] == [b"a", b"bb"]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (Stream(), TypeError),  # a table's schema is refused before its stream is read
        (Odd(None), TypeError),
        (Odd((1, 2)), ValueError),
        (Odd(OSError("gone")), OSError),
        (Odd(tuple(reversed(pa.array([b"x"]).__arrow_c_array__()))), ValueError),
    ],
)
def test_odd_arrow_objects_are_refused(
    producer: mpproducer.Producer, broker: Broker, column: Any, kind: type[Exception]
) -> None:
    broker.create_topic("odd", 1)
    with pytest.raises(kind):
        producer.send_many("odd", column)
    assert producer.send("odd", b"after").result(20).offset == 0
