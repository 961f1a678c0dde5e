"""The sender's counters as plain attributes; the loop copies them to the page in shared memory.

The attribute of a counter is its name in `mpproducer.shm.counters` with `_` for `-`. Every dropped
thing has one: nothing is lost without a number that says so.
"""

from __future__ import annotations


class Counters:
    """All counters of one sender, written by the one thread that runs it."""

    batch_corrupt_total = 0
    batch_empty_total = 0
    batch_expired_total = 0
    batch_opened_total = 0
    batch_send_total = 0
    batch_split_total = 0
    batches_incomplete = 0
    batches_quarantined = 0
    batches_unreleased = 0
    buffer_available_bytes = 0
    buffer_total_bytes = 0
    byte_total = 0
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
    metadata_age_ms = 0
    metadata_error_total = 0
    metadata_update_total = 0
    outgoing_byte_total = 0
    produce_request_total = 0
    produce_throttle_time_ms_total = 0
    record_acked_total = 0
    record_error_total = 0
    record_not_written_total = 0
    record_queue_time_us_total = 0
    record_retry_total = 0
    record_send_total = 0
    record_unknown_total = 0
    request_latency_us_max = 0
    request_latency_us_total = 0
    request_timeout_total = 0
    request_total = 0
    requests_in_flight = 0
    response_entry_ignored_total = 0
    response_entry_missing_total = 0
    response_total = 0
    slots_reaped_total = 0
    waiting_threads = 0
    worker_died_total = 0
    worker_joined_total = 0
    worker_left_total = 0
    worker_refused_total = 0
    workers = 0
