"""Names of the counters page: place in the page -> name.

The page is an array of u64 in the control segment. Only the sender writes it; anybody who is
attached may read it. Names are the Java producer's where it has the metric. A `-total` only
grows; the others are gauges. Append new names at the end: places are part of the layout.
"""

from __future__ import annotations

from typing import Final

NAMES: Final[tuple[str, ...]] = (
    # producer-metrics
    "record-send-total",
    "record-retry-total",
    "record-error-total",
    "byte-total",
    "batch-send-total",
    "batch-split-total",
    "batch-expired-total",
    "record-acked-total",
    "record-not-written-total",
    "record-unknown-total",
    "produce-request-total",
    "request-total",
    "request-timeout-total",
    "response-total",
    "request-latency-us-total",
    "request-latency-us-max",
    "produce-throttle-time-ms-total",
    "requests-in-flight",
    "connection-creation-total",
    "connection-close-total",
    "connection-count",
    "incoming-byte-total",
    "outgoing-byte-total",
    "metadata-update-total",
    "metadata-error-total",
    "metadata-age-ms",
    "epoch-bump-total",
    "late-response-total",
    "response-entry-missing-total",
    "response-entry-ignored-total",
    # memory and batches
    "buffer-total-bytes",
    "buffer-available-bytes",
    "waiting-threads",
    "memory-granted-total",
    "batches-incomplete",
    "batches-unreleased",
    "batches-quarantined",
    "batch-corrupt-total",
    "batch-empty-total",
    "batch-opened-total",
    "record-queue-time-us-total",
    "compression-bytes-in-total",
    "compression-bytes-out-total",
    # workers
    "workers",
    "worker-joined-total",
    "worker-died-total",
    "worker-left-total",
    "worker-refused-total",
    "slots-reaped-total",
    "completion-frame-total",
    "completion-frame-orphaned-total",
    "completion-backlog-bytes",
    "completion-overflow-total",
    # the loop
    "loop-turn-total",
    "loop-sleep-total",
    "loop-time-us-total",
    "loop-gap-us-max",
)
INDEX: Final[dict[str, int]] = {name: place for place, name in enumerate(NAMES)}
