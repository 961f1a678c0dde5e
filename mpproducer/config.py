"""The configuration of a producer: one row per key, in Kafka's names, units and defaults.

`Config.from_user` is the only way in for a user's values: it refuses unknown keys, wrong types and
units, and contradictions between keys. A `Config` holds *effective* values and never changes; it is
safe to share between threads, to pickle and to inherit over fork. Names, defaults and the rules
between keys are those of Java's ProducerConfig 4.x where the two producers have the same thing;
`docs/CONFIG.md` is generated from this file.
"""

from __future__ import annotations

from mpproducer.config_keys import (
    FOREIGN,
    INT32_MAX,
    INT64_MAX,
    UNSUPPORTED,
    UNSUPPORTED_PREFIXES,
    Key,
    OneOf,
    Whole,
    acks,
    boolean,
    client_id,
    key,
    load_partitioner,
    partitioner,
    path,
    servers,
    show_server,
)
from mpproducer.errors import ConfigError
from mpproducer.light import logger

TYPE_CHECKING = False  # typing is dear: see light.py
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn


SLOT_BYTES = 16384
MIN_SLOTS = 64
MAX_SLOTS = 2**20 - 2  # a slot index and its successor fit 20 bits of an open word
MAX_BATCH_BYTES = 2**24 - 2  # the byte count of a batch word has 24 bits
MAX_LINGER_MS = 3_600_000  # the shared segment holds it as u32 microseconds
FOREVER_MS = 10**12  # 31 years; added to a clock in nanoseconds it still fits 63 bits
MAX_IDEMPOTENT_IN_FLIGHT = 5  # a broker remembers the last five batches of a producer id

_duration = Whole(0, INT32_MAX, "ms")
_long_duration = Whole(0, INT64_MAX, "ms", cap=FOREVER_MS)
_16_MIB = "the byte count of a batch has 24 bits, so it stays below 16 MiB"
_batch_bytes = Whole(0, MAX_BATCH_BYTES, "bytes", why=_16_MIB)
_request_bytes = Whole(1, MAX_BATCH_BYTES, "bytes", why=_16_MIB)


class Config:
    """Effective configuration. Build it with `from_user`; fields are Java's keys in snake_case.

    An instance holds its values under the names that are rows of the table in the class.
    """

    bootstrap_servers: tuple[tuple[str, int], ...] = key(
        (),
        servers,
        "Where to find the cluster first: `host:port` texts, comma-separated or a list. Required.",
    )
    client_id: str = key(
        "mpproducer", client_id, "Name in every request: broker logs, metrics and quotas show it."
    )
    acks: int = key(
        -1,
        acks,
        "Who must have a batch before it counts as acknowledged: `all` (-1) in-sync replicas, the"
        " leader (1), nobody (0: offsets and errors stay unknown).",
    )
    enable_idempotence: bool = key(
        True,
        boolean,
        "Retries neither duplicate nor reorder. Needs `acks=all`, `retries` > 0 and at most 5"
        " requests in flight. If one of those is given otherwise and this key is not given, it is"
        " switched off with a warning; if it is given, that is an error.",
    )
    retries: int = key(
        INT32_MAX,
        Whole(0, INT32_MAX),
        "Attempts after the first; `delivery_timeout_ms` is the bound that matters.",
    )
    max_in_flight_requests_per_connection: int = key(
        5,
        Whole(1, INT32_MAX),
        "Requests of any kind without an answer, per broker; 1 keeps order without idempotence.",
    )
    delivery_timeout_ms: int = key(
        120_000,
        _duration,
        "From the creation of a batch to its success or failure. At least `linger_ms` +"
        " `request_timeout_ms`: less is an error if given, else it is raised with a warning.",
    )
    request_timeout_ms: int = key(
        30_000, _duration, "How long a request waits for its answer; then its connection is closed."
    )
    linger_ms: int = key(
        5,
        Whole(0, MAX_LINGER_MS, "ms"),
        "How long a batch waits for more records before it is due.",
    )
    batch_size: int = key(
        262_144,
        _batch_bytes,
        "A batch of this many bytes is full (0: one record each). Java: 16384; larger here because"
        " a batch occupies what it holds, not this. Below 16 MiB.",
    )
    buffer_memory: int = key(
        33_554_432,
        Whole(MIN_SLOTS * SLOT_BYTES, MAX_SLOTS * SLOT_BYTES, "bytes"),
        "Shared memory for records of all processes, in slots of 16 KiB. At least"
        " `max_request_size` and twice `batch_size`.",
    )
    max_block_ms: int = key(
        60_000,
        _long_duration,
        "How long `send` may block in all: for metadata, then for memory.",
        worker_only=True,
    )
    max_request_size: int = key(
        1_048_576,
        _request_bytes,
        "Largest record, and soft limit of one request. Below 16 MiB.",
    )
    compression_type: str = key(
        "none",
        OneOf(("none", "gzip", "snappy", "lz4", "zstd"), none="none"),
        "Codec of whole batches.",
    )
    compression_gzip_level: int = key(
        -1, Whole(1, 9, also=-1), "Level of gzip; -1 is zlib's default."
    )
    compression_lz4_level: int = key(9, Whole(1, 17), "Level of lz4.")
    compression_zstd_level: int = key(3, Whole(-131_072, 22), "Level of zstd.")
    partitioner_ignore_keys: bool = key(
        False, boolean, "Spread records that have a key like those that have none."
    )
    partitioner_adaptive_partitioning_enable: bool = key(
        True,
        boolean,
        "Records without a key prefer partitions where fewer batches wait (KIP-794).",
    )
    partitioner_availability_timeout_ms: int = key(
        0,
        _long_duration,
        "With adaptive partitioning: records without a key leave out the partitions of a broker"
        " that has taken none of its batches for so long; 0: never.",
    )
    retry_backoff_ms: int = key(
        100, _long_duration, "First wait before a failed request is repeated; doubles."
    )
    retry_backoff_max_ms: int = key(1_000, _long_duration, "Longest wait before a repetition.")
    reconnect_backoff_ms: int = key(
        50,
        _long_duration,
        "First wait before a broker is connected to again; doubles. Given without"
        " `reconnect_backoff_max_ms` it is the longest wait too.",
    )
    reconnect_backoff_max_ms: int = key(1_000, _long_duration, "Longest wait before reconnecting.")
    socket_connection_setup_timeout_ms: int = key(
        10_000, _long_duration, "How long a connection may take to be made; doubles per failure."
    )
    socket_connection_setup_timeout_max_ms: int = key(
        30_000, _long_duration, "Upper bound of that doubling."
    )
    connections_max_idle_ms: int = key(
        540_000,
        Whole(0, INT64_MAX, "ms", also=-1, cap=FOREVER_MS),
        "Close a connection unused for so long; -1: never.",
    )
    send_buffer_bytes: int = key(
        -1,
        Whole(-1, INT32_MAX, "bytes"),
        "SO_SNDBUF of broker connections; -1: the system's, which grows with the traffic. Java:"
        " 131072; that is half a batch here, and the sender woke twice for each.",
    )
    receive_buffer_bytes: int = key(
        32_768, Whole(-1, INT32_MAX, "bytes"), "SO_RCVBUF of broker connections; -1: the system's."
    )
    metadata_max_age_ms: int = key(
        300_000, _long_duration, "Ask for metadata again after this even if nothing failed."
    )
    metadata_max_idle_ms: int = key(
        300_000,
        Whole(5_000, INT64_MAX, "ms", cap=FOREVER_MS),
        "Forget a topic nobody has sent to for so long.",
    )
    metadata_recovery_strategy: str = key(
        "rebootstrap",
        OneOf(("none", "rebootstrap")),
        "What to do when no known broker can be reached: resolve `bootstrap_servers` anew, or not.",
    )
    metadata_recovery_rebootstrap_trigger_ms: int = key(
        300_000, _duration, "Also start over from `bootstrap_servers` after so long a failure."
    )
    client_dns_lookup: str = key(
        "use_all_dns_ips",
        OneOf(("use_all_dns_ips", "resolve_canonical_bootstrap_servers_only")),
        "Try every address of a name in turn, or resolve bootstrap names to canonical names first.",
    )
    allow_auto_create_topics: bool = key(
        True, boolean, "Let a cluster that creates topics on demand create an unknown one."
    )
    max_partitions: int = key(
        16_384, Whole(1, 2**20), "Partitions of all topics that one sender can hold. Ours."
    )
    max_topics: int = key(2_048, Whole(1, 2**20), "Topics that one sender can hold. Ours.")
    sender_idle_ms: int = key(
        1_000, _duration, "The sender ends when no process has used it for so long. Ours."
    )
    partitioner: str | Callable[..., Any] | None = key(
        None,
        partitioner,
        "Chooses the partition of records that name none: a callable, or `module:name` of one,"
        " called as by aiokafka and kafka-python 2: `partitioner(key, all_partitions, available)`"
        " with bytes or None and two lists of ints, returning an int. What it raises, `send`"
        " raises; nothing is appended then. To be pickled with its producer it must be importable."
        " Ours; Java: `partitioner.class`.",
        worker_only=True,
    )
    sender_start_timeout_ms: int = key(
        10_000,
        Whole(1, INT32_MAX, "ms"),
        "How long a process waits for the host's sender to start or answer. Ours.",
        worker_only=True,
    )
    close_timeout_ms: int = key(
        5_000,
        _duration,
        "How long the end of the process, or of a `with` block left by an exception, may wait for"
        " delivery. Ours.",
        worker_only=True,
    )
    sender_python: str | None = key(
        None,
        path,
        "The Python that runs the sender; None: the one running now. Ours.",
        worker_only=True,
    )
    runtime_dir: str | None = key(
        None,
        path,
        "Folder of sockets and locks; None: `MPPRODUCER_RUNTIME_DIR`, else `/tmp/mpproducer-<uid>`."
        " Ours.",
        worker_only=True,
    )

    def __init__(self, values: Mapping[str, Any]) -> None:
        """`values` are effective and complete: see `from_user`."""
        self.__dict__.update(values)

    def __setattr__(self, name: str, _value: object) -> NoReturn:
        raise AttributeError(f"a configuration never changes: {name}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__[name] for name in KEYS))

    @classmethod
    def from_user(
        cls,
        config: Mapping[str, object] | None = None,
        kwargs: Mapping[str, object] | None = None,
    ) -> Config:
        """Check and complete a user's values.

        `config` is the dict form (`{"linger.ms": 5}`), `kwargs` the keyword form (`linger_ms=5`);
        each takes either spelling, and a key may be in both if the values agree. Raises ConfigError
        for the first thing wrong. Logs a warning where a default gives way to a given value.
        """
        values: dict[str, Any] = {}
        for source in (config, kwargs):
            for name, value in _items(source):
                _take(values, name, value)
        if "bootstrap_servers" not in values:
            raise ConfigError(
                "bootstrap_servers is required: give bootstrap_servers='host:9092' (several: "
                "'host1:9092,host2:9092')"
            )
        given = frozenset(values)
        complete: dict[str, Any] = {name: row.default for name, row in KEYS.items()}
        complete |= values
        for rule in _RULES:
            rule(complete, given)
        return cls(complete)

    @classmethod
    def from_wire(cls, wire: object) -> Config:
        """The inverse of `to_wire`; every value is checked again. Raises ConfigError."""
        if not isinstance(wire, dict) or wire.keys() != KEYS.keys():
            raise ConfigError("a configuration on the wire must hold every key once and no other")
        return cls.from_user(wire)

    def to_wire(self) -> dict[str, Any]:
        """Effective values as a dict of plain ones (shm/plain.py); `from_wire` reads it. A
        partitioner that is not given as text stays in its process."""
        values = dict(self.__dict__)
        if not isinstance(self.partitioner, str):
            values["partitioner"] = None
        values["bootstrap_servers"] = [show_server(*server) for server in self.bootstrap_servers]
        return values

    def sender_key(self) -> str:
        """Canonical text of everything that processes sharing one sender must agree on.

        Leaves out worker-only keys; the order of bootstrap servers means nothing.
        """
        shared = {n: v for n, v in self.to_wire().items() if not KEYS[n].worker_only}
        shared["bootstrap_servers"] = sorted(shared["bootstrap_servers"])
        return repr(sorted(shared.items()))

    def lasting(self) -> Config:
        """What a process may keep when the producer is gone: without a callable, which may hold
        whatever the user's program has."""
        if self.partitioner is None or isinstance(self.partitioner, str):
            return self
        return Config(self.__dict__ | {"partitioner": None})

    def load_partitioner(self) -> Callable[..., Any] | None:
        """The user's own partitioner, imported if need be. Raises ConfigError."""
        return load_partitioner(self.partitioner)

    @property
    def servers(self) -> str:
        """The bootstrap servers as one text."""
        return ",".join(show_server(*server) for server in self.bootstrap_servers)

    @property
    def slots(self) -> int:
        """Slots of 16 KiB that `buffer_memory` makes."""
        return self.buffer_memory // SLOT_BYTES

    @property
    def compression_level(self) -> int:
        """The level of the codec in `compression_type`; 0 where it has none."""
        level: int = getattr(self, f"compression_{self.compression_type}_level", 0)
        return level

    def __repr__(self) -> str:
        shown = [f"bootstrap_servers={self.servers!r}"]
        for name, row in KEYS.items():
            value = getattr(self, name)
            if name != "bootstrap_servers" and value != row.default:
                shown.append(f"{name}={row.show(value)}")
        return f"Config({', '.join(shown)})"


KEYS: dict[str, Key] = {name: row for name, row in vars(Config).items() if isinstance(row, Key)}


def dotted(name: str) -> str:
    """Java's spelling of a key: `linger_ms` -> `linger.ms`."""
    return name.replace("_", ".")


def _items(source: Mapping[str, object] | None) -> list[tuple[object, object]]:
    """What a user gave, which may be any kind of mapping."""
    if source is None:
        return []
    try:
        return [(name, source[name]) for name in source.keys()]  # noqa: SIM118 - as dict() does
    except (AttributeError, TypeError):
        raise ConfigError(
            f"config must be a dict such as {{'linger.ms': 5}}, not {type(source).__name__}"
        ) from None


def _take(values: dict[str, Any], spelt: object, value: object) -> None:
    """Check one given key and put its effective value into `values`."""
    if not isinstance(spelt, str):
        raise ConfigError(f"configuration keys are text, not {type(spelt).__name__}")
    name = spelt.replace(".", "_")
    row = KEYS.get(name)
    if row is None:
        if not _is_harmless(name, value):
            raise ConfigError(_why_not(spelt, name))
        return
    effective = row.read(spelt, value)
    if name in values and values[name] != effective:
        raise ConfigError(
            f"{dotted(name)} and {name} are given with different values, "
            f"{row.show(values[name])} and {row.show(effective)}; give one of them"
        )
    values[name] = effective


def _is_harmless(name: str, value: object) -> bool:
    """Whether an unsupported key is given with the value that asks for nothing."""
    _, harmless = UNSUPPORTED.get(name, ("", ()))
    return any(value is ok or (type(value) is type(ok) and value == ok) for ok in harmless)


def _why_not(spelt: str, name: str) -> str:
    """What to tell about a key that is not ours. Never its value: it may be a secret."""
    spell = dotted if "." in spelt else str
    if name in UNSUPPORTED:
        return f"configuration key {spelt!r} is not supported: {UNSUPPORTED[name][0]}"
    for prefix, why in UNSUPPORTED_PREFIXES.items():
        if name.startswith(prefix):
            return f"configuration key {spelt!r} is not supported: {why}"
    if name in FOREIGN:
        return f"unknown configuration key {spelt!r}; here it is {spell(FOREIGN[name])!r}"
    import difflib  # here, because only the error needs it

    near = difflib.get_close_matches(name.lower(), [*KEYS, *UNSUPPORTED], 1, cutoff=0.5)
    hint = f"; did you mean {spell(near[0])!r}?" if near else ""
    return f"unknown configuration key {spelt!r}{hint} (docs/CONFIG.md lists all keys)"


def _warn(message: str, *facts: object) -> None:
    logger("mpproducer.config").warning(message, *facts)


def _idempotence(values: dict[str, Any], given: frozenset[str]) -> None:
    """KIP-98/679: what idempotence needs. Java drops it silently when only implied."""
    if not values["enable_idempotence"]:
        return
    in_flight = "max_in_flight_requests_per_connection"
    wrong = [
        (name, needs)
        for name, bad, needs in (
            ("acks", values["acks"] != -1, "acks='all'"),
            ("retries", values["retries"] == 0, "retries of 1 or more"),
            (in_flight, values[in_flight] > MAX_IDEMPOTENT_IN_FLIGHT, f"{in_flight} of 5 or less"),
        )
        if bad
    ]
    if not wrong:
        return
    have = ", ".join(f"{name}={values[name]}" for name, _ in wrong)
    needs = " and ".join(need for _, need in wrong)
    if "enable_idempotence" in given:
        raise ConfigError(
            f"enable_idempotence=True contradicts {have}: it needs {needs}. "
            f"Leave out {' and '.join(name for name, _ in wrong)}, or give enable_idempotence=False"
        )
    values["enable_idempotence"] = False
    _warn(
        "idempotence is off because of %s: retries may duplicate or reorder records. "
        "Give enable_idempotence=False to say that this is meant.",
        have,
    )


def _delivery_timeout(values: dict[str, Any], given: frozenset[str]) -> None:
    """KIP-91: a batch must have time to linger and for one whole request."""
    least = min(values["linger_ms"] + values["request_timeout_ms"], INT32_MAX)
    if values["delivery_timeout_ms"] >= least:
        return
    if "delivery_timeout_ms" in given:
        raise ConfigError(
            f"delivery_timeout_ms={values['delivery_timeout_ms']} is less than linger_ms="
            f"{values['linger_ms']} + request_timeout_ms={values['request_timeout_ms']}: give "
            f"delivery_timeout_ms={least} or more (it is in milliseconds), or lower the others"
        )
    values["delivery_timeout_ms"] = least
    _warn("delivery_timeout_ms is raised to linger_ms + request_timeout_ms = %d", least)


def _backoffs(values: dict[str, Any], given: frozenset[str]) -> None:
    """KIP-580: a base above its maximum means the maximum, always."""
    if "reconnect_backoff_ms" in given and "reconnect_backoff_max_ms" not in given:
        # As in Java's postProcessReconnectBackoffConfigs: the base alone asks for a constant.
        values["reconnect_backoff_max_ms"] = values["reconnect_backoff_ms"]
    for base, most in (
        ("retry_backoff_ms", "retry_backoff_max_ms"),
        ("reconnect_backoff_ms", "reconnect_backoff_max_ms"),
        ("socket_connection_setup_timeout_ms", "socket_connection_setup_timeout_max_ms"),
    ):
        if values[base] <= values[most]:
            continue
        if base in given and most in given:
            raise ConfigError(
                f"{base}={values[base]} is more than {most}={values[most]}: "
                "raise the second or lower the first"
            )
        _warn("%s is lowered from %d to %s = %d", base, values[base], most, values[most])
        values[base] = values[most]


def _memory(values: dict[str, Any], given: frozenset[str]) -> None:
    """The pool must hold the largest record, and one batch in flight while another fills."""
    request, memory = values["max_request_size"], values["buffer_memory"]
    values["batch_size"] = max(1, values["batch_size"])
    if request > memory:
        raise ConfigError(
            f"max_request_size={request} is more than buffer_memory={memory}: the largest record "
            f"would never fit; give buffer_memory={request} or more, or lower max_request_size"
        )
    if values["batch_size"] > request:
        if "batch_size" in given:
            _warn(
                "batch_size=%d is more than max_request_size=%d: a full batch makes a request "
                "larger than the limit, which brokers may refuse",
                values["batch_size"],
                request,
            )
        else:
            values["batch_size"] = request
    if 2 * values["batch_size"] > memory:
        raise ConfigError(
            f"batch_size={values['batch_size']} is more than half of buffer_memory={memory}: no "
            f"batch could fill while another is in flight; give "
            f"buffer_memory={2 * values['batch_size']} or more, or lower batch_size"
        )


_RULES = (_idempotence, _delivery_timeout, _backoffs, _memory)
