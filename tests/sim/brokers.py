"""The simulated cluster: Kafka's rules for produce requests, leaders, metadata, and its failures.

Topics, leaders and epochs are the strict broker's (`mpproducer.testing.cluster`); what is added is
time: replicas that lag, views of the metadata that are old, brokers that are gone for a while.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mpproducer.sender import requests
from mpproducer.sender.inflight import API_INIT_PRODUCER_ID, API_METADATA, API_PRODUCE, API_VERSIONS
from mpproducer.testing import handlers
from mpproducer.testing.cluster import Cluster, Partition
from mpproducer.wire import error_codes as codes
from mpproducer.wire.produce import PartitionResult, ProduceResponse
from tests.sim.log import SimLog, Wire
from tests.sim.plan import Fault
from tests.sim.world import World

Message = dict[str, Any]
Reply = Callable[[Any], None]

REFUSED: Final = (5, 9, 14, 19, 74, 75, 78, 89)
REFUSED_FOR_GOOD: Final = (8, 17, 21, 29, 32, 42, 43, 44, 47, 48, 76)
AFTER_APPEND: Final = (3, 6, 7, 20, 56)
FATAL: Final = (31, 53, 90)
TOPIC_ERRORS: Final = (3, 5, 29, 72)
_LAST_SEQUENCE: Final = (1 << 31) - 1


class Brokers:
    """All brokers of the cluster."""

    def __init__(self, world: World) -> None:
        self.world = world
        plan = world.plan
        self.cluster = Cluster(
            plan.brokers, default_partitions=1, auto_create=False, strict_offsets=False,
            max_message_bytes=1 << 30,
        )  # fmt: skip
        nodes = range(1, plan.brokers + 1)
        self.cluster.addresses = {node: (f"b{node}", 9000 + node) for node in nodes}
        self.stopped: dict[int, None] = {}
        self.on_down: Callable[[int], None] = lambda node: None
        self.on_resume: Callable[[int], None] = lambda node: None
        self.logs: list[SimLog] = []
        self.versions = {
            node: 3 + world.rng.randrange(10) if world.strikes(Fault.OLD_BROKER) else 12
            for node in nodes
        }
        self.max_bytes = 1 << 30
        if world.chance(Fault.TOO_LARGE):
            self.max_bytes = 61 + int(plan.config.batch_size * world.rng.uniform(0.2, 0.9))
        self._epochs_spent = world.chance(Fault.EPOCH_EXHAUSTED)
        self.producer_ids: list[int] = []
        for place, count in enumerate(plan.partitions):
            self.create(f"t{place}", count)
        self.views: dict[int, Message] = {node: self._view(node) for node in nodes}

    # --- topics and leaders

    def create(self, name: str, partitions: int) -> None:
        """Make a topic, for the first time or again."""
        self.cluster.create(name, partitions, self.world.plan.brokers)
        self._equip(name)

    def _equip(self, name: str) -> None:
        for partition in self.cluster.topics[name].partitions:
            if not isinstance(partition.log, SimLog):
                log = SimLog(name, partition.number, self.world.now_ns, self.max_bytes)
                log.again = any(
                    (old.topic, old.number) == (name, partition.number) for old in self.logs
                )
                partition.log = log
                self.logs.append(log)
                if partition.leader not in self.cluster.alive:
                    self._elect(name, partition)

    def grow(self, name: str, partitions: int) -> None:
        """Add partitions to a topic."""
        self.cluster.grow(name, partitions)
        self._equip(name)
        self.changed()

    def partitions(self) -> list[tuple[str, Partition]]:
        """Every partition there is now."""
        return [
            (name, partition)
            for name, topic in self.cluster.topics.items()
            for partition in topic.partitions
        ]

    def is_current(self, log: SimLog) -> bool:
        """Whether the log's topic has not been deleted."""
        partition = self.cluster.partition(log.topic, log.number)
        return partition is not None and partition.log is log

    def changed(self) -> None:
        """Every broker learns of a change, some late."""
        for node in self.views:
            wait_ns = self.world.between(0, 5)
            if self.world.strikes(Fault.STALE_METADATA):
                wait_ns = self.world.between(50, 1_000)
            self.world.after(wait_ns, self._learn, node)

    def _learn(self, node: int) -> None:
        self.views[node] = self._view(node)

    def _view(self, node: int) -> Message:
        everything = {"topics": None, "allow_auto_topic_creation": False}
        return handlers.metadata(self.cluster, node, 12, everything)

    def move_leader(self, name: str, partition: Partition, node: int, *, clean: bool) -> None:
        """Another leader (-1: none). Not clean: what was not replicated is lost."""
        log = partition.log
        assert isinstance(log, SimLog)
        self.world.say("LEADER", name, partition.number, partition.leader, "->", node)
        if not clean and log.lose_tail():
            self.world.hit(Fault.TAIL_LOST)
        self.cluster.set_leader(name, partition.number, node)
        log.step_down(codes.NOT_LEADER_OR_FOLLOWER)
        log.replicate(log.end_offset)

    def _elect(self, name: str, partition: Partition) -> None:
        alive = sorted(self.cluster.alive)
        if alive:
            self.move_leader(name, partition, self.world.pick(alive), clean=True)

    # --- failures of brokers

    def crash(self, node: int) -> None:
        """The broker is gone; others take over what it led after a while."""
        self.world.say("DOWN", node)
        self.cluster.alive.discard(node)
        self.stopped.pop(node, None)
        self.on_down(node)
        self.world.after(self.world.between(1, 300), self._fail_over, node)

    def _fail_over(self, node: int) -> None:
        if node in self.cluster.alive:
            return
        for name, partition in self.partitions():
            others = sorted(self.cluster.alive)
            if partition.leader == node and others:
                clean = not self.world.chance(Fault.TAIL_LOST)
                self.move_leader(name, partition, self.world.pick(others), clean=clean)
        self.changed()

    def start(self, node: int) -> None:
        """The broker is back, perhaps at another address."""
        if node in self.cluster.alive:
            return
        if self.world.strikes(Fault.BROKER_MOVED):
            host, port = self.cluster.addresses[node]
            self.cluster.addresses[node] = (f"{host}x"[:12], port + 100)
        self.world.say("UP", node, self.cluster.addresses[node])
        self.cluster.alive.add(node)
        for name, partition in self.partitions():
            if partition.leader not in self.cluster.alive:
                self._elect(name, partition)
        self._learn(node)
        self.changed()

    def stop(self, node: int) -> None:
        """The broker does nothing for a while (SIGSTOP): connections stay, answers do not come."""
        self.stopped[node] = None

    def resume(self, node: int) -> None:
        """It goes on where it was."""
        if node in self.stopped:
            del self.stopped[node]
            self.on_resume(node)

    def serving(self, node: int) -> bool:
        """Whether it takes requests now."""
        return node in self.cluster.alive and node not in self.stopped

    # --- requests

    def handle(self, node: int, api_key: int, version: int, request: Any, reply: Reply) -> None:
        """Carry out one request at a broker; `reply` is called once, now or later."""
        if api_key == API_PRODUCE:
            _Produce(self, node, version, request, reply).run()
        elif api_key == API_METADATA:
            reply(self._metadata(node, request))
        elif api_key == API_VERSIONS:
            reply(self._api_versions(node, version))
        elif api_key == API_INIT_PRODUCER_ID:
            reply(self._init_producer_id())

    def _api_versions(self, node: int, version: int) -> Message:
        ranges = dict(requests.SUPPORTED)
        ranges[API_PRODUCE] = (3, self.versions[node])
        if self.versions[node] < 9:
            ranges[API_METADATA] = (0, max(4, self.versions[node]))
        message: Message = {"error_code": 0, "throttle_time_ms": 0}
        if version and self.world.strikes(Fault.VERSIONS_REFUSED):
            message["error_code"] = codes.UNSUPPORTED_VERSION
            ranges = {API_VERSIONS: (0, self.world.rng.randrange(version))}
        message["api_keys"] = [
            {"api_key": key, "min_version": low, "max_version": high}
            for key, (low, high) in ranges.items()
        ]
        return message

    def _metadata(self, node: int, request: Message) -> Message:
        view = self.views[node]
        rows = {row["name"]: row for row in view["topics"]}
        answer: Message = {
            "throttle_time_ms": self.throttle_ms(),
            "brokers": view["brokers"],
            "topics": [self._topic_row(rows, entry["name"]) for entry in request["topics"]],
            "error_code": 0,
        }
        if self.world.strikes(Fault.METADATA_ERROR):
            answer["brokers"] = []
        if self.world.strikes(Fault.REBOOTSTRAP_ASKED):
            answer["error_code"] = 129
        return answer

    def _topic_row(self, rows: Message, name: str) -> Message:
        error = 0
        if name not in rows:
            error = codes.UNKNOWN_TOPIC_OR_PARTITION
        elif self.world.strikes(Fault.METADATA_TOPIC_ERROR):
            error = self.world.pick(TOPIC_ERRORS)
        if not error:
            return dict(rows[name])
        return {"name": name, "error_code": error, "topic_id": bytes(16), "partitions": []}

    def _init_producer_id(self) -> Message:
        code = 0
        if self.world.strikes(Fault.ID_NOT_YET):
            code = self.world.pick((14, 15, 16))
        elif self.world.strikes(Fault.ID_DENIED):
            code = 31
        producer_id = -1 if code else self.cluster.producer_id()
        epoch = 0
        if not code and self._epochs_spent and len(self.producer_ids) < 2:
            epoch = 32_767
            self.world.hit(Fault.EPOCH_EXHAUSTED)
        if not code:
            self.producer_ids.append(producer_id)
        return {
            "error_code": code,
            "producer_id": producer_id,
            "producer_epoch": -1 if code else epoch,
            "throttle_time_ms": 0,
        }

    def throttle_ms(self) -> int:
        """throttle_time_ms of an answer."""
        return self.world.rng.randrange(10, 400) if self.world.strikes(Fault.THROTTLED) else 0


class _Produce:
    """One Produce request at its broker, until every partition has a result."""

    def __init__(
        self, brokers: Brokers, node: int, version: int, request: Any, reply: Reply
    ) -> None:
        self.brokers = brokers
        self.world = brokers.world
        self.node = node
        self.version = version
        self.acks, self.timeout_ms, self.wires = request
        self.reply = reply
        self.results: dict[int, PartitionResult] = {}
        self.hints: dict[int, None] = {}

    def run(self) -> None:
        """Append, or refuse, every batch; answers come when replicas have them."""
        for place, wire in enumerate(self.wires):
            self._one(place, wire)

    def _one(self, place: int, wire: Wire) -> None:
        partition = self.brokers.cluster.partition(wire.topic, wire.number)
        code = handlers.leader_error(partition, self.node)
        if code or partition is None:
            self._done(place, code, partition=partition)
            return
        log = partition.log
        assert isinstance(log, SimLog)
        code, errors = self._refusal(wire, log)
        if code:
            self._done(place, code, partition=partition, errors=errors, log=log)
            return
        appended, new = log.take(wire)
        code = appended.error_code
        self.world.say("APPEND", wire, "->", appended, "" if new or code else "(duplicate)")
        if code:
            self._done(place, code, partition=partition, log=log)
            return
        known = not new and log.replicated >= appended.base_offset + wire.count
        if known and self.world.strikes(Fault.DUPLICATE_REFUSED):
            self._done(place, codes.DUPLICATE_SEQUENCE_NUMBER, partition=partition, log=log)
            return
        if new:
            self._replicate(log, partition)
        if self.world.strikes(Fault.FAILED_AFTER_APPEND):
            self._done(place, self.world.pick(AFTER_APPEND), partition=partition, log=log)
        elif self.world.strikes(Fault.UNKNOWN_ERROR):
            self._done(place, -1, partition=partition, log=log)
        elif self.acks == -1:
            self._await(place, log, partition, appended.base_offset, wire.count)
        else:
            self._done(place, 0, partition=partition, log=log, offset=appended.base_offset)

    def _refusal(self, wire: Wire, log: SimLog) -> tuple[int, tuple[tuple[int, str | None], ...]]:
        """(error code, record errors) of what is refused before the append."""
        world = self.world
        if not wire.intact or world.strikes(Fault.FLIPPED_BIT):
            return codes.CORRUPT_MESSAGE, ()
        if wire.size_bytes > log.max_message_bytes and not world.healed:
            world.hit(Fault.TOO_LARGE)
            return codes.MESSAGE_TOO_LARGE, ()
        if world.strikes(Fault.RECORD_ERRORS):
            count = 1 + world.rng.randrange(min(3, wire.count))
            places = sorted(world.rng.sample(range(wire.count), count))
            return codes.INVALID_RECORD, tuple((at, "no good") for at in places)
        if world.strikes(Fault.REFUSED):
            return world.pick(REFUSED), ()
        if world.strikes(Fault.REFUSED_FOR_GOOD):
            return world.pick(REFUSED_FOR_GOOD), ()
        if world.strikes(Fault.FATAL):
            return world.pick(FATAL), ()
        unknown = wire.producer_id >= 0 and wire.base_sequence > 0
        if unknown and not log.knows(wire.producer_id) and world.strikes(Fault.UNKNOWN_PRODUCER):
            return 59, ()
        return 0, ()

    def _replicate(self, log: SimLog, partition: Partition) -> None:
        wait_ns = self.world.between(0.1, 2)
        if self.world.strikes(Fault.SLOW_REPLICAS):
            wait_ns = self.world.between(20, 1_500)
        upto, epoch = log.end_offset, partition.leader_epoch

        def caught_up() -> None:
            if partition.leader_epoch == epoch:
                log.replicate(upto)

        self.world.after(wait_ns, caught_up)

    def _await(
        self, place: int, log: SimLog, partition: Partition, offset: int, count: int
    ) -> None:
        need = offset + count

        def done(code: int) -> None:
            if place not in self.results:
                told = offset if not code else -1
                self._done(place, code, partition=partition, log=log, offset=told)

        if log.replicated >= need:
            done(0)
            return
        log.waiting.append((need, done))
        self.world.after(self.timeout_ms * 1e6, done, codes.REQUEST_TIMED_OUT)

    def _done(
        self,
        place: int,
        code: int,
        *,
        partition: Partition | None,
        log: SimLog | None = None,
        offset: int = -1,
        errors: tuple[tuple[int, str | None], ...] = (),
    ) -> None:
        version = self.version
        start = log.start_offset if log is not None and version >= 5 else -1
        if code == 59 and self.world.rng.random() < 0.2:
            start = -1
        self.results[place] = PartitionResult(
            self.wires[place].number,
            code,
            offset,
            -1,
            start,
            errors if version >= 8 else (),
            None,
            self._hint(partition) if code == codes.NOT_LEADER_OR_FOLLOWER else None,
        )
        if len(self.results) == len(self.wires):
            self.reply(self._response())

    def _hint(self, partition: Partition | None) -> tuple[int, int] | None:
        """KIP-951: who leads instead, or who this broker thinks does."""
        if partition is None or self.version < 10 or not self.world.strikes(Fault.LEADER_HINT):
            return None
        leader, epoch = partition.leader, partition.leader_epoch
        if self.world.strikes(Fault.STALE_HINT):
            leader, epoch = self.world.pick(sorted(self.brokers.cluster.addresses)), epoch - 1
        if leader >= 0:
            self.hints[leader] = None
        return leader, epoch

    def _response(self) -> ProduceResponse:
        topics: list[tuple[str | bytes, list[PartitionResult]]] = [
            (wire.topic, [self.results[place]]) for place, wire in enumerate(self.wires)
        ]
        world = self.world
        if world.strikes(Fault.PARTITION_MISSING):
            topics.pop(world.rng.randrange(len(topics)))
        elif world.strikes(Fault.PARTITION_REPEATED):
            name, (result,) = world.pick(topics)
            topics.append((name, [result._replace(error_code=world.pick((0, 6, 87)))]))
        if world.strikes(Fault.PARTITION_FOREIGN):
            foreign = PartitionResult(99, world.pick((0, 3)), 7, -1, 0, (), None, None)
            topics.insert(0, (world.pick(("t0", "nobody's")), [foreign]))
        addresses = self.brokers.cluster.addresses
        endpoints = tuple((node, *addresses[node]) for node in self.hints)
        return ProduceResponse(topics, self.brokers.throttle_ms(), endpoints)
