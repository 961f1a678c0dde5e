"""Frames: headers as a well-kept client writes them, and answers that answer something else."""

from __future__ import annotations

import random

import pytest
from kafka.protocol.api_header import ResponseHeader

from mpproducer.wire import codec, framing
from mpproducer.wire.codec import ProtocolError
from mpproducer.wire.messages import API_VERSIONS, APIS, METADATA, Api
from tests.wire import peers

ALL = list(APIS.values())


@pytest.mark.parametrize("api", ALL, ids=[api.name for api in ALL])
@pytest.mark.parametrize("client_id", ["mpproducer-é", ""])
def test_request_frames_are_those_of_kafka_python(
    api: Api, client_id: str, rng: random.Random
) -> None:
    for case in peers.cases(rng, 4, [api.request]):
        number = rng.getrandbits(31)
        theirs = peers.kafka_python_message(case)
        theirs.with_header(correlation_id=number, client_id=client_id)
        whole = bytes(theirs.encode(version=case.version, header=True, framed=True))
        ours = framing.encode_request(api, case.version, number, client_id, case.message)
        assert ours == whole, case.name
        header, reader = framing.read_request_header(whole[4:])
        assert header == (api.key, case.version, number, client_id)
        assert peers.plain(api.request.read(case.version, reader)) == case.whole()
        assert reader.left() == 0


@pytest.mark.parametrize("api", ALL, ids=[api.name for api in ALL])
def test_response_frames_come_back_with_the_header_their_version_has(
    api: Api, rng: random.Random
) -> None:
    for case in peers.cases(rng, 4, [api.response]):
        frame = framing.encode_response(api, case.version, 77, case.message)
        assert int.from_bytes(frame[:4], "big") == len(frame) - 4
        flexible = case.version >= api.flexible and api is not API_VERSIONS
        header = ResponseHeader(correlation_id=77).encode(flexible=flexible)
        assert frame[4:].startswith(header)
        if api is API_VERSIONS and case.message["error_code"] == 35:
            continue  # those have a v0 body: see below
        found = framing.decode_response(frame[4:], api, case.version, 77)
        assert peers.plain(found) == case.whole(), case.name


def test_no_client_id_is_null() -> None:
    assert framing.request_header(METADATA, 1, 5, None) == b"\0\3\0\1\0\0\0\5\xff\xff"
    assert framing.read_request_header(b"\0\3\0\1\0\0\0\5\xff\xff")[0].client_id is None


def test_an_unsupported_api_versions_request_is_answered_in_version_0() -> None:
    message = {"error_code": 35, "api_keys": [{"api_key": 18, "min_version": 0, "max_version": 2}]}
    frame = framing.encode_response(API_VERSIONS, 0, 9, message)
    found = framing.decode_response(frame[4:], API_VERSIONS, 4, 9)
    assert found["error_code"] == 35
    assert found["api_keys"] == message["api_keys"]


def test_an_answer_to_another_request_is_refused() -> None:
    frame = framing.encode_response(METADATA, 9, 8, {})
    with pytest.raises(ProtocolError, match="response to request 8 where 9 was expected"):
        framing.decode_response(frame[4:], METADATA, 9, 9)


def test_bytes_behind_an_answer_are_refused() -> None:
    frame = framing.encode_response(METADATA, 9, 8, {}) + b"\0"
    with pytest.raises(ProtocolError, match="Metadata v9 response has 1 bytes too many"):
        framing.decode_response(frame[4:], METADATA, 9, 8)


def test_an_api_that_is_not_spoken_is_refused() -> None:
    with pytest.raises(ProtocolError, match="API 9999 is not spoken here"):
        framing.api_of(9999)
    assert framing.api_of(3) is METADATA


def test_a_client_id_no_header_can_hold_is_one_clear_error() -> None:
    with pytest.raises(ProtocolError, match="40000 bytes"):
        framing.request_header(METADATA, 1, 5, "x" * 40000)
    assert codec.MAX_STRING_BYTES == 32767
