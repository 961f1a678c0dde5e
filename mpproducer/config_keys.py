"""What one configuration key is: how its value is read, and what to say when it cannot be.

Pure functions of a value; rules between keys are in `config.py`. A value is shown in an error only
when its key is known and not secret: a misspelt `sasl_pasword` must not print a password.
"""

from __future__ import annotations

import os

from mpproducer.errors import ConfigError

TYPE_CHECKING = False  # typing is dear: see light.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    Default = TypeVar("Default")

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
DEFAULT_PORT = 9092
HIDDEN = "[hidden]"

_UNITS: dict[str, dict[str, int]] = {
    "ms": {"ms": 1, "s": 1000, "sec": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000},
    "bytes": {
        prefix + rest: 1024**power
        for power, prefix in enumerate(("", "k", "m", "g"))
        for rest in ("", "b", "ib")
    },
}
_UNIT_NAMES = {"ms": "milliseconds", "bytes": "bytes"}
_WITH_UNIT = r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*"
_MAX_HOST_LENGTH = 253
_MAX_LABEL_LENGTH = 63
_MAX_DIGITS = 40


class BadValue(Exception):
    """Says what was expected, without the value itself; `Key.read` adds name and value."""


class Key:
    """One row of the table of keys: everything about a key but its name."""

    __slots__ = ("default", "doc", "parse", "secret", "worker_only")

    def __init__(
        self,
        default: object,
        parse: Callable[[object], Any],
        doc: str,
        worker_only: bool,
        secret: bool,
    ) -> None:
        self.default = default
        self.parse = parse
        self.doc = doc
        self.worker_only = worker_only
        self.secret = secret

    def show(self, value: object) -> str:
        """`value` for people: its repr, or `[hidden]` where the key is secret."""
        return HIDDEN if self.secret else repr(value)

    def read(self, name: str, value: object) -> Any:
        """The effective value; raises ConfigError naming key, value and the way out."""
        try:
            return self.parse(value)
        except BadValue as bad:
            shown = self.show(value)
            if len(shown) > 200:
                shown = shown[:200] + "..."
            raise ConfigError(f"{name}={shown} is not valid: {bad}") from None


def key(
    default: Default,
    parse: Callable[[object], Any],
    doc: str,
    *,
    worker_only: bool = False,
    secret: bool = False,
) -> Default:
    """A row of the table; typed as its default, which is what a `Config` has in its place."""
    row: Any = Key(default, parse, doc, worker_only, secret)
    found: Default = row
    return found


class Whole:
    """A whole number in [low, high], given as int or as decimal text (properties files).

    `also` is one further value outside the range, such as -1; values above `cap` are allowed and
    mean `cap`; `why` says where the limit comes from, when nobody would guess.
    """

    __slots__ = ("also", "cap", "high", "low", "unit", "why")

    def __init__(
        self,
        low: int,
        high: int,
        unit: str = "",
        *,
        also: int | None = None,
        cap: int | None = None,
        why: str = "",
    ) -> None:
        self.low = low
        self.high = high
        self.unit = unit
        self.also = also
        self.cap = cap
        self.why = why

    def __str__(self) -> str:
        extra = "" if self.also is None else f"{self.also} or "
        return f"{extra}{self.low}..{self.high}"

    def __call__(self, value: object) -> int:
        if isinstance(value, str):
            text = value.strip()
            if text[text[:1] in ("+", "-") :].isdecimal() and len(text) <= _MAX_DIGITS:
                value = int(text)
        elif not isinstance(value, int):
            index = getattr(value, "__index__", None)  # numpy integers
            value = index() if callable(index) else value
        if not isinstance(value, int) or isinstance(value, bool):
            raise BadValue(f"expected {self._expected()}{self._way_out(value)}")
        if value != self.also and not self.low <= value <= self.high:
            raise BadValue(f"expected {self._expected()}")
        return value if self.cap is None else min(value, self.cap)

    def _expected(self) -> str:
        of = f" of {_UNIT_NAMES[self.unit]}" if self.unit else ""
        extra = "" if self.also is None else f", or {self.also}"
        why = f" ({self.why})" if self.why else ""
        return f"a whole number{of} from {self.low} to {self.high}{extra}{why}"

    def _way_out(self, value: object) -> str:
        """What the user probably meant: '5s', 0.5, timedelta(seconds=5), '32MB'."""
        import math  # here, because only the error needs them
        import re

        meant: float | None = None
        total_seconds = getattr(value, "total_seconds", None)
        if isinstance(value, float):
            meant = value
        elif callable(total_seconds) and self.unit == "ms":
            meant = float(total_seconds()) * 1000
        elif isinstance(value, str) and (match := re.fullmatch(_WITH_UNIT, value)):
            scale = _UNITS.get(self.unit, {}).get(match[2].lower())
            meant = float(match[1]) * scale if scale else None
        if meant is None or not self.low <= meant <= self.high:
            return ""
        return f"; write {math.ceil(meant)}"


def boolean(value: object) -> bool:
    """True or False, or the words of a properties file."""
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else None
    if word in ("true", "false"):
        return word == "true"
    raise BadValue("expected True or False")


class OneOf:
    """One of a few words, in any case; `none` is what None stands for, if it stands for one."""

    __slots__ = ("none", "words")

    def __init__(self, words: tuple[str, ...], none: str | None = None) -> None:
        self.words = words
        self.none = none

    def __str__(self) -> str:
        return ", ".join(self.words)

    def __call__(self, value: object) -> str:
        if value is None and self.none is not None:
            return self.none
        word = value.strip().lower() if isinstance(value, str) else None
        if word not in self.words:
            raise BadValue(f"expected one of {', '.join(map(repr, self.words))}")
        return word


def acks(value: object) -> int:
    """-1 for all in-sync replicas, 1 for the leader, 0 for nobody."""
    word = value.strip().lower() if isinstance(value, str) else value
    known: dict[object, int] = {"all": -1, "-1": -1, "0": 0, "1": 1, -1: -1, 0: 0, 1: 1}
    if isinstance(word, (str, int)) and not isinstance(word, bool) and word in known:
        return known[word]
    raise BadValue("expected 'all' (or -1), 1 or 0")


def client_id(value: object) -> str:
    """Text of the request header; brokers use it in quotas, metrics and logs."""
    if not isinstance(value, str) or not 0 < len(value.encode()) <= 255 or not value.isprintable():
        raise BadValue("expected 1 to 255 bytes of printable text")
    return value


def partitioner(value: object) -> str | Callable[..., Any] | None:
    """A callable, or the 'module:name' of one; None is Java's own partitioner."""
    if value is None or callable(value):
        return value
    text = value.strip() if isinstance(value, str) else ""
    module, colon, name = text.partition(":")
    parts = [*module.split("."), *name.split(".")]
    if colon and all(part.isidentifier() for part in parts):
        return text
    raise BadValue(
        "expected a callable of (key, all_partitions, available), or the 'module:name' of one; "
        "without it keys are hashed as by Java's producer (murmur2)"
    )


def load_partitioner(given: str | Callable[..., Any] | None) -> Callable[..., Any] | None:
    """Import what a 'module:name' names. Raises ConfigError."""
    if not isinstance(given, str):
        return given
    import importlib  # here, because few need it

    module, _, name = given.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"partitioner={given!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"partitioner={given!r} is a {type(found).__name__}, not a callable")
    return found  # type: ignore[no-any-return]  # callable(Any) says no more


def path(value: object) -> str | None:
    """An absolute path, or None."""
    if value is None:
        return None
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or "\0" in text or not os.path.isabs(text):
        raise BadValue("expected an absolute path: workers may have different working directories")
    return os.path.normpath(text)


def servers(value: object) -> tuple[tuple[str, int], ...]:
    """`"a:1,b:2"` or a list of such texts -> ((host, port), ...), duplicates removed.

    Port 9092 where none is given; IPv6 in brackets; a trailing dot (absolute name) is kept for the
    resolver but does not make a server different.
    """
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise BadValue("expected text such as 'host1:9092,host2:9092', or a list of such texts")
    if any("@" in part for part in parts):
        raise ConfigError(
            "bootstrap_servers holds an entry with '@': user names and passwords do not belong "
            "there (and are not supported yet); give 'host:port' only"
        )
    found: dict[tuple[str, int], tuple[str, int]] = {}
    for part in ",".join(parts).split(","):
        if entry := part.strip():
            host, port = _server(entry)
            found.setdefault((host.rstrip("."), port), (host, port))
    if not found:
        raise BadValue("expected at least one 'host:port'")
    return tuple(found.values())


def _server(entry: str) -> tuple[str, int]:
    protocol, has_protocol, rest = entry.rpartition("://")
    if has_protocol and protocol.upper() != "PLAINTEXT":
        raise BadValue(f"protocol {protocol!r} is not supported yet; give 'host:port'")
    if rest.startswith("["):
        inside, _, after = rest[1:].partition("]")
        if after and not after.startswith(":"):
            raise BadValue(f"{entry!r}: expected ':port' after ']'")
        return _ipv6(inside), _port(entry, after[1:] if after else None)
    host, colon, port = rest.partition(":")
    if ":" in port:
        raise BadValue(f"{entry!r}: put an IPv6 address in brackets, such as '[::1]:9092'")
    if not _is_host(host):
        raise BadValue(f"{entry!r}: {host!r} is not a host name")
    return host.lower(), _port(entry, port if colon else None)


def _is_host(text: str) -> bool:
    """Letters of any alphabet, digits, - and _ in labels of a sane length; one dot may end it."""
    labels = text.removesuffix(".").split(".")
    return (
        len(text) <= _MAX_HOST_LENGTH
        and not text.startswith("-")
        and all(0 < len(label) <= _MAX_LABEL_LENGTH for label in labels)
        and all(letter.isalnum() or letter in "-_." for letter in text)
    )


def _ipv6(text: str) -> str:
    import ipaddress  # here, because importing this module must stay cheap

    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise BadValue(f"'[{text}]' is not an IPv6 address") from None


def _port(entry: str, text: str | None) -> int:
    if text is None:
        return DEFAULT_PORT
    digits = text.isascii() and text.isdecimal() and len(text) <= 5
    if not digits or not 0 < int(text) < 65536:
        raise BadValue(f"{entry!r}: the port must be a number from 1 to 65535")
    return int(text)


def show_server(host: str, port: int) -> str:
    """The inverse of parsing: IPv6 addresses get their brackets back."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_SECURITY = "only security_protocol='PLAINTEXT' is supported yet (no TLS, no SASL)"
_TRANSACTIONS = "transactions are not supported yet; idempotence needs no id"
_BYTES = "send() takes bytes: encode keys and values before the call"
_PARTITIONER = (
    "it names a class of the Java runtime; give partitioner=, a callable or 'module:name'"
)
_JVM = "it names classes of the Java runtime; there is nothing like it here"
_METRICS = "rates and averages cover the last 30 to 60 s (docs/METRICS.md); leave it out"

# Keys of other producers that exist there and not here: (why, values that are harmless).
UNSUPPORTED: dict[str, tuple[str, tuple[object, ...]]] = {
    "security_protocol": (_SECURITY, ("PLAINTEXT",)),
    "transactional_id": (_TRANSACTIONS, (None,)),
    "transaction_timeout_ms": (_TRANSACTIONS, ()),
    "transaction_two_phase_commit_enable": (_TRANSACTIONS, (False,)),
    "key_serializer": (_BYTES, (None,)),
    "value_serializer": (_BYTES, (None,)),
    "interceptor_classes": ("interceptors are not supported; wrap send() instead", (None, [], "")),
    "partitioner_class": (_PARTITIONER, (None,)),
    "enable_metrics_push": ("pushing metrics to the cluster is not supported yet", (False,)),
    "metric_reporters": (_JVM, (None, [], "")),
    "auto_include_jmx_reporter": (_JVM, (False,)),
    "metrics_sample_window_ms": (_METRICS, ()),
    "metrics_num_samples": (_METRICS, ()),
    "metrics_recording_level": (_METRICS, ()),
    "config_providers": ("read secrets in your code", (None, [], "")),
    "api_version": ("versions are agreed with each broker; leave it out", (None, "auto")),
}
UNSUPPORTED_PREFIXES: dict[str, str] = {
    "sasl_": _SECURITY,
    "ssl_": _SECURITY,
    "security_": _SECURITY,
}

# Names of the same thing in librdkafka and in the older clients.
FOREIGN: dict[str, str] = {
    "metadata_broker_list": "bootstrap_servers",
    "message_timeout_ms": "delivery_timeout_ms",
    "queue_buffering_max_ms": "linger_ms",
    "queue_buffering_max_kbytes": "buffer_memory",
    "queue_buffering_max_messages": "buffer_memory",
    "batch_num_messages": "batch_size",
    "message_max_bytes": "max_request_size",
    "compression_codec": "compression_type",
    "compression_level": "compression_zstd_level",
    "message_send_max_retries": "retries",
    "request_required_acks": "acks",
    "max_in_flight": "max_in_flight_requests_per_connection",
    "socket_timeout_ms": "request_timeout_ms",
    "socket_send_buffer_bytes": "send_buffer_bytes",
    "socket_receive_buffer_bytes": "receive_buffer_bytes",
    "topic_metadata_refresh_interval_ms": "metadata_max_age_ms",
}
