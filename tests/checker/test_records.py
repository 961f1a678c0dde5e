"""Records say who they are, and no other record's bytes pass for theirs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checker.records import (
    ANY,
    HEAD_BYTES,
    MAX_BYTES,
    NO_KEY,
    Identity,
    decode,
    encode,
    encode_many,
    topic_hash,
)

IDENTITIES = st.builds(
    Identity,
    run=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**32 - 1),
    seq=st.integers(0, 2**64 - 1),
    topic=st.text(min_size=1, max_size=20),
    partition=st.integers(-1, 2**31 - 1),
    key=st.integers(0, 2**32 - 1),
    timestamp_ms=st.integers(-1, 2**63 - 1),
)


@given(who=IDENTITIES, size=st.integers(HEAD_BYTES, 2000))
def test_what_was_encoded_is_decoded(who: Identity, size: int) -> None:
    value = encode(who, size)
    assert len(value) == size
    heads, wrong = decode([value])
    assert not wrong
    (head,) = heads
    found = [int(head[name]) for name in ("run", "stream", "seq", "partition", "key")]
    assert found == [who.run, who.stream, who.seq, who.partition, who.key]
    assert int(head["timestamp_ms"]) == who.timestamp_ms
    assert int(head["topic"]) == topic_hash(who.topic)


@given(who=IDENTITIES, count=st.integers(1, 50), size=st.integers(HEAD_BYTES, 300))
def test_many_at_once_are_the_same_as_one_by_one(who: Identity, count: int, size: int) -> None:
    who = who._replace(seq=who.seq % 2**40, key=NO_KEY)
    keys = list(range(count))
    plain = [encode(who._replace(seq=who.seq + n), size) for n in range(count)]
    keyed = [encode(who._replace(seq=who.seq + n, key=n), size) for n in range(count)]
    assert encode_many(who, count, size) == plain
    assert encode_many(who, count, size, keys) == keyed


@pytest.mark.parametrize("size", [HEAD_BYTES, HEAD_BYTES + 1, 100, 300])
def test_every_bit_counts(size: int) -> None:
    value = encode(Identity(5, 6, 7, "t", 1, 2, 3), size)
    altered = []
    for place, bit in itertools.product(range(size), range(8)):
        other = bytearray(value)
        other[place] ^= 1 << bit
        altered.append(bytes(other))
    _, wrong = decode(altered)
    assert len(wrong) == len(altered)


def test_every_length_counts_and_nothing_is_no_record() -> None:
    value = encode(Identity(5, 6, 7, "t"), 200)
    short = [value[:length] for length in range(200)]
    _, wrong = decode([*short, value + b"\0", None])
    assert len(wrong) == 202
    assert decode([value])[1] == {}


def test_no_record_passes_for_its_neighbour() -> None:
    """Fillers of neighbours, and of the same number in other streams, differ from byte 8 on."""
    who = Identity(2**63, 0, 0, "t", ANY)
    neighbours = [who._replace(seq=n) for n in range(2000)]
    neighbours += [who._replace(stream=n) for n in range(1, 200)]
    fillers = {encode(one, 100)[HEAD_BYTES : HEAD_BYTES + 8] for one in neighbours}
    assert len(fillers) == len(neighbours)


def test_limits_are_named() -> None:
    assert len(encode(Identity(1, 1, 1, "t"), MAX_BYTES)) == MAX_BYTES
    for size in (HEAD_BYTES - 1, MAX_BYTES + 1):
        with pytest.raises(ValueError, match=f"size={size}"):
            encode(Identity(1, 1, 1, "t"), size)


def test_decoding_nothing_is_nothing() -> None:
    heads, wrong = decode([])
    assert len(heads) == 0
    assert wrong == {}
    assert np.asarray(heads).dtype.itemsize == HEAD_BYTES
