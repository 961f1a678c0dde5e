"""The configuration: every key of a user is taken, or refused with the way out."""

from __future__ import annotations

import datetime
import json
import logging
import pickle
from typing import Any

import pytest

import mpproducer
from mpproducer import ConfigError
from mpproducer.config import KEYS, Config, dotted

SERVER = {"bootstrap_servers": "k1:9092"}


def config(**values: Any) -> Config:
    return Config.from_user(None, SERVER | values)


# --- where keys may stand


def test_keyword_dict_and_both_are_the_same_configuration() -> None:
    ways = [
        mpproducer.Producer(bootstrap_servers="k1:9092", linger_ms=7, acks="all"),
        mpproducer.Producer({"bootstrap.servers": "k1:9092", "linger.ms": "7", "acks": "-1"}),
        mpproducer.Producer(config={"bootstrap.servers": "k1:9092", "linger.ms": 7}),
        mpproducer.Producer(config={"linger.ms": 7}, bootstrap_servers=["K1"], linger_ms=7),
    ]
    assert {producer.config for producer in ways} == {config(linger_ms=7)}
    assert ways[0].config.linger_ms == 7


def test_a_producer_shows_its_servers_as_they_are_given() -> None:
    producer = mpproducer.Producer(bootstrap_servers="[::1]:9093,k1")
    assert repr(producer) == "<Producer for [::1]:9093,k1:9092>"
    assert producer.config.bootstrap_servers == (("::1", 9093), ("k1", 9092))


@pytest.mark.parametrize("given", [3, "k1:9092", [("linger.ms", 5)]])
def test_a_config_that_is_no_dict_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="config must be a dict"):
        mpproducer.Producer(given)


def test_without_servers_the_error_says_how_to_give_them() -> None:
    for given in ({}, {"linger.ms": 5}):
        with pytest.raises(ConfigError, match="give bootstrap_servers='host:9092'"):
            mpproducer.Producer(given)


# --- unknown keys


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lingr_ms", "did you mean 'linger_ms'?"),
        ("lingr.ms", "did you mean 'linger.ms'?"),
        ("Linger_ms", "did you mean 'linger_ms'?"),
        ("message.timeout.ms", "here it is 'delivery.timeout.ms'"),
        ("compression.level", "here it is 'compression.zstd.level'"),
        ("no_such_thing_at_all_zzz", "docs/CONFIG.md lists all keys"),
    ],
)
def test_C14_an_unknown_key_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="unknown configuration key") as found:
        mpproducer.Producer(SERVER | {name: 5})
    assert repr(name) in str(found.value)
    assert hint in str(found.value)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("security_protocol", "SSL", "no TLS, no SASL"),
        ("sasl.password", "secret-word", "no TLS, no SASL"),
        ("ssl_cafile", "/secret-word", "no TLS, no SASL"),
        ("transactional_id", "secret-word", "transactions are not supported yet"),
        ("value_serializer", str.encode, "encode keys and values before the call"),
        ("partitioner_class", "com.acme.secret-word", "a callable or 'module:name'"),
    ],
)
def test_a_key_of_other_producers_is_refused_with_the_reason_and_without_its_value(
    name: str, value: object, why: str
) -> None:
    with pytest.raises(ConfigError, match="is not supported") as found:
        mpproducer.Producer(SERVER | {name: value})
    assert why in str(found.value)
    assert "secret-word" not in str(found.value)


def test_a_refused_key_with_the_value_that_asks_for_nothing_is_taken() -> None:
    assert config(security_protocol="PLAINTEXT", value_serializer=None) == config()


# --- values


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("linger_ms", "abc", "a whole number of milliseconds from 0 to 3600000"),
        ("linger_ms", -1, "from 0"),
        ("linger_ms", True, "a whole number"),
        ("linger_ms", 5.2, "write 6"),
        ("request_timeout_ms", "5s", "write 5000"),
        ("max_block_ms", datetime.timedelta(seconds=2), "write 2000"),
        ("buffer_memory", "32MiB", "write 33554432"),
        ("buffer_memory", 1000, "a whole number of bytes from 1048576"),
        ("batch_size", 2**24, "below 16 MiB"),
        ("compression_type", "zst", "one of 'none', 'gzip', 'snappy', 'lz4', 'zstd'"),
        ("compression_zstd_level", 23, "to 22"),
        ("acks", 2, "'all' (or -1), 1 or 0"),
        ("acks", True, "'all' (or -1), 1 or 0"),
        ("enable_idempotence", "yes", "True or False"),
        ("runtime_dir", "relative", "an absolute path"),
        ("partitioner", "murmur2_random", "the 'module:name' of one; without it keys are hashed"),
        ("partitioner", "module:", "a callable of (key, all_partitions, available)"),
        ("partitioner", 5, "a callable of (key, all_partitions, available)"),
        ("client_id", "", "printable text"),
        ("client_id", "a\nb", "printable text"),
        ("client_id", "ü" * 128, "1 to 255 bytes"),
        ("client_id", "x" * 32_768, "1 to 255 bytes"),  # an int16 counts it on the wire
        ("linger_ms", "9" * 5_000, "whole number"),
        ("linger_ms", "1_0", "whole number"),
        ("bootstrap_servers", "", "at least one"),
        ("bootstrap_servers", 9092, "expected text such as"),
        ("bootstrap_servers", "k1:port", "from 1 to 65535"),
        ("bootstrap_servers", "k1:0", "from 1 to 65535"),
        ("bootstrap_servers", "::1:9092", "put an IPv6 address in brackets"),
        ("bootstrap_servers", "http://k1:9092", "protocol 'http' is not supported yet"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(
    name: str, value: object, expected: str
) -> None:
    for spelt in (name, dotted(name)):
        with pytest.raises(ConfigError) as found:
            Config.from_user({spelt: value}, {} if name in SERVER else SERVER)
        assert str(found.value).startswith(f"{spelt}=")
        assert expected in str(found.value)


def test_a_password_in_a_server_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match="do not belong there") as found:
        mpproducer.Producer(bootstrap_servers="me:secret-word@k1:9092")
    assert "secret-word" not in str(found.value)


# --- contradictions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"enable_idempotence": True, "acks": 1}, "it needs acks='all'"),
        ({"enable_idempotence": True, "retries": 0}, "retries of 1 or more"),
        (
            {"enable_idempotence": True, "max_in_flight_requests_per_connection": 6},
            "max_in_flight_requests_per_connection of 5 or less",
        ),
        ({"delivery_timeout_ms": 30_004}, "give delivery_timeout_ms=30005 or more"),
        ({"retry_backoff_ms": 20, "retry_backoff_max_ms": 10}, "raise the second or lower"),
        ({"buffer_memory": 2**20, "max_request_size": 2**21}, "would never fit"),
        ({"buffer_memory": 2**20, "batch_size": 2**20}, "is more than half of buffer_memory"),
    ],
)
def test_C2_keys_that_contradict_each_other_are_an_error(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**values)


def test_one_key_in_two_spellings_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"linger\.ms and linger_ms are given with different"):
        Config.from_user({"linger.ms": 3}, SERVER | {"linger_ms": 2})


IN_FLIGHT = "max_in_flight_requests_per_connection"


@pytest.mark.parametrize("given", [None, True, False])
@pytest.mark.parametrize("acks", ["all", 1, 0])
@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("in_flight", [1, 5, 6])
def test_C1_what_idempotence_needs_is_an_error_if_it_was_asked_for_and_switches_it_off_if_not(
    given: bool | None,
    acks: object,
    retries: int,
    in_flight: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    values: dict[str, Any] = {"acks": acks, "retries": retries, IN_FLIGHT: in_flight}
    wrong = [
        name
        for name, bad in (("acks", acks != "all"), ("retries", not retries),
                          (IN_FLIGHT, in_flight > 5))
        if bad
    ]  # fmt: skip
    if given is not None:
        values["enable_idempotence"] = given
    if given and wrong:
        with pytest.raises(ConfigError) as error:
            config(**values)
        assert all(f"{name}=" in str(error.value) for name in wrong)
        return
    found = config(**values)
    assert found.enable_idempotence == (given is not False and not wrong)
    assert ("idempotence is off because of" in caplog.text) == (given is None and bool(wrong))
    assert (found.acks, found.retries) == (-1 if acks == "all" else acks, retries)


@pytest.mark.parametrize("name", ["send_buffer_bytes", "receive_buffer_bytes"])
def test_C3_a_socket_buffer_is_a_size_or_minus_one_for_the_systems(name: str) -> None:
    assert getattr(config(**{name: -1}), name) == -1
    assert getattr(config(**{name: 0}), name) == 0
    with pytest.raises(ConfigError, match=f"{name}=-2 is not valid.*from -1"):
        config(**{name: -2})


@pytest.mark.parametrize(
    "values", [{"acks": 1}, {"retries": 0}, {"max_in_flight_requests_per_connection": 6}]
)
def test_idempotence_that_is_only_the_default_gives_way_with_a_warning(
    values: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert config().enable_idempotence
    with caplog.at_level(logging.WARNING, "mpproducer.config"):
        assert not config(**values).enable_idempotence
    assert "idempotence is off because of" in caplog.text
    caplog.clear()
    config(**values, enable_idempotence=False)
    assert not caplog.text


def test_C2_a_delivery_timeout_that_is_only_the_default_is_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert config(request_timeout_ms=200_000).delivery_timeout_ms == 200_005
    assert "delivery_timeout_ms is raised" in caplog.text


def test_a_reconnect_backoff_alone_is_constant() -> None:
    found = config(reconnect_backoff_ms=2_000)
    assert (found.reconnect_backoff_ms, found.reconnect_backoff_max_ms) == (2_000, 2_000)


# --- on its way


def test_a_configuration_survives_the_wire_and_pickling() -> None:
    found = config(linger_ms=9, acks=0, enable_idempotence=False, runtime_dir="/tmp/there")
    assert Config.from_wire(found.to_wire()) == found
    assert pickle.loads(pickle.dumps(found)) == found
    broken: list[object] = [None, [], {}, found.to_wire() | {"more": 1}]
    for wire in broken:
        with pytest.raises(ConfigError, match="every key once"):
            Config.from_wire(wire)


def test_a_configuration_never_changes() -> None:
    found = config(linger_ms=9)
    with pytest.raises(AttributeError, match="never changes: linger_ms"):
        found.linger_ms = 10
    assert found.linger_ms == 9
    assert {found: 1}[config(linger_ms=9)] == 1
    assert found != config(linger_ms=10)
    assert found != 9


def test_a_partitioner_is_taken_along_by_pickle_alone() -> None:
    """The sender does not want it: text may pass, a callable stays here."""
    by_name = config(partitioner="json.decoder:JSONDecoder.decode")
    assert Config.from_wire(by_name.to_wire()) == by_name
    assert by_name.load_partitioner() is json.decoder.JSONDecoder.decode
    own = config(partitioner=max)
    assert Config.from_wire(own.to_wire()) == config()
    assert pickle.loads(pickle.dumps(own)) == own
    assert own.load_partitioner() is max
    assert config().load_partitioner() is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("no_such_module_zzz:f", "cannot be imported: No module named"),
        ("json:no_such_name", "cannot be imported: .*has no attribute 'no_such_name'"),
        ("json:__name__", "is a str, not a callable"),
    ],
)
def test_a_partitioner_that_cannot_be_imported_is_an_error_that_names_it(
    given: str, why: str
) -> None:
    with pytest.raises(ConfigError, match=f"partitioner='{given}' {why}"):
        mpproducer.Producer(SERVER | {"partitioner": given})


def test_who_shares_a_sender() -> None:
    base = config(bootstrap_servers="k1:9092,k2:9092")
    assert (
        base.sender_key()
        == config(bootstrap_servers="k1:9092,k2:9092", partitioner=max).sender_key()
    )
    for name in ("max_block_ms", "close_timeout_ms", "sender_start_timeout_ms"):
        assert KEYS[name].worker_only
        assert (
            base.sender_key()
            == config(bootstrap_servers="k2:9092,k1:9092", **{name: 1234}).sender_key()
        )
    for values in ({"linger_ms": 6}, {"client_id": "other"}, {"bootstrap_servers": "k1:9092"}):
        assert base.sender_key() != config(**values).sender_key()
