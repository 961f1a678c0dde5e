"""The core's decoder of Produce responses: what the tables say, and what the reference in plain
Python says of every change of a sound one, to the word of its error."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpproducer._core import native
from mpproducer.sender.codec import decode_produce_response
from mpproducer.wire import framing
from mpproducer.wire.codec import ProtocolError
from mpproducer.wire.messages import PRODUCE
from mpproducer.wire.produce import PartitionResult, ProduceResponse
from tests.conftest import grown_bytes
from tests.wire import peers, produce_reference
from tests.wire.test_fuzz import mutated

VERSIONS = range(PRODUCE.versions[0], PRODUCE.versions[1] + 1)


def _outcome(
    decode: Callable[[bytes, int, int], ProduceResponse], frame: bytes, version: int
) -> Any:
    try:
        return decode(frame, version, 3)
    except ProtocolError as error:
        return str(error)


def _same(frame: bytes, version: int) -> bool:
    """Whether it was taken; both decoders say the same of it."""
    ours = _outcome(decode_produce_response, frame, version)
    assert ours == _outcome(produce_reference.decode_produce_response, frame, version)
    return not isinstance(ours, str)


def _answers(rng: random.Random, version: int, count: int) -> list[peers.Case]:
    return [case for case in peers.cases(rng, count, [PRODUCE.response]) if case.version == version]


@pytest.mark.parametrize("version", VERSIONS)
def test_answers_say_what_the_table_reads_in_them(version: int, rng: random.Random) -> None:
    for case in _answers(rng, version, 20):
        frame = framing.encode_response(PRODUCE, version, 3, case.message)[4:]
        told = decode_produce_response(frame, version, 3)
        message = case.whole()
        assert told.throttle_time_ms == message["throttle_time_ms"]
        endpoints = [(e["node_id"], e["host"], e["port"]) for e in message["node_endpoints"]]
        assert list(told.node_endpoints) == endpoints
        assert len(told.topics) == len(message["topics"])
        for (name, results), topic in zip(told.topics, message["topics"], strict=True):
            assert name == topic["topic_id" if version >= 13 else "name"]
            assert results == [_result(p) for p in topic["partitions"]]


def _result(partition: Any) -> PartitionResult:
    leader = (partition["current_leader"]["leader_id"], partition["current_leader"]["leader_epoch"])
    return PartitionResult(
        partition["index"],
        partition["error_code"],
        partition["base_offset"],
        partition["log_append_time_ms"],
        partition["log_start_offset"],
        tuple((e["batch_index"], e["message"]) for e in partition["record_errors"]),
        partition["error_message"],
        None if leader == (-1, -1) else leader,
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_an_answer_cut_short_or_too_long_or_to_another_request_is_refused(
    version: int, rng: random.Random
) -> None:
    message = next(c.message for c in _answers(rng, version, 50) if len(c.message["topics"]) > 1)
    frame = framing.encode_response(PRODUCE, version, 3, message)[4:]
    decode_produce_response(frame, version, 3)
    for end in range(len(frame)):
        with pytest.raises(ProtocolError):
            decode_produce_response(frame[:end], version, 3)
    with pytest.raises(ProtocolError, match="1 bytes too many"):
        decode_produce_response(frame + b"\0", version, 3)
    with pytest.raises(ProtocolError, match="response to request 3 where 4 was expected"):
        decode_produce_response(frame, version, 4)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_changed_answer_is_read_or_refused_as_the_reference_does(
    version: int, rng: random.Random
) -> None:
    taken = refused = 0
    for case in _answers(rng, version, 20):
        frame = framing.encode_response(PRODUCE, version, 3, case.message)[4:]
        assert _same(frame, version)
        for _ in range(60):
            if _same(mutated(rng, frame), version):
                taken += 1
            else:
                refused += 1
    assert taken > 0
    assert refused > 100


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=120), st.sampled_from(VERSIONS))
def test_any_bytes_are_read_or_refused_as_the_reference_does(data: bytes, version: int) -> None:
    _same(data, version)
    _same(b"\0\0\0\3\0" + data, version)


def test_a_count_takes_no_memory_before_its_elements_are_there() -> None:
    size = 8 << 20  # as many elements could be there, of a byte each
    frame = b"\0\0\0\3\0" + b"\x81\x80\x80\x04" + bytes(size)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode_produce_response(frame, 9, 3)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_version_nobody_speaks_and_wrong_types_are_errors_of_the_caller() -> None:
    for version in (2, 14, -1):
        with pytest.raises(ValueError, match="is not spoken here"):
            decode_produce_response(b"", version, 3)
    with pytest.raises(TypeError, match="named tuples"):
        native.produce_decode(b"", 9, 3, dict, PartitionResult, ProtocolError)


def test_nothing_leaks_from_answers_that_are_taken_or_refused(rng: random.Random) -> None:
    frames = []
    for case in peers.cases(rng, 10, [PRODUCE.response]):
        frame = framing.encode_response(PRODUCE, case.version, 3, case.message)[4:]
        frames += [(frame, case.version)]
        frames += [(mutated(rng, frame), case.version) for _ in range(10)]

    def all_of_them() -> None:
        for frame, version in frames:
            _outcome(decode_produce_response, frame, version)

    assert grown_bytes(all_of_them, max(1, 30_000 // len(frames))) < 30_000
