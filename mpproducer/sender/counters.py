"""The sender's counters as plain attributes; the loop copies them to shared memory now and then.

The attribute of a counter is its name in `mpproducer.shm.counters` with `_` for `-`. Every dropped
thing has one: nothing is lost without a number that says so.
"""

from __future__ import annotations

from mpproducer.reason import Reason


class Counters:
    """What the one thread that runs the sender counts itself."""

    batch_corrupt_total = 0
    batch_empty_total = 0
    batch_expired_total = 0
    batch_opened_total = 0
    batch_split_total = 0
    batches_incomplete = 0
    batches_quarantined = 0
    batches_unreleased = 0
    buffer_available_bytes = 0
    buffer_total_bytes = 0
    completion_backlog_bytes = 0
    completion_frame_orphaned_total = 0
    completion_frame_total = 0
    completion_overflow_total = 0
    compression_bytes_in_total = 0
    compression_bytes_out_total = 0
    connection_close_total = 0
    connection_count = 0
    connection_creation_total = 0
    epoch_bump_total = 0
    incoming_byte_total = 0
    late_response_total = 0
    loop_gap_us_max = 0
    loop_sleep_total = 0
    loop_time_us_total = 0
    loop_turn_total = 0
    memory_granted_total = 0
    metadata_error_total = 0
    metadata_update_total = 0
    metadata_updated_ns = 0
    node_metrics_dropped_total = 0
    outgoing_byte_total = 0
    produce_request_total = 0
    produce_throttle_time_ms_total = 0
    record_acked_total = 0
    record_error_authorization_total = 0
    record_error_closed_total = 0
    record_error_corrupt_total = 0
    record_error_expired_total = 0
    record_error_fatal_total = 0
    record_error_invalid_record_total = 0
    record_error_none_total = 0
    record_error_rejected_total = 0
    record_error_retries_exhausted_total = 0
    record_error_sender_died_total = 0
    record_error_too_large_total = 0
    record_error_topic_total = 0
    record_error_total = 0
    record_error_wrong_process_total = 0
    record_not_written_total = 0
    record_retry_total = 0
    record_unknown_total = 0
    request_timeout_total = 0
    request_total = 0
    requests_in_flight = 0
    response_entry_ignored_total = 0
    response_entry_missing_total = 0
    response_total = 0
    slots_reaped_total = 0
    started_ns = 0
    waiting_threads = 0
    worker_died_total = 0
    worker_joined_total = 0
    worker_left_total = 0
    worker_refused_total = 0
    workers = 0

    def failed(self, reason: Reason, records: int) -> None:
        """Count records that failed, in all and by reason."""
        self.record_error_total += records
        name = _OF_REASON[reason]
        setattr(self, name, getattr(self, name) + records)


_OF_REASON = {reason: f"record_error_{reason.name.lower()}_total" for reason in Reason}
