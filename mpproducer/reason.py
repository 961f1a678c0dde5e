"""Why a record was not acknowledged, and the exception that tells it to the user.

The sender puts a `Reason` into its completion frames; a worker imports this file when it has the
first failed record to explain.
"""

from __future__ import annotations

import enum

from mpproducer import errors


class Reason(enum.IntEnum):
    """Why a record was not acknowledged; travels in completion frames and counters."""

    NONE = 0
    EXPIRED = 1
    REJECTED = 2
    TOO_LARGE = 3
    CLOSED = 4
    SENDER_DIED = 5
    TOPIC = 6
    AUTHORIZATION = 7
    CORRUPT = 8
    INVALID_RECORD = 9
    RETRIES_EXHAUSTED = 10
    WRONG_PROCESS = 11
    FATAL = 12


_NOT_WRITTEN: dict[Reason, type[errors.KafkaError]] = {
    Reason.EXPIRED: errors.ExpiredUnsent,
    Reason.TOO_LARGE: errors.RecordTooLarge,
    Reason.CLOSED: errors.NotSent,
    Reason.SENDER_DIED: errors.NotSent,
    Reason.TOPIC: errors.InvalidTopic,
    Reason.AUTHORIZATION: errors.AuthorizationFailed,
}
_UNKNOWN: dict[Reason, type[errors.KafkaError]] = {
    Reason.EXPIRED: errors.ExpiredInFlight,
    Reason.SENDER_DIED: errors.SenderDied,
    Reason.WRONG_PROCESS: errors.WrongProcess,
}


def from_outcome(written_unknown: bool, reason: int, code: int, message: str) -> errors.KafkaError:
    """Build the exception of a failed record from the fields of its completion frame.

    `written_unknown` is True when the fate is Unknown; `code` is the Kafka code, 0 for none.
    """
    why = Reason(reason) if reason in Reason._value2member_map_ else Reason.NONE
    kind: type[errors.KafkaError] = (
        _UNKNOWN.get(why, errors.Unconfirmed)
        if written_unknown
        else _NOT_WRITTEN.get(why, errors.Rejected)
    )
    return kind(message, code=code or None)
