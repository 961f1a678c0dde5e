"""`BrokerProcess`: the in-memory broker in a process of its own, out of the way of the GIL."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.managers import BaseManager, BaseProxy
from types import TracebackType
from typing import Any

from mpproducer.testing.broker import Broker

_FLUENT = (
    "error", "error_after", "close_before", "close_after", "drop_reply", "garbage", "half_reply",
    "wrong_correlation", "reply_twice", "omit_partition", "duplicate_partition", "delay",
    "throttle",
)  # fmt: skip
_VALUES = (
    "bootstrap_servers", "requests", "request_bytes", "requests_by_node", "versions_seen",
    "clients", "connections", "connections_now", "malformed",
)  # fmt: skip
_METHODS = (
    "start", "stop", "create_topic", "add_partitions", "delete_topic", "partitions", "records",
    "batch_facts",
    "leader", "set_leader", "forget_producers", "stop_node", "start_node", "on",
)  # fmt: skip


class _FaultProxy(BaseProxy):
    _exposed_ = ("__getattribute__", "remove", *_FLUENT)

    @property
    def hits(self) -> int:
        call: Callable[..., Any] = self._callmethod
        return int(call("__getattribute__", ("hits",)))

    def __getattr__(self, name: str) -> Any:
        if name not in self._exposed_:
            raise AttributeError(name)

        def call(*args: Any) -> _FaultProxy:
            self._callmethod(name, args)
            return self

        return call


class _Host(Broker):
    """What lives in the other process: values by a method, since proxies carry methods only."""

    def value(self, name: str) -> Any:
        return getattr(self, name)

    def begin(self) -> None:
        self.start()


class _Manager(BaseManager):
    pass


_Manager.register("Broker", _Host, exposed=(*_METHODS, "value", "begin"),
                  method_to_typeid={"on": "Fault"})  # fmt: skip
_Manager.register("Fault", None, exposed=_FaultProxy._exposed_, proxytype=_FaultProxy,
                  create_method=False)  # fmt: skip


def _end_with_parent() -> None:
    """Run in the new process: Ctrl-C is the parent's business, its death the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class BrokerProcess:
    """A `Broker` in its own process: same arguments, methods and properties but `batches`.

    A context manager. Starting takes about a quarter of a second (the `spawn` start method); the
    process ends with the block, or with its parent, however that ends.
    """

    def __init__(self, brokers: int = 1, **options: Any) -> None:
        self._arguments = (brokers, options)
        self._manager: _Manager | None = None
        self._broker: Any = None

    def start(self) -> BrokerProcess:
        """Start the process and the nodes; returns self. Raises ValueError, OSError and
        RuntimeError as `Broker`."""
        if self._manager is not None:
            raise RuntimeError("the broker runs already")
        brokers, options = self._arguments
        Broker(brokers, **options)  # wrong arguments are told here, not by a traceback there
        manager = _Manager(ctx=multiprocessing.get_context("spawn"))
        manager.start(initializer=_end_with_parent)
        self._manager = manager
        try:
            self._broker = manager.Broker(brokers, **options)  # type: ignore[attr-defined]
            self._broker.begin()
        except BaseException:
            self.stop()
            raise
        return self

    @property
    def pid(self) -> int:
        """Process id of the running broker. Raises RuntimeError when it does not run."""
        if self._manager is None:
            raise RuntimeError("the broker does not run")
        return int(self._manager._process.pid)  # type: ignore[attr-defined]

    def stop(self) -> None:
        """End the process; idempotent."""
        if self._manager is not None:
            try:
                if self._broker is not None:
                    self._broker.stop()
            finally:
                self._manager.shutdown()
                self._manager = self._broker = None

    def __enter__(self) -> BrokerProcess:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __getattr__(self, name: str) -> Any:
        if name in _VALUES and self._broker is not None:
            return self._broker.value(name)
        if name in _METHODS and self._broker is not None:
            return getattr(self._broker, name)
        raise AttributeError(name)
