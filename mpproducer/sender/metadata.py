"""Which broker leads which partition, and when to ask again (ProducerMetadata in Java).

When a request is due:
- a topic nobody has asked the cluster about yet: at once, for the new topics only, even inside
  the backoff of another failure; it does not count as a full refresh;
- an update was requested (an error said our picture is wrong, a leader is unknown): after the
  retry backoff, which grows while requests fail or bring nothing new;
- the last full answer is older than metadata.max.age.

One request is in flight at a time. Topics that no batch used for metadata.max.idle are no longer
asked for; the next batch brings them back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from mpproducer.sender import error_table
from mpproducer.sender.actions import (
    Action,
    PublishTopic,
    PublishTopicError,
)
from mpproducer.sender.batch import NEVER_NS, NO_SEQUENCE
from mpproducer.sender.partition import Partition
from mpproducer.sender.requests import BrokerInfo, PartitionInfo, TopicInfo
from mpproducer.sender.retry import MS, Backoff, Randomness

if TYPE_CHECKING:
    from mpproducer.config import Config
    from mpproducer.sender.counters import Counters


class Topic:
    """A topic the sender follows. `fetched`: the cluster has answered for it at least once."""

    __slots__ = (
        "error_code",
        "fetched",
        "index",
        "name",
        "partitions",
        "pending",
        "topic_id",
        "used_ns",
        "wanted",
    )

    def __init__(self, name: str, index: int, now_ns: int) -> None:
        self.name = name
        self.index = index
        self.used_ns = now_ns
        self.fetched = False
        self.wanted = True
        self.error_code = 0
        self.topic_id: bytes = b""
        self.partitions: list[Partition] = []
        self.pending: tuple[PartitionInfo, ...] = ()


class Metadata:
    """The sender's picture of the cluster. The machine sends the requests and reads `due_ns`."""

    def __init__(
        self,
        config: Config,
        random: Randomness,
        emit: Callable[[Action], None],
        counters: Counters,
        leader_changed: Callable[[Partition, int], None],
        now_ns: int,
    ) -> None:
        self._max_age_ns = config.metadata_max_age_ms * MS
        self._max_idle_ns = config.metadata_max_idle_ms * MS
        self._backoff = Backoff(config.retry_backoff_ms, config.retry_backoff_max_ms, random)
        self._emit = emit
        self._counters = counters
        self._leader_changed = leader_changed
        self.topics: dict[str, Topic] = {}
        self.partitions: dict[int, Partition] = {}
        self._new: dict[str, None] = {}
        self._asking: tuple[str, ...] = ()
        self._partial = False
        self._picture: object = None
        self._failures = 0
        self._requested = True
        self._not_before_ns = now_ns
        self._full_due_ns = now_ns
        self._asked_meanwhile = False
        self.succeeded_ns = now_ns
        self.trying_since_ns: int | None = None  # first attempt since the last success
        self.in_flight = False
        self.due_ns = now_ns

    # --- what is wanted

    def want(self, name: str, index: int, now_ns: int) -> None:
        """A worker asks for a topic (again)."""
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = Topic(name, index, now_ns)
        topic.used_ns = now_ns
        topic.wanted = True
        if not topic.partitions and name not in self._asking:
            topic.error_code = 0
            self._new[name] = None
        elif name not in self._asking:
            # The worker has partitions and asks all the same: it misses one that may be new.
            self._requested = True
        self.plan()

    def used(self, topic: str, now_ns: int) -> None:
        """A batch of this topic was opened: keep it, or take it up again."""
        known = self.topics[topic]
        known.used_ns = now_ns
        if not known.wanted:
            known.wanted = True
            self._new[topic] = None
            self.plan()

    def request_update(self) -> None:
        """Our picture is wrong somewhere: ask as soon as the backoff allows.

        What is in flight now may have been answered before the change we missed: it does not
        count as the answer.
        """
        self._asked_meanwhile = self.in_flight
        if not self._requested:
            self._requested = True
            self.plan()

    def expire_idle(self, now_ns: int) -> None:
        """Stop asking for topics nobody used; one that was never fetched stays."""
        for topic in self.topics.values():
            idle = topic.used_ns + self._max_idle_ns <= now_ns
            if topic.wanted and topic.fetched and idle and not _has_batches(topic):
                topic.wanted = False

    # --- requests

    def plan(self) -> None:
        """Compute `due_ns`; called after every change of what it depends on."""
        if self.in_flight:
            self.due_ns = NEVER_NS
        elif self._new:
            self.due_ns = 0
        elif self._requested:
            self.due_ns = self._not_before_ns
        else:
            self.due_ns = max(self._full_due_ns, self._not_before_ns)

    def postpone(self, until_ns: int) -> None:
        """No node can take the request now; look again then (or when a node changes)."""
        self.due_ns = until_ns

    def begin(self, now_ns: int) -> tuple[str, ...]:
        """A node takes the request now: the topics to ask for (empty: brokers only)."""
        self.expire_idle(now_ns)
        overdue = self._full_due_ns <= now_ns or (self._requested and self._not_before_ns <= now_ns)
        self._partial = bool(self._new) and not overdue
        if self._partial:
            names = tuple(self._new)
        else:
            names = tuple(name for name, topic in self.topics.items() if topic.wanted)
        self._asking = names
        self._new.clear()
        self._asked_meanwhile = False
        self.in_flight = True
        self.plan()
        return names

    def failed(self, now_ns: int) -> None:
        """The request had no usable answer: ask again, for everything, after the backoff."""
        self._end()
        self._requested = True
        self._back_off(now_ns)
        self.plan()

    def _end(self) -> None:
        self.in_flight = False
        self._asking = ()

    def on_response(
        self, brokers: Iterable[BrokerInfo], topics: Iterable[TopicInfo], now_ns: int
    ) -> None:
        """Take over an answer with at least one broker."""
        explicit = self._requested and not self._partial
        was_partial = self._partial
        infos = tuple(topics)
        again = self._asked_meanwhile
        self._end()
        for info in infos:
            again |= self._take_topic(info)
        if was_partial:
            self._requested |= again
            if again:
                self._back_off(now_ns)
        else:
            picture = (tuple(brokers), infos)
            same = picture == self._picture
            self._picture = picture
            self._full_due_ns = now_ns + self._max_age_ns
            self._requested = again
            if same and explicit:
                self._back_off(now_ns)
            else:
                self._failures = 0
                self._not_before_ns = now_ns + self._backoff.draw_ns(1)
        self.succeeded_ns = now_ns
        self.trying_since_ns = None
        self._counters.metadata_update_total += 1
        self.plan()

    def _back_off(self, now_ns: int) -> None:
        self._failures += 1
        self._not_before_ns = now_ns + self._backoff.draw_ns(self._failures)

    def _take_topic(self, info: TopicInfo) -> bool:
        """Returns whether the topic must be asked for again soon."""
        topic = self.topics.get(info.name)
        if topic is None:
            return False
        news = info.error_code != topic.error_code
        topic.error_code = info.error_code
        topic.fetched = True
        if info.error_code:
            passing = error_table.row(info.error_code).retriable
            if not topic.partitions and (news or not passing):
                # A passing error only tells the workers that wait what they wait for.
                text = error_table.describe(info.error_code, f"topic {info.name}")
                self._emit(PublishTopicError(topic.index, info.error_code, text))
            if passing:
                return topic.wanted
            if not topic.partitions:
                topic.wanted = False
            return False
        if info.topic_id != topic.topic_id:
            # Deleted and made again: leader epochs start over, and the new log knows nothing of
            # our producer id, so its first batch goes alone again (idempotence.py, rule 7).
            if topic.topic_id:
                for partition in topic.partitions:
                    partition.leader_epoch = -1
                    partition.last_acked_sequence = NO_SEQUENCE
            topic.topic_id = info.topic_id
        topic.pending = info.partitions
        if len(info.partitions) > len(topic.partitions):
            self._emit(PublishTopic(topic.name, topic.index, len(info.partitions)))
        else:
            self._apply(topic)
        return any(part.error_code or part.leader_id < 0 for part in info.partitions)

    def published(self, name: str, indices: tuple[int, ...]) -> None:
        """Shared memory has the topic's partitions now: these are their host-wide indices."""
        topic = self.topics[name]
        for number in range(len(topic.partitions), len(indices)):
            partition = Partition(name, topic.index, number, indices[number])
            topic.partitions.append(partition)
            self.partitions[partition.index] = partition
        self._apply(topic)

    def _apply(self, topic: Topic) -> None:
        for info in topic.pending:
            if 0 <= info.number < len(topic.partitions):
                self.set_leader(topic.partitions[info.number], info.leader_id, info.leader_epoch)
        topic.pending = ()

    def set_leader(self, partition: Partition, leader: int, epoch: int) -> None:
        """Believe this leader unless we know a newer epoch. A leaderless partition keeps its last
        epoch, so that an older answer cannot bring an older leader back."""
        if 0 <= epoch < partition.leader_epoch:
            return
        changed = leader != partition.leader
        newer = epoch > partition.leader_epoch
        partition.hinted = False
        partition.leader = leader
        if epoch >= 0:
            partition.leader_epoch = epoch
        if changed or newer:
            self._leader_changed(partition, epoch)

    def hint(self, partition: Partition, leader: int, epoch: int) -> None:
        """A Produce response names the leader (KIP-951): only news counts."""
        if leader >= 0 and epoch > partition.leader_epoch:
            self.set_leader(partition, leader, epoch)
            partition.hinted = True

    def disowned(self, partition: Partition, epoch: int) -> None:
        """The leader of this epoch says that it is none. If only a response had named it, metadata
        are believed again whatever their epoch: it may have been of a topic that was deleted and
        made again meanwhile, whose epochs start over. (Java asks that leader for ever.)"""
        if partition.hinted and epoch == partition.leader_epoch:
            partition.hinted = False
            partition.leader_epoch = -1

    def rebootstrapped(self, now_ns: int) -> None:
        """The clock of metadata.recovery.rebootstrap.trigger.ms starts over."""
        self.trying_since_ns = now_ns
        self._requested = True
        self.plan()


def _has_batches(topic: Topic) -> bool:
    return any(part.queue or part.on_wire for part in topic.partitions)
