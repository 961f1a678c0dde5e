"""From the words of shared memory to named metrics: Java's names, units, and windows of time.

`Attachment.metrics()`, and for who is not attached `native.read_metrics`, give two readings: now,
and 30 to 60 s ago. A `-rate`, `-avg`, `-max`, `-ratio` or percentile says what happened between
them (Java: two samples of 30 s, the oldest of which is given up whole); a `-total` counts since the
sender started. An average of nothing is nan, as in Java.

The tables at the end are all there is: docs/METRICS.md is made from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from mpproducer.shm.counters import INDEX, NAMES
from mpproducer.shm.histogram import quantile, since

Values: TypeAlias = dict[str, float]

PRODUCER: Final = "producer-metrics"
NODE: Final = "producer-node-metrics"
TOPIC: Final = "producer-topic-metrics"
SENDER: Final = "sender-metrics"
WORKER: Final = "worker-metrics"

_NS: Final = 1e9
_MIN_WINDOW_NS: Final = 1_000_000_000  # a rate over less says nothing
_SEND_ERRORS: Final = tuple(name for name in NAMES if name.startswith("send-error-"))
_QUEUE_TIME, _REQUEST_LATENCY, _SEND_TO_ACK = range(3)
_BATCH_BYTES, _RECORD_BYTES, _THROTTLE_MS = range(3)


class Metrics(dict[str, Values]):
    """Group -> name -> value; what `Producer.metrics` returns.

    A plain dict of dicts, as kafka-python's. Groups are `producer-metrics`, one
    `producer-node-metrics.node-ID` per broker, one `producer-topic-metrics.TOPIC` per topic, and,
    of our own, `sender-metrics` and `worker-metrics`.
    """

    def __missing__(self, group: str) -> Values:
        homes = [name for name, values in self.items() if group in values]
        if homes:
            raise KeyError(f"metrics are in groups: {group!r} is in metrics()[{homes[0]!r}]")
        if not self:
            raise KeyError(f"{group!r}: this process is not attached; its first send() attaches it")
        raise KeyError(group)


class Histogram(NamedTuple):
    """One distribution of a window (us), and since the sender started."""

    window: list[int]
    window_sum: int
    largest: int
    total: Sequence[int]
    total_sum: int

    @classmethod
    def of(cls, now: Any, then: Any) -> Histogram:
        """Of two readings."""
        if then is None:
            return cls(since(now[2], None), now[0], now[1], now[2], now[0])
        return cls(since(now[2], then[2]), now[0] - then[0], now[1], now[2], now[0])

    def mean_ms(self) -> float:
        """Average."""
        return _share(self.window_sum / 1000, sum(self.window))

    def max_ms(self) -> float:
        """The largest, exactly."""
        return self.largest / 1000 if any(self.window) else math.nan

    def quantile_ms(self, q: float) -> float:
        """What a share `q` does not exceed; less than 1/33 off."""
        return quantile(self.window, q, self.largest or None) / 1000


class View:
    """Counters of the sender now and at the begin of the window."""

    def __init__(self, reading: Any, now_ns: int) -> None:
        (taken_now, counters, distributions, nodes, topics), then, names, peaks = reading
        del taken_now
        self.now_ns = now_ns
        self.counters: Sequence[int] = counters
        self.then: Sequence[int] | None = then[1] if then else None
        self.began_ns = then[0] if then else self.total("started-ns")
        self.peaks: Sequence[int] = peaks
        self.names: Sequence[str] = names
        past = then[2] if then else [None] * len(distributions)
        self.distributions = [Histogram.of(a, b) for a, b in zip(distributions, past, strict=True)]
        # A topic or node that came later has no row in the older reading: it counts from 0.
        before = {row[0]: row for row in then[3]} if then else {}
        self.nodes = [Row(self, row, before.get(row[0])) for row in nodes]
        earlier = then[4] if then else []
        padded = [*earlier, *[None] * (len(topics) - len(earlier))]
        self.topics = [Row(self, row, old) for row, old in zip(topics, padded, strict=True)]

    @property
    def window_ns(self) -> int:
        """Length of the window."""
        return max(self.now_ns - self.began_ns, _MIN_WINDOW_NS)

    def total(self, *names: str) -> int:
        """Sum of counters since the sender started; or a gauge."""
        return sum(self.counters[INDEX[name]] for name in names)

    def delta(self, *names: str) -> int:
        """What they grew by in the window."""
        if self.then is None:
            return self.total(*names)
        return self.total(*names) - sum(self.then[INDEX[name]] for name in names)

    def rate(self, *names: str) -> float:
        """Per second of the window."""
        return self.delta(*names) * _NS / self.window_ns

    def mean(self, name: str, of: str) -> float:
        """Growth of one counter by growth of another."""
        return _share(self.delta(name), self.delta(of))

    def peak(self, which: int, of: str) -> float:
        """The largest value, if there was any."""
        return float(self.peaks[which]) if self.delta(of) else math.nan


class Row:
    """The words of one node or topic, now and at the begin of the window."""

    def __init__(self, view: View, now: Sequence[Any], then: Sequence[Any] | None) -> None:
        self.view = view
        self.now = now
        self.then = then

    def total(self, place: int) -> int:
        """Since the sender started; or a gauge."""
        found: int = self.now[place]
        return found

    def delta(self, place: int) -> int:
        """Growth in the window."""
        return self.total(place) - (self.then[place] if self.then is not None else 0)

    def rate(self, place: int) -> float:
        """Per second of the window."""
        return self.delta(place) * _NS / self.view.window_ns

    def histogram(self, place: int) -> Histogram:
        """The distribution in that place."""
        return Histogram.of(self.now[place], self.then[place] if self.then is not None else None)


def _share(part: float, of: float) -> float:
    return part / of if of else math.nan


def build(reading: Any, now_ns: int) -> Metrics:
    """Name everything in a reading; `now_ns` is CLOCK_MONOTONIC."""
    view = View(reading, now_ns)
    found = Metrics()
    found[PRODUCER] = {metric.name: metric.of(view) for metric in PRODUCER_METRICS}
    for row in view.nodes:
        found[f"{NODE}.node-{row.total(0)}"] = {m.name: m.of(row) for m in NODE_METRICS}
    for name, row in zip(view.names, view.topics, strict=True):
        found[f"{TOPIC}.{name}"] = {m.name: m.of(row) for m in TOPIC_METRICS}
    found[SENDER] = {metric.name: metric.of(view) for metric in SENDER_METRICS}
    return found


def distributions(reading: Any) -> dict[str, Histogram]:
    """The histograms behind the latencies of `producer-metrics`, by their stem."""
    past = reading[1][2] if reading[1] else [None] * len(STEMS)
    pairs = zip(reading[0][2], past, strict=True)
    return {stem: Histogram.of(a, b) for stem, (a, b) in zip(STEMS, pairs, strict=True)}


# --- the tables

STEMS: Final = ("record-queue-time", "request-latency", "send-to-ack")  # enum mp_distribution


@dataclass(frozen=True)
class Metric:
    """One name, what it is measured in, what it says, and how it is read."""

    name: str
    unit: str
    doc: str
    of: Callable[[Any], float]
    ours: bool = False


def _counted(stem: str, unit: str, doc: str, *names: str) -> list[Metric]:
    """A pair of Java's: per second of the window, and in all."""
    return [
        Metric(f"{stem}-rate", f"{unit}/s", doc, lambda v: v.rate(*names)),
        Metric(f"{stem}-total", unit, doc, lambda v: v.total(*names)),
    ]


PERCENTILES: Final = (("p50", "half", 0.5), ("p99", "99 %", 0.99), ("p999", "99.9 %", 0.999))


def quantile_of(which: int, q: float) -> Callable[[View], float]:
    """Reads a percentile of one of the distributions."""
    return lambda view: view.distributions[which].quantile_ms(q)


def _measured(stem: str, doc: str, which: int, *, ours: bool = False) -> list[Metric]:
    """A distribution: Java's average and maximum, and the percentiles that it lacks."""
    rows = [
        Metric(f"{stem}-avg", "ms", doc, lambda v: v.distributions[which].mean_ms(), ours),
        Metric(f"{stem}-max", "ms", doc, lambda v: v.distributions[which].max_ms(), ours),
    ]
    return rows + [
        Metric(f"{stem}-{end}", "ms", f"{doc}: {share} take no longer", quantile_of(which, q), True)
        for end, share, q in PERCENTILES
    ]


_ERRORS: Final = ("record-error-total", *_SEND_ERRORS)
_WIRE: Final = ("request-total", "response-total")
_BUSY = "loop-time-us-total"


def _wait_ns(view: View, *, window: bool) -> float:
    busy_ns = 1000 * (view.delta(_BUSY) if window else view.total(_BUSY))
    since_ns = view.window_ns if window else view.now_ns - view.total("started-ns")
    return float(max(0, since_ns - busy_ns))


PRODUCER_METRICS: Final[tuple[Metric, ...]] = (
    *_counted("record-send", "records", "records put into requests; a retry counts again",
              "record-send-total"),
    *_counted("record-retry", "records", "records that are sent again", "record-retry-total"),
    *_counted("record-error", "records",
              "records that failed: in the sender, or in `send` before they were in a batch",
              *_ERRORS),
    *_measured("record-queue-time", "from the opening of a batch to its first request",
               _QUEUE_TIME),
    *_measured("request-latency", "from a Produce request to its response", _REQUEST_LATENCY),
    *_measured("send-to-ack", "from the opening of a batch to its acknowledgement", _SEND_TO_ACK,
               ours=True),
    Metric("batch-size-avg", "bytes", "a batch as it is sent",
           lambda v: v.mean("byte-total", "batch-send-total")),
    Metric("batch-size-max", "bytes", "the largest batch sent",
           lambda v: v.peak(_BATCH_BYTES, "batch-send-total")),
    Metric("record-size-avg", "bytes",
           "a record before compression, with its share of the batch header (Java: the mean of "
           "each batch's largest)",
           lambda v: v.mean("uncompressed-byte-total", "record-send-total")),
    Metric("record-size-max", "bytes", "the largest record, before compression",
           lambda v: v.peak(_RECORD_BYTES, "record-send-total")),
    Metric("records-per-request-avg", "records", "records of a Produce request",
           lambda v: v.mean("record-send-total", "produce-request-total")),
    Metric("compression-rate-avg", "ratio",
           "bytes sent by bytes before compression; 1 without compression (Java: the mean of the "
           "batches' ratios)",
           lambda v: v.mean("byte-total", "uncompressed-byte-total")),
    *_counted("batch-split", "batches", "batches that the broker found too large",
              "batch-split-total"),
    Metric("produce-throttle-time-avg", "ms", "what a response asked the client to hold back",
           lambda v: v.mean("produce-throttle-time-ms-total", "response-total")),
    Metric("produce-throttle-time-max", "ms", "the longest of them",
           lambda v: v.peak(_THROTTLE_MS, "response-total")),
    Metric("requests-in-flight", "requests", "requests without a response, all brokers",
           lambda v: v.total("requests-in-flight")),
    Metric("metadata-age", "s", "since the last answer about the cluster",
           lambda v: max(0, v.now_ns - v.total("metadata-updated-ns")) / _NS),
    Metric("metadata-wait-time-ns-total", "ns",
           "time that `send` and `partitions_for` waited for a topic, all processes",
           lambda v: v.total("metadata-wait-time-ns-total")),
    Metric("flush-time-ns-total", "ns", "time spent in `flush` and `close`, all processes",
           lambda v: v.total("flush-time-ns-total")),
    Metric("bufferpool-wait-ratio", "ratio",
           "time that writers waited for memory, by time; more than 1 when several wait",
           lambda v: v.delta("bufferpool-wait-time-ns-total") / v.window_ns),
    Metric("bufferpool-wait-time-ns-total", "ns",
           "time that writers waited for memory, all processes",
           lambda v: v.total("bufferpool-wait-time-ns-total")),
    *_counted("buffer-exhausted", "records", "records that got no memory within max_block_ms",
              "send-error-buffer-full-total"),
    Metric("waiting-threads", "threads", "writers that wait for memory now, one a process",
           lambda v: v.total("waiting-threads")),
    Metric("buffer-total-bytes", "bytes", "memory for records",
           lambda v: v.total("buffer-total-bytes")),
    Metric("buffer-available-bytes", "bytes", "what no batch holds of it, in slots of 16 KiB",
           lambda v: v.total("buffer-available-bytes")),
    Metric("connection-count", "connections", "open connections",
           lambda v: v.total("connection-count")),
    *_counted("connection-creation", "connections", "connections begun",
              "connection-creation-total"),
    *_counted("connection-close", "connections", "connections ended, those that failed included",
              "connection-close-total"),
    *_counted("network-io", "messages", "requests and responses", *_WIRE),
    *_counted("request", "requests", "requests of every kind", "request-total"),
    *_counted("response", "responses", "responses of every kind", "response-total"),
    *_counted("incoming-byte", "bytes", "bytes received", "incoming-byte-total"),
    *_counted("outgoing-byte", "bytes", "bytes sent", "outgoing-byte-total"),
    Metric("request-size-avg", "bytes", "a request of any kind",
           lambda v: v.mean("outgoing-byte-total", "request-total")),
    Metric("request-size-max", "bytes", "the largest of them",
           lambda v: max((r.total(6) for r in v.nodes if r.delta(1)), default=math.nan)),
    *_counted("select", "calls", "turns of the sender's loop", "loop-turn-total"),
    Metric("io-time-ns-total", "ns", "time the sender worked (Java: in the selector only)",
           lambda v: 1000 * v.total(_BUSY)),
    Metric("io-time-ns-avg", "ns", "of one turn",
           lambda v: 1000 * v.mean(_BUSY, "loop-turn-total")),
    Metric("io-ratio", "ratio", "share of the time the sender worked: 1 is one core",
           lambda v: 1000 * v.delta(_BUSY) / v.window_ns),
    Metric("io-wait-time-ns-total", "ns", "time the sender slept",
           lambda v: _wait_ns(v, window=False)),
    Metric("io-wait-time-ns-avg", "ns", "of one turn",
           lambda v: _share(_wait_ns(v, window=True), v.delta("loop-turn-total"))),
    Metric("io-wait-ratio", "ratio", "share of the time the sender slept",
           lambda v: _wait_ns(v, window=True) / v.window_ns),
)  # fmt: skip


def _row(stem: str, unit: str, doc: str, place: int) -> list[Metric]:
    return [
        Metric(f"{stem}-rate", f"{unit}/s", doc, lambda r: r.rate(place)),
        Metric(f"{stem}-total", unit, doc, lambda r: r.total(place)),
    ]


NODE_METRICS: Final[tuple[Metric, ...]] = (
    *_row("request", "requests", "requests of every kind", 1),
    *_row("response", "responses", "responses of every kind", 2),
    *_row("outgoing-byte", "bytes", "bytes sent", 3),
    *_row("incoming-byte", "bytes", "bytes received", 4),
    Metric("request-size-avg", "bytes", "a request of any kind",
           lambda r: _share(r.delta(3), r.delta(1))),
    Metric("request-size-max", "bytes", "the largest of them",
           lambda r: r.total(6) if r.delta(1) else math.nan),
    Metric("request-latency-avg", "ms", "from a Produce request to its response",
           lambda r: r.histogram(7).mean_ms()),
    Metric("request-latency-max", "ms", "the longest of them", lambda r: r.histogram(7).max_ms()),
    Metric("request-latency-p50", "ms", "half take no longer",
           lambda r: r.histogram(7).quantile_ms(0.5), True),
    Metric("request-latency-p99", "ms", "99 % take no longer",
           lambda r: r.histogram(7).quantile_ms(0.99), True),
    Metric("request-latency-p999", "ms", "99.9 % take no longer",
           lambda r: r.histogram(7).quantile_ms(0.999), True),
    Metric("requests-in-flight", "requests", "requests without a response",
           lambda r: r.total(5), True),
)  # fmt: skip

TOPIC_METRICS: Final[tuple[Metric, ...]] = (
    *_row("record-send", "records", "records put into requests; a retry counts again", 0),
    *_row("byte", "bytes", "bytes of batches, compressed", 1),
    Metric("compression-rate", "ratio", "bytes sent by bytes before compression",
           lambda r: _share(r.delta(1), r.delta(2))),
    *_row("record-retry", "records", "records that are sent again", 4),
    *_row("record-error", "records", "records that failed in the sender", 5),
    Metric("batch-send-total", "batches", "batches put into requests", lambda r: r.total(3), True),
)  # fmt: skip

_SHOWN: Final = {metric.name for metric in PRODUCER_METRICS} | {
    "send-error-buffer-full-total", "started-ns",
    "metadata-updated-ns",
}  # fmt: skip
SENDER_DOCS: Final[dict[str, str]] = {
    "byte-total": "bytes of batches put into requests",
    "batch-send-total": "batches put into requests",
    "uncompressed-byte-total": "the same before compression",
    "bufferpool-wait-total": "waits for memory",
    "record-acked-total": "records acknowledged",
    "record-not-written-total": "records failed as NotWritten",
    "record-unknown-total": "records failed as Unknown",
    "batch-opened-total": "batches opened by workers",
    "batch-expired-total": "batches whose delivery_timeout_ms was over",
    "batch-corrupt-total": "batches that a worker scribbled over",
    "batch-empty-total": "batches whose writer died before the first record",
    "compression-bytes-in-total": "bytes given to the codec",
    "compression-bytes-out-total": "bytes it made of them",
    "produce-request-total": "Produce requests",
    "request-timeout-total": "connections given up because a request timed out",
    "produce-throttle-time-ms-total": "time that responses asked to hold back (ms)",
    "metadata-update-total": "answers about the cluster",
    "metadata-error-total": "of them, those with an error",
    "epoch-bump-total": "new epochs of partitions",
    "late-response-total": "answers for batches whose outcome was told before",
    "response-entry-missing-total": "partitions that a response did not mention",
    "response-entry-ignored-total": "entries of a response that nobody had asked for",
    "node-metrics-dropped-total": "brokers without a row of their own (64 have one)",
    "memory-granted-total": "waits for memory that were served",
    "batches-incomplete": "batches whose outcome is not told yet",
    "batches-unreleased": "batches that hold memory",
    "batches-quarantined": "batches that hold memory because a stopped writer may touch it",
    "workers": "processes attached",
    "worker-joined-total": "processes that attached",
    "worker-died-total": "of them, those that died",
    "worker-left-total": "of them, those that said goodbye",
    "worker-refused-total": "processes that were not let in",
    "slots-reaped-total": "slots taken back from dead processes",
    "completion-frame-total": "outcomes told, per batch and process",
    "completion-frame-orphaned-total": "outcomes whose process was gone",
    "completion-backlog-bytes": "outcomes that wait because a process does not read",
    "completion-overflow-total": "processes whose pipe was closed because they never read",
    "loop-sleep-total": "times the sender slept",
    "loop-time-us-total": "time it worked",
    "loop-turn-total": "turns of its loop",
    "loop-gap-us-max": "the longest turn since it started",
}


def _sender_doc(name: str) -> str:
    for prefix, doc in (
        ("record-error-", "records failed in the sender, this reason"),
        ("send-error-", "records that `send` failed, this reason"),
    ):
        if name.startswith(prefix):
            return doc
    return SENDER_DOCS[name]


def _sender_unit(name: str) -> str:
    for part, unit in (
        ("byte", "bytes"), ("-us-", "us"), ("send-error-", "records"), ("record-", "records"),
        ("batch", "batches"), ("request", "requests"), ("worker", "processes"),
    ):  # fmt: skip
        if part in name:
            return unit
    return "count"


SENDER_METRICS: Final[tuple[Metric, ...]] = tuple(
    Metric(name, _sender_unit(name), _sender_doc(name), lambda v, name=name: v.total(name), True)  # type: ignore[misc]
    for name in NAMES
    if name not in _SHOWN
)

# Names of Java's that have no meaning here, or none yet: name, or its start, and why.
NOT_APPLICABLE: Final[dict[str, str]] = {
    "app-info": "texts, not numbers: `mpproducer.__version__`, and `mpproducer sender status`",
    "kafka-metrics-count": "the length of what `metrics()` returns",
    "failed-authentication-": "connections are not authenticated yet",
    "failed-reauthentication-": "connections are not authenticated yet",
    "reauthentication-latency-": "connections are not authenticated yet",
    "successful-authentication-": "connections are not authenticated yet",
    "successful-reauthentication-": "connections are not authenticated yet",
    "txn-": "there are no transactions yet",
}
