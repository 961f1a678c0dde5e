"""A broker that does not lead a partition: what it says, and where it sends the client."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from mpproducer.testing import Broker
from mpproducer.wire import error_codes as codes
from mpproducer.wire.messages import PRODUCE
from tests.probes import batches as b
from tests.probes.client import Raw

KAFKA = pytest.param("kafka3", marks=[pytest.mark.kafka_real, pytest.mark.xdist_group("kafka")])


@pytest.fixture(scope="module")
def embedded3() -> Iterator[str]:
    with Broker(brokers=3) as broker:
        yield broker.bootstrap_servers


@pytest.fixture(params=["embedded3", KAFKA])
def servers3(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def test_every_produce_version_names_the_leader_as_far_as_it_can(servers3: str) -> None:
    name = f"probe-{uuid.uuid4().hex}"
    with Raw(servers3) as raw:
        topic = raw.create(name, partitions=3, wait=False)
        found = raw.led(topic, 3)
        addresses = {n["node_id"]: f"{n['host']}:{n['port']}" for n in found["brokers"]}
        partition = found["topics"][0]["partitions"][0]
        number, leader = partition["partition_index"], partition["leader_id"]
        other = next(node for node in addresses if node != leader)
    with Raw(addresses[other]) as raw:
        for version in range(PRODUCE.versions[0], PRODUCE.versions[1] + 1):
            raw.send_produce(version, {topic: [(number, b.sound())]})
            response = raw.produce_response(version)
            ((_name, (result,)),) = response.topics
            assert result.error_code == codes.NOT_LEADER_OR_FOLLOWER
            assert (result.base_offset, result.log_start_offset) == (-1, -1)
            told = {node: f"{host}:{port}" for node, host, port in response.node_endpoints}
            if version >= 10:
                assert result.leader == (leader, partition["leader_epoch"])
                assert told == {leader: addresses[leader]}
            else:
                assert (result.leader, told) == (None, {})
    with Raw(addresses[leader]) as raw:
        assert raw.produce(topic, b.sound(), partition=number).error_code == 0
        raw.delete(name)
