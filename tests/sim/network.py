"""Connections between the sender and the simulated brokers.

Bytes of one connection stay in order, both ways; between connections there is no order. What was
fully written before a connection ended may still arrive at the broker, and be carried out, after
the sender has long gone on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from mpproducer.sender import actions as a
from mpproducer.sender.inflight import API_PRODUCE
from tests.sim.brokers import Brokers
from tests.sim.plan import Fault
from tests.sim.world import Violation, World

Inbox = Callable[[Any], None]  # an event, or a call that makes events when the sender looks


class Connection:
    """One connection attempt of the sender, and the broker's side of it."""

    def __init__(self, conn: int, node: int) -> None:
        self.conn = conn
        self.node = node
        self.connected = False
        self.open = True  # for the sender
        self.heard = True  # the broker still reads what arrives
        self.silent = False  # half-open: nothing passes any more
        self.arrives_ns = 0
        self.answers_ns = 0
        self.unwritten: deque[Any] = deque()
        self.arrived: deque[Any] = deque()
        self.busy = False


class Network:
    """All connections; what the sender learns of them goes to its inbox."""

    def __init__(self, world: World, brokers: Brokers, inbox: Inbox) -> None:
        self.world = world
        self.brokers = brokers
        self.inbox = inbox
        self.connections: dict[int, Connection] = {}
        self.to_wire: Callable[[Any], tuple[Any, ...]] = lambda batches: ()
        self.pending = 0  # requests that may still change a log
        self._waiting: dict[Connection, None] = {}  # for a stopped broker to go on
        brokers.on_down = self._node_down
        brokers.on_resume = self._node_resumed

    # --- names and connections

    def resolve(self, action: a.Resolve) -> None:
        """Look a name up."""
        wait_ns = self.world.between(0.1, 3)
        if self.world.strikes(Fault.RESOLVE_FAILED):
            event: Any = a.ResolveFailed(action.node_id, action.host, "no such name")
        else:
            address = (action.host, action.port)
            event = a.Resolved(action.node_id, action.host, (address,))
        self.world.after(wait_ns, self.inbox, event)

    def _listener(self, address: tuple[str, int]) -> int | None:
        host, port = address
        addresses = self.brokers.cluster.addresses
        if host.startswith("boot"):
            nodes = sorted(addresses)
            return nodes[-1] if host == "boot2" else nodes[0]
        return next((node for node, at in addresses.items() if at == (host, port)), None)

    def connect(self, action: a.Connect) -> None:
        """Start a connection; it comes up, fails, or nothing is heard of it."""
        world = self.world
        node = self._listener(action.address)
        connection = Connection(action.conn, node or 0)
        self.connections[action.conn] = connection
        wait_ns = world.between(0.2, 3)
        if world.strikes(Fault.CONNECT_LOST):
            return
        if world.strikes(Fault.CONNECT_SLOW):
            wait_ns = world.between(30, 600)
        world.after(wait_ns, self._came_up, connection)

    def _came_up(self, connection: Connection) -> None:
        if not connection.open:
            return
        refused = self.world.strikes(Fault.CONNECT_REFUSED)
        if refused or connection.node not in self.brokers.cluster.alive:
            connection.open = connection.heard = False
            self.inbox(a.ConnectFailed(connection.conn, "refused"))
            return
        connection.connected = True
        self.inbox(a.Connected(connection.conn))

    def close(self, conn: int) -> None:
        """The sender closes: what it had written arrives all the same, or some of it."""
        connection = self.connections.pop(conn, None)
        if connection is not None:
            self._end(connection, heard=self.world.rng.random() < 0.7)

    def _end(self, connection: Connection, *, heard: bool) -> None:
        connection.open = False
        connection.heard = connection.heard and heard
        self.connections.pop(connection.conn, None)

    def reset(self, connection: Connection, why: str, *, heard: bool) -> None:
        """The connection breaks and the sender is told when it looks."""
        if not connection.open or not connection.connected:
            return
        connection.open = False
        connection.heard = heard
        self.inbox(lambda: self._tell_closed(connection, why))

    def _tell_closed(self, connection: Connection, why: str) -> Any:
        if self.connections.pop(connection.conn, None) is None:
            return None
        return a.Closed(connection.conn, why)

    def _node_down(self, node: int) -> None:
        for connection in list(self.connections.values()):
            if connection.node == node:
                if self.world.strikes(Fault.HALF_OPEN):
                    connection.silent = True
                    connection.heard = False
                elif connection.connected:
                    self.reset(connection, "broker down", heard=False)

    def _node_resumed(self, node: int) -> None:
        for connection in [c for c in self._waiting if c.node == node]:
            self._waiting.pop(connection)
            self._serve(connection)

    def idle_reset(self) -> None:
        """A broker closes a connection for no reason the sender can see."""
        live = [c for c in self.connections.values() if c.open and c.connected]
        if live:
            self.world.hit(Fault.IDLE_RESET)
            self.reset(self.world.pick(live), "closed by the broker", heard=False)

    def heal(self) -> None:
        """Whatever is half-open is noticed now."""
        for connection in list(self.connections.values()):
            if connection.silent:
                self.reset(connection, "keep-alive failed", heard=False)

    # --- requests

    def request(self, action: a.Request | a.SendProduce) -> list[Any]:
        """The sender hands a request over; returns Wrote where all of it was taken."""
        connection = self.connections.get(action.conn)
        if connection is None:
            return []
        if connection.unwritten:
            raise Violation(f"a request behind one that is not fully written: {action}")
        connection.unwritten.append(action)
        if self.world.strikes(Fault.STALLED_WRITE):
            return []
        if self.world.strikes(Fault.PARTIAL_WRITE):
            wait_ns = self.world.between(0.5, 40)
            self.world.after(wait_ns, self.inbox, lambda: self._write(connection, action))
            return []
        return [self._write(connection, action)]

    def _write(self, connection: Connection, action: Any) -> Any:
        """The rest of the request goes to the kernel: now its bytes are read for the last time."""
        if self.connections.get(connection.conn) is not connection or not connection.open:
            return None
        connection.unwritten.popleft()
        if isinstance(action, a.SendProduce):
            request: Any = (action.acks, action.timeout_ms, self.to_wire(action.batches))
            api_key = API_PRODUCE
        else:
            request, api_key = action.message, action.api_key
        self._travel(connection, (action.correlation_id, api_key, action.api_version, request))
        return a.Wrote(connection.conn, action.correlation_id)

    def _travel(self, connection: Connection, request: Any) -> None:
        world = self.world
        if world.strikes(Fault.HALF_OPEN):
            connection.silent = True
        if world.strikes(Fault.RESET_BEFORE):
            late = world.rng.random() < 0.5
            world.after(
                world.between(0.1, 5),
                lambda: self.reset(connection, "reset by peer", heard=late),
            )
            if not late:
                return
        wait_ns = world.between(0.2, 2)
        if world.strikes(Fault.SLOW_NETWORK):
            wait_ns = world.between(20, 900)
        connection.arrives_ns = max(connection.arrives_ns + 1, world.now_ns + wait_ns)
        self.pending += 1
        world.at(connection.arrives_ns, self._arrive, connection, request)

    def _arrive(self, connection: Connection, request: Any) -> None:
        alive = connection.node in self.brokers.cluster.alive
        if not connection.heard or not alive:
            self.pending -= 1
            return
        if connection.silent and self.world.rng.random() < 0.5:
            self.pending -= 1
            return
        connection.arrived.append(request)
        self._serve(connection)

    def _serve(self, connection: Connection) -> None:
        """The broker carries out one request of a connection at a time."""
        if connection.busy or not connection.arrived:
            return
        if connection.node not in self.brokers.cluster.alive:
            self._drop(connection)
            return
        if connection.node in self.brokers.stopped:
            self._waiting[connection] = None
            return
        if not connection.open:
            if not self.world.chance(Fault.REQUEST_ARRIVES_LATE):
                self._drop(connection)
                return
            self.world.hit(Fault.REQUEST_ARRIVES_LATE)
        correlation_id, api_key, version, request = connection.arrived.popleft()
        connection.busy = True
        self.pending -= 1
        self.brokers.handle(
            connection.node,
            api_key,
            version,
            request,
            lambda message: self._answer(connection, correlation_id, api_key, request, message),
        )

    def _drop(self, connection: Connection) -> None:
        self.pending -= len(connection.arrived)
        connection.arrived.clear()

    def _answer(
        self, connection: Connection, correlation_id: int, api_key: int, request: Any, message: Any
    ) -> None:
        connection.busy = False
        world = self.world
        if connection.node not in self.brokers.cluster.alive:
            return
        unanswered = api_key == API_PRODUCE and request[0] == 0
        if connection.open and not connection.silent and not unanswered:
            if world.strikes(Fault.RESET_AFTER):
                self.reset(connection, "closed before the answer", heard=True)
            else:
                self._send_back(connection, correlation_id, message)
        self._serve(connection)

    def _send_back(self, connection: Connection, correlation_id: int, message: Any) -> None:
        world = self.world
        if world.strikes(Fault.WRONG_CORRELATION):
            correlation_id += 7
        garbage = world.strikes(Fault.GARBAGE)
        wait_ns = world.between(0.2, 2)
        if world.strikes(Fault.SLOW_NETWORK):
            wait_ns = world.between(20, 900)
        connection.answers_ns = max(connection.answers_ns + 1, world.now_ns + wait_ns)

        def received() -> Any:
            if self.connections.get(connection.conn) is not connection or not connection.open:
                return None
            if garbage:
                connection.open = False
                return self._tell_closed(connection, "bytes that are no response")
            return a.Response(connection.conn, correlation_id, message)

        world.at(connection.answers_ns, self.inbox, received)
