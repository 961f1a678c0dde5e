"""Messages as tables: one row per field and version range, both directions from the same table.

A message is a dict: `SCHEMA.encode(version, {"name": ...})`, `SCHEMA.decode(version, data)`. Fields
that a version does not have are left out of the bytes, and come back with their default. The data
path does not come this way: `produce.py` has an encoder and decoder of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from mpproducer.wire import codec
from mpproducer.wire.codec import ProtocolError, Reader

Message = dict[str, Any]
Read = Callable[[Reader], Any]
Write = Callable[[Any, list[bytes]], None]

LATEST: Final = 1 << 15
NO_UUID: Final = bytes(16)

_FORMATS: Final = {"i8": ">b", "i16": ">h", "i32": ">i", "i64": ">q", "u16": ">H", "f64": ">d"}
_READERS: Final[dict[str, Read]] = {
    "i8": Reader.int8,
    "i16": Reader.int16,
    "i32": Reader.int32,
    "i64": Reader.int64,
    "u16": Reader.uint16,
    "f64": Reader.float64,
    "bool": Reader.boolean,
    "uuid": Reader.uuid,
}
_DEFAULTS: Final[dict[str, Any]] = {
    "bool": False, "uuid": NO_UUID, "str": "", "bytes": b"", "f64": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One row. `kind`: i8 i16 i32 i64 u16 f64 bool uuid str bytes; `of` makes it an array of that
    kind (or of structs, with `fields`). `since`..`until` are the versions that have it, `null` the
    first version that allows None, `tag` its number where it is a tagged field."""

    name: str
    kind: str = "struct"
    since: int = 0
    until: int = LATEST
    null: int = LATEST
    default: Any = None
    array: bool = False
    fields: tuple[Field, ...] = ()
    tag: int | None = None

    @cached_property
    def empty(self) -> Any:
        """What a message without this field has."""
        if self.default is not None or self.null < LATEST:
            return self.default
        if self.array:
            return []
        if self.kind == "struct":
            return {field.name: field.empty for field in self.fields}
        return _DEFAULTS.get(self.kind, 0)


class Schema:
    """All versions of one message."""

    def __init__(self, name: str, versions: tuple[int, int], flexible: int, *fields: Field) -> None:
        self.name = name
        self.versions = versions
        self.flexible = flexible
        self.fields = fields
        self._plans: dict[int, _Struct] = {}

    def _plan(self, version: int) -> _Struct:
        plan = self._plans.get(version)
        if plan is None:
            if not self.versions[0] <= version <= self.versions[1]:
                raise ProtocolError(
                    f"{self.name} v{version} is not spoken here, only "
                    f"v{self.versions[0]} to v{self.versions[1]}"
                )
            plan = _Struct(self.fields, version, flexible=version >= self.flexible)
            self._plans[version] = plan
        return plan

    def encode(self, version: int, message: Mapping[str, Any]) -> bytes:
        """Return the message's bytes in a version. Raises ProtocolError when a value has no place
        in its field."""
        out: list[bytes] = []
        try:
            self._plan(version).write(message, out)
        except struct.error as error:
            raise ProtocolError(f"{self.name} v{version}: {error}") from error
        return b"".join(out)

    def read(self, version: int, reader: Reader) -> Message:
        """Read one message from where the reader stands. Raises ProtocolError."""
        return self._plan(version).read(reader)

    def decode(self, version: int, data: codec.Buffer) -> Message:
        """Read a message that fills `data`. Raises ProtocolError."""
        reader = Reader(data)
        message = self.read(version, reader)
        if reader.left():
            raise ProtocolError(f"{self.name} v{version} has {reader.left()} bytes too many")
        return message


class _Struct:
    """The plan of a struct in one version: readers and writers in order, and the tagged rest."""

    def __init__(self, fields: Sequence[Field], version: int, *, flexible: bool) -> None:
        self._flexible = flexible
        self._absent = [f for f in fields if not f.since <= version <= f.until]
        here = [f for f in fields if f.since <= version <= f.until]
        self._plain = [
            (f, *_plan_field(f, version, flexible=flexible)) for f in here if f.tag is None
        ]
        self._tagged = {
            f.tag: (f, *_plan_field(f, version, flexible=flexible))
            for f in sorted(here, key=lambda field: field.tag or 0)
            if f.tag is not None
        }

    def read(self, reader: Reader) -> Message:
        message: Message = {field.name: read(reader) for field, read, _write in self._plain}
        for field in self._absent:
            message[field.name] = field.empty
        if self._flexible:
            for field, _read, _write in self._tagged.values():
                message[field.name] = field.empty
            for tag, data in reader.tags().items():
                if tag in self._tagged:
                    field, read, _write = self._tagged[tag]
                    value = Reader(data)
                    message[field.name] = read(value)
                    if value.left():
                        raise ProtocolError(f"{field.name} has {value.left()} bytes too many")
        return message

    def write(self, message: Mapping[str, Any], out: list[bytes]) -> None:
        for field, _read, write in self._plain:
            write(message.get(field.name, field.empty), out)
        if not self._flexible:
            return
        tagged = [
            (tag, write, message[field.name])
            for tag, (field, _read, write) in self._tagged.items()
            if message.get(field.name, field.empty) != field.empty
        ]
        out.append(codec.uvarint(len(tagged)))
        for tag, write, value in tagged:
            body: list[bytes] = []
            write(value, body)
            data = b"".join(body)
            out += (codec.uvarint(tag), codec.uvarint(len(data)), data)


def _plan_field(field: Field, version: int, *, flexible: bool) -> tuple[Read, Write]:
    nullable = version >= field.null
    if field.kind == "struct":
        inner = _Struct(field.fields, version, flexible=flexible)
        read: Read = inner.read
        write: Write = inner.write
    elif field.kind in ("str", "bytes"):
        read, write = _plan_sized(field, flexible=flexible, nullable=nullable or field.array)
    else:
        read, write = _plan_fixed(field.kind)
    if not field.array:
        return (_or_null(read, write)) if nullable and field.kind == "struct" else (read, write)
    return _plan_array(field, read, write, flexible=flexible, nullable=nullable)


def _or_null(read: Read, write: Write) -> tuple[Read, Write]:
    """A nullable struct has one byte before it: -1 for None."""

    def read_or_null(reader: Reader) -> Any:
        return None if reader.int8() < 0 else read(reader)

    def write_or_null(value: Any, out: list[bytes]) -> None:
        out.append(b"\xff" if value is None else b"\x01")
        if value is not None:
            write(value, out)

    return read_or_null, write_or_null


def _plan_fixed(kind: str) -> tuple[Read, Write]:
    if kind == "bool":
        return Reader.boolean, lambda value, out: out.append(b"\x01" if value else b"\x00")
    if kind == "uuid":
        return Reader.uuid, lambda value, out: out.append(value)
    pack = struct.Struct(_FORMATS[kind]).pack
    return _READERS[kind], lambda value, out: out.append(pack(value))


def _plan_sized(field: Field, *, flexible: bool, nullable: bool) -> tuple[Read, Write]:
    text = field.kind == "str"
    raw: Read
    if text:
        raw = Reader.compact_string if flexible else Reader.string
    else:
        raw = Reader.compact_blob if flexible else Reader.blob

    def read(reader: Reader) -> Any:
        value = raw(reader)
        if value is None and not nullable:
            raise ProtocolError(f"{field.name} must not be null")
        return value

    def write(value: Any, out: list[bytes]) -> None:
        if value is None:
            if not nullable:
                raise ProtocolError(f"{field.name} must not be null")
            out.append(b"\0" if flexible else b"\xff\xff" if text else b"\xff\xff\xff\xff")
            return
        data = codec.text(value) if text else bytes(value)
        size = len(data)
        if flexible:
            out.append(codec.uvarint(size + 1))
        else:
            out.append(codec.int16(size) if text else codec.int32(size))
        out.append(data)

    return read, write


def _plan_array(
    field: Field, read: Read, write: Write, *, flexible: bool, nullable: bool
) -> tuple[Read, Write]:
    def read_array(reader: Reader) -> Any:
        count = reader.compact_array_length() if flexible else reader.array_length()
        if count is None:
            if not nullable:
                raise ProtocolError(f"{field.name} must not be null")
            return None
        return [read(reader) for _ in range(count)]

    def write_array(values: Any, out: list[bytes]) -> None:
        if values is None:
            if not nullable:
                raise ProtocolError(f"{field.name} must not be null")
            out.append(b"\0" if flexible else b"\xff\xff\xff\xff")
            return
        out.append(codec.uvarint(len(values) + 1) if flexible else codec.int32(len(values)))
        for value in values:
            write(value, out)

    return read_array, write_array
