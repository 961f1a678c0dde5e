"""What a Produce response says; the core writes the requests and reads the answers."""

from __future__ import annotations

from typing import NamedTuple


class PartitionResult(NamedTuple):
    """What a Produce response says about one partition."""

    partition: int
    error_code: int
    base_offset: int
    log_append_time_ms: int
    log_start_offset: int
    record_errors: tuple[tuple[int, str | None], ...]
    error_message: str | None
    leader: tuple[int, int] | None
    """(leader id, leader epoch) when the broker told a newer leader (KIP-951)."""


class ProduceResponse(NamedTuple):
    """A decoded Produce response: results by topic (name, or id from v13)."""

    topics: list[tuple[str | bytes, list[PartitionResult]]]
    throttle_time_ms: int
    node_endpoints: tuple[tuple[int, str, int], ...]
