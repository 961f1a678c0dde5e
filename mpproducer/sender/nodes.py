"""Connections to brokers: one per node, its state, its backoff, its requests in flight.

The states of a node (ClusterConnectionStates in Java):

    DISCONNECTED -> RESOLVING -> CONNECTING -> CHECKING_API_VERSIONS -> READY
          ^------------ any of them, on failure, timeout or close ----------'

- The reconnect backoff starts over only in READY, not when TCP connects: a broker that accepts
  and closes at once must not be hammered.
- One round tries every address of the host without waiting in between; only a failed round
  counts as a failure. The next round resolves the name again.
- A request timeout closes the connection: the broker answers in order, so nothing behind the
  missing response can arrive either.
- Bootstrap servers are nodes with negative ids. They serve metadata until brokers are known, and
  again when no known broker is usable (KIP-899).
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Protocol

from mpproducer.sender import requests
from mpproducer.sender.actions import Action, Close, Connect, Request, Resolve
from mpproducer.sender.batch import NEVER_NS, ProducerBatch
from mpproducer.sender.bugs import NotReady
from mpproducer.sender.inflight import (
    API_PRODUCE,
    API_VERSIONS,
    Correlation,
    InFlight,
    InFlightRequests,
)
from mpproducer.sender.retry import MS, Backoff, Randomness

if TYPE_CHECKING:
    from mpproducer.config import Config
    from mpproducer.sender.counters import Counters
    from mpproducer.sender.metrics import Recorder
    from mpproducer.sender.partition import Partition
    from mpproducer.sender.timers import Timers

TIMED_OUT: Final = 7  # Kafka codes a lost connection gives its batches
DISCONNECTED_CODE: Final = 13


class NodeState(enum.IntEnum):
    """Where the connection of a node is."""

    DISCONNECTED = 0
    RESOLVING = 1
    CONNECTING = 2
    CHECKING_API_VERSIONS = 3
    READY = 4


DISCONNECTED: Final[NodeState] = NodeState.DISCONNECTED
RESOLVING: Final[NodeState] = NodeState.RESOLVING
CONNECTING: Final[NodeState] = NodeState.CONNECTING
CHECKING_API_VERSIONS: Final[NodeState] = NodeState.CHECKING_API_VERSIONS
READY: Final[NodeState] = NodeState.READY


class Node:
    """One broker. `ready` holds the partitions it leads that have a batch due, in drain order."""

    __slots__ = (
        "addresses",
        "attempted_ns",
        "behind",
        "blocked_armed",
        "blocked_ns",
        "conn",
        "failures",
        "host",
        "idle_armed",
        "in_flight",
        "last_address",
        "next_address",
        "node_id",
        "port",
        "produce_version",
        "ready",
        "retry_at_ns",
        "row",
        "sealing",
        "setup_failures",
        "state",
        "throttled_until_ns",
        "timeout_armed",
        "used_ns",
        "versions",
        "why",
    )

    def __init__(self, node_id: int, host: str, port: int, limit: int, row: int) -> None:
        self.node_id = node_id
        self.row = row  # of its metrics
        self.host = host
        self.port = port
        self.state = DISCONNECTED
        self.conn = 0
        self.addresses: tuple[Any, ...] = ()
        self.next_address = 0
        self.last_address: Any = None
        self.failures = 0
        self.setup_failures = 0
        self.retry_at_ns = 0
        self.attempted_ns = -1
        self.throttled_until_ns = 0
        self.in_flight = InFlightRequests(limit)
        self.versions: dict[int, tuple[int, int]] = {}
        self.produce_version = -1
        self.used_ns = 0
        self.timeout_armed = False
        self.idle_armed = False
        self.why = ""
        self.ready: OrderedDict[Partition, None] = OrderedDict()
        self.sealing = False  # the answer to a `Seal` for its next request is awaited
        self.blocked_ns: int | None = None  # since when it takes none of its batches (load.py)
        self.blocked_armed = self.behind = False

    def can_send(self, now_ns: int) -> bool:
        """READY, not throttled, and the in-flight queue takes one more."""
        return (
            self.state is READY
            and self.throttled_until_ns <= now_ns
            and self.in_flight.can_send_more()
        )

    def __repr__(self) -> str:
        return f"<node {self.node_id} {self.host}:{self.port} {self.state.name}>"


class Owner(Protocol):
    """What the machine does about connections."""

    def node_ready(self, node: Node, now_ns: int) -> None:
        """The node can take requests (connected, or no longer throttled)."""
        ...

    def node_lost(self, node: Node, lost: list[InFlight], code: int, now_ns: int) -> None:
        """The connection is gone; its requests, oldest first, have no response."""
        ...

    def node_removed(self, node: Node, now_ns: int) -> None:
        """The node is no longer one of the cluster's: nothing may wait for it."""
        ...


class Nodes:
    """All nodes of one cluster and the one place that opens and closes connections."""

    def __init__(
        self,
        config: Config,
        random: Randomness,
        timers: Timers,
        emit: Callable[[Action], None],
        counters: Counters,
        measure: Recorder,
        owner: Owner,
    ) -> None:
        self._limit = config.max_in_flight_requests_per_connection
        self._request_timeout_ns = config.request_timeout_ms * MS
        idle_ms = config.connections_max_idle_ms
        self._idle_ns = idle_ms * MS if idle_ms >= 0 else NEVER_NS
        self._reconnect = Backoff(
            config.reconnect_backoff_ms, config.reconnect_backoff_max_ms, random
        )
        self._setup = Backoff(
            config.socket_connection_setup_timeout_ms,
            config.socket_connection_setup_timeout_max_ms,
            random,
        )
        self._random = random
        self._timers = timers
        self._emit = emit
        self._counters = counters
        self._measure = measure
        self._owner = owner
        self._client_id = config.client_id
        self._correlation = Correlation()
        self._next_conn = 0
        self._by_conn: dict[int, Node] = {}
        self.brokers: dict[int, Node] = {}
        self.bootstrap: dict[int, Node] = {
            -1 - place: self._make(-1 - place, host, port)
            for place, (host, port) in enumerate(config.bootstrap_servers)
        }
        self.use_bootstrap = True
        self.bootstrap_only = False  # brokers are not asked: their picture is what is wrong

    # --- the set of nodes

    def _make(self, node_id: int, host: str, port: int) -> Node:
        row = self._measure.node(node_id)
        self._counters.node_metrics_dropped_total += row < 0
        return Node(node_id, host, port, self._limit, row)

    def get(self, node_id: int) -> Node | None:
        """The broker or bootstrap node with this id."""
        return self.brokers.get(node_id) or self.bootstrap.get(node_id)

    def all(self) -> list[Node]:
        """Every node, brokers first, in a repeatable order."""
        return [*self.brokers.values(), *self.bootstrap.values()]

    def of_conn(self, conn: int) -> Node | None:
        """The node this live connection belongs to; None once it was closed."""
        return self._by_conn.get(conn)

    def update(self, brokers: Iterable[tuple[int, str, int]], now_ns: int) -> None:
        """Take over the broker list of a metadata response.

        The same id with another host is another machine: its old connection is closed and its
        backoff forgotten. A broker that left is closed once nothing is in flight there.
        """
        seen: dict[int, None] = {}
        for node_id, host, port in brokers:
            seen[node_id] = None
            self.learn(node_id, host, port, now_ns)
        for node in [n for n in self.brokers.values() if n.node_id not in seen]:
            if not node.in_flight:
                self.close(node, "the broker left the cluster", now_ns)
                del self.brokers[node.node_id]
                self._owner.node_removed(node, now_ns)
        self.use_bootstrap = self.bootstrap_only = False
        for node in self.bootstrap.values():
            self.retire(node, now_ns)

    def retire(self, node: Node, now_ns: int) -> None:
        """Give up the connection to a bootstrap server once brokers are known: it would be one
        more connection to a broker that has one under its own id. What is in flight is awaited."""
        if node.node_id < 0 and not self.use_bootstrap and not node.in_flight:
            self.close(node, "bootstrap is over", now_ns)

    def learn(self, node_id: int, host: str, port: int, now_ns: int) -> Node:
        """Add a broker or move it to a new address."""
        node = self.brokers.get(node_id)
        if node is None:
            node = self.brokers[node_id] = self._make(node_id, host, port)
        elif (node.host, node.port) != (host, port):
            self.close(node, f"moved to {host}:{port}", now_ns)
            node.host, node.port = host, port
            node.failures = node.setup_failures = 0
            node.retry_at_ns = 0
            node.addresses, node.next_address = (), 0
            node.last_address = None
        return node

    def least_loaded(self, now_ns: int) -> Node | None:
        """The node for a request any broker can answer.

        A READY node with nothing in flight wins, then the fewest in flight, then one that is
        connecting, then the connectable one tried longest ago. None when none is usable now.
        """
        nodes = [] if self.bootstrap_only else list(self.brokers.values())
        if self.use_bootstrap or not nodes:
            nodes += self.bootstrap.values()
        if not nodes:
            return None
        start = self._random.randrange(len(nodes))
        best: Node | None = None
        connecting: Node | None = None
        candidate: Node | None = None
        for node in nodes[start:] + nodes[:start]:
            if node.state is READY:
                if not node.can_send(now_ns):
                    continue
                if not node.in_flight:
                    return node
                if best is None or len(node.in_flight) < len(best.in_flight):
                    best = node
            elif node.state is not DISCONNECTED:
                connecting = connecting or node
            elif node.retry_at_ns <= now_ns and (
                candidate is None or node.attempted_ns < candidate.attempted_ns
            ):
                candidate = node
        return best or connecting or candidate

    def busy(self) -> bool:
        """A usable node exists but takes nothing right now (so bootstrap is not needed)."""
        return any(node.state is not DISCONNECTED for node in self.brokers.values())

    # --- opening

    def connect(self, node: Node, now_ns: int) -> bool:
        """Start connecting if the node is disconnected and its backoff is over.

        Returns whether an attempt is under way. Otherwise a timer tells the owner when to ask
        again (`Owner.node_ready` is called by nobody then, so the timer does).
        """
        if node.state is not DISCONNECTED:
            return True
        if node.retry_at_ns > now_ns:
            return False
        node.attempted_ns = now_ns
        if node.next_address >= len(node.addresses):
            node.state = RESOLVING
            self._arm_setup(node, now_ns)
            self._emit(Resolve(node.node_id, node.host, node.port))
        else:
            self._dial(node, now_ns)
        return True

    def resolved(self, node_id: int, host: str, addresses: tuple[Any, ...], now_ns: int) -> None:
        """The name was looked up: try its addresses in turn, the one that failed last, last."""
        node = self.get(node_id)
        if node is None or node.state is not RESOLVING or node.host != host:
            return
        if len(addresses) > 1 and addresses[0] == node.last_address:
            addresses = (*addresses[1:], addresses[0])
        node.addresses = addresses
        node.next_address = 0
        self._dial(node, now_ns)

    def resolve_failed(self, node_id: int, host: str, why: str, now_ns: int) -> None:
        """The name has no address now."""
        node = self.get(node_id)
        if node is not None and node.state is RESOLVING and node.host == host:
            self._lose(node, why, DISCONNECTED_CODE, now_ns)

    def _dial(self, node: Node, now_ns: int) -> None:
        self._next_conn += 1
        node.conn = self._next_conn
        self._by_conn[node.conn] = node
        node.state = CONNECTING
        address = node.addresses[node.next_address]
        node.next_address += 1
        node.last_address = address
        self._counters.connection_creation_total += 1
        self._arm_setup(node, now_ns)
        self._emit(Connect(node.conn, node.node_id, node.host, address))

    def _arm_setup(self, node: Node, now_ns: int) -> None:
        wait = self._setup.draw_ns(node.setup_failures + 1)
        attempt = (node, node.state, node.conn, node.attempted_ns)
        self._timers.at(now_ns + wait, self._setup_due, attempt)

    def _setup_due(self, attempt: tuple[Node, NodeState, int, int], now_ns: int) -> None:
        node, state, conn, attempted_ns = attempt
        if (node.state, node.conn, node.attempted_ns) != (state, conn, attempted_ns):
            return
        self._fail_attempt(node, f"not connected within its setup timeout ({state.name})", now_ns)

    def connected(self, conn: int, now_ns: int) -> None:
        """TCP (and TLS) is up: ask for the API versions before anything else."""
        node = self._by_conn.get(conn)
        if node is None or node.state is not CONNECTING:
            return
        node.state = CHECKING_API_VERSIONS
        self._ask_versions(node, requests.API_VERSIONS_MAX, now_ns)

    def connect_failed(self, conn: int, why: str, now_ns: int) -> None:
        """This address refused: try the next one, or back off after the last."""
        node = self._by_conn.get(conn)
        if node is not None:
            self._fail_attempt(node, why, now_ns)

    def _fail_attempt(self, node: Node, why: str, now_ns: int) -> None:
        more = node.state is CONNECTING and node.next_address < len(node.addresses)
        if more:
            node.why = why
            self._forget_conn(node, why, report=True)
            self._dial(node, now_ns)
            return
        node.setup_failures += 1
        self._lose(node, why, DISCONNECTED_CODE, now_ns)

    # --- API versions

    def _ask_versions(self, node: Node, version: int, now_ns: int) -> None:
        message = requests.api_versions()
        self._put(node, API_VERSIONS, version, message, (), now_ns)

    def on_api_versions(
        self, node: Node, answer: requests.Message, version: int, now_ns: int
    ) -> None:
        """The first response of a connection decides the version of every later request."""
        error, ranges = requests.api_ranges(answer)
        if error == requests.UNSUPPORTED_VERSION and version > 0:
            again = min(requests.API_VERSIONS_MAX, ranges.get(API_VERSIONS, (0, 0))[1])
            self._ask_versions(node, again if again < version else 0, now_ns)
            return
        if error:
            self.close_failed(node, f"ApiVersions answered error {error}", now_ns)
            return
        node.versions = requests.usable(ranges)
        node.produce_version = requests.version_of(node.versions, API_PRODUCE)
        node.state = READY
        node.failures = 0
        node.setup_failures = 0
        node.used_ns = now_ns
        node.why = ""
        if not node.idle_armed and self._idle_ns < NEVER_NS:
            node.idle_armed = True
            self._timers.at(now_ns + self._idle_ns, self._idle_due, node)
        self._owner.node_ready(node, now_ns)

    # --- requests

    def send(
        self, node: Node, api_key: int, version: int, message: object, now_ns: int
    ) -> InFlight:
        """Send a request other than Produce; raises NotReady if the node cannot take it."""
        if not node.can_send(now_ns):
            raise NotReady(f"{node!r} cannot take a request")
        return self._put(node, api_key, version, message, (), now_ns)

    def _put(
        self,
        node: Node,
        api_key: int,
        version: int,
        message: object,
        batches: tuple[ProducerBatch, ...],
        now_ns: int,
    ) -> InFlight:
        request = self.register(node, api_key, version, message, batches, now_ns)
        self._emit(Request(node.conn, request.correlation_id, api_key, version, message))
        return request

    def register(
        self,
        node: Node,
        api_key: int,
        version: int,
        message: object,
        batches: tuple[ProducerBatch, ...],
        now_ns: int,
    ) -> InFlight:
        """Enter a request into the node's queue; its clock starts now."""
        deadline_ns = now_ns + self._request_timeout_ns
        request = InFlight(
            self._correlation.take(), api_key, version, now_ns, deadline_ns, batches, message
        )
        node.in_flight.add(request)
        node.used_ns = now_ns
        self._counters.request_total += 1
        if not node.timeout_armed:
            node.timeout_armed = True
            self._timers.at(deadline_ns, self._timeout_due, node)
        return request

    def _timeout_due(self, node: Node, now_ns: int) -> None:
        node.timeout_armed = False
        oldest = node.in_flight.oldest()
        if oldest is None:
            return
        if oldest.deadline_ns > now_ns:
            node.timeout_armed = True
            self._timers.at(oldest.deadline_ns, self._timeout_due, node)
            return
        self._counters.request_timeout_total += 1
        if node.state is CHECKING_API_VERSIONS:
            node.setup_failures += 1
        self._forget_conn(node, "a request timed out", report=True)
        self._lose(node, "a request timed out", TIMED_OUT, now_ns)

    def throttle(self, node: Node, throttle_ms: int, now_ns: int) -> None:
        """Hold requests back; a throttle never ends earlier than an older one said."""
        until = now_ns + throttle_ms * MS
        if until <= node.throttled_until_ns:
            return
        node.in_flight.extend_deadlines(until - max(node.throttled_until_ns, now_ns))
        node.throttled_until_ns = until
        self._timers.at(until, self._throttle_over, node)

    def _throttle_over(self, node: Node, now_ns: int) -> None:
        if node.throttled_until_ns <= now_ns and node.state is READY:
            self._owner.node_ready(node, now_ns)

    # --- closing

    def closed(self, conn: int, why: str, now_ns: int) -> None:
        """The loop reports the end of a connection."""
        node = self._by_conn.get(conn)
        if node is None:
            return
        if node.state is CONNECTING:
            self._fail_attempt(node, why, now_ns)
            return
        self._forget_conn(node, why, report=False)
        self._lose(node, why, DISCONNECTED_CODE, now_ns)

    def close_failed(self, node: Node, why: str, now_ns: int) -> None:
        """Close a connection whose peer misbehaved; counts as a failure."""
        self._forget_conn(node, why, report=True)
        self._lose(node, why, DISCONNECTED_CODE, now_ns)

    def close(self, node: Node, why: str, now_ns: int) -> None:
        """Close on our own wish: no failure, no backoff."""
        if node.state is DISCONNECTED:
            return
        self._forget_conn(node, why, report=True)
        self._disconnect(node, why, DISCONNECTED_CODE, now_ns)

    def close_all(self, why: str, now_ns: int) -> None:
        """Close every connection (exit, rebootstrap)."""
        for node in self.all():
            self.close(node, why, now_ns)

    def _idle_due(self, node: Node, now_ns: int) -> None:
        node.idle_armed = False
        if node.state is not READY:
            return
        busy = node.in_flight or node.ready
        due_ns = (now_ns if busy else node.used_ns) + self._idle_ns
        if due_ns > now_ns:
            node.idle_armed = True
            self._timers.at(due_ns, self._idle_due, node)
            return
        self.close(node, "idle", now_ns)

    def _forget_conn(self, node: Node, why: str, *, report: bool) -> None:
        if node.conn:
            self._by_conn.pop(node.conn, None)
            self._counters.connection_close_total += 1
            if report:
                self._emit(Close(node.conn, why))
        node.conn = 0

    def _lose(self, node: Node, why: str, code: int, now_ns: int) -> None:
        """The node failed us: back off, give its requests back to the owner."""
        if node.conn:
            self._forget_conn(node, why, report=True)
        node.failures += 1
        node.retry_at_ns = now_ns + self._reconnect.draw_ns(node.failures)
        self._disconnect(node, why, code, now_ns)

    def _disconnect(self, node: Node, why: str, code: int, now_ns: int) -> None:
        if node.state is READY or node.next_address >= len(node.addresses):
            node.addresses, node.next_address = (), 0
        node.state = DISCONNECTED
        node.why = why
        node.versions = {}
        node.produce_version = -1
        node.throttled_until_ns = 0
        lost = node.in_flight.clear()
        self._owner.node_lost(node, lost, code, now_ns)
        if node.retry_at_ns > now_ns:
            self._timers.at(node.retry_at_ns, self._retry_due, node)

    def _retry_due(self, node: Node, now_ns: int) -> None:
        if node.state is DISCONNECTED and node.retry_at_ns <= now_ns:
            self._owner.node_ready(node, now_ns)
