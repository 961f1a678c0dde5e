"""One run: the sender's machine between simulated workers and simulated brokers.

The run of a seed: workers send while faults strike; then everything is healed, every record must
get its outcome, memory must come back, a last record per partition must be acknowledged, and the
sender must end when its workers leave. What was promised is checked after every turn and, against
the logs, at the end (`checker.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Final

from mpproducer.sender import actions as a
from mpproducer.sender.batch import FREE, LENT, ProducerBatch
from mpproducer.sender.machine import Machine, Phase
from mpproducer.sender.retry import MS
from tests.sender.driver import Driver
from tests.sim import checker
from tests.sim.brokers import Brokers
from tests.sim.log import Wire
from tests.sim.nemesis import Nemesis
from tests.sim.network import Network
from tests.sim.plan import Fault, Plan
from tests.sim.workers import Accumulator, Record, Worker
from tests.sim.world import Violation, World

_MOST_TURNS_AT_ONCE: Final = 300
_SETTLE_MS: Final = 4_000
_FIRST_ATTEMPTS: Final = 12  # more than this needs as many backoffs


class Simulation(Driver):
    """A world with one sender in it."""

    def __init__(self, plan: Plan, *, trace: bool = False) -> None:
        super().__init__(keep=False)
        self.plan = plan
        self.config = plan.config
        self.world = World(plan, trace=trace)
        self.now_ns = self.world.now_ns
        self.brokers = Brokers(self.world)
        self.network = Network(self.world, self.brokers, self.report)
        self.network.to_wire = self._to_wire
        self.memory = Accumulator(self.world, self.report)
        rng = random.Random(f"machine {plan.seed}")
        self.machine = Machine(plan.config, rng, self.now_ns)
        self.inbox: list[Any] = []
        self.stalled_until_ns = 0
        self.exited = ""
        self.closing = False
        self.alive: dict[int, None] = {}
        self.workers: list[Worker] = []
        self.indices: dict[str, list[int]] = {}
        self.places: list[tuple[str, int]] = []  # by partition index
        self.events = 0
        self._topic_index = {f"t{place}": place for place in range(len(plan.partitions))}
        self._sent_as: dict[ProducerBatch, tuple[int, int, int]] = {}
        self._owners = 0
        self._turns_at_once = 0

    # --- the run

    def run(self) -> None:
        """Everything. Raises Violation, or whatever else the machine raises."""
        for _ in range(self.plan.workers):
            self.join(self.plan.records // self.plan.workers)
        for name, index in self._topic_index.items():
            self.report(a.TopicWanted(name, index))
        nemesis = Nemesis(self)
        self._until(self.world.now_ns + nemesis.duration_ns, "the faults", lambda: False)
        nemesis.heal()
        self._finish()
        if not self.exited:
            self._rest()
        if not self.exited and not self.closing and self.machine.fatal is None:
            self._probe()
        self._leave()
        checker.check(self)

    def _finish(self) -> None:
        """After healing: every record is told its outcome within the delivery timeout, and what
        waits for memory gets it: partitions that are gone for good may fill it again and again."""
        config = self.config
        most_ms = config.delivery_timeout_ms + config.request_timeout_ms + 1_000
        most_ns = most_ms * MS + 3 * self.plan.gap_ns
        healed_ns = self.world.now_ns
        told = -1
        while not self._until(self.world.now_ns + most_ns, "outcomes", self._all_told):
            records = [r for r in self.memory.records if r.batch is not None]
            untold = [r for r in records if r.outcome is None]
            due_ns = self.world.now_ns - most_ns
            late = [r for r in untold if max(r.committed_ns, healed_ns) < due_ns]
            before, told = told, len(records) - len(untold)
            if late or told == before:
                what = late or untold
                raise Violation(f"stuck: {len(what)} records without an outcome: {what[:3]}")

    def _all_told(self) -> bool:
        busy = any(worker.alive and (worker.left or worker.blocked) for worker in self.workers)
        return not busy and all(
            record.outcome is not None for record in self.memory.records if record.batch is not None
        )

    def _rest(self) -> None:
        """Nothing to do for a while: the memory is back and no request is open."""
        self._until(self.world.now_ns + _SETTLE_MS * MS, "rest", lambda: False)
        if not self.exited:
            self.check_idle()

    def check_idle(self) -> None:
        """Nothing is kept for what has ended."""
        machine = self.machine
        unborn = {id(f) for f in self.memory.fills.values() if f.unborn is not None}
        kept = [
            fill
            for fill in self.memory.fills.values()
            if not fill.freed and fill.records and id(fill) not in unborn
        ]
        if kept:
            raise Violation(f"memory never given back: {kept[:3]}")
        if machine.delivery.aging or machine.delivery.unreleased:
            open_batches = list(machine.delivery.aging)
            raise Violation(f"{machine.delivery.unreleased} batches kept: {open_batches[:3]}")
        for partition in machine.metadata.partitions.values():
            if partition.queue or partition.sequenced or partition.on_wire:
                raise Violation(f"batches kept at {partition}")

    def _probe(self) -> None:
        """Everything is well: what is sent now is acknowledged."""
        if not self.alive:
            self.join(0)
        worker = next(worker for worker in self.workers if worker.alive)
        known = [index for index, place in enumerate(self.places) if self._exists(place)]
        probes = [worker.send(index) for index in known]
        end_ns = self.world.now_ns + 2 * self.config.delivery_timeout_ms * MS
        self._until(end_ns, "probes", self._all_told)
        for probe in probes:
            outcome = probe.outcome
            if outcome is None or outcome.kind is not a.Kind.ACKED:
                raise Violation(f"healed, and yet not acknowledged: {probe}")

    def _exists(self, place: tuple[str, int]) -> bool:
        return self.brokers.cluster.partition(*place) is not None

    def _leave(self) -> None:
        """The workers go; the sender must end by itself."""
        for worker in self.workers:
            if worker.owner in self.alive:
                worker.alive = False
                self._gone(worker)
        bound_ns = self.world.now_ns + (self.config.sender_idle_ms + _SETTLE_MS) * MS
        self._until(bound_ns, "the end", lambda: bool(self.exited))
        if not self.exited:
            raise Violation("the last worker is gone and the sender does not end")
        if self.network.connections:
            raise Violation(f"connections left: {list(self.network.connections)}")

    def _until(self, end_ns: int, what: str, done: Callable[[], bool]) -> bool:
        """Let the world go on; returns whether `done` came true."""
        self.world.say("--", what)
        while not (done() or self.exited):
            when_ns = self._next_ns()
            if when_ns is None or when_ns > end_ns:
                self.world.now_ns = max(self.world.now_ns, end_ns)
                return done()
            self._step(when_ns)
        return True

    def _next_ns(self) -> int | None:
        candidates = [self.world.next_ns()]
        due_ns = self.machine.next_deadline_ns()
        if self.inbox:
            candidates.append(self.stalled_until_ns)
        if due_ns is not None:
            candidates.append(max(due_ns, self.stalled_until_ns))
        return min((when for when in candidates if when is not None), default=None)

    def _step(self, when_ns: int) -> None:
        world = self.world
        if when_ns > world.now_ns:
            self._turns_at_once = 0
        next_ns = world.next_ns()
        if next_ns is not None and next_ns <= max(when_ns, world.now_ns):
            world.step()
        else:
            world.now_ns = max(world.now_ns, when_ns)
        if world.now_ns >= self.stalled_until_ns:
            self._turn()

    # --- the loop

    def report(self, event: Any) -> None:
        """Something for the sender's next turn: an event, or a call that makes one then."""
        self.inbox.append(event)

    def _turn(self) -> None:
        """One turn of the sender's loop."""
        self.now_ns = self.world.now_ns
        inbox, self.inbox = self.inbox, []
        due_ns = self.machine.next_deadline_ns()
        due = due_ns is not None and due_ns <= self.now_ns
        if not inbox and not due:
            return
        self._turns_at_once += 1
        if self._turns_at_once > _MOST_TURNS_AT_ONCE:
            raise Violation("the machine is busy without progress")
        for item in inbox:
            event = item() if callable(item) else item
            if event is not None and not self.exited:
                self.feed(event)
        if self.exited:
            return
        due_ns = self.machine.next_deadline_ns()
        if due_ns is not None and due_ns <= self.now_ns:
            self.feed(a.Tick())
            self._check_overdue()
        if self.memory.waiters and not self.exited:
            self.feed(a.MemoryShort())

    def _check_overdue(self) -> None:
        for batch in self.machine.delivery.aging:
            if batch.deadline_ns <= self.now_ns and not self.exited:
                raise Violation(f"past its delivery timeout: {batch}")

    def told(self, event: Any, actions: list[Any]) -> None:
        """Trace, count, and guard against a machine that runs away."""
        self.events += 1
        if self.world.trace is not None:
            self.world.say(">>", event)
            for action in actions:
                self.world.say("   ", action)
        if self.events > 200_000:
            raise Violation("200,000 events and no end")

    # --- workers

    def join(self, count: int) -> None:
        """A worker attaches."""
        self._owners += 1
        worker = Worker(self.world, self.memory, self._owners, count, self._choose)
        self.workers.append(worker)
        self.alive[worker.owner] = None

        def welcome() -> Any:
            worker.welcome = True
            return a.WorkerJoined(worker.owner)

        self.report(welcome)
        worker.start()

    def _choose(self) -> int:
        if not self.places or self.closing:
            return -1
        return self.world.rng.randrange(len(self.places))

    def kill(self, worker: Worker) -> None:
        """A worker dies; what it had committed is found first."""
        worker.alive = False
        self.world.at(self.memory.announced() + 2, self._gone, worker)

    def _gone(self, worker: Worker) -> None:
        def leave() -> Any:
            self.alive.pop(worker.owner, None)
            return a.WorkerGone(worker.owner)

        self.report(leave)

    def close(self, wait_ns: int) -> None:
        """The sender is asked to end: no record can be added any more."""
        self.closing = True
        for worker in self.workers:
            worker.left = 0
        deadline_ns = self.world.now_ns + wait_ns
        announced_ns = self.memory.announced() + 2
        self.world.at(announced_ns, self.report, a.CloseAsked(max(deadline_ns, announced_ns)))

    # --- actions: batches

    def _do_Seal(self, action: a.Seal) -> list[Any]:
        return [self.memory.seal(action, self.alive)]

    def _do_Compress(self, action: a.Compress) -> list[Any]:
        batch = action.batch
        done = a.Compressed(batch, max(1, batch.size_bytes * 2 // 3))
        if not self.world.strikes(Fault.SLOW_COMPRESSION):
            return [done]

        def compressed() -> Any:
            self.memory.content(batch)
            return done

        self.world.after(self.world.between(1, 400), self.report, compressed)
        return []

    def _do_Verify(self, action: a.Verify) -> list[Any]:
        batch = action.batch
        if batch.slot >= 0 and self.memory.fill_of(batch).scribbled:
            return [a.BatchCorrupt(batch, "changed after it was sent")]
        return []

    def _do_Split(self, action: a.Split) -> list[Any]:
        return [self.memory.split(action)]

    def _do_Release(self, action: a.Release) -> None:
        if action.batch.memory is not FREE:
            raise Violation(f"released and not free: {action.batch}")
        for node, batch in self._on_the_wire():
            if batch is action.batch:
                raise Violation(f"released while a request of {node} may read it: {batch}")
        self.memory.release(action.batch)

    def _do_Complete(self, action: a.Complete) -> None:
        batch = action.batch
        fill = self.memory.fill_of(batch)
        for outcome in action.outcomes:
            for place in range(outcome.first, outcome.first + outcome.count):
                record = self.memory.records[fill.records[place]]
                self._tell(record, batch, outcome, place)
        fill.told += sum(outcome.count for outcome in action.outcomes)
        if action.more != (fill.told < len(fill.records)):
            raise Violation(f"told {fill.told} of {len(fill.records)}, more={action.more}: {batch}")

    def _tell(self, record: Record, batch: ProducerBatch, outcome: a.Outcome, place: int) -> None:
        self.world.say("TOLD", record.number, outcome.kind.name, outcome.code, outcome.reason.name)
        if record.outcome is not None:
            raise Violation(f"told twice: {record}, now {outcome}")
        if record.worker in self.alive and record.worker not in batch.participants:
            raise Violation(f"worker {record.worker} is not told of {record.number} in {batch}")
        record.outcome = outcome
        record.told_ns = self.now_ns
        if outcome.kind is a.Kind.ACKED and outcome.base_offset >= 0:
            record.offset = outcome.base_offset + place - outcome.first

    # --- actions: topics

    def _do_PublishTopic(self, action: a.PublishTopic) -> list[Any]:
        known = self.indices.setdefault(action.name, [])
        while len(known) < action.partition_count:
            known.append(len(self.places))
            self.places.append((action.name, len(known) - 1))
        return [a.TopicPublished(action.name, tuple(known[: action.partition_count]))]

    def _do_PublishTopicError(self, action: a.PublishTopicError) -> None:
        name = next(n for n, index in self._topic_index.items() if index == action.topic_index)
        wait_ns = self.world.between(1, 50)
        self.world.after(wait_ns, self.report, a.TopicWanted(name, action.topic_index))

    # --- actions: network

    def _do_Resolve(self, action: a.Resolve) -> None:
        self.network.resolve(action)

    def _do_Connect(self, action: a.Connect) -> None:
        self.network.connect(action)

    def _do_Close(self, action: a.Close) -> None:
        self.network.close(action.conn)

    def _do_Request(self, action: a.Request) -> list[Any]:
        return [event for event in self.network.request(action) if event is not None]

    def _do_SendProduce(self, action: a.SendProduce) -> list[Any]:
        for broken in self._wrong_with(action):
            raise Violation(f"{broken}: {action}")
        return [event for event in self.network.request(action) if event is not None]

    def _do_Exit(self, action: a.Exit) -> None:
        self.exited = action.why
        if self.machine.phase is not Phase.EXITED:
            raise Violation("Exit without the phase")

    # --- what a produce request must be

    def _on_the_wire(self) -> Iterator[tuple[Any, ProducerBatch]]:
        for node in self.machine.nodes.all():
            for request in node.in_flight:
                for batch in request.batches:
                    yield node, batch

    def _wrong_with(self, action: a.SendProduce) -> Iterator[str]:
        config = self.config
        node = self.machine.nodes.of_conn(action.conn)
        batches = action.batches
        size = sum(batch.wire_bytes for batch in batches)
        if node is None:
            yield "sent on a connection that is closed"
            return
        if len(node.in_flight) > config.max_in_flight_requests_per_connection:
            yield "more requests in flight than allowed"
        if len({batch.partition.index for batch in batches}) != len(batches):
            yield "two batches of one partition in a request"
        if len(batches) > 1 and size > config.max_request_size:
            yield f"{size} bytes are more than max.request.size"
        for batch in batches:
            yield from self._wrong_with_batch(batch, node)

    def _wrong_with_batch(self, batch: ProducerBatch, node: Any) -> Iterator[str]:
        config = self.config
        partition = batch.partition
        if batch.memory is not LENT or batch.done:
            yield f"sent what is not ours to send, {batch}"
        if partition.leader != node.node_id:
            yield f"sent to another than the leader {partition.leader}"
        others = [
            (at, other)
            for at, other in self._on_the_wire()
            if other.partition is partition and other is not batch
        ]
        if others and config.max_in_flight_requests_per_connection == 1:
            yield f"muted, and yet sent behind {others}"
        if any(at is not node for at, _ in others):
            yield f"on the wire to two brokers: {others}"
        first = self.memory.records[self.memory.content(batch)[0]]
        if first.outcome is not None:
            yield f"sent after its outcome was told: {first}"
        if batch.attempts > config.retries + 1:
            yield f"attempt {batch.attempts} with retries={config.retries}"
        waited_ms = (self.now_ns - batch.created_ns) / MS
        if batch.attempts > _FIRST_ATTEMPTS + waited_ms / (0.7 * config.retry_backoff_ms):
            yield f"attempt {batch.attempts} within {waited_ms} ms"
        if config.enable_idempotence:
            now = (batch.producer_id, batch.producer_epoch, batch.base_sequence)
            before = self._sent_as.get(batch, now)
            self._sent_as[batch] = now
            if min(now) < 0:
                yield f"sent without a sequence: {batch}"
            if now != before and now[:2] == before[:2]:
                yield f"sequence {before[2]} became {now[2]} within an epoch"

    def _to_wire(self, batches: tuple[ProducerBatch, ...]) -> tuple[Wire, ...]:
        return tuple(self._wire(batch) for batch in batches)

    def _wire(self, batch: ProducerBatch) -> Wire:
        fill = self.memory.fill_of(batch)
        ids = self.memory.content(batch)
        if len(ids) != batch.records:
            raise Violation(f"{len(ids)} records in memory where {batch} has {batch.records}")
        intact = batch.slot < 0 or not fill.scribbled
        fill.sent = True
        partition = batch.partition
        return Wire(
            partition.topic, partition.number, batch.producer_id, batch.producer_epoch,
            batch.base_sequence, batch.records, ids, batch.wire_bytes, intact,
        )  # fmt: skip
