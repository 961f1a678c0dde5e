"""The APIs that are spoken here, as tables (names, versions and types as in Kafka's own schemas).

`produce.py` encodes and decodes Produce on the data path; its tables here serve the in-memory
broker and the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mpproducer.wire.schema import LATEST, Field, Schema

F = Field


def A(name: str, kind: str = "struct", *fields: Field, **more: int) -> Field:
    """Return an array field."""
    return Field(name, kind, array=True, fields=fields, **more)


@dataclass(frozen=True)
class Api:
    """One API: key, request and response tables, first flexible version."""

    key: int
    name: str
    request: Schema
    response: Schema
    flexible: int

    @property
    def versions(self) -> tuple[int, int]:
        """Lowest and highest version spoken here."""
        return self.request.versions


APIS: Final[dict[int, Api]] = {}


def _api(
    key: int,
    name: str,
    versions: tuple[int, int],
    flexible: int,
    request: tuple[Field, ...],
    response: tuple[Field, ...],
) -> Api:
    api = Api(
        key,
        name,
        Schema(f"{name}Request", versions, flexible, *request),
        Schema(f"{name}Response", versions, flexible, *response),
        flexible,
    )
    APIS[key] = api
    return api


_THROTTLE: Final = F("throttle_time_ms", "i32")
_ERROR: Final = F("error_code", "i16")


def _throttle(since: int) -> Field:
    return F("throttle_time_ms", "i32", since=since)


PRODUCE: Final = _api(
    0, "Produce", (3, 13), 9,
    (
        F("transactional_id", "str", null=3),
        F("acks", "i16"),
        F("timeout_ms", "i32"),
        A("topics", "struct",
          F("name", "str", until=12),
          F("topic_id", "uuid", since=13),
          A("partitions", "struct", F("index", "i32"), F("records", "bytes", null=0))),
    ),
    (
        A("topics", "struct",
          F("name", "str", until=12),
          F("topic_id", "uuid", since=13),
          A("partitions", "struct",
            F("index", "i32"),
            _ERROR,
            F("base_offset", "i64"),
            F("log_append_time_ms", "i64", since=2, default=-1),
            F("log_start_offset", "i64", since=5, default=-1),
            A("record_errors", "struct",
              F("batch_index", "i32"), F("message", "str", null=0), since=8),
            F("error_message", "str", since=8, null=8),
            F("current_leader", since=10, tag=0, fields=(
                F("leader_id", "i32", default=-1), F("leader_epoch", "i32", default=-1))))),
        _throttle(1),
        A("node_endpoints", "struct",
          F("node_id", "i32"), F("host", "str"), F("port", "i32"), F("rack", "str", null=0),
          since=10, tag=0),
    ),
)  # fmt: skip

FETCH: Final = _api(
    1, "Fetch", (4, 16), 12,
    (
        F("cluster_id", "str", since=12, null=12, tag=0),
        F("replica_id", "i32", until=14, default=-1),
        F("replica_state", since=15, tag=1, fields=(
            F("replica_id", "i32", default=-1), F("replica_epoch", "i64", default=-1))),
        F("max_wait_ms", "i32"),
        F("min_bytes", "i32"),
        F("max_bytes", "i32", since=3),
        F("isolation_level", "i8", since=4),
        F("session_id", "i32", since=7),
        F("session_epoch", "i32", since=7, default=-1),
        A("topics", "struct",
          F("topic", "str", until=12),
          F("topic_id", "uuid", since=13),
          A("partitions", "struct",
            F("partition", "i32"),
            F("current_leader_epoch", "i32", since=9, default=-1),
            F("fetch_offset", "i64"),
            F("last_fetched_epoch", "i32", since=12, default=-1),
            F("log_start_offset", "i64", since=5, default=-1),
            F("partition_max_bytes", "i32"))),
        A("forgotten_topics_data", "struct",
          F("topic", "str", until=12), F("topic_id", "uuid", since=13), A("partitions", "i32"),
          since=7),
        F("rack_id", "str", since=11),
    ),
    (
        _throttle(1),
        F("error_code", "i16", since=7),
        F("session_id", "i32", since=7),
        A("responses", "struct",
          F("topic", "str", until=12),
          F("topic_id", "uuid", since=13),
          A("partitions", "struct",
            F("partition_index", "i32"),
            _ERROR,
            F("high_watermark", "i64"),
            F("last_stable_offset", "i64", since=4, default=-1),
            F("log_start_offset", "i64", since=5, default=-1),
            F("diverging_epoch", since=12, tag=0, fields=(
                F("epoch", "i32", default=-1), F("end_offset", "i64", default=-1))),
            F("current_leader", since=12, tag=1, fields=(
                F("leader_id", "i32", default=-1), F("leader_epoch", "i32", default=-1))),
            F("snapshot_id", since=12, tag=2, fields=(
                F("end_offset", "i64", default=-1), F("epoch", "i32", default=-1))),
            A("aborted_transactions", "struct",
              F("producer_id", "i64"), F("first_offset", "i64"), since=4, null=4),
            F("preferred_read_replica", "i32", since=11, default=-1),
            F("records", "bytes", null=0))),
        A("node_endpoints", "struct",
          F("node_id", "i32"), F("host", "str"), F("port", "i32"), F("rack", "str", null=0),
          since=16, tag=0),
    ),
)  # fmt: skip

LIST_OFFSETS: Final = _api(
    2, "ListOffsets", (1, 8), 6,
    (
        F("replica_id", "i32", default=-1),
        F("isolation_level", "i8", since=2),
        A("topics", "struct",
          F("name", "str"),
          A("partitions", "struct",
            F("partition_index", "i32"),
            F("current_leader_epoch", "i32", since=4, default=-1),
            F("timestamp", "i64"))),
    ),
    (
        _throttle(2),
        A("topics", "struct",
          F("name", "str"),
          A("partitions", "struct",
            F("partition_index", "i32"),
            _ERROR,
            F("timestamp", "i64", default=-1),
            F("offset", "i64", default=-1),
            F("leader_epoch", "i32", since=4, default=-1))),
    ),
)  # fmt: skip

METADATA: Final = _api(
    3, "Metadata", (0, 13), 9,
    (
        A("topics", "struct",
          F("topic_id", "uuid", since=10), F("name", "str", null=10), null=1),
        F("allow_auto_topic_creation", "bool", since=4, default=True),
        F("include_cluster_authorized_operations", "bool", since=8, until=10),
        F("include_topic_authorized_operations", "bool", since=8),
    ),
    (
        _throttle(3),
        A("brokers", "struct",
          F("node_id", "i32"), F("host", "str"), F("port", "i32"),
          F("rack", "str", since=1, null=1)),
        F("cluster_id", "str", since=2, null=2),
        F("controller_id", "i32", since=1, default=-1),
        A("topics", "struct",
          _ERROR,
          F("name", "str", null=12),
          F("topic_id", "uuid", since=10),
          F("is_internal", "bool", since=1),
          A("partitions", "struct",
            _ERROR,
            F("partition_index", "i32"),
            F("leader_id", "i32"),
            F("leader_epoch", "i32", since=7, default=-1),
            A("replica_nodes", "i32"),
            A("isr_nodes", "i32"),
            A("offline_replicas", "i32", since=5)),
          F("topic_authorized_operations", "i32", since=8, default=-(1 << 31))),
        F("cluster_authorized_operations", "i32", since=8, until=10, default=-(1 << 31)),
        F("error_code", "i16", since=13),
    ),
)  # fmt: skip

OFFSET_COMMIT: Final = _api(
    8, "OffsetCommit", (2, 8), 8,
    (
        F("group_id", "str"),
        F("generation_id", "i32", since=1, default=-1),
        F("member_id", "str", since=1),
        F("group_instance_id", "str", since=7, null=7),
        F("retention_time_ms", "i64", since=2, until=4, default=-1),
        A("topics", "struct",
          F("name", "str"),
          A("partitions", "struct",
            F("partition_index", "i32"), F("committed_offset", "i64"),
            F("committed_leader_epoch", "i32", since=6, default=-1),
            F("committed_metadata", "str", null=0))),
    ),
    (
        _throttle(3),
        A("topics", "struct",
          F("name", "str"), A("partitions", "struct", F("partition_index", "i32"), _ERROR)),
    ),
)  # fmt: skip

OFFSET_FETCH: Final = _api(
    9, "OffsetFetch", (1, 7), 6,
    (
        F("group_id", "str"),
        A("topics", "struct", F("name", "str"), A("partition_indexes", "i32"), null=2),
        F("require_stable", "bool", since=7),
    ),
    (
        _throttle(3),
        A("topics", "struct",
          F("name", "str"),
          A("partitions", "struct",
            F("partition_index", "i32"), F("committed_offset", "i64"),
            F("committed_leader_epoch", "i32", since=5, default=-1),
            F("metadata", "str", null=0), _ERROR)),
        F("error_code", "i16", since=2),
    ),
)  # fmt: skip

FIND_COORDINATOR: Final = _api(
    10, "FindCoordinator", (0, 4), 3,
    (
        F("key", "str", until=3),
        F("key_type", "i8", since=1),
        A("coordinator_keys", "str", since=4),
    ),
    (
        _throttle(1),
        F("error_code", "i16", until=3),
        F("error_message", "str", since=1, until=3, null=1),
        F("node_id", "i32", until=3),
        F("host", "str", until=3),
        F("port", "i32", until=3),
        A("coordinators", "struct",
          F("key", "str"), F("node_id", "i32"), F("host", "str"), F("port", "i32"), _ERROR,
          F("error_message", "str", null=4), since=4),
    ),
)  # fmt: skip

API_VERSIONS: Final = _api(
    18, "ApiVersions", (0, 4), 3,
    (F("client_software_name", "str", since=3), F("client_software_version", "str", since=3)),
    (
        _ERROR,
        A("api_keys", "struct",
          F("api_key", "i16"), F("min_version", "i16"), F("max_version", "i16")),
        _throttle(1),
        A("supported_features", "struct",
          F("name", "str"), F("min_version", "i16"), F("max_version", "i16"), since=3, tag=0),
        F("finalized_features_epoch", "i64", since=3, tag=1, default=-1),
        A("finalized_features", "struct",
          F("name", "str"), F("max_version_level", "i16"), F("min_version_level", "i16"),
          since=3, tag=2),
        F("zk_migration_ready", "bool", since=3, tag=3),
    ),
)  # fmt: skip

CREATE_TOPICS: Final = _api(
    19, "CreateTopics", (2, 7), 5,
    (
        A("topics", "struct",
          F("name", "str"),
          F("num_partitions", "i32"),
          F("replication_factor", "i16"),
          A("assignments", "struct", F("partition_index", "i32"), A("broker_ids", "i32")),
          A("configs", "struct", F("name", "str"), F("value", "str", null=0))),
        F("timeout_ms", "i32", default=60000),
        F("validate_only", "bool", since=1),
    ),
    (
        _throttle(2),
        A("topics", "struct",
          F("name", "str"),
          F("topic_id", "uuid", since=7),
          _ERROR,
          F("error_message", "str", since=1, null=0),
          F("topic_config_error_code", "i16", since=5, tag=0),
          F("num_partitions", "i32", since=5, default=-1),
          F("replication_factor", "i16", since=5, default=-1),
          A("configs", "struct",
            F("name", "str"), F("value", "str", null=0), F("read_only", "bool"),
            F("config_source", "i8", default=-1), F("is_sensitive", "bool"),
            since=5, null=5)),
    ),
)  # fmt: skip

DELETE_TOPICS: Final = _api(
    20, "DeleteTopics", (1, 5), 4,
    (A("topic_names", "str"), F("timeout_ms", "i32")),
    (
        _throttle(1),
        A("responses", "struct",
          F("name", "str"), _ERROR, F("error_message", "str", since=5, null=5)),
    ),
)  # fmt: skip

INIT_PRODUCER_ID: Final = _api(
    22, "InitProducerId", (0, 5), 2,
    (
        F("transactional_id", "str", null=0),
        F("transaction_timeout_ms", "i32"),
        F("producer_id", "i64", since=3, default=-1),
        F("producer_epoch", "i16", since=3, default=-1),
    ),
    (
        _THROTTLE,
        _ERROR,
        F("producer_id", "i64", default=-1),
        F("producer_epoch", "i16"),
    ),
)  # fmt: skip

assert max(api.versions[1] for api in APIS.values()) < LATEST
