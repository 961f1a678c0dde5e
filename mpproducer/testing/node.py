"""One node of the in-memory broker: a listener, and a coroutine per connection.

As a Kafka broker it carries out one request of a connection at a time and answers in order; what is
malformed ends the connection, what is merely wrong gets an error code.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from mpproducer.testing import data_handlers, faults
from mpproducer.testing.cluster import Cluster
from mpproducer.testing.faults import Fault, Faults
from mpproducer.testing.handlers import HANDLERS
from mpproducer.wire import error_codes as codes
from mpproducer.wire.codec import ProtocolError, int32
from mpproducer.wire.framing import (
    RequestHeader,
    encode_response,
    read_request_header,
)
from mpproducer.wire.messages import API_VERSIONS, APIS, FETCH, PRODUCE, Api

Message = dict[str, Any]

MAX_REQUEST_BYTES: Final = 100 * 1024 * 1024  # socket.request.max.bytes
_SOFTWARE: Final = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?")
_READ_BYTES: Final = 256 * 1024
_GARBAGE: Final = int32(32) + b"\xff" * 32


@dataclass
class Seen:
    """What the nodes have seen so far; written by the broker's thread."""

    requests: Counter[str] = field(default_factory=Counter)
    by_node: Counter[int] = field(default_factory=Counter)
    versions: dict[str, set[int]] = field(default_factory=dict)
    clients: set[str] = field(default_factory=set)
    request_bytes: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    connections_now: int = 0
    malformed: list[str] = field(default_factory=list)


class Appends:
    """Lets Fetch wait for records: `changed` is replaced whenever something was appended."""

    def __init__(self) -> None:
        self._changed: asyncio.Future[None] | None = None

    def announce(self) -> None:
        """Wake who waits. In the loop's thread only."""
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
        self._changed = None

    async def wait(self, seconds: float) -> None:
        """Return after the next append, or after `seconds`."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._changed], timeout=max(0.0, seconds))


class Node:
    """Listens on one port and serves the requests that come in."""

    def __init__(
        self,
        number: int,
        cluster: Cluster,
        scripted: Faults,
        seen: Seen,
        appends: Appends,
        versions: dict[str, tuple[int, int]],
    ) -> None:
        self.number = number
        self._cluster = cluster
        self._faults = scripted
        self._seen = seen
        self._appends = appends
        self._versions = versions
        self._server: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen (port 0: any) and return the address."""
        self._server = await asyncio.start_server(
            self._connected, host, port, limit=_READ_BYTES, backlog=1024
        )
        found = self._server.sockets[0].getsockname()
        return str(found[0]), int(found[1])

    async def stop(self) -> None:
        """Stop listening and reset every connection, as after a kill."""
        if self._server is not None:
            end_listening(self._server)
            self._server = None
        tasks = list(self._tasks)
        for task, writer in self._tasks.items():
            _end(writer)
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = writer
        self._seen.connections += 1
        self._seen.connections_now += 1
        try:
            while await self._one_request(reader, writer):
                pass
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        except ProtocolError as error:
            self._seen.malformed.append(str(error))
        finally:
            self._seen.connections_now -= 1
            del self._tasks[task]
            with contextlib.suppress(OSError):
                if not writer.transport.get_write_buffer_size():
                    _end(writer)
                writer.close()

    async def _one_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Serve one request; False ends the connection."""
        size = int.from_bytes(await reader.readexactly(4), "big", signed=True)
        if not 0 <= size <= MAX_REQUEST_BYTES:
            raise ProtocolError(f"a request of {size} bytes")
        frame = await reader.readexactly(size)
        header, body = read_request_header(frame)
        api = APIS.get(header.api_key)
        if api is None:
            raise ProtocolError(f"API {header.api_key} is not spoken here")
        self._count(api, header, size)
        low, high = self._versions[api.name]
        if not low <= header.version <= high:
            if api is not API_VERSIONS:
                raise ProtocolError(f"{api.name} v{header.version} is not spoken here")
            unsupported = self._apis(codes.UNSUPPORTED_VERSION, [API_VERSIONS])
            await self._send(writer, encode_response(api, 0, header.correlation_id, unsupported))
            return True
        request = api.request.read(header.version, body)
        if body.left():
            raise ProtocolError(f"{api.name} v{header.version} has {body.left()} bytes too many")
        topics = data_handlers.topics_of(self._cluster, request)
        fault = self._faults.take(api.name, self.number, topics)
        if fault is not None and fault.kind == faults.CLOSE_BEFORE:
            return False
        response = await self._carry_out(api, header, request, fault)
        if fault is not None and fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        if api is PRODUCE and request["acks"] == 0:
            # Nobody reads an answer; an error can be told only by ending the connection.
            return not any(data_handlers.partition_errors(response))
        return await self._answer(writer, api, header, response, fault)

    def _count(self, api: Api, header: RequestHeader, size: int) -> None:
        self._seen.requests[api.name] += 1
        self._seen.by_node[self.number] += 1
        self._seen.request_bytes[api.name] += size + 4
        self._seen.versions.setdefault(api.name, set()).add(header.version)
        if header.client_id:
            self._seen.clients.add(header.client_id)

    async def _carry_out(
        self, api: Api, header: RequestHeader, request: Message, fault: Fault | None
    ) -> Message:
        code = fault.code if fault is not None and fault.kind == faults.ERROR else 0
        if api is API_VERSIONS:
            named = (request["client_software_name"], request["client_software_version"])
            if header.version >= 3 and not all(map(_SOFTWARE.fullmatch, named)):
                code = code or codes.INVALID_REQUEST
            response = self._apis(code)
        elif api is PRODUCE:
            response = data_handlers.produce(
                self._cluster, self.number, header.version, request, fault
            )
            self._appends.announce()
        elif code:
            response = _failed(api, header.version, request, code)
        elif api is FETCH:
            response = await self._fetch(header.version, request)
        else:
            response = HANDLERS[api.name](self._cluster, self.number, header.version, request)
        if fault is not None and fault.throttle_ms:
            response["throttle_time_ms"] = fault.throttle_ms
        return response

    async def _fetch(self, version: int, request: Message) -> Message:
        loop = asyncio.get_running_loop()
        until = loop.time() + request["max_wait_ms"] / 1000
        while True:
            response, size, wrong = data_handlers.fetch(
                self._cluster, self.number, version, request
            )
            if wrong or size >= request["min_bytes"] or loop.time() >= until:
                return response
            await self._appends.wait(until - loop.time())

    def _apis(self, error_code: int, apis: Iterable[Api] = tuple(APIS.values())) -> Message:
        return {
            "error_code": error_code,
            "api_keys": [
                {"api_key": api.key, "min_version": low, "max_version": high}
                for api in apis
                for low, high in (self._versions[api.name],)
            ],
        }

    async def _answer(
        self,
        writer: asyncio.StreamWriter,
        api: Api,
        header: RequestHeader,
        response: Message,
        fault: Fault | None,
    ) -> bool:
        kind = fault.kind if fault is not None else ""
        if kind == faults.CLOSE_AFTER:
            return False
        if kind == faults.DROP_REPLY:
            return True
        if kind == faults.GARBAGE:
            await self._send(writer, _GARBAGE)
            return True
        correlation_id = header.correlation_id + (kind == faults.WRONG_CORRELATION)
        data = encode_response(api, header.version, correlation_id, response)
        if kind == faults.HALF_REPLY:
            await self._send(writer, data[: len(data) // 2])
            await asyncio.sleep(3600)
        await self._send(writer, data * 2 if kind == faults.REPLY_TWICE else data)
        return True

    @staticmethod
    async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()


def end_listening(server: asyncio.Server) -> None:
    """Close the listeners, also where a child forked meanwhile has them, too: the port is free."""
    for listener in server.sockets:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    server.close()


def _end(writer: asyncio.StreamWriter) -> None:
    """End the connection also where a child forked meanwhile has its descriptor, too."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def _failed(api: Api, version: int, request: Message, code: int) -> Message:
    """A response that says nothing but an error code, in every place where the API has one."""
    name = api.name
    if name == "Metadata":
        topics = request["topics"] or ()
        return {"topics": [t | {"error_code": code} for t in topics], "brokers": []}
    if name == "CreateTopics":
        return {"topics": [{"name": t["name"], "error_code": code} for t in request["topics"]]}
    if name == "DeleteTopics":
        return {"responses": [{"name": n, "error_code": code} for n in request["topic_names"]]}
    if name == "FindCoordinator" and version >= 4:
        failed = {"node_id": -1, "host": "", "port": -1, "error_code": code}
        return {"coordinators": [failed | {"key": key} for key in request["coordinator_keys"]]}
    if name == "Fetch":
        return {"responses": [_failed_topic(t, "partition", code) for t in request["topics"]]}
    if name in ("ListOffsets", "OffsetCommit"):
        return {"topics": [_failed_topic(t, "partition_index", code) for t in request["topics"]]}
    return {"error_code": code}


def _failed_topic(topic: Message, number: str, code: int) -> Message:
    nothing = {"error_code": code, "high_watermark": -1, "records": b""}
    partitions = [nothing | {"partition_index": p[number]} for p in topic["partitions"]]
    return topic | {"partitions": partitions}
