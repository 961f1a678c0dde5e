"""One Kafka producer per host, shared by all its Python processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from mpproducer.future import BatchFuture, DeliveryFuture, RecordMetadata
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
]

_LAZY = {
    "Producer": "mpproducer.producer",
    "BatchFuture": "mpproducer.future",
    "DeliveryFuture": "mpproducer.future",
    "RecordMetadata": "mpproducer.future",
}


def __getattr__(name: str) -> object:
    """Import the producer with its first use: the sender process imports this package too."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
