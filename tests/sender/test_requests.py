"""Versions and messages at the seam to the wire."""

from __future__ import annotations

from typing import Any

import pytest

from mpproducer.sender import requests
from mpproducer.wire import framing
from mpproducer.wire.produce import ProduceResponse


def test_a_version_is_usable_when_both_sides_have_it() -> None:
    theirs = {0: (5, 99), 3: (0, 4), 18: (0, 3), 22: (6, 9), 1: (0, 9)}
    common = requests.usable(theirs)
    assert common == {0: (5, 12), 3: (4, 4), 18: (0, 3)}
    assert requests.version_of(common, 0) == 12
    assert requests.version_of(common, 22) == -1


def test_every_supported_version_can_be_encoded() -> None:
    messages: dict[int, Any] = {
        3: requests.metadata(["t", "u"], auto_create=True),
        18: requests.api_versions(),
        22: requests.init_producer_id(),
    }
    for api_key, message in messages.items():
        low, high = requests.SUPPORTED[api_key]
        for version in range(low, high + 1):
            frame = framing.encode_request(framing.api_of(api_key), version, 7, "client", message)
            assert int.from_bytes(frame[:4], "big") == len(frame) - 4
            assert frame[4:12] == bytes([0, api_key, 0, version, 0, 0, 0, 7])


@pytest.mark.parametrize(("api_key", "first"), [(0, 6), (3, 6), (18, 2), (22, 1)])
def test_N8_the_client_throttles_from_the_version_on_that_says_so(api_key: int, first: int) -> None:
    assert not requests.client_throttles(api_key, first - 1)
    assert requests.client_throttles(api_key, first)
    assert not requests.client_throttles(99, 50)


def test_throttle_time_of_any_answer() -> None:
    assert requests.throttle_ms(ProduceResponse([], 17, ())) == 17
    assert requests.throttle_ms({"throttle_time_ms": 5}) == 5
    assert requests.throttle_ms({}) == 0


def _message(**over: Any) -> dict[str, Any]:
    part = {"error_code": 0, "partition_index": 3, "leader_id": 1, "leader_epoch": 8}
    row = {"error_code": 0, "name": "t", "topic_id": b"x" * 16, "partitions": [part]}
    return {"brokers": [{"node_id": 1, "host": "h", "port": 9}], "topics": [row]} | over


def test_M7_leader_epochs_are_believed_from_metadata_9_on() -> None:
    for version, epoch in ((8, -1), (9, 8), (12, 8)):
        answer = requests.metadata_answer(_message(), version)
        assert answer.topics[0].partitions[0].leader_epoch == epoch
        assert answer.brokers == (requests.BrokerInfo(1, "h", 9),)


def test_a_metadata_answer_without_the_newer_fields_has_their_defaults() -> None:
    message = _message()
    del message["topics"][0]["topic_id"]
    message["topics"][0]["name"] = None
    answer = requests.metadata_answer(message, 12)
    assert (answer.error_code, answer.topics[0].name) == (0, "")
    assert answer.topics[0].topic_id == requests.NO_TOPIC_ID
    assert requests.metadata_answer(_message(error_code=129), 12).error_code == 129


def test_what_is_read_of_api_versions_and_init_producer_id() -> None:
    rows = [{"api_key": 3, "min_version": 1, "max_version": 9}]
    assert requests.api_ranges({"error_code": 35, "api_keys": rows}) == (35, {3: (1, 9)})
    message = {"error_code": 0, "producer_id": 2**40, "producer_epoch": 3}
    assert requests.producer_id(message) == (0, 2**40, 3)


def test_a_lost_request_gives_its_batches_a_result() -> None:
    result = requests.lost(13, "reset")
    assert (result.error_code, result.error_message, result.base_offset) == (13, "reset", -1)
