"""The promises of one run against the logs: who was told what, and what is really there.

The rules carry the ids of the checker of fault tests (K1, K3, ...): see `check`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpproducer.sender.actions import Kind
from tests.sim.world import Violation

if TYPE_CHECKING:
    from tests.sim.log import SimLog
    from tests.sim.simulation import Simulation
    from tests.sim.workers import Record

_ALL = -1


def check(simulation: Simulation) -> None:
    """Raise Violation, naming the rule, unless every promise was kept."""
    found: dict[int, list[tuple[SimLog, int]]] = {}
    for log in simulation.brokers.logs:
        for offset, number in log.ids():
            found.setdefault(number, []).append((log, offset))
    for record in simulation.memory.records:
        if record.batch is None:
            if record.number in found:
                raise Violation(f"K2: never committed, and yet in the log: {record}")
            continue
        _check_record(simulation, record, found.get(record.number, []))
    if simulation.config.enable_idempotence:
        for log in simulation.brokers.logs:
            _check_order(simulation, log)
    _check_counters(simulation)


def _check_record(simulation: Simulation, record: Record, places: list[tuple[SimLog, int]]) -> None:
    outcome = record.outcome
    if outcome is None and simulation.closing:
        # The sender ended before it saw the record: the closed pipe tells Unknown.
        return
    if outcome is None:
        raise Violation(f"K9: without an outcome: {record}")
    home = simulation.places[record.index]
    if any((log.topic, log.number) != home for log, _ in places):
        raise Violation(f"K1: in a partition it was not sent to: {record}, {places}")
    config = simulation.config
    if config.enable_idempotence and len({id(log) for log, _ in places}) < len(places):
        raise Violation(f"K4: in the log {len(places)} times: {record}")
    # A log that went with its topic says nothing about the one there is now.
    there = [log for log, _ in places if simulation.brokers.is_current(log)]
    if outcome.kind is Kind.NOT_WRITTEN and there:
        raise Violation(f"K5: told not written, and yet in the log: {record}")
    if outcome.kind is not Kind.ACKED or config.acks == 0:
        return
    if config.acks != _ALL and _was_lost(simulation, record):
        return
    if not places:
        raise Violation(f"K3: acknowledged and not in the log: {record}")
    if record.offset >= 0 and record.offset not in [offset for _, offset in places]:
        raise Violation(f"K3: acknowledged at {record.offset}, found at {places}: {record}")


def _was_lost(simulation: Simulation, record: Record) -> bool:
    """With acks=1 the leader may lose what it acknowledged."""
    return any(record.number in log.lost for log in simulation.brokers.logs)


def _check_order(simulation: Simulation, log: SimLog) -> None:
    if log.again and simulation.config.max_in_flight_requests_per_connection > 1:
        # A topic made anew knows no sequences and may take a later request first. Produce
        # requests name topics, not their ids: no client can prevent it.
        return
    records = simulation.memory.records
    late = _from_older_ids(simulation, log)
    last: dict[int, int] = {}
    latest_append_ns = -1
    for offset, number in log.ids():
        record = records[number]
        if number in late and record.outcome is not None and record.outcome.kind is Kind.UNKNOWN:
            continue
        if number <= last.get(record.worker, -1):
            raise Violation(f"K7: {record} at {offset} stands behind {last[record.worker]}")
        last[record.worker] = number
        acked = record.outcome is not None and record.outcome.kind is Kind.ACKED
        if acked and record.told_ns < latest_append_ns:
            raise Violation(f"K8: {record} at {offset} was told before one in front was sent")
        latest_append_ns = max(latest_append_ns, record.appended_ns)


def _from_older_ids(simulation: Simulation, log: SimLog) -> set[int]:
    """Records in a log behind those of a newer producer id: of a request that a broker carried
    out after its connection was closed. A newer epoch of the same id makes a broker refuse it;
    where the epochs of an id are used up nothing does, and its records were told Unknown."""
    ids = simulation.brokers.producer_ids
    newest = -1
    found: set[int] = set()
    for _, wire in log.entries:
        place = ids.index(wire.producer_id) if wire.producer_id in ids else -1
        if place < newest:
            found.update(wire.ids)
        newest = max(newest, place)
    return found


def _check_counters(simulation: Simulation) -> None:
    """K11: what was told is what was counted."""
    counters = simulation.machine.counters
    told = [r.outcome.kind for r in simulation.memory.records if r.outcome is not None]
    counted = {
        Kind.ACKED: counters.record_acked_total,
        Kind.NOT_WRITTEN: counters.record_not_written_total,
        Kind.UNKNOWN: counters.record_unknown_total,
    }
    for kind, count in counted.items():
        if told.count(kind) != count:
            raise Violation(f"K11: {told.count(kind)} told {kind.name}, {count} counted")
    if counters.record_error_total != counted[Kind.NOT_WRITTEN] + counted[Kind.UNKNOWN]:
        raise Violation(f"K11: {counters.record_error_total} errors counted")
