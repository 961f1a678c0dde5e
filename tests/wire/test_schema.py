"""Tables to bytes: versions, nulls, tags, and values that have no place in their field."""

from __future__ import annotations

import pytest

from mpproducer.wire.codec import ProtocolError
from mpproducer.wire.messages import API_VERSIONS, FETCH, INIT_PRODUCER_ID, METADATA, PRODUCE
from mpproducer.wire.schema import Field, Schema

SMALL = Schema(
    "Small", (0, 3), 2,
    Field("old", "i32", until=1),
    Field("name", "str", null=1),
    Field("numbers", "i16", array=True),
    Field("extra", "i64", since=2, tag=3, default=-1),
)  # fmt: skip


def test_a_version_that_is_not_spoken_names_those_that_are() -> None:
    with pytest.raises(ProtocolError, match=r"Small v4 is not spoken here, only v0 to v3"):
        SMALL.encode(4, {})
    with pytest.raises(ProtocolError, match="Small v-1"):
        SMALL.decode(-1, b"")


def test_fields_of_other_versions_are_left_out_and_come_back_as_defaults() -> None:
    message = {"old": 7, "name": "n", "numbers": [1, -1], "extra": 5}
    assert SMALL.encode(0, message) == b"\0\0\0\7\0\1n\0\0\0\2\0\1\xff\xff"
    assert SMALL.encode(2, message) == b"\2n\3\0\1\xff\xff\1\3\x08" + (5).to_bytes(8, "big")
    assert SMALL.decode(0, SMALL.encode(0, message)) == message | {"extra": -1}
    assert SMALL.decode(2, SMALL.encode(2, message)) == message | {"old": 0}


def test_null_only_where_the_version_allows_it() -> None:
    assert SMALL.decode(1, SMALL.encode(1, {"name": None}))["name"] is None
    with pytest.raises(ProtocolError, match="name must not be null"):
        SMALL.encode(0, {"name": None})
    with pytest.raises(ProtocolError, match="name must not be null"):
        SMALL.decode(0, SMALL.encode(1, {"name": None}))
    with pytest.raises(ProtocolError, match="numbers must not be null"):
        SMALL.encode(1, {"numbers": None})


def test_unknown_tags_are_skipped() -> None:
    data = b"\2n\1\2\3\x08" + (5).to_bytes(8, "big") + b"\x09\2zz"
    assert SMALL.decode(2, data)["extra"] == 5


def test_a_tagged_field_longer_than_its_value_is_refused() -> None:
    data = b"\2n\1\1\3\x09" + bytes(9)
    with pytest.raises(ProtocolError, match="extra has 1 bytes too many"):
        SMALL.decode(2, data)


def test_bytes_behind_a_message_are_refused() -> None:
    with pytest.raises(ProtocolError, match="Small v0 has 1 bytes too many"):
        SMALL.decode(0, SMALL.encode(0, {"name": ""}) + b"x")


@pytest.mark.parametrize(
    "message", [{"numbers": [1 << 15]}, {"old": 1 << 31}, {"old": "1"}, {"numbers": [None]}]
)
def test_a_value_that_does_not_fit_its_field_is_one_clear_error(message: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="Small v0"):
        SMALL.encode(0, {"name": ""} | message)


def test_defaults_are_kafkas() -> None:
    assert METADATA.request.decode(0, b"\0\0\0\0")["allow_auto_topic_creation"] is True
    start = INIT_PRODUCER_ID.request.encode(0, {"transactional_id": None})
    found = INIT_PRODUCER_ID.request.decode(0, start)
    assert (found["producer_id"], found["producer_epoch"]) == (-1, -1)
    assert API_VERSIONS.response.decode(0, bytes(6))["finalized_features_epoch"] == -1
    result = PRODUCE.response.fields[0].fields[2].empty
    assert result == []
    assert FETCH.request.fields[1].empty == -1
