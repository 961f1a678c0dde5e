"""Every error a user of mpproducer can meet, divided by the fate of the record.

The first thing a caller must know is whether sending again can duplicate: `NotWritten` says that
the record is not in the log and never will be, `Unknown` that it is there once or not at all.
The Kafka error code, where a broker gave one, is a field (`code`), not a class.
"""

from __future__ import annotations


class KafkaError(Exception):
    """Root of all errors of this package.

    `retriable` says whether the same call may succeed later; `code` is the Kafka error code a
    broker gave, or None.
    """

    retriable: bool = False

    def __init__(self, message: str, *, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process boundaries in pools; the default would lose `code`.
        return (_rebuild, (type(self), self.args[0], self.code))


def _rebuild(kind: type[KafkaError], message: str, code: int | None) -> KafkaError:
    return kind(message, code=code)


class ConfigError(KafkaError, ValueError):
    """A configuration key is unknown, malformed, or contradicts another one."""


class ClosedError(KafkaError):
    """The producer was closed; make a new one (IllegalStateException in the Java producer)."""


class SenderError(KafkaError):
    """The host's sender process could not be started or used."""


class SenderStartFailed(SenderError):
    """No sender could be started or reached before the deadline."""

    retriable = True


class SenderVersionMismatch(SenderError):
    """The running sender was built from another version of mpproducer."""


class NotWritten(KafkaError):
    """The record is not in the log and never will be: sending it again cannot duplicate it."""


class BufferFull(NotWritten, TimeoutError):
    """`buffer_memory` stayed exhausted for `max_block_ms` (BufferExhaustedException)."""

    retriable = True


class MetadataTimeout(NotWritten, TimeoutError):
    """The topic or partition did not appear in the cluster's metadata within `max_block_ms`."""

    retriable = True


class RecordTooLarge(NotWritten, ValueError):
    """The record exceeds `max_request_size`, `buffer_memory`, or a limit of the broker."""


class InvalidTopic(NotWritten, ValueError):
    """The topic name is not legal in Kafka."""


class AuthorizationFailed(NotWritten):
    """The cluster refused access to the topic or to the cluster."""


class ExpiredUnsent(NotWritten, TimeoutError):
    """`delivery_timeout_ms` passed before the record was ever written to a socket."""

    retriable = True


class Rejected(NotWritten):
    """A broker refused the batch for good; `code` is the broker's error code."""


class NotSent(NotWritten):
    """The producer was closed by force, or its sender ended, before the record was sent."""

    retriable = True


class Unknown(KafkaError):
    """The record is in the log once or not at all; nobody can say which."""


class ExpiredInFlight(Unknown, TimeoutError):
    """`delivery_timeout_ms` passed after the record had been written to a socket."""


class SenderDied(Unknown):
    """The sender process died while the record was pending."""


class Unconfirmed(Unknown):
    """The last answer refused the batch, but an earlier attempt went unanswered."""


class WrongProcess(Unknown):
    """The future belongs to the process that called `send`, not to its forked child."""


def again(error: BaseException) -> BaseException:
    """Return a copy, for a future to hand out an error that it keeps.

    An error that is raised holds the frames it passed, and they the future: a circle that nothing
    would break, because futures are not seen by the garbage collector.
    """
    import copy  # here, because only a failure needs it

    fresh = copy.copy(error)
    fresh.__cause__ = error.__cause__
    return fresh
