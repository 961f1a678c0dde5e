"""One Kafka producer per host, shared by all its Python processes."""

from __future__ import annotations

from mpproducer.errors import (
    AuthorizationFailed,
    BufferFull,
    ClosedError,
    ConfigError,
    ExpiredInFlight,
    ExpiredUnsent,
    InvalidTopic,
    KafkaError,
    MetadataTimeout,
    NotSent,
    NotWritten,
    RecordTooLarge,
    Rejected,
    SenderDied,
    SenderError,
    SenderStartFailed,
    SenderVersionMismatch,
    Unconfirmed,
    Unknown,
    WrongProcess,
)
from mpproducer.version import __version__

TYPE_CHECKING = False  # typing is dear: see light.py
if TYPE_CHECKING:
    from mpproducer.future import BatchFuture, DeliveryFuture, RecordMetadata, as_concurrent
    from mpproducer.producer import Producer

__all__ = [
    "AuthorizationFailed",
    "BatchFuture",
    "BufferFull",
    "ClosedError",
    "ConfigError",
    "DeliveryFuture",
    "ExpiredInFlight",
    "ExpiredUnsent",
    "InvalidTopic",
    "KafkaError",
    "MetadataTimeout",
    "NotSent",
    "NotWritten",
    "Producer",
    "RecordMetadata",
    "RecordTooLarge",
    "Rejected",
    "SenderDied",
    "SenderError",
    "SenderStartFailed",
    "SenderVersionMismatch",
    "Unconfirmed",
    "Unknown",
    "WrongProcess",
    "__version__",
    "as_concurrent",
]

_LAZY = {
    "Producer": "mpproducer.producer",
    "BatchFuture": "mpproducer.future",
    "DeliveryFuture": "mpproducer.future",
    "RecordMetadata": "mpproducer.future",
    "as_concurrent": "mpproducer.future",
}


def __getattr__(name: str) -> object:
    """Import the producer with its first use: the sender process imports this package too."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(__import__(_LAZY[name], fromlist=[name]), name)
    globals()[name] = value
    return value
