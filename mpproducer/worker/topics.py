"""Waiting for a topic: the metadata half of `max_block_ms`.

The sender publishes every topic it knows in the control segment; a worker that does not find its
topic there asks over the control socket and waits for the directory to change. One deadline covers
this wait and the wait for memory (KafkaProducer.waitOnMetadata).
"""

from __future__ import annotations

import time

from mpproducer._core import native
from mpproducer.errors import (
    AuthorizationFailed,
    InvalidTopic,
    MetadataTimeout,
    NotSent,
    SenderError,
)
from mpproducer.light import suppress
from mpproducer.worker.attach import Link

TYPE_CHECKING = False  # typing is dear: see light.py
if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_NAME_LENGTH = 249
_PUNCTUATION_GONE = dict.fromkeys(map(ord, "._-"))
_ASK_AGAIN_NS = 1_000_000_000
_TROUBLES_NS = 100_000_000
_DETACHING_S = 0.001
_INVALID_TOPIC = 17
_AUTHORIZATION = (29, 31)


def check_name(topic: str) -> None:
    """Raise InvalidTopic unless Kafka takes the name (org.apache.kafka Topic.validate)."""
    letters = topic.translate(_PUNCTUATION_GONE)
    legal = topic.isascii() and (not letters or letters.isalnum())
    if not legal or not 0 < len(topic) <= _MAX_NAME_LENGTH or topic in (".", ".."):
        raise InvalidTopic(
            f"{topic!r} is not a legal topic name: 1 to 249 of the characters a-z A-Z 0-9 . _ -, "
            "and not . or .."
        )


def wait_ready(
    link: Link,
    topic: str,
    partition: int,
    deadline_ns: int,
    max_block_ms: int,
    is_closed: Callable[[], bool],
) -> None:
    """Return once the topic is in the directory and has `partition` (-1: any).

    Raises InvalidTopic, AuthorizationFailed, or MetadataTimeout at the deadline, naming the topic,
    the partition and the last error the cluster gave. Returns early when the sender died, and the
    caller attaches again, or when the producer was closed.
    """
    check_name(topic)
    attachment = link.attachment
    began_ns = time.monotonic_ns()
    asked_ns = 0
    while link.usable() and not is_closed():
        try:
            version = attachment.topic_version()
            state, count, code, message = attachment.topic(topic)
        except ValueError:  # another thread detached just now
            return
        if state == native.TOPIC_READY and partition < count:
            attachment.waited(False, time.monotonic_ns() - began_ns)
            return
        if state == native.TOPIC_ERROR:
            _raise_fatal(topic, code, message)
        now_ns = time.monotonic_ns()
        if now_ns >= deadline_ns:
            if state != native.TOPIC_READY and not message:
                message = _troubles(link, known=state >= 0)
            raise _timeout(topic, partition, state, count, message, max_block_ms)
        if now_ns - asked_ns >= _ASK_AGAIN_NS:
            asked_ns = now_ns
            try:
                link.tell({"type": "topic", "name": topic}, deadline_ns)
            except SenderError:
                attachment.drain()
                if link.usable():
                    raise
                return
        with suppress(ValueError):
            attachment.wait_topics(version, min(deadline_ns - now_ns, _ASK_AGAIN_NS))


def wait_detached(attachment: native.Attachment, deadline_ns: int) -> None:
    """Return once the thread that detaches this attachment, whose link is gone already, has closed
    it, so that the caller attaches anew. Raises NotSent at the deadline: that thread runs callbacks
    of the user on its way."""
    while not (attachment.closed or attachment.sender_dead):
        if time.monotonic_ns() >= deadline_ns:
            raise NotSent("another thread of this process detaches, and did not end in time")
        time.sleep(_DETACHING_S)


def _raise_fatal(topic: str, code: int, message: str) -> None:
    if code == _INVALID_TOPIC:
        raise InvalidTopic(f"the cluster refuses the topic name {topic!r}: {message}", code=code)
    if code in _AUTHORIZATION:
        raise AuthorizationFailed(f"no access to topic {topic!r}: {message}", code=code)


def _troubles(link: Link, known: bool) -> str:
    """What the sender says stands in the way, or a guess when it knows nothing or is silent."""
    with suppress(SenderError):
        status = link.status(time.monotonic_ns() + _TROUBLES_NS)
        if not known and status["topics"] >= link.config.max_topics:
            return f"the host's directory of topics is full; raise max_topics={status['topics']}"
        nodes = status["nodes"]
        brokers = [node for node in nodes if node["id"] >= 0]  # the others: bootstrap servers
        whys = [
            n["why"] if n["host"] in n["why"] else f"{n['host']}:{n['port']}: {n['why']}"
            for n in brokers or nodes
            if n["why"]
        ]
        if whys:
            return "; ".join(whys)
    return f"does a Kafka broker answer at {link.config.servers}, and does the topic exist?"


def _timeout(
    topic: str, partition: int, state: int, count: int, message: str, max_block_ms: int
) -> MetadataTimeout:
    within = f"within max_block_ms={max_block_ms}"
    if state == native.TOPIC_READY:
        return MetadataTimeout(
            f"topic {topic!r} has {count} partitions; partition {partition} did not appear {within}"
        )
    return MetadataTimeout(f"topic {topic!r} did not appear in the metadata {within}: {message}")
