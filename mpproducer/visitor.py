"""What a process that sends nothing can learn of this host's senders: who they are, their metrics.

It asks over a sender's socket and attaches to nothing. Metrics come as the descriptor of the
control segment, which no visitor can write: the sender hands it out and has no further work.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

from mpproducer._core import native
from mpproducer.errors import KafkaError, SenderError, SenderVersionMismatch
from mpproducer.shm import control, metrics
from mpproducer.shm.rendezvous import RUNTIME_DIR_VARIABLE, Rendezvous, default_base

_LOG = logging.getLogger("mpproducer.visitor")

_ANSWER_NS = 5_000_000_000


class SenderMetrics(NamedTuple):
    """The metrics of one sender."""

    pid: int
    client_id: str
    folder: str
    """The rendezvous folder; its name is the same for every sender of a configuration."""
    metrics: metrics.Metrics
    distributions: dict[str, metrics.Histogram]
    """record-queue-time, request-latency and send-to-ack."""


def runtime_folder(given: str | None) -> Path:
    """Where the senders' folders are: as given, or as producers find it."""
    named = given or os.environ.get(RUNTIME_DIR_VARIABLE)
    return Path(named or default_base()).absolute()


def places(base: Path) -> list[Rendezvous]:
    """Return the rendezvous folders with a socket below a runtime folder. Raises KafkaError."""
    try:
        return [Rendezvous(str(path.parent)) for path in sorted(base.glob("*/socket"))]
    except OSError as error:
        raise KafkaError(f"cannot look into {base}: {error.strerror}") from error


def ask(place: Rendezvous, verb: str) -> dict[str, Any] | None:
    """Send one message to the sender of a rendezvous; None when there is none.

    `stop` is answered by the end of the connection; the sender delivers what it has first.
    """
    answer, fds = _ask(place, verb)
    for fd in fds:
        os.close(fd)
    return answer


def _ask(place: Rendezvous, verb: str) -> tuple[dict[str, Any] | None, list[int]]:
    deadline_ns = time.monotonic_ns() + _ANSWER_NS
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        try:
            sock.connect(str(place.socket))
        except OSError:
            return None, []
        pid, _uid, _gid = control.peer_credentials(sock)
        who = {"pid": pid, "folder": str(place.folder)}
        try:
            control.send_with_fds(sock, {"type": verb}, [], deadline_ns)
            if verb == "stop":
                return {"type": "stopping"} | who, []
            answer, fds = control.recv_with_fds(sock, deadline_ns)
        except (OSError, TimeoutError, SenderError) as error:
            return {"type": "silent", "why": str(error)} | who, []
    return who | answer, fds


def read_all(base: Path) -> list[SenderMetrics]:
    """The metrics of every sender below a runtime folder; what cannot be read is warned of."""
    found = []
    for place in places(base):
        try:
            read = read_metrics(place)
        except SenderVersionMismatch as error:
            _LOG.warning("%s", error)
            continue
        if read is not None:
            found.append(read)
    return found


def read_metrics(place: Rendezvous) -> SenderMetrics | None:
    """The metrics of the sender of a rendezvous; None when none answers.

    Raises SenderVersionMismatch when it was built from another version.
    """
    answer, fds = _ask(place, "metrics")
    try:
        if answer is None or answer["type"] == "silent":
            return None
        if answer["type"] != "metrics" or len(fds) != 1:
            raise SenderVersionMismatch(
                f"the sender of {place.folder} gives no metrics: {answer.get('message', answer)}"
            )
        try:
            reading = native.read_metrics(fds[0], answer["max_partitions"], answer["max_topics"])
        except (OSError, ValueError) as error:
            raise SenderVersionMismatch(
                f"the metrics of the sender of {place.folder} cannot be read: {error}"
            ) from error
    finally:
        for fd in fds:
            os.close(fd)
    now_ns = time.monotonic_ns()
    return SenderMetrics(
        answer["pid"], answer["client_id"], str(place.folder), metrics.build(reading, now_ns),
        metrics.distributions(reading),
    )  # fmt: skip
