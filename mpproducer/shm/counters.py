"""Names of the counters in CTL: place -> name.

Only the sender writes them; anybody who is attached may read them. Names are the Java producer's
where it has the metric. A `-total` only grows; the others are gauges. Places are part of the
layout: the first counters are written event by event by the core (enum mp_counter), then come
those that workers count in rows of their own (enum mp_tally_word), and the rest is copied from
the sender's `Counters` now and then.
"""

from __future__ import annotations

from typing import Final

EVENT_NAMES: Final[tuple[str, ...]] = (
    "record-send-total",
    "byte-total",
    "batch-send-total",
    "uncompressed-byte-total",
)
TALLY_NAMES: Final[tuple[str, ...]] = (
    "bufferpool-wait-time-ns-total",
    "bufferpool-wait-total",
    "metadata-wait-time-ns-total",
    "flush-time-ns-total",
    # records that `send` gave back as failed futures, by reason
    "send-error-buffer-full-total",
    "send-error-no-metadata-total",
    "send-error-too-large-total",
    "send-error-invalid-topic-total",
    "send-error-authorization-total",
    "send-error-not-sent-total",
)
COPIED_NAMES: Final[tuple[str, ...]] = (
    # records and batches
    "record-retry-total",
    "record-error-total",
    "record-acked-total",
    "record-not-written-total",
    "record-unknown-total",
    # record-error-total again, by errors.Reason
    "record-error-none-total",
    "record-error-expired-total",
    "record-error-rejected-total",
    "record-error-too-large-total",
    "record-error-closed-total",
    "record-error-sender-died-total",
    "record-error-topic-total",
    "record-error-authorization-total",
    "record-error-corrupt-total",
    "record-error-invalid-record-total",
    "record-error-retries-exhausted-total",
    "record-error-wrong-process-total",
    "record-error-fatal-total",
    "batch-opened-total",
    "batch-split-total",
    "batch-expired-total",
    "batch-corrupt-total",
    "batch-empty-total",
    "compression-bytes-in-total",
    "compression-bytes-out-total",
    # network
    "produce-request-total",
    "request-total",
    "request-timeout-total",
    "response-total",
    "produce-throttle-time-ms-total",
    "requests-in-flight",
    "connection-creation-total",
    "connection-close-total",
    "connection-count",
    "incoming-byte-total",
    "outgoing-byte-total",
    "metadata-update-total",
    "metadata-error-total",
    "metadata-updated-ns",
    "epoch-bump-total",
    "late-response-total",
    "response-entry-missing-total",
    "response-entry-ignored-total",
    "node-metrics-dropped-total",
    # memory
    "buffer-total-bytes",
    "buffer-available-bytes",
    "waiting-threads",
    "memory-granted-total",
    "batches-incomplete",
    "batches-unreleased",
    "batches-quarantined",
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
    "started-ns",
    "loop-turn-total",
    "loop-sleep-total",
    "loop-time-us-total",
    "loop-gap-us-max",
)
COPIED_FIRST: Final = len(EVENT_NAMES) + len(TALLY_NAMES)
NAMES: Final[tuple[str, ...]] = EVENT_NAMES + TALLY_NAMES + COPIED_NAMES
INDEX: Final[dict[str, int]] = {name: place for place, name in enumerate(NAMES)}
