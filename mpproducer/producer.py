"""START HERE: the producer as a worker process sees it.

`send` and `send_many` are C (`_core/py_producer.c`) and reach shared memory without a Python frame;
this file is everything around them: configuration, attaching, flush, close, pickling.
"""

from __future__ import annotations

import os
import time

from mpproducer import errors
from mpproducer._core import native
from mpproducer.config import Config
from mpproducer.future import BatchFuture, RecordMetadata
from mpproducer.light import logger
from mpproducer.shm.rendezvous import Rendezvous
from mpproducer.worker import attach, completions, compressor, topics

TYPE_CHECKING = False  # typing is dear: see light.py
if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from types import TracebackType
    from typing import Any

    from mpproducer.shm.metrics import Metrics

_NS_PER_MS = 1_000_000
_NS = 1_000_000_000
_MARGIN_NS = 2 * _NS
_LONGEST_S = 1e9


def _error(written_unknown: bool, reason: int, code: int, message: str) -> errors.KafkaError:
    from mpproducer.reason import from_outcome  # here, because only a failure needs it

    return from_outcome(written_unknown, reason, code, message)


def _await(future: native.DeliveryFuture) -> Generator[Any, None, Any]:
    from mpproducer.worker.awaiting import await_future  # here, because it imports asyncio

    return await_future(future)


native.configure(
    metadata=RecordMetadata,
    error=_error,
    await_=_await,
    watch=completions.watch,
    batch_future=BatchFuture,
)
attach.on_link(compressor.install)
os.register_at_fork(after_in_child=completions.forget)


class Producer(native.ProducerBase):
    """One Kafka producer per host, shared by all processes that hold a `Producer` of equal config.

    A small value: making one opens nothing and starts nothing. It attaches to the host's sender
    where it is first used, starting one if there is none, attaches again after a fork, and can be
    pickled. All methods are thread-safe; one object may be used before and after a fork.

    Configuration keys are those of the Java producer (docs/CONFIG.md), as keyword arguments in
    snake_case, or in `config` with dots: `Producer(bootstrap_servers="k1:9092", linger_ms=5)`,
    `Producer({"bootstrap.servers": "k1:9092", "linger.ms": 5})`. Raises ConfigError.

    send(topic, value=None, key=None, headers=None, partition=None, timestamp_ms=None)
        Append one record and return its `DeliveryFuture`. When it returns a pending future the
        record is whole in shared memory and will be sent even if this process is killed at once.

        `value` and `key` are bytes-like or None, `headers` a list of (str, bytes or None),
        `partition` an int (default: what `partitioner` says, else murmur2 of the key, else the
        host's sticky partition),
        `timestamp_ms` ms since the epoch (default: now, a few ms coarse).

        Blocks at most `max_block_ms`, for the start of the sender, metadata and memory together.
        TypeError, ValueError, ClosedError and SenderError are raised, with nothing appended; what
        is wrong with the record or the cluster (MetadataTimeout, BufferFull, RecordTooLarge,
        InvalidTopic) comes as a future that has failed already, as in KafkaProducer.send.

    send_many(topic, values, keys=None, headers=None, partition=None, timestamps_ms=None)
        Append many records and return one `BatchFuture`. The arguments are as long as `values`,
        or None, and each is a sequence or a column, which costs no object per record:

        - `values`, `keys`: a sequence of bytes-like objects or None; a numpy array of `S` (NULs at
          the end are padding, as for numpy itself), of `V`, or of uint8 rows (all bytes count); a
          tuple (offsets, data) of int32 or int64 offsets, one more than records, and a buffer; an
          Arrow array or chunked array of binary, string, their large and view forms, or
          fixed-size binary, in which a null value is a tombstone and a null key no key;
        - `timestamps_ms`: a sequence of ints or None; an int64 buffer in ms; numpy datetime64 or an
          Arrow timestamp of s, ms, us or ns; Arrow int64. Null and NaT mean now;
        - `partition`: an int for all; an int32 or int64 buffer or Arrow array, in which null leaves
          the choice to the key;
        - `headers`: a sequence of what `send` takes.

        What a buffer or array shows must not change until the call returns. Records of one
        partition keep their order; one `max_block_ms` holds for the whole call, and what could not
        be appended by then has failed with BufferFull while the rest is sent: see
        `BatchFuture.failed`.

        Everything is checked before the first record is appended.
    """

    def __init__(self, config: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self._setup(Config.from_user(config, kwargs))

    def _setup(self, config: Config) -> None:
        self._config = config
        self._place = Rendezvous.of(config.sender_key(), config.runtime_dir)
        self._partitioner = config.load_partitioner()
        self._max_block_ns = config.max_block_ms * _NS_PER_MS
        attach.on_setup(config, self._place)

    @property
    def config(self) -> Config:
        """The effective configuration."""
        return self._config

    def __reduce__(self) -> tuple[Any, ...]:
        # As it was given: who unpickles it imports it, as with everything that is pickled by name.
        return (_rebuild, (type(self), self._config.to_wire(), self._config.partitioner))

    def __repr__(self) -> str:
        return f"<Producer for {self._config.servers}{', closed' if self._closed else ''}>"

    # --- called by the core

    def _attach(self, deadline_ns: int) -> native.Attachment:
        while True:
            link = attach.attach(self._config, self._place, deadline_ns)
            if attach.use(link, self):
                return link.attachment

    def _want_topic(
        self, attachment: native.Attachment, topic: str, partition: int, deadline_ns: int
    ) -> None:
        link = attach.link_of(attachment)
        if link is not None:
            max_block_ms = self._config.max_block_ms
            topics.wait_ready(
                link, topic, partition, deadline_ns, max_block_ms, lambda: bool(self._closed)
            )
        else:
            topics.wait_detached(attachment, deadline_ns)

    # --- the rest of the public surface

    def attach(self, timeout: float | None = None) -> None:
        """Attach this process now, starting the host's sender if needed; `send` does it anyway.

        `timeout` is in seconds, `max_block_ms` by default. Raises SenderError.
        """
        self._check_open()
        link = attach.find(self._place)
        if link is not None:
            link.attachment.drain()  # finds out now, not at the next send, that its sender died
        self._attachment = self._attach(self._deadline_ns(timeout, self._config.max_block_ms))

    def flush(self, timeout: float | None = None) -> None:
        """Send what this process has appended without linger, and wait for all its outcomes.

        Every future made before the call is done afterwards; their errors stay in the futures, as
        in KafkaProducer.flush. `timeout` is in seconds; by default `delivery_timeout_ms` bounds
        the wait. Raises TimeoutError if outcomes are missing then: the records stay in delivery.
        """
        self._check_open()
        self._flush(timeout)

    def _flush(self, timeout: float | None) -> None:
        link = attach.find(self._place)
        if link is None:
            return
        bound_ms = self._config.delivery_timeout_ms + self._config.request_timeout_ms
        deadline_ns = self._deadline_ns(timeout, bound_ms)
        if timeout is None:
            deadline_ns += _MARGIN_NS
        began_ns = time.monotonic_ns()
        left = link.flush(deadline_ns)
        link.attachment.waited(True, time.monotonic_ns() - began_ns)
        if left:
            raise TimeoutError(
                f"{left} batches are not acknowledged yet; their records stay in delivery"
            )

    def close(self, timeout: float | None = None) -> None:
        """Refuse further sends through this object, and flush. Idempotent.

        Other `Producer` objects of this process go on working; when this was the last open one the
        process detaches, and the host's sender ends after its last process has. `timeout` is in
        seconds (default as in `flush`); records that are not acknowledged by then stay in delivery
        and TimeoutError says so.
        """
        self._deadline_ns(timeout, 0)  # says what is wrong with it before anything happens
        if self._closed:
            return
        self._closed = 1
        try:
            self._flush(timeout)
        finally:
            self._attachment = None
            attach.leave(self._place, self)

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close(self._config.close_timeout_ms / 1000)
        except TimeoutError as late:
            logger("mpproducer.worker").warning("closing after %r: %s", error, late)

    def partitions_for(self, topic: str, timeout: float | None = None) -> list[int]:
        """Return the topic's partition numbers, waiting for metadata up to `max_block_ms`.

        `timeout` (seconds) replaces `max_block_ms`. Raises MetadataTimeout, InvalidTopic,
        AuthorizationFailed (KafkaProducer.partitionsFor).
        """
        self._check_open()
        if not isinstance(topic, str):
            raise TypeError(f"topic must be a str, got {type(topic).__name__}")
        topics.check_name(topic)
        deadline_ns = self._deadline_ns(timeout, self._config.max_block_ms)
        while True:
            attachment = self._attach(deadline_ns)
            self._attachment = attachment
            try:
                state, count, _code, _message = attachment.topic(topic)
            except ValueError:  # another thread detached just now
                continue
            if state == native.TOPIC_READY:
                return list(range(count))
            self._want_topic(attachment, topic, -1, deadline_ns)
            self._check_open()

    def metrics(self) -> Metrics:
        """Return what the host's producer measures, under Java's names: group -> name -> value.

        `metrics()["producer-metrics"]["record-send-rate"]`; one group per broker
        (`producer-node-metrics.node-1`) and topic (`producer-topic-metrics.events`), counters of
        the sender that Java has not (`sender-metrics`), and of this process (`worker-metrics`).
        Names, units and windows: docs/METRICS.md. An average of nothing is nan.

        Empty before the process is attached. Safe at any time and from every thread: it reads
        shared memory and asks nobody.
        """
        from mpproducer.shm import metrics  # not needed to send

        link = attach.find(self._place)
        if link is None:
            return metrics.Metrics()
        try:
            reading = link.attachment.metrics()
        except ValueError:  # another thread detached just now
            return metrics.Metrics()
        found = metrics.build(reading, time.monotonic_ns())
        stats = link.attachment.stats()
        found[metrics.WORKER] = {name.replace("_", "-"): n for name, n in stats.items()}
        return found

    def _check_open(self) -> None:
        if self._closed:
            raise errors.ClosedError("this producer is closed; make a new one")

    @staticmethod
    def _deadline_ns(timeout: float | None, default_ms: int) -> int:
        now_ns = time.monotonic_ns()
        if timeout is None:
            return now_ns + default_ms * _NS_PER_MS
        if not isinstance(timeout, (int, float)):
            raise TypeError(
                f"timeout must be a number of seconds or None, got {type(timeout).__name__}"
            )
        if not timeout >= 0:  # nan too
            raise ValueError(f"timeout={timeout}: must be 0 or more seconds")
        return now_ns + int(min(timeout, _LONGEST_S) * _NS)


def _rebuild(kind: type[Producer], wire: dict[str, Any], partitioner: object) -> Producer:
    producer = kind.__new__(kind)
    producer._setup(Config.from_wire(wire | {"partitioner": partitioner}))
    return producer
