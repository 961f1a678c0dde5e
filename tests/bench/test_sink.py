"""The instant-ack sink: every client takes it for a broker, and it counts what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.config import Setup
from bench.fleet import Fleet, RunFailed
from bench.payload import events, keyed, values
from bench.target import Cluster, SinkTarget
from bench.workloads.saturation import _go, _prepare, traffic


@pytest.mark.parametrize("client", ["mpproducer", "confluent", "kafka-python", "aiokafka"])
def test_sink_counts_what_a_client_sends(client: str) -> None:
    with SinkTarget(4) as sink:
        setup = Setup(sink.bootstrap, sink.topic(4), 4)
        with Fleet(client, setup, 2) as fleet:
            fleet.run(_prepare, 100, 500, True)
            before, told = sink.counts(), traffic(fleet)
            acked = sum(fleet.run(_go, True)) - 2 * (1 + 25)
            after, now = sink.counts(), traffic(fleet)
        assert before is not None and after is not None
        assert told is not None and now is not None
        assert acked == 1000
        assert after["records"] - before["records"] == 1000
        assert after["producer_ids"] == (1 if client == "mpproducer" else 2)
        # What the client says of itself is what came in.
        assert now[0] - told[0] == after["requests"] - before["requests"]
        assert now[1] - told[1] == pytest.approx(after["bytes"] - before["bytes"], abs=1000)


def _boom(_client: Any) -> None:
    raise ValueError("told to fail")


def _die(_client: Any) -> None:
    import os

    os._exit(3)


@pytest.mark.parametrize(("task", "told"), [(_boom, "told to fail"), (_die, "died")])
def test_a_worker_that_fails_or_dies_ends_the_run_with_a_reason(
    task: Callable[[Any], None], told: str
) -> None:
    setup = Setup("127.0.0.1:1", "t", 1)
    with pytest.raises(RunFailed, match=told), Fleet("nothing", setup, 2) as fleet:
        fleet.run(task)


def test_payloads_have_the_size_and_the_entropy_that_was_asked() -> None:
    import zlib

    for size in (100, 1_000, 10_000):
        made = values(size, 500)
        assert {len(value) for value in made} == {size}
        joined = b"".join(made[:100])
        assert 2 < len(joined) / len(zlib.compress(joined)) < 12
    assert len({key for _value, key in keyed(100, 5_000)}) > 1_000
    sizes = [len(value) for value, _key in events(2_000, 3)]
    assert min(sizes) >= 75 and max(sizes) <= 300
    assert events(50, 4) == events(50, 4) != events(50, 5)


@pytest.mark.kafka_real
@pytest.mark.xdist_group("kafka")
def test_a_real_broker_tells_how_many_producer_ids_wrote_to_a_topic(kafka: str) -> None:
    target = Cluster(kafka)
    for client, ids in (("mpproducer", 1), ("confluent", 2)):
        topic = target.topic(3)
        try:
            with Fleet(client, Setup(target.bootstrap, topic, 3), 2) as fleet:
                fleet.run(_prepare, 100, 100, True)
                assert target.producer_ids(topic, 3) == ids
        finally:
            target.drop(topic)
