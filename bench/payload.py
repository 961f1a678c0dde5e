"""What is sent: made before anything is measured, from a seed, with the entropy of real events."""

from __future__ import annotations

import itertools
import random
from typing import Final

Event = tuple[bytes, bytes]
"""(value, key)"""

_ACTIONS: Final = ("view", "click", "buy", "leave", "search", "rate")
_WORDS: Final = (
    "basket", "campaign", "catalogue", "checkout", "coupon", "customer", "delivery", "discount",
    "favourite", "inventory", "invoice", "newsletter", "payment", "profile", "recommendation",
    "refund", "review", "session", "shipment", "wishlist",
)  # fmt: skip
_DISTINCT: Final = 2_000
_KEYS: Final = 5_000


def values(size_bytes: int, count: int, seed: int = 1) -> list[bytes]:
    """`count` values of exactly this size: text that compresses about as events do."""
    rng = random.Random(seed)
    distinct = []
    for _ in range(min(count, _DISTINCT, max(50, 4_000_000 // size_bytes))):
        text = b""
        while len(text) < size_bytes:
            text += b'{"id":"%016x","at":%d,"what":"%s","of":"%s"}' % (
                rng.getrandbits(64), rng.randrange(10**9),
                rng.choice(_ACTIONS).encode(), rng.choice(_WORDS).encode(),
            )  # fmt: skip
        distinct.append(text[:size_bytes])
    return list(itertools.islice(itertools.cycle(distinct), count))


def keyed(size_bytes: int, count: int, seed: int = 1) -> list[Event]:
    """`values` with keys of which each comes often."""
    rng = random.Random(seed)
    keys = [b"user-%05d" % rng.randrange(_KEYS) for _ in range(_DISTINCT)]
    return list(zip(values(size_bytes, count, seed), itertools.cycle(keys), strict=False))


def events(count: int, seed: int) -> list[Event]:
    """JSON events of 80 to 300 bytes, keyed by user."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        user = rng.randrange(_KEYS)
        words = " ".join(rng.choices(_WORDS, k=rng.randrange(1, 22)))
        text = (
            f'{{"user":"user-{user:05}","action":"{rng.choice(_ACTIONS)}",'
            f'"at":{1_700_000_000_000 + rng.randrange(10**10)},'
            f'"amount":{rng.randrange(100_000) / 100},"note":"{words}"'
        )
        made.append(((text[:298] + '"}').encode(), b"user-%05d" % user))
    return made
