"""Every table in every version against encoders that were made from Kafka's own schemas."""

from __future__ import annotations

import random

import pytest

from mpproducer.wire.messages import APIS
from mpproducer.wire.schema import Schema
from tests.wire import peers

# kafka-python has sets where Kafka's Metadata response has integers of bits; Java judges that one.
SCHEMAS = [schema for schema in peers.schemas() if schema.name != "MetadataResponse"]


@pytest.mark.parametrize("schema", SCHEMAS, ids=[schema.name for schema in SCHEMAS])
def test_bytes_are_those_of_kafka_python_in_every_version(
    schema: Schema, rng: random.Random
) -> None:
    for case in peers.cases(rng, 20, [schema]):
        theirs = peers.kafka_python(case)
        assert case.schema.encode(case.version, case.message) == theirs, case.name


def test_bytes_are_those_of_the_java_client_in_every_version(rng: random.Random) -> None:
    given = peers.cases(rng, 12)
    theirs = peers.java(given)
    assert len(theirs) == len(given)
    for case, data in zip(given, theirs, strict=True):
        assert case.schema.encode(case.version, case.message) == data, case.name


def test_what_was_encoded_is_decoded_with_the_defaults_of_what_is_absent(
    rng: random.Random,
) -> None:
    for case in peers.cases(rng, 10):
        data = case.schema.encode(case.version, case.message)
        assert peers.plain(case.schema.decode(case.version, data)) == case.whole(), case.name


def test_the_versions_that_a_producer_needs_are_those_of_kafka_4_3() -> None:
    versions = {api.name: api.versions for api in APIS.values()}
    assert versions["Produce"] == (3, 13)
    assert versions["Metadata"] == (0, 13)
    assert versions["ApiVersions"] == (0, 4)
    assert versions["CreateTopics"] == (2, 7)
    # v6 is two-phase commit's (KIP-939), which a producer never asks for.
    assert versions["InitProducerId"] == (0, 5)
