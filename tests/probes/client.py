"""Raw requests through the wire layer on a plain socket, one at a time, with a bound on waits."""

from __future__ import annotations

import contextlib
import socket
import time
from types import TracebackType
from typing import Any, NamedTuple

from mpproducer.sender.codec import decode_produce_response
from mpproducer.wire import framing
from mpproducer.wire.messages import (
    API_VERSIONS,
    CREATE_TOPICS,
    DELETE_TOPICS,
    FETCH,
    INIT_PRODUCER_ID,
    LIST_OFFSETS,
    METADATA,
    PRODUCE,
    Api,
)
from mpproducer.wire.produce import PartitionResult, ProduceResponse

Message = dict[str, Any]
WAIT_S = 20.0
CLIENT_ID = "probe"


class Topic(NamedTuple):
    """A topic as probes name it: by name before Produce v13, by id from there on."""

    name: str
    topic_id: bytes


class Closed(Exception):
    """The broker closed the connection."""


class Raw:
    """One connection. A context manager."""

    def __init__(self, bootstrap_servers: str) -> None:
        host, port = bootstrap_servers.split(",")[0].rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=WAIT_S)
        self._number = 0

    def __enter__(self) -> Raw:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    # --- bytes

    def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # the next receive tells it
            self._socket.sendall(data)

    def receive(self) -> bytes:
        """The next frame without its length. Raises Closed."""
        return self._exactly(int.from_bytes(self._exactly(4), "big"))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                piece = self._socket.recv(size - len(data))
            except ConnectionError as error:
                raise Closed from error
            if not piece:
                raise Closed
            data += piece
        return data

    # --- requests

    def ask(self, api: Api, version: int, message: Message) -> Message:
        """Send one request and return its answer."""
        self._number += 1
        self.send(framing.encode_request(api, version, self._number, CLIENT_ID, message))
        return framing.decode_response(self.receive(), api, version, self._number)

    def send_produce(
        self, version: int, topics: dict[Topic, list[tuple[int, bytes]]], acks: int = -1
    ) -> None:
        message = {
            "transactional_id": None,
            "acks": acks,
            "timeout_ms": 10_000,
            "topics": [
                {
                    "name": topic.name,
                    "topic_id": topic.topic_id,
                    "partitions": [{"index": p, "records": data} for p, data in partitions],
                }
                for topic, partitions in topics.items()
            ],
        }
        self._number += 1
        self.send(framing.encode_request(PRODUCE, version, self._number, CLIENT_ID, message))

    def produce_response(self, version: int) -> ProduceResponse:
        return decode_produce_response(self.receive(), version, self._number)

    def produce(
        self, topic: Topic, data: bytes, *, partition: int = 0, version: int = 9, acks: int = -1
    ) -> PartitionResult:
        """Send one batch and return what was said about it."""
        self.send_produce(version, {topic: [(partition, data)]}, acks)
        ((_name, (result,)),) = self.produce_response(version).topics
        return result

    def produce_null(self, topic: Topic, *, version: int = 9) -> PartitionResult:
        """Send a partition whose records are null."""
        entry = {"index": 0, "records": None}
        message = {
            "transactional_id": None,
            "acks": -1,
            "timeout_ms": 10_000,
            "topics": [{"name": topic.name, "topic_id": topic.topic_id, "partitions": [entry]}],
        }
        self._number += 1
        self.send(framing.encode_request(PRODUCE, version, self._number, CLIENT_ID, message))
        ((_name, (result,)),) = self.produce_response(version).topics
        return result

    # --- what probes need around them

    def producer_id(self) -> tuple[int, int]:
        """A new producer id and its epoch; a broker that has just started may say: not yet."""
        message = {"transactional_id": None, "transaction_timeout_ms": 1 << 30}
        until = time.monotonic() + WAIT_S
        while (answer := self.ask(INIT_PRODUCER_ID, 4, message))["error_code"]:
            assert time.monotonic() < until, answer
            time.sleep(0.05)
        return answer["producer_id"], answer["producer_epoch"]

    def api_versions(self) -> dict[int, tuple[int, int]]:
        answer = self.ask(
            API_VERSIONS, 3, {"client_software_name": "probe", "client_software_version": "1"}
        )
        return {a["api_key"]: (a["min_version"], a["max_version"]) for a in answer["api_keys"]}

    def create(self, name: str, partitions: int = 1, *, wait: bool = True, **configs: str) -> Topic:
        """Create a topic; return when this broker serves every partition, or without `wait`."""
        pairs = [{"name": k.replace("_", "."), "value": v} for k, v in configs.items()]
        topic = {
            "name": name, "num_partitions": partitions, "replication_factor": 1,
            "assignments": [], "configs": pairs,
        }  # fmt: skip
        answer = self.ask(CREATE_TOPICS, 7, {"topics": [topic], "timeout_ms": 10_000})
        (created,) = answer["topics"]
        assert created["error_code"] == 0, created
        made = Topic(name, created["topic_id"])
        until = time.monotonic() + WAIT_S
        # Metadata tells of a leader before the leader itself knows.
        while wait and any(self.latest(made, p)["error_code"] for p in range(partitions)):
            if time.monotonic() > until:
                raise TimeoutError(f"nobody serves {name}")
            time.sleep(0.01)
        return made

    def led(self, topic: Topic, partitions: int) -> Message:
        """Metadata of a topic as soon as every partition has a leader."""
        until = time.monotonic() + WAIT_S
        while True:
            found = self.metadata(topic.name)
            leaders = [p["leader_id"] for p in found["topics"][0]["partitions"]]
            if len(leaders) == partitions and min(leaders) >= 0:
                return found
            if time.monotonic() > until:
                raise TimeoutError(f"{topic.name} has no leaders")
            time.sleep(0.01)

    def delete(self, name: str) -> None:
        self.ask(DELETE_TOPICS, 5, {"topic_names": [name], "timeout_ms": 10_000})

    def metadata(self, name: str, version: int = 12, *, create: bool = False) -> Message:
        return self.ask(
            METADATA, version, {"topics": [{"name": name}], "allow_auto_topic_creation": create}
        )

    def latest(self, topic: Topic, partition: int = 0, timestamp: int = -1) -> Message:
        """What ListOffsets says of one partition; -1 is its end."""
        wanted = {"partition_index": partition, "timestamp": timestamp}
        answer = self.ask(
            LIST_OFFSETS, 8, {"topics": [{"name": topic.name, "partitions": [wanted]}]}
        )
        (found,) = answer["topics"][0]["partitions"]
        return dict(found)

    def end_offset(self, topic: Topic, partition: int = 0) -> int:
        found = self.latest(topic, partition)
        assert found["error_code"] == 0, found
        return int(found["offset"])

    def stored(self, topic: Topic, partition: int = 0) -> bytes:
        """All batches of a partition as a consumer gets them."""
        wanted = {"partition": partition, "fetch_offset": 0, "partition_max_bytes": 1 << 24}
        request = {
            "max_wait_ms": 0, "min_bytes": 0, "max_bytes": 1 << 24, "session_epoch": -1,
            "topics": [{"topic": topic.name, "partitions": [wanted]}],
        }  # fmt: skip
        answer = self.ask(FETCH, 11, request)
        (found,) = answer["responses"][0]["partitions"]
        assert found["error_code"] == 0
        return bytes(found["records"])
