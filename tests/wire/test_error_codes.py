"""Error codes: numbers and names as a well-kept client has them."""

from __future__ import annotations

from typing import Any

from kafka import errors

from mpproducer.wire import error_codes

_KINDS: list[Any] = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.BrokerResponseError)
]
THEIRS = {kind.errno: kind.message for kind in _KINDS if kind.errno}
# kafka-python kept names that Kafka has changed since (KIP-392) or shortened.
RENAMED = {
    "NOT_LEADER_FOR_PARTITION": "NOT_LEADER_OR_FOLLOWER",
    "MESSAGE_SIZE_TOO_LARGE": "MESSAGE_TOO_LARGE",
    "UNKNOWN": "UNKNOWN_SERVER_ERROR",
    "INVALID_REPLICATION_ASSIGNMENT": "INVALID_REPLICA_ASSIGNMENT",
    "INVALID_TOPIC_EXCEPTION": "INVALID_TOPIC",
}


def test_names_and_numbers_are_those_of_kafka_python() -> None:
    compared = 0
    for number, name in error_codes.NAMES.items():
        if number in THEIRS:
            theirs = THEIRS[number]
            assert RENAMED.get(theirs, theirs) == name, number
            compared += 1
    assert compared >= len(error_codes.NAMES) - 3


def test_every_number_has_one_name() -> None:
    constants = [v for v in vars(error_codes).values() if isinstance(v, int)]
    assert len(constants) == len(set(constants)) == len(error_codes.NAMES)
