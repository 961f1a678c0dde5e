"""Faults that come by themselves, and the healing of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mpproducer.sender.batch import NO_SEQUENCE
from mpproducer.sender.partition import Partition
from mpproducer.sender.retry import MS
from tests.sim.log import SimLog
from tests.sim.plan import Fault

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

_TICKS: Final = 24
_WRAP: Final = 1 << 31


class Nemesis:
    """Strikes two dozen times while the workers send, with one of the kinds the plan has."""

    def __init__(self, simulation: Simulation) -> None:
        self.sim = simulation
        self.world = world = simulation.world
        self.brokers = simulation.brokers
        plan = world.plan
        sending_ns = plan.records // plan.workers * plan.gap_ns // 3
        self.duration_ns = sending_ns + world.between(50, 1_500)
        self._kinds = [kind for kind in _STRIKES if kind in plan.rates]
        self._end_ns = world.now_ns + self.duration_ns
        if self._kinds:
            for _ in range(_TICKS):
                world.after(world.rng.random() * self.duration_ns, self._strike)

    def _strike(self) -> None:
        kind = self.world.pick(self._kinds)
        if self.world.chance(kind) and not self.sim.exited:
            _STRIKES[kind](self)

    def _later(self, low_ms: float, high_ms: float) -> int:
        """A time at which a fault ends by itself."""
        return self.world.now_ns + self.world.between(low_ms, high_ms)

    def heal(self) -> None:
        """From now on nothing fails any more."""
        world, brokers = self.world, self.brokers
        world.healed = True
        world.say("-- healed")
        self.sim.stalled_until_ns = world.now_ns
        for node in list(brokers.stopped):
            brokers.resume(node)
        for node in list(brokers.cluster.addresses):
            brokers.start(node)
        for place, count in enumerate(world.plan.partitions):
            if f"t{place}" not in brokers.cluster.topics:
                brokers.create(f"t{place}", count)
        for name, partition in brokers.partitions():
            if partition.leader not in brokers.cluster.alive:
                node = world.pick(sorted(brokers.cluster.alive))
                brokers.move_leader(name, partition, node, clean=True)
            log = partition.log
            assert isinstance(log, SimLog)
            log.replicate(log.end_offset)
        brokers.changed()
        self.sim.network.heal()

    # --- brokers

    def _broker_down(self) -> None:
        alive = sorted(self.brokers.cluster.alive)
        if not alive:
            return
        node = self.world.pick(alive)
        self.world.hit(Fault.BROKER_DOWN)
        self.brokers.crash(node)
        self.world.at(self._later(5, 1_500), self.brokers.start, node)

    def _broker_stopped(self) -> None:
        node = self.world.pick(sorted(self.brokers.cluster.addresses))
        if self.brokers.serving(node):
            self.world.hit(Fault.BROKER_STOPPED)
            self.brokers.stop(node)
            self.world.at(self._later(5, 1_500), self.brokers.resume, node)

    def _leader_moved(self) -> None:
        alive = sorted(self.brokers.cluster.alive)
        partitions = self.brokers.partitions()
        if not alive or not partitions:
            return
        name, partition = self.world.pick(partitions)
        node = self.world.pick(alive)
        if node != partition.leader:
            self.world.hit(Fault.LEADER_MOVED)
            clean = not self.world.chance(Fault.TAIL_LOST)
            self.brokers.move_leader(name, partition, node, clean=clean)
            self.brokers.changed()

    def _leaderless(self) -> None:
        partitions = self.brokers.partitions()
        if not partitions:
            return
        name, partition = self.world.pick(partitions)
        self.world.hit(Fault.LEADERLESS)
        self.brokers.move_leader(name, partition, -1, clean=True)
        self.brokers.changed()
        self.world.at(self._later(5, 500), self._led_again)

    def _led_again(self) -> None:
        alive = sorted(self.brokers.cluster.alive)
        for name, partition in self.brokers.partitions():
            if partition.leader < 0 and alive:
                self.brokers.move_leader(name, partition, self.world.pick(alive), clean=True)
        self.brokers.changed()

    def _idle_reset(self) -> None:
        self.sim.network.idle_reset()

    # --- topics and producers

    def _topic_deleted(self) -> None:
        cluster = self.brokers.cluster
        if not cluster.topics:
            return
        name = self.world.pick(sorted(cluster.topics))
        self.world.hit(Fault.TOPIC_DELETED)
        count = len(cluster.topics[name].partitions)
        for partition in cluster.topics[name].partitions:
            log = partition.log
            assert isinstance(log, SimLog)
            log.step_down(3)
        cluster.delete(name)
        self.brokers.changed()
        self.world.at(self._later(5, 500), self._create_again, name, count)

    def _create_again(self, name: str, count: int) -> None:
        if name not in self.brokers.cluster.topics:
            self.brokers.create(name, count)
            self.brokers.changed()

    def _partitions_added(self) -> None:
        cluster = self.brokers.cluster
        if cluster.topics:
            name = self.world.pick(sorted(cluster.topics))
            count = len(cluster.topics[name].partitions)
            if count < 5:
                self.world.hit(Fault.PARTITIONS_ADDED)
                self.brokers.grow(name, count + 1)

    def _quiet(self) -> list[tuple[Partition, SimLog]]:
        """Partitions of which nothing is under way, with their logs."""
        if self.sim.network.pending or self.sim.inbox:
            return []
        found = []
        for partition in self.sim.machine.metadata.partitions.values():
            there = self.brokers.cluster.partition(partition.topic, partition.number)
            if there is None or partition.sequenced or partition.on_wire:
                continue
            log = there.log
            assert isinstance(log, SimLog)
            if partition.last_acked_sequence != NO_SEQUENCE and log.knows(partition.producer_id):
                found.append((partition, log))
        return found

    def _producer_expired(self) -> None:
        # With several requests in flight a broker without state may take a later one first: no
        # client can see that. With one in flight nothing may go wrong.
        if self.sim.config.max_in_flight_requests_per_connection > 1:
            return
        self._when_quiet(40, self._forget)

    def _when_quiet(
        self, tries: int, strike: Callable[[list[tuple[Partition, SimLog]]], None]
    ) -> None:
        quiet = self._quiet()
        if quiet:
            strike(quiet)
        elif tries and not self.world.healed:
            self.world.after(self.world.between(1, 30), self._when_quiet, tries - 1, strike)

    def _forget(self, quiet: list[tuple[Partition, SimLog]]) -> None:
        self.world.hit(Fault.PRODUCER_EXPIRED)
        _, log = self.world.pick(quiet)
        log.forget_producers()

    def _sequence_wrap(self) -> None:
        self._when_quiet(40, self._warp)

    def _warp(self, quiet: list[tuple[Partition, SimLog]]) -> None:
        """Both sides are as after two thousand million records."""
        machine = self.sim.machine
        for partition, log in quiet:
            stale = partition.producer_epoch != machine.idempotence.epoch
            if stale or partition.bump_wanted or partition.unresolved:
                continue
            if partition.producer_id != machine.idempotence.producer_id:
                continue
            if not log.is_at(partition.producer_id, partition.producer_epoch):
                continue
            first = _WRAP - 1 - self.world.rng.randrange(12)
            partition.next_sequence = first
            partition.last_acked_sequence = first - 1
            log.warp(partition.producer_id, first - 1)
            self.world.hit(Fault.SEQUENCE_WRAP)

    # --- workers and the sender

    def _worker_died(self) -> None:
        alive = [worker for worker in self.sim.workers if worker.alive]
        if alive and not self.sim.closing:
            self.world.hit(Fault.WORKER_DIED)
            worker = self.world.pick(alive)
            self.sim.kill(worker)
            self.world.after(self.world.between(1, 100), self._replace, worker.left)

    def _replace(self, left: int) -> None:
        if not self.sim.closing and not self.sim.exited:
            self.sim.join(left)

    def _scribbled_later(self) -> None:
        if self.sim.memory.scribble():
            self.world.hit(Fault.SCRIBBLED_LATER)

    def _sender_stalled(self) -> None:
        self.world.hit(Fault.SENDER_STALLED)
        self.sim.stalled_until_ns = self._later(20, 2_500)

    def _closed(self) -> None:
        if not self.sim.closing:
            self.world.hit(Fault.CLOSED)
            self.sim.close(self.world.pick((0, 50 * MS, 1_500 * MS)))


_STRIKES: Final = {
    Fault.BROKER_DOWN: Nemesis._broker_down,
    Fault.BROKER_STOPPED: Nemesis._broker_stopped,
    Fault.LEADER_MOVED: Nemesis._leader_moved,
    Fault.LEADERLESS: Nemesis._leaderless,
    Fault.IDLE_RESET: Nemesis._idle_reset,
    Fault.TOPIC_DELETED: Nemesis._topic_deleted,
    Fault.PARTITIONS_ADDED: Nemesis._partitions_added,
    Fault.PRODUCER_EXPIRED: Nemesis._producer_expired,
    Fault.SEQUENCE_WRAP: Nemesis._sequence_wrap,
    Fault.WORKER_DIED: Nemesis._worker_died,
    Fault.SCRIBBLED_LATER: Nemesis._scribbled_later,
    Fault.SENDER_STALLED: Nemesis._sender_stalled,
    Fault.CLOSED: Nemesis._closed,
}
