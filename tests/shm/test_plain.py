"""Plain values: the same after their way through bytes, and nothing but ValueError for the rest."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpproducer.shm import plain

texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.just("\udcff")
leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=20,
)


@given(values)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    data = plain.dump(value)
    back = plain.load(data)
    assert back == value
    assert plain.dump(back) == data  # True is not 1


@given(values, st.data())
def test_a_value_that_is_cut_or_goes_on_is_refused(value: Any, data: st.DataObject) -> None:
    whole = plain.dump(value)
    at = data.draw(st.integers(0, len(whole) - 1))
    for broken in (whole[:at], whole + b"n"):
        with pytest.raises(ValueError, match=r"."):
            plain.load(broken)


@given(values, st.binary(min_size=1, max_size=8), st.data())
def test_damaged_bytes_are_a_value_or_a_ValueError(
    value: Any, noise: bytes, data: st.DataObject
) -> None:
    whole = bytearray(plain.dump(value))
    at = data.draw(st.integers(0, len(whole)))
    whole[at : at + len(noise)] = noise
    with contextlib.suppress(ValueError):
        plain.load(bytes(whole))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x", b"i", b"i1", b"i:", b"i1.5:", b"i" + b"9" * 30 + b":", b"s3:ab", b"s-1:", b"nn",
        b"l2:n", b"l99999999999:", b"l-1:", b"d1:n", b"d1:i1:n", b"d1:s1:a", b"s2:\xc3\x28",
        b"l1:" * 100_000 + b"n",
    ],
)  # fmt: skip
def test_M2_what_is_no_value_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        plain.load(data)


@pytest.mark.parametrize("value", [1.5, b"bytes", {1: 2}, {"deep": [object()]}])
def test_what_is_not_plain_is_not_sent(value: object) -> None:
    with pytest.raises(TypeError, match="not a"):
        plain.dump(value)
