"""Plain values as bytes, and back: None, bool, int, str, list, and dict with names as keys.

JSON's model without `json`, which would be a fifth of what a worker imports. Each value is one
letter and what belongs to it; a count ends with a colon:

    n  t  f      None, True, False
    i-12:        int
    s5:hello     str: UTF-8 bytes
    l2:          list: so many values follow
    d2:          dict: so many pairs follow, a string and any value each
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_DEPTH = 16
_MAX_DIGITS = 20
_CONSTANTS = {None: b"n", True: b"t", False: b"f"}
_MEANT = {ord("n"): None, ord("t"): True, ord("f"): False}
_INT, _STR, _LIST, _DICT = b"isld"


def dump(value: Any) -> bytes:
    """Return the value as bytes. Raises TypeError for what is not plain."""
    out: list[bytes] = []
    _dump(value, out)
    return b"".join(out)


def _dump(value: Any, out: list[bytes]) -> None:
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        out += (b"s%d:" % len(text), text)
    elif value is None or value is True or value is False:
        out.append(_CONSTANTS[value])
    elif isinstance(value, int):
        out.append(b"i%d:" % value)
    elif isinstance(value, dict):
        out.append(b"d%d:" % len(value))
        for name, one in value.items():
            if not isinstance(name, str):
                raise TypeError(f"the key {name!r} is not a str")
            _dump(name, out)
            _dump(one, out)
    elif isinstance(value, (list, tuple)):
        out.append(b"l%d:" % len(value))
        for one in value:
            _dump(one, out)
    else:
        raise TypeError(f"{value!r:.80} is not a plain value")


def load(data: bytes) -> Any:
    """Return the value that `dump` made these bytes of. Raises ValueError for any others.

    Nothing is allocated that the bytes themselves do not hold.
    """
    value, end = _load(data, 0, 0)
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes follow the value")
    return value


def _load(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if at >= len(data):
        raise ValueError("the value is not complete")
    kind = data[at]
    if kind in _MEANT:
        return _MEANT[kind], at + 1
    colon = data.find(b":", at + 1, at + 3 + _MAX_DIGITS)
    if kind not in b"isld" or colon < 0:
        raise ValueError(f"no value begins at byte {at}")
    count = int(data[at + 1 : colon])
    at = colon + 1
    if kind == _INT:
        return count, at
    if count < 0 or count > len(data) - at or depth == MAX_DEPTH:
        raise ValueError(f"{count} items at byte {at} of {len(data)}, {depth} levels deep")
    if kind == _STR:
        return data[at : at + count].decode("utf-8", "surrogatepass"), at + count
    if kind == _LIST:
        items = []
        for _ in range(count):
            value, at = _load(data, at, depth + 1)
            items.append(value)
        return items, at
    pairs = {}
    for _ in range(count):
        name, at = _load(data, at, depth + 1)
        if not isinstance(name, str):
            raise ValueError(f"a key before byte {at} is not a str")  # noqa: TRY004 - wrong bytes
        pairs[name], at = _load(data, at, depth + 1)
    return pairs, at
