"""A TCP proxy in front of one broker that does to connections what networks do.

It passes requests and responses one by one, so a test says which byte of which of them a fault is
about. The broker's address in responses becomes the proxy's: nobody gets around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from mpproducer.testing.node import end_listening
from mpproducer.wire.messages import APIS, PRODUCE

_T = TypeVar("_T")
Way = Literal["request", "response"]
_CALL_S: Final = 10.0
_MAX_FRAME: Final = 100 << 20
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass
class Fault:
    """What happens to the next `times` requests of an API, or to responses to it."""

    api: str
    way: Way
    times: int
    kind: str = ""
    at: float = 0.0
    hits: int = 0

    def reset(self, at: float) -> Fault:
        """RST to both sides once this part of it has passed: 0.5 is in the middle."""
        self.kind, self.at = "reset", at
        return self

    def fin(self, at: float) -> Fault:
        """The same with an orderly end."""
        self.kind, self.at = "fin", at
        return self

    def flip(self, byte: int) -> Fault:
        """One byte changes on the way; counted from the length's first, or from the end."""
        self.kind, self.at = "flip", byte
        return self

    def stall(self, at: float) -> Fault:
        """This part of it passes, then nothing more, either way; the connection stays."""
        self.kind, self.at = "stall", at
        return self

    def drop(self) -> Fault:
        """It vanishes, the connection stays."""
        self.kind = "drop"
        return self


@dataclass(eq=False)
class _Link:
    """One connection of a client, and the proxy's own to the broker."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    asked: deque[str] = field(default_factory=deque)
    silent: bool = False  # nothing passes any more, either way


def _reset(writer: asyncio.StreamWriter) -> None:
    """RST, also where a forked process has inherited the descriptor: connect to AF_UNSPEC."""
    sock = writer.get_extra_info("socket")
    if sock.fileno() >= 0:
        _LIBC.connect(sock.fileno(), bytes(16), 16)


def _fin(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").shutdown(socket.SHUT_WR)


class Proxy:
    """Stands between; a context manager. What is set applies at once, also to open connections.

    `name` is told to clients instead of the address, of the same length as the broker's host.
    """

    def __init__(self, server: str, *, name: str = "", receive_buffer: int = 0) -> None:
        self.target, port = server.rsplit(":", 1)
        self.target_port = int(port)
        self.name = name or "127.0.0.1"
        assert len(self.name) == len(self.target)
        self.host, self.port = "127.0.0.1", 0
        self.latency: Callable[[], float] = lambda: 0.0
        """Seconds that each request and each response takes; they overtake nobody."""
        self.lifetime: Callable[[], float] | None = None
        """Seconds until a new connection is reset."""
        self.slice_bytes = 0
        """The most that is written by one call; 0: all."""
        self.rate = 0.0
        """Bytes per second that are read of each client; 0: as fast as they come."""
        self.connections = 0
        self.resets = 0
        self.slices = 0
        self.cut_short = 0
        """Requests whose client closed in the middle of them."""
        self.most_outstanding = 0
        """The most requests to produce that waited for responses on one connection."""
        self.requests: Counter[str] = Counter()
        self.wrong: list[str] = []
        """What came where a request should begin."""
        self._receive_buffer = receive_buffer
        self._faults: list[Fault] = []
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._full: list[socket.socket] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    # --- life

    def __enter__(self) -> Proxy:
        self._thread.start()
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_S)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_S)

    async def _end(self) -> None:
        await self._refuse()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def bootstrap_servers(self) -> str:
        """For clients."""
        return f"{self.name}:{self.port}"

    # --- faults

    def on(self, api: str, way: Way = "request", times: int = 1) -> Fault:
        """Script a fault of requests or responses."""
        fault = Fault(api, way, times)
        self._loop.call_soon_threadsafe(self._faults.append, fault)
        return fault

    def reset_all(self) -> int:
        """RST on every connection; returns how many there were."""

        async def work() -> int:
            links = list(self._links)
            for link in links:
                self._reset_link(link)
            return len(links)

        return self._call(work())

    def vanish(self) -> int:
        """On every connection nothing passes any more, and no end is told; returns how many."""

        async def work() -> int:
            for link in self._links:
                link.silent = True
            return len(self._links)

        return self._call(work())

    def listen(self, host: str = "") -> None:
        """Accept, after `refuse` or `deaf` again; at another address if one is given."""
        self._call(self._listen(host or self.host))

    def refuse(self) -> int:
        """Reset every connection and refuse new ones."""
        self._call(self._refuse())
        return self.reset_all()

    def deaf(self) -> int:
        """Reset every connection; those that try again hear nothing: the backlog is full."""
        self._call(self._refuse())
        listener = socket.create_server((self.host, self.port), backlog=0)
        self._full.append(listener)
        for _ in range(8):  # more than fit
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex((self.host, self.port))
            self._full.append(client)
        return self.reset_all()

    async def _listen(self, host: str) -> None:
        await self._refuse()
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        sock.bind((host, self.port))
        self.host, self.port = sock.getsockname()
        limit = self._receive_buffer or 1 << 18
        self._server = await asyncio.start_server(self._serve, sock=sock, limit=limit)

    async def _refuse(self) -> None:
        while self._full:
            self._full.pop().close()
        if self._server is not None:
            end_listening(self._server)
            self._server = None

    # --- connections

    async def _serve(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            back, far = await asyncio.open_connection(self.target, self.target_port)
        except OSError:
            near.close()
            self._tasks.discard(task)
            return
        for writer in (near, far):
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(near, far)
        self._links.add(link)
        ends = None
        if self.lifetime is not None:
            ends = self._loop.call_later(self.lifetime(), self._reset_link, link)
        ways = [
            asyncio.ensure_future(self._pass(link, reader, far, "request")),
            asyncio.ensure_future(self._pass(link, back, near, "response")),
        ]
        try:
            await asyncio.gather(*ways)
        except asyncio.CancelledError:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            if ends is not None:
                ends.cancel()
            self._links.discard(link)
            self._tasks.discard(task)
            for writer in (near, far):
                writer.transport.abort()

    def _reset_link(self, link: _Link) -> None:
        if link in self._links:
            self.resets += 1
            for writer in (link.near, link.far):
                _reset(writer)
                writer.transport.abort()

    async def _pass(
        self, link: _Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: Way
    ) -> None:
        """Everything of one direction, until one side ends."""
        frames: asyncio.Queue[tuple[float, str, bytes]] = asyncio.Queue()
        out = asyncio.ensure_future(self._deliver(link, frames, sink, way))
        try:
            while True:
                frame = await self._frame(source, way)
                api = self._account(link, frame, way)
                if way == "response":
                    frame = frame.replace(self._address(), self._own_address())
                frames.put_nowait((self._loop.time() + self.latency(), api, frame))
        except asyncio.IncompleteReadError as error:
            if error.partial and way == "request":
                self.cut_short += 1
            if not link.silent:
                frames.put_nowait((0.0, "", error.partial))  # and the end behind it
            with contextlib.suppress(OSError):
                await out if not link.silent else None
        except (OSError, ValueError):
            pass
        finally:
            out.cancel()
            if way == "request" or not link.silent:
                other = link.far if way == "request" else link.near
                _fin(other)

    async def _frame(self, source: asyncio.StreamReader, way: Way) -> bytes:
        head = await self._read(source, 4, b"", way)
        size = int.from_bytes(head, "big", signed=True)
        if not 0 <= size <= _MAX_FRAME:
            self.wrong.append(f"{way} of {size} bytes")
            raise ValueError(size)
        return await self._read(source, 4 + size, head, way)

    async def _read(self, source: asyncio.StreamReader, size: int, begun: bytes, way: Way) -> bytes:
        data = bytearray(begun)
        while len(data) < size:
            rate = self.rate if way == "request" else 0.0
            most = max(1, int(rate * 0.02)) if rate else 1 << 20
            piece = await source.read(min(size - len(data), most))
            if not piece:
                raise asyncio.IncompleteReadError(bytes(data), size)
            data += piece
            if rate:
                await asyncio.sleep(len(piece) / rate)
        return bytes(data)

    def _account(self, link: _Link, frame: bytes, way: Way) -> str:
        """The API that a frame belongs to."""
        if way == "response":
            return link.asked.popleft() if link.asked else ""
        api = APIS.get(int.from_bytes(frame[4:6], "big"))
        if api is None:
            self.wrong.append(f"a request of API {frame[4:6].hex()}")
            return ""
        self.requests[api.name] += 1
        link.asked.append(api.name)
        self.most_outstanding = max(self.most_outstanding, link.asked.count(PRODUCE.name))
        return api.name

    def _address(self) -> bytes:
        return self.target.encode() + self.target_port.to_bytes(4, "big")

    def _own_address(self) -> bytes:
        return self.name.encode() + self.port.to_bytes(4, "big")

    # --- what gets through

    async def _deliver(
        self,
        link: _Link,
        frames: asyncio.Queue[tuple[float, str, bytes]],
        sink: asyncio.StreamWriter,
        way: Way,
    ) -> None:
        while True:
            due, api, frame = await frames.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            if link.silent:
                continue
            if not api:
                await self._write(sink, frame)
                return
            fault = self._take(api, way)
            kind = fault.kind if fault is not None else ""
            if fault is None:
                await self._write(sink, frame)
            elif kind == "flip":
                changed = bytearray(frame)
                changed[int(fault.at)] ^= 0x20
                await self._write(sink, bytes(changed))
            elif kind in ("reset", "fin", "stall"):
                await self._write(sink, frame[: int(len(frame) * fault.at)])
                if kind == "stall":
                    link.silent = True
                    continue
                if kind == "reset":
                    self._reset_link(link)
                else:
                    link.silent = True
                    _fin(link.near)
                    _fin(link.far)
                return

    def _take(self, api: str, way: Way) -> Fault | None:
        for fault in self._faults:
            if fault.api == api and fault.way == way and fault.hits < fault.times and fault.kind:
                fault.hits += 1
                return fault
        return None

    async def _write(self, sink: asyncio.StreamWriter, data: bytes) -> None:
        with contextlib.suppress(OSError):
            step = self.slice_bytes
            if not step:
                sink.write(data)
            for start in range(0, len(data), step) if step else ():
                sink.write(data[start : start + step])
                self.slices += 1
                await asyncio.sleep(0)
            await sink.drain()
