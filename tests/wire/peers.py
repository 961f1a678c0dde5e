"""Random messages of every API and version, and what other encoders make of them.

`kafka_python` and `java` encode a message of our tables with Kafka's own schemas: kafka-python's
compiled encoder, and the classes of Kafka's Java client.
"""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import kafka_jars
import pytest
from kafka.protocol.admin import topics as admin_topics
from kafka.protocol.consumer import fetch, group, offsets
from kafka.protocol.metadata import api_versions, find_coordinator, metadata
from kafka.protocol.producer import produce, transaction

from mpproducer.wire.messages import APIS, Api
from mpproducer.wire.schema import Field, Schema

Message = dict[str, Any]

_MODULES = (
    admin_topics, api_versions, fetch, find_coordinator, group, metadata, offsets, produce,
    transaction,
)  # fmt: skip
_PROGRAM = Path(__file__).with_name("KafkaMessages.java")
# Where a table here has a shorter name than Kafka's schema.
_NAMES = {
    "OffsetCommitRequest": {"generation_id": "generation_id_or_member_epoch"},
    "ProduceRequest": {"topics": "topic_data", "partitions": "partition_data"},
    "ProduceResponse": {
        "topics": "responses",
        "partitions": "partition_responses",
        "message": "batch_index_error_message",
    },
}
_BITS = {"i8": 8, "i16": 16, "i32": 32, "i64": 64}


class Case(NamedTuple):
    """One message in one version."""

    schema: Schema
    version: int
    message: Message

    @property
    def name(self) -> str:
        return f"{self.schema.name} v{self.version}"

    def whole(self) -> Message:
        """The message as a decoder gives it: with the defaults of what is not there."""
        return _filled(self.schema.fields, self.message)


def schemas(apis: Sequence[Api] = tuple(APIS.values())) -> Iterator[Schema]:
    for api in apis:
        yield api.request
        yield api.response


def cases(rng: random.Random, rounds: int, tables: Sequence[Schema] | None = None) -> list[Case]:
    """`rounds` messages of every table (all without `tables`) and version."""
    return [
        Case(schema, version, _message(rng, schema.fields, version))
        for schema in (tables or schemas())
        for version in range(schema.versions[0], schema.versions[1] + 1)
        for _ in range(rounds)
    ]


def _message(rng: random.Random, fields: Sequence[Field], version: int) -> Message:
    message: Message = {}
    for field in fields:
        if not field.since <= version <= field.until:
            continue
        if field.tag is not None and rng.random() < 0.4:
            continue  # stays at its default, and out of the bytes
        message[field.name] = _value(rng, field, version)
    return message


def _value(rng: random.Random, field: Field, version: int) -> Any:
    if version >= field.null and rng.random() < 0.25:
        return None
    if field.array:
        # An array of names has no null in it.
        return [_one(rng, field, version) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
    return _one(rng, field, version)


def _one(rng: random.Random, field: Field, version: int) -> Any:
    kind = field.kind
    if kind == "struct":
        return _message(rng, field.fields, version)
    if kind == "bool":
        return rng.random() < 0.5
    if kind == "uuid":
        return rng.randbytes(16)
    if kind == "str":
        size = rng.choice((0, 1, 7, 126, 127, 128, 300))
        return "".join(rng.choices("abcXYZ019._-é日𐍈", k=size))
    if kind == "bytes":
        return rng.randbytes(rng.choice((0, 1, 61, 126, 127, 128, 5000)))
    bits = _BITS[kind]
    extremes = (0, 1, -1, (1 << bits - 1) - 1, -(1 << bits - 1))
    return rng.choice((*extremes, rng.getrandbits(bits) - (1 << bits - 1)))


def _filled(fields: Sequence[Field], message: Message) -> Message:
    return {
        field.name: _filled_value(field, message[field.name])
        if field.name in message
        else field.empty
        for field in fields
    }


def _filled_value(field: Field, value: Any) -> Any:
    if field.kind != "struct" or value is None:
        return value
    if field.array:
        return [_filled(field.fields, one) for one in value]
    return _filled(field.fields, value)


def plain(message: Any) -> Any:
    """A decoded message without views, for comparing."""
    if isinstance(message, dict):
        return {name: plain(value) for name, value in message.items()}
    if isinstance(message, list):
        return [plain(value) for value in message]
    return bytes(message) if isinstance(message, memoryview) else message


# --- kafka-python


def kafka_python_class(schema: Schema) -> Any:
    for module in _MODULES:
        if hasattr(module, schema.name):
            return getattr(module, schema.name)
    raise LookupError(schema.name)


def kafka_python(case: Case) -> bytes:
    """The message's bytes by kafka-python."""
    message = kafka_python_message(case)
    return bytes(message.encode(version=case.version))


def kafka_python_message(case: Case) -> Any:
    names = _NAMES.get(case.schema.name, {})
    kind = kafka_python_class(case.schema)
    values = _foreign(kind, case.schema.fields, case.message, case.version, names)
    return kind(version=case.version, **values)


def _foreign(
    kind: Any, fields: Sequence[Field], message: Message, version: int, names: dict[str, str]
) -> Message:
    values: Message = {}
    for field in fields:
        if field.name not in message:
            continue
        if field.tag is not None and message[field.name] == field.empty:
            continue  # kafka-python writes a tagged field that was set, whatever it is set to
        name = names.get(field.name, field.name)
        there = kind._struct.fields[name]

        def one(value: Any, field: Field = field, there: Any = there) -> Any:
            if field.kind == "struct" and value is not None:
                inner = _foreign(there.data_class, field.fields, value, version, names)
                return there.data_class(version=version, **inner)
            return uuid.UUID(bytes=value) if field.kind == "uuid" else value

        value = message[field.name]
        many = field.array and value is not None
        values[name] = [one(each) for each in value] if many else one(value)
    return values


# --- Java


def java(given: Sequence[Case]) -> list[bytes]:
    """The messages' bytes by the classes of Kafka's Java client. Skips where there is no Kafka."""
    lines = []
    for case in given:
        names = _NAMES.get(case.schema.name, {})
        text = json.dumps(_json(case.schema.fields, case.message, names))
        lines.append(f"{case.schema.name} {case.version} {text}\n")
    jars = kafka_jars.cache_folder() / "lib"
    try:
        command = [kafka_jars.java(), "-XX:TieredStopAtLevel=1", "-cp", f"{jars}/*"]
        if not jars.is_dir():
            raise kafka_jars.ClusterError(f"no Kafka in {jars}; scripts/kafka prepare")
    except kafka_jars.ClusterError as error:
        if os.environ.get("MPPRODUCER_REQUIRE_KAFKA") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))
    done = subprocess.run(
        [*command, str(_PROGRAM)],
        input="".join(lines), check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [bytes.fromhex(line) for line in done.stdout.splitlines()]


def _json(fields: Sequence[Field], message: Message, names: dict[str, str]) -> Message:
    """As Kafka's JSON converters read it."""
    found: Message = {}
    for field in fields:
        if field.name in message:
            name = names.get(field.name, field.name)
            head, *rest = name.split("_")
            camel = head + "".join(word.capitalize() for word in rest)
            value = message[field.name]
            many = field.array and value is not None
            found[camel] = (
                [_json_value(field, one, names) for one in value]
                if many
                else _json_value(field, value, names)
            )
    return found


def _json_value(field: Field, value: Any, names: dict[str, str]) -> Any:
    if value is None:
        return None
    if field.kind == "struct":
        return _json(field.fields, value, names)
    if field.kind == "uuid":
        return base64.urlsafe_b64encode(value).decode().rstrip("=")
    if field.kind == "bytes":
        return base64.b64encode(value).decode()
    return value
