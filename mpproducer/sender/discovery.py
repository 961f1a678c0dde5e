"""The requests any broker can answer: Metadata and InitProducerId.

Both go to the least loaded node and are tried again elsewhere. While no known broker is usable,
bootstrap servers are asked again (metadata.recovery.strategy=rebootstrap, KIP-899 and KIP-1102).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mpproducer.reason import Reason
from mpproducer.sender import error_table, requests
from mpproducer.sender.error_table import Step
from mpproducer.sender.idempotence import Idempotence, IdState
from mpproducer.sender.inflight import API_INIT_PRODUCER_ID, API_METADATA, InFlight
from mpproducer.sender.metadata import Metadata
from mpproducer.sender.nodes import DISCONNECTED, READY, Node, Nodes
from mpproducer.sender.requests import Message
from mpproducer.sender.retry import MS, Backoff, Randomness

if TYPE_CHECKING:
    from mpproducer.config import Config
    from mpproducer.sender.counters import Counters

_REBOOTSTRAP: Final = "rebootstrap"
# No node can take the request: events wake us earlier; this bounds the wait (bootstrap trigger).
_LOOK_AGAIN_NS: Final = 100 * MS


class Discovery:
    """Sends Metadata and InitProducerId when they are due and a node can take them."""

    def __init__(
        self,
        config: Config,
        nodes: Nodes,
        metadata: Metadata,
        idempotence: Idempotence,
        random: Randomness,
        counters: Counters,
        id_received: Callable[[int], None],
        id_refused: Callable[[int, Reason, str, bool], None],
    ) -> None:
        self._nodes = nodes
        self._metadata = metadata
        self._idempotence = idempotence
        self._counters = counters
        self._id_received = id_received
        self._id_refused = id_refused
        self._rebootstrap = config.metadata_recovery_strategy == _REBOOTSTRAP
        self._trigger_ns = config.metadata_recovery_rebootstrap_trigger_ms * MS
        self._auto_create = config.allow_auto_create_topics
        self._backoff = Backoff(config.retry_backoff_ms, config.retry_backoff_max_ms, random)
        self._id_failures = 0
        self._id_not_before_ns = 0
        self._id_due_ns = 0
        self.starved = False
        self.id_blocked = False
        self.wake = True  # a node changed: what was postponed may be possible now

    def run(self, now_ns: int) -> None:
        """Send what is due. Called after every event; cheap when nothing is."""
        metadata = self._metadata
        if not metadata.in_flight and (self.wake or metadata.due_ns <= now_ns):
            metadata.plan()
            if metadata.due_ns <= now_ns:
                self._ask_metadata(now_ns)
        if self._idempotence.state is IdState.WANTED and not self.id_blocked:
            if self.wake:
                self._id_due_ns = self._id_not_before_ns
            if self._id_due_ns <= now_ns:
                self._ask_id(now_ns)
        self.wake = False

    def poke(self) -> None:
        """A request left a connection. When ours found every connection full, it goes first."""
        if self.starved:
            self.starved = False
            self.wake = True

    def next_ns(self) -> int:
        """When `run` must be called even if nothing happens."""
        due_ns = self._metadata.due_ns
        if self._idempotence.state is IdState.WANTED and not self.id_blocked:
            due_ns = min(due_ns, self._id_due_ns)
        return due_ns

    # --- metadata

    def _node(self, now_ns: int) -> Node | None:
        """A node for a request, connecting one if need be; None: nothing can be sent now."""
        nodes = self._nodes
        node = nodes.least_loaded(now_ns)
        if node is None and not nodes.use_bootstrap and self._rebootstrap and not nodes.busy():
            nodes.use_bootstrap = True
            node = nodes.least_loaded(now_ns)
        if node is None:
            return None
        if node.state is DISCONNECTED:
            nodes.connect(node, now_ns)
        return node if node.state is READY else None

    def _ask_metadata(self, now_ns: int) -> None:
        metadata = self._metadata
        since_ns = metadata.trying_since_ns
        if since_ns is None:
            metadata.trying_since_ns = now_ns
        elif self._rebootstrap and now_ns - since_ns >= self._trigger_ns:
            self.rebootstrap("no metadata for too long", now_ns)
        node = self._node(now_ns)
        if node is None:
            self.starved = True
            metadata.postpone(now_ns + _LOOK_AGAIN_NS)
            return
        version = requests.version_of(node.versions, API_METADATA)
        if version < 0:
            metadata.postpone(now_ns + _LOOK_AGAIN_NS)
            self._nodes.close_failed(node, "no Metadata version in common", now_ns)
            return
        names = metadata.begin(now_ns)
        message = requests.metadata(names, self._auto_create)
        self._nodes.send(node, API_METADATA, version, message, now_ns)

    def metadata_answered(self, message: Message, version: int, now_ns: int) -> None:
        """Take over a Metadata response; an empty broker list counts as a failure."""
        answer = requests.metadata_answer(message, version)
        if answer.error_code == error_table.REBOOTSTRAP_REQUIRED:
            self._metadata.failed(now_ns)
            self.rebootstrap("the broker asked for it", now_ns)
            return
        if answer.error_code or not answer.brokers:
            self._counters.metadata_error_total += 1
            self._metadata.failed(now_ns)
            return
        self._nodes.update(answer.brokers, now_ns)
        self._metadata.on_response(answer.brokers, answer.topics, now_ns)
        self.wake = True

    def rebootstrap(self, why: str, now_ns: int) -> None:
        """Start over from the bootstrap servers; topics and batches stay."""
        self._metadata.rebootstrapped(now_ns)
        for node in list(self._nodes.brokers.values()):
            self._nodes.close(node, f"rebootstrap: {why}", now_ns)
        self._nodes.use_bootstrap = self._nodes.bootstrap_only = True
        self.wake = True

    # --- producer id

    def _ask_id(self, now_ns: int) -> None:
        node = self._node(now_ns)
        if node is None:
            self.starved = True
            self._id_due_ns = now_ns + _LOOK_AGAIN_NS
            return
        version = requests.version_of(node.versions, API_INIT_PRODUCER_ID)
        if version < 0:
            self._id_refused(
                requests.UNSUPPORTED_VERSION,
                Reason.FATAL,
                "the brokers do not support idempotence; set enable.idempotence=false",
                True,
            )
            self.id_blocked = True
            return
        self._idempotence.state = IdState.ASKED
        self._nodes.send(node, API_INIT_PRODUCER_ID, version, requests.init_producer_id(), now_ns)

    def id_answered(self, message: Message, now_ns: int) -> None:
        """Take over an InitProducerId response."""
        code, producer_id, epoch = requests.producer_id(message)
        if not code:
            self._id_failures = 0
            self._idempotence.received(producer_id, epoch)
            self._id_received(now_ns)
            return
        self._idempotence.state = IdState.WANTED
        self._back_off(now_ns)
        row = error_table.row(code)
        if row.retriable:
            self._metadata.request_update()
            return
        # CLUSTER_AUTHORIZATION_FAILED: what waits fails, a later send asks again.
        self.id_blocked = True
        fatal = row.step is Step.FATAL and code != error_table.CLUSTER_AUTHORIZATION_FAILED
        self._id_refused(
            code, row.reason, f"InitProducerId: {error_table.describe(code, None)}", fatal
        )

    def _back_off(self, now_ns: int) -> None:
        self._id_failures += 1
        self._id_not_before_ns = now_ns + self._backoff.draw_ns(self._id_failures)
        self._id_due_ns = self._id_not_before_ns

    def unblock(self) -> None:
        """A record was sent after the producer id had been refused: try again."""
        self.id_blocked = False

    # --- lost requests

    def lost(self, request: InFlight, now_ns: int) -> None:
        """The connection ended before the answer: try another node after the backoff."""
        if request.api_key == API_METADATA:
            self._counters.metadata_error_total += 1
            self._metadata.failed(now_ns)
        elif request.api_key == API_INIT_PRODUCER_ID:
            self._idempotence.state = IdState.WANTED
            self._back_off(now_ns)
        self.wake = True
