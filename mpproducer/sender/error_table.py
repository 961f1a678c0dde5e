"""What every Kafka error code means for a produced batch: one row per code.

The columns answer, in this order, the questions the sender asks:

- `retriable`: may the same batch be sent again?
- `refresh`: is our metadata wrong? (InvalidMetadataException in Java)
- `refused`: does the answer prove that *this* attempt appended nothing? Only then may a record
  end as NotWritten. It is False for codes a leader also gives after its own append: 7 and 20 by
  definition; 3, 6 and 56 because a leader that steps down while the batch waits for its replicas
  answers with them (DelayedProduce asks the partition again); -1 because nobody knows.
- `step`: what it does to sequences, or to the whole producer.
- `reason`: what the user is told.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from mpproducer.reason import Reason


class Step(enum.IntEnum):
    """What an error does beyond failing or retrying its batch."""

    NONE = 0
    BUMP = 1  # leaves a gap in the sequences when the batch fails: new epoch for the partition
    SEQUENCE = 2  # 45: retry; the batch next in line also starts a new epoch
    UNKNOWN_PRODUCER = 3  # 59: as above unless the log start is unknown
    DUPLICATE = 4  # 46: it is in the log already
    SPLIT = 5  # 10: smaller batches may pass
    FATAL = 6  # no batch of this producer can ever succeed


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One row of the table."""

    code: int
    name: str
    retriable: bool
    refresh: bool
    refused: bool
    step: Step
    reason: Reason


NONE: Final = 0
UNKNOWN_SERVER_ERROR: Final = -1
CORRUPT_MESSAGE: Final = 2
UNKNOWN_TOPIC_OR_PARTITION: Final = 3
LEADER_NOT_AVAILABLE: Final = 5
NOT_LEADER_OR_FOLLOWER: Final = 6
REQUEST_TIMED_OUT: Final = 7
MESSAGE_TOO_LARGE: Final = 10
NETWORK_EXCEPTION: Final = 13
INVALID_TOPIC: Final = 17
TOPIC_AUTHORIZATION_FAILED: Final = 29
CLUSTER_AUTHORIZATION_FAILED: Final = 31
UNSUPPORTED_VERSION: Final = 35
OUT_OF_ORDER_SEQUENCE_NUMBER: Final = 45
DUPLICATE_SEQUENCE_NUMBER: Final = 46
INVALID_PRODUCER_EPOCH: Final = 47
UNKNOWN_PRODUCER_ID: Final = 59
FENCED_LEADER_EPOCH: Final = 74
REBOOTSTRAP_REQUIRED: Final = 129

_R, _M, _N = True, True, False  # retriable, metadata, no
_PROVEN, _OPEN = True, False


def _row(
    code: int,
    name: str,
    retriable: bool,
    refresh: bool,
    refused: bool,
    step: Step = Step.BUMP,
    reason: Reason = Reason.REJECTED,
) -> ErrorRow:
    if retriable and step is Step.BUMP:
        step = Step.NONE
    if retriable and reason is Reason.REJECTED:
        reason = Reason.RETRIES_EXHAUSTED
    return ErrorRow(code, name, retriable, refresh, refused, step, reason)


_ROWS: Final = (
    _row(-1, "UNKNOWN_SERVER_ERROR", _N, _N, _OPEN),
    _row(0, "NONE", _N, _N, _OPEN, Step.NONE, Reason.NONE),
    _row(2, "CORRUPT_MESSAGE", _R, _N, _PROVEN, reason=Reason.CORRUPT),
    _row(3, "UNKNOWN_TOPIC_OR_PARTITION", _R, _M, _OPEN),
    _row(5, "LEADER_NOT_AVAILABLE", _R, _M, _PROVEN),
    _row(6, "NOT_LEADER_OR_FOLLOWER", _R, _M, _OPEN),
    _row(7, "REQUEST_TIMED_OUT", _R, _N, _OPEN),
    _row(8, "BROKER_NOT_AVAILABLE", _N, _N, _PROVEN),
    _row(9, "REPLICA_NOT_AVAILABLE", _R, _M, _PROVEN),
    _row(10, "MESSAGE_TOO_LARGE", _N, _N, _PROVEN, Step.SPLIT, Reason.TOO_LARGE),
    _row(13, "NETWORK_EXCEPTION", _R, _M, _OPEN),
    _row(14, "COORDINATOR_LOAD_IN_PROGRESS", _R, _N, _PROVEN),
    _row(15, "COORDINATOR_NOT_AVAILABLE", _R, _N, _PROVEN),
    _row(16, "NOT_COORDINATOR", _R, _N, _PROVEN),
    _row(17, "INVALID_TOPIC_EXCEPTION", _N, _N, _PROVEN, reason=Reason.TOPIC),
    _row(18, "RECORD_LIST_TOO_LARGE", _N, _N, _PROVEN, reason=Reason.TOO_LARGE),
    _row(19, "NOT_ENOUGH_REPLICAS", _R, _N, _PROVEN),
    _row(20, "NOT_ENOUGH_REPLICAS_AFTER_APPEND", _R, _N, _OPEN),
    _row(21, "INVALID_REQUIRED_ACKS", _N, _N, _PROVEN),
    _row(29, "TOPIC_AUTHORIZATION_FAILED", _N, _N, _PROVEN, reason=Reason.AUTHORIZATION),
    _row(31, "CLUSTER_AUTHORIZATION_FAILED", _N, _N, _PROVEN, Step.FATAL, Reason.AUTHORIZATION),
    _row(32, "INVALID_TIMESTAMP", _N, _N, _PROVEN, reason=Reason.INVALID_RECORD),
    _row(35, "UNSUPPORTED_VERSION", _N, _N, _PROVEN, Step.FATAL, Reason.FATAL),
    _row(42, "INVALID_REQUEST", _N, _N, _PROVEN),
    _row(43, "UNSUPPORTED_FOR_MESSAGE_FORMAT", _N, _N, _PROVEN),
    _row(44, "POLICY_VIOLATION", _N, _N, _PROVEN),
    _row(45, "OUT_OF_ORDER_SEQUENCE_NUMBER", _R, _N, _PROVEN, Step.SEQUENCE),
    _row(46, "DUPLICATE_SEQUENCE_NUMBER", _N, _N, _OPEN, Step.DUPLICATE, Reason.NONE),
    _row(47, "INVALID_PRODUCER_EPOCH", _N, _N, _PROVEN),
    _row(48, "INVALID_TXN_STATE", _N, _N, _PROVEN),
    _row(49, "INVALID_PRODUCER_ID_MAPPING", _N, _N, _PROVEN),
    _row(51, "CONCURRENT_TRANSACTIONS", _R, _N, _PROVEN),
    _row(
        53,
        "TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
        _N,
        _N,
        _PROVEN,
        Step.FATAL,
        Reason.AUTHORIZATION,
    ),
    _row(56, "KAFKA_STORAGE_ERROR", _R, _M, _OPEN),
    _row(59, "UNKNOWN_PRODUCER_ID", _R, _N, _PROVEN, Step.UNKNOWN_PRODUCER),
    _row(72, "LISTENER_NOT_FOUND", _R, _M, _PROVEN),
    _row(74, "FENCED_LEADER_EPOCH", _R, _M, _PROVEN),
    _row(75, "UNKNOWN_LEADER_EPOCH", _R, _N, _PROVEN),
    _row(76, "UNSUPPORTED_COMPRESSION_TYPE", _N, _N, _PROVEN),
    _row(78, "OFFSET_NOT_AVAILABLE", _R, _N, _PROVEN),
    _row(80, "PREFERRED_LEADER_NOT_AVAILABLE", _R, _M, _PROVEN),
    _row(83, "ELIGIBLE_LEADERS_NOT_AVAILABLE", _R, _M, _PROVEN),
    _row(87, "INVALID_RECORD", _N, _N, _PROVEN, reason=Reason.INVALID_RECORD),
    _row(89, "THROTTLING_QUOTA_EXCEEDED", _R, _N, _PROVEN),
    _row(90, "PRODUCER_FENCED", _N, _N, _PROVEN, Step.FATAL, Reason.FATAL),
    _row(100, "UNKNOWN_TOPIC_ID", _R, _M, _PROVEN),
    _row(103, "INCONSISTENT_TOPIC_ID", _R, _M, _PROVEN),
    _row(120, "TRANSACTION_ABORTABLE", _N, _N, _PROVEN),
)
TABLE: Final[dict[int, ErrorRow]] = {row.code: row for row in _ROWS}
_UNLISTED: Final = _row(-1, "UNKNOWN_SERVER_ERROR", _N, _N, _OPEN)


def row(code: int) -> ErrorRow:
    """The row of a code. A code that is not listed counts as UNKNOWN_SERVER_ERROR: fail, and
    claim nothing about the log."""
    return TABLE.get(code, _UNLISTED)


def describe(code: int, message: str | None) -> str:
    """The broker's own message where it sent one, else the name of the code."""
    known = TABLE.get(code)
    name = known.name if known else "error"
    return f"{name} ({code}): {message}" if message else f"{name} ({code})"
