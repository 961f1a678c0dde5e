"""The metrics of this host's senders for Prometheus: a collector, and what serves it.

Needs `prometheus-client` (`pip install 'mpproducer[prometheus]'`). Register the collector in one
process of a host only: senders belong to the host, and every scrape of another process would count
them again.

- `kafka_producer_producer_metrics_*`, and the same for `producer_node` and `producer_topic`: Java's
  names as its JMX exporter writes them, for dashboards that exist.
- `mpproducer_*`: the sender's own counters, and the histograms
  `mpproducer_record_queue_time_seconds`, `mpproducer_request_latency_seconds` and
  `mpproducer_send_to_ack_seconds`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from mpproducer.errors import ConfigError
from mpproducer.shm import metrics
from mpproducer.shm.histogram import SUB_BITS, cumulative
from mpproducer.visitor import SenderMetrics, read_all, runtime_folder

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

_OCTAVES: Final = range(SUB_BITS, 28)  # 16 us to 134 s
_LABELS: Final = ("client_id", "sender")
_JAVA: Final = (
    (metrics.PRODUCER, metrics.PRODUCER_METRICS, ()),
    (metrics.NODE, metrics.NODE_METRICS, ("node_id",)),
    (metrics.TOPIC, metrics.TOPIC_METRICS, ("topic",)),
)


def _library() -> Any:
    try:
        import prometheus_client
    except ImportError as error:
        raise ConfigError(
            "prometheus-client is not installed: pip install 'mpproducer[prometheus]'"
        ) from error
    return prometheus_client


class Collector:
    """Reads every sender of a runtime folder whenever it is collected; holds nothing open.

    `registry.register(Collector())`. Thread-safe. Raises ConfigError where prometheus-client is
    missing.
    """

    def __init__(self, runtime_dir: str | None = None) -> None:
        _library()
        self._runtime_dir = runtime_dir

    def describe(self) -> list[Metric]:
        """Nothing: registering asks no sender."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the senders that are there now."""
        found = read_all(runtime_folder(self._runtime_dir))
        for group, table, extra in _JAVA:
            yield from _java(found, group, table, extra)
        yield from _own(found)
        yield from _histograms(found)


def _labels(one: SenderMetrics) -> list[str]:
    return [one.client_id, one.folder.rpartition("/")[2]]


def _rows(
    one: SenderMetrics, group: str, extra: tuple[str, ...]
) -> Iterator[tuple[list[str], metrics.Values]]:
    if not extra:
        yield _labels(one), one.metrics[group]
        return
    for name, values in one.metrics.items():
        head, dot, what = name.partition(".")
        if dot and head == group:
            yield [*_labels(one), what], values


def _java(
    found: list[SenderMetrics],
    group: str,
    table: tuple[metrics.Metric, ...],
    extra: tuple[str, ...],
) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    for metric in table:
        name = f"kafka_producer_{group}_{metric.name}".replace("-", "_")
        text = f"{metric.doc} ({metric.unit})"
        family = GaugeMetricFamily(name, text, labels=[*_LABELS, *extra])
        for one in found:
            for labels, values in _rows(one, group, extra):
                family.add_metric(labels, values[metric.name])
        yield family


def _own(found: list[SenderMetrics]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for metric in metrics.SENDER_METRICS:
        name = f"mpproducer_{metric.name}".replace("-", "_")
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        family = kind(name.removesuffix("_total"), metric.doc, labels=_LABELS)
        for one in found:
            family.add_metric(_labels(one), one.metrics[metrics.SENDER][metric.name])
        yield family


def _histograms(found: list[SenderMetrics]) -> Iterator[Metric]:
    from prometheus_client.core import HistogramMetricFamily

    docs = {metric.name: metric.doc for metric in metrics.PRODUCER_METRICS}
    for stem in metrics.STEMS:
        name = f"mpproducer_{stem.replace('-', '_')}_seconds"
        family = HistogramMetricFamily(name, docs[f"{stem}-avg"], labels=_LABELS)
        for one in found:
            counts = one.distributions[stem].total
            buckets = [(repr(us / 1e6), n) for us, n in cumulative(counts, _OCTAVES)]
            buckets.append(("+Inf", sum(counts)))
            family.add_metric(_labels(one), buckets, one.distributions[stem].total_sum / 1e6)
        yield family


def registry(runtime_dir: str | None = None) -> CollectorRegistry:
    """A registry of its own with the collector in it."""
    made: CollectorRegistry = _library().CollectorRegistry()
    made.register(Collector(runtime_dir))
    return made


def exposition(runtime_dir: str | None = None) -> str:
    """Everything once, in the text format."""
    text: bytes = _library().generate_latest(registry(runtime_dir))
    return text.decode()


def serve(host: str, port: int, runtime_dir: str | None = None) -> tuple[Any, str]:
    """Serve over HTTP in a thread; port 0 is any free one. Returns the server and its HOST:PORT.

    Raises OSError when the address cannot be used.
    """
    server, _thread = _library().start_http_server(port, host, registry(runtime_dir))
    return server, f"{host}:{server.server_port}"
