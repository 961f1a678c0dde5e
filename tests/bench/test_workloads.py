"""Every workload, tiny, against the embedded broker or the sink: it works, and it counts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as command
from bench import pictures, report
from bench.config import Options, Result
from bench.fleet import RunFailed
from bench.host import TOPIC, Host, Stopwatch
from bench.target import Cluster, SinkTarget
from bench.workloads import WORKLOADS, Case, stations
from bench.workloads.saturation import _records
from mpproducer.testing import BrokerProcess

TINY = Options(
    rounds=1, seconds=0.4, records=4_000, processes=(1, 2), rates=(400,), idle_processes=2,
    wide_partitions=40, quick=True,
)  # fmt: skip
MINE = ("mpproducer", "confluent")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with BrokerProcess() as broker:
        yield Cluster(broker.bootstrap_servers)
        assert not broker.malformed, broker.malformed


def cases(name: str) -> list[Case]:
    return WORKLOADS[name].cases(TINY)


def run(case: Case, cluster: Cluster | None, clients: tuple[str, ...]) -> dict[str, Result]:
    found: dict[str, Result] = {}
    for client in clients:
        assert client in case.clients
        if case.sink_partitions:
            with SinkTarget(case.sink_partitions, case.sink_spin_ms) as sink:
                found[client] = case.run(client, sink, TINY, found)
        else:
            assert cluster is not None
            found[client] = case.run(client, cluster, TINY, found)
    return found


def test_saturation_gives_rate_cpu_and_bytes_of_every_client(cluster: Cluster) -> None:
    python = ("mpproducer", "mpproducer-kept", "mpproducer-many", "mpproducer-columns", *MINE[1:],
              "confluent-batch", "kafka-python", "aiokafka", "aiokafka-batch", "queue")  # fmt: skip
    found = run(cases("saturation")[0], cluster, python)
    for client, figures in found.items():
        assert figures["records_per_s"] > 0, client
        assert figures["client_cpu_ns"] > 0, client
        assert figures["broker_cpu_ns"] > 0, client
        if client != "queue":  # nobody counts its traffic
            # A record of 100 B and its framing; not compressed.
            assert 104 < figures["wire_bytes"] < 140, (client, figures["wire_bytes"])
            assert figures["requests_per_1000"] > 0, client
    split = found["mpproducer"]
    assert split["client_cpu_ns"] == pytest.approx(split["worker_cpu_ns"] + split["sender_cpu_ns"])
    assert "sender_cpu_ns" not in found["confluent"]


def test_several_workers_send_keyed_and_compressed(cluster: Cluster) -> None:
    case = cases("saturation")[1]
    assert "zstd, keyed, 2 workers" in case.label
    found = run(case, cluster, MINE)
    for figures in found.values():
        assert 0 < figures["wire_bytes"] < 80


def test_contention_counts_the_races_of_the_workers() -> None:
    found = run(cases("contention")[1], None, ("mpproducer", "mpproducer-many"))
    for figures in found.values():
        assert figures["worker_cpu_ns"] > 0
        assert figures["lost_races"] >= 0
        assert 0 < figures["batch_kib"] <= 256
    alone = run(cases("contention")[0], None, ("mpproducer",))["mpproducer"]
    assert alone["lost_races"] == alone["spreads"] == 0


def test_fixed_rate_counts_connections_and_the_cost_of_the_generator(cluster: Cluster) -> None:
    found = run(cases("fixed-rate")[1], cluster, ("nothing", *MINE))
    for client in MINE:
        figures = found[client]
        assert figures["client_cpu_net_us"] == pytest.approx(
            figures["client_cpu_us"] - found["nothing"]["client_cpu_us"]
        )
        assert 0 < figures["latency_p50_us"] <= figures["latency_p99_us"]
        assert figures["requests_per_s"] > 0
        assert figures["late_ms"] >= 0
    # One broker, two processes: one sender against two producers.
    assert found["mpproducer"]["connections"] == 1
    assert found["confluent"]["connections"] == 2


def test_throughput_compares_with_raw_sendmsg_of_the_same_requests() -> None:
    clients = ("sendmsg", "sendmsg-crc", "sendmsg-own", "mpproducer-filled", "mpproducer-many")
    found = run(cases("throughput")[0], None, clients)
    assert set(found) == set(clients)
    for client, figures in found.items():
        assert figures["mb_per_s"] > 0, client
        assert figures["sender_ns_per_kib"] > 0, client
    assert found["mpproducer-many"]["worker_ns_per_kib"] > 0


def test_one_record_at_a_time_gives_quantiles(cluster: Cluster) -> None:
    found = run(cases("single")[0], cluster, ("mpproducer", "confluent", "aiokafka"))
    for figures in found.values():
        assert 0 < figures["latency_p50_us"] <= figures["latency_p99_us"]


def test_cold_worker_is_timed_with_and_without_a_running_sender(cluster: Cluster) -> None:
    case = cases("cold")[0]
    found = run(case, cluster, ("bare python", "mpproducer", "mpproducer, no sender yet"))
    warm, cold = found["mpproducer"], found["mpproducer, no sender yet"]
    # It found the running sender: that one's memory was looked at while it worked.
    assert warm["segment_kib"] > 0 and warm["sender_uss_kib"] > 0
    assert "segment_kib" not in cold
    for figures in (warm, cold):
        assert figures["first_ack_ms"] > 0
        assert figures["cold_ms"] >= figures["import_ms"] + figures["first_ack_ms"]


def test_idle_workers_are_watched(cluster: Cluster) -> None:
    found = run(cases("idle")[0], cluster, ("nothing", "mpproducer"))
    for figures in found.values():
        assert figures["worker_wakeups_per_s"] >= 0
        assert figures["uss_kib"] > 1000
    assert found["mpproducer"]["connections"] == 1


def test_wide_trickle_reaches_all_partitions() -> None:
    narrow, wide = cases("wide")
    assert "40 partitions" in wide.label
    found = run(wide, None, ("mpproducer",))
    assert found["mpproducer"]["records_per_s"] > 0
    assert found["mpproducer"]["segment_kib"] > 0
    assert narrow.sink_partitions == 12


def test_stations_of_the_worker_have_a_figure_each() -> None:
    case = cases("stations")[0]
    found = run(case, None, ("mpproducer", "floor"))
    assert found["mpproducer"].keys() <= report.FIGURES.keys()
    assert found["floor"].keys() >= {n for n in found["mpproducer"] if "send" in n or "many" in n}
    for figures in found.values():
        assert min(figures.values()) > 0, figures


def test_stations_of_the_sender_add_up_to_what_it_costs() -> None:
    found = run(cases("stations")[1], None, ("mpproducer", "floor"))
    mine = found["mpproducer"]
    assert mine.keys() <= report.FIGURES.keys()
    assert 200 < mine["st_batch_kib"] < 260, "the batches were full"
    parts = [mine[f"st_{name}_us"] for name in stations.SENDER_STATIONS]
    assert min(parts) >= 0
    # Medians do not add up by themselves.
    assert sum(parts) == pytest.approx(mine["st_sender_us"], rel=0.5)
    per_batch = mine["st_sender_us"] * 1000 / mine["st_record_ns"]
    assert 2_000 < per_batch < 2_700, "records of 100 B in a batch of 256 KiB"
    assert set(found["floor"]) == {"st_freeze_us", "st_sendmsg_us"}
    assert min(found["floor"].values()) > 0


def test_stations_of_a_record_alone_are_the_same_warm_and_cold() -> None:
    found = run(cases("stations")[2], None, ("warm", "cold"))
    assert found["warm"].keys() == found["cold"].keys() <= report.FIGURES.keys()
    for figures in found.values():
        for name in ("collect", "freeze", "machine", "encode", "sendmsg", "answer", "pipe"):
            assert figures[f"st_{name}_us"] > 0, name


def test_a_host_of_one_process_sends_to_the_sink() -> None:
    with SinkTarget(12) as sink:
        with closing(Host(sink.bootstrap, 12, linger_ms=0)) as host:
            before = sink.counts()
            futures = [host.producer.send(TOPIC, b"v", partition=n % 12) for n in range(100)]
            host.watch.spent_ns.clear()
            host.finish()
            offsets = [future.result(0).offset for future in futures]
            spent = dict(host.watch.spent_ns)
        after = sink.counts()
    assert before is not None and after is not None
    assert after["records"] - before["records"] == 100
    assert after["batches"] - before["batches"] == 12
    assert len(offsets) == 100
    assert set(stations.SENDER_STATIONS) <= spent.keys(), "every station was passed"


def test_a_station_inside_another_one_is_counted_once() -> None:
    watch = Stopwatch()

    def spin() -> None:
        until = time.thread_time_ns() + 20_000_000
        while time.thread_time_ns() < until:
            pass

    inner = watch.timed("inner", spin)
    outer = watch.timed("outer", lambda: [inner() for _ in range(2)])
    outer()
    assert watch.spent_ns["inner"] >= 39_000_000
    assert abs(watch.spent_ns["outer"]) < 10_000_000


def test_a_workload_is_added_to_an_older_run(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    older = {"title": "S", "cases": []}
    out.write_text(json.dumps({"started": "long ago", "workloads": {"saturation": older}}))
    arguments = ["stations", "--quick", "--rounds", "1", "--add", "--out", str(out)]
    assert command.main(arguments) == 0
    found = json.loads(out.read_text())
    assert found["started"] == "long ago"
    assert found["workloads"]["saturation"] == older
    added = found["workloads"]["stations"]
    assert added["run"]["rounds"] == 1 and added["run"]["started"] != "long ago"
    text = pictures.filled("<!-- bench:stations -->\n<!-- /bench -->", found)
    assert f"1 round, {added['run']['started']}." in text
    assert "| freeze: seal, walk, CRC; 0 copies, read once (us) |" in text


def test_a_client_that_fails_has_no_figures_and_stops_nobody() -> None:
    case = cases("saturation")[0]
    dead = Cluster("127.0.0.1:1")
    dead.topic = lambda partitions: "t"  # type: ignore[method-assign]
    dead.drop = lambda topic: None  # type: ignore[method-assign]
    row: dict[str, Any] = {"results": {}, "failed": {}}

    def failing(client: str, *_rest: object) -> Result:
        if client == "confluent":
            raise RunFailed("as it was told")
        return {"records_per_s": 1.0}

    two = Case(case.label, MINE, failing)
    command._round(two, row, 0, dead, TINY, {})
    assert row["results"] == {"mpproducer": {"records_per_s": [1.0]}}
    assert row["failed"] == {"confluent": "round 1: as it was told"}


def test_the_order_of_clients_changes_from_round_to_round() -> None:
    order: list[str] = []

    def note(client: str, *_rest: object) -> Result:
        order.append(client)
        return {}

    case = Case("", ("nothing", "a", "b", "c"), note)
    target = SinkTarget.__new__(SinkTarget)
    for round_ in range(3):
        command._round(case, {"results": {}, "failed": {}}, round_, target, TINY, {})
    assert order == ["nothing", "a", "b", "c", "nothing", "b", "c", "a", "nothing", "c", "a", "b"]


def test_slow_clients_and_large_records_get_shorter_runs() -> None:
    many = Options(records=1_000_000)
    assert _records("mpproducer", many, 100) == 1_000_000
    assert _records("kafka-python", many, 100) == 50_000
    assert _records("mpproducer", many, 10_000) * 10_000 <= 400_000_000


def test_the_command_refuses_unknown_names_and_lists_its_cases(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        command.main(["no-such-workload"])
    assert "'no-such-workload' is no workload" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--clients", "nobody"])
    assert "'nobody' is no client" in capsys.readouterr().err
    assert command.main(["--list", "--out", str(tmp_path / "none.json")]) == 0
    shown = capsys.readouterr().out
    for name in WORKLOADS:
        assert f"{name}: " in shown
    assert "64 processes" in shown and "10 kB" in shown


def test_the_command_runs_a_cluster_that_was_named_and_writes_json(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    arguments = ["single", "--bootstrap-servers", cluster.bootstrap, "--quick", "--rounds", "2"]
    arguments += ["--records", "2000", "--clients", "mpproducer", "--out", str(out)]
    assert command.main(arguments) == 0
    found = json.loads(out.read_text())
    (case,) = found["workloads"]["single"]["cases"]
    assert len(case["results"]["mpproducer"]["latency_p50_us"]) == 2
    assert case["setup"]["acks"] == "all"
    shown = capsys.readouterr().out
    assert "time to acknowledgement, p50" in shown and "idempotence=True" in shown
