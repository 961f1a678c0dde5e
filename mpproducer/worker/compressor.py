"""Compression by the worker that filled a batch (D8): runs in the worker's own `send` call."""

from __future__ import annotations

TYPE_CHECKING = False  # typing is dear: see light.py
if TYPE_CHECKING:
    from collections.abc import Callable

    from mpproducer.config import Config
    from mpproducer.worker.attach import Link


def make_compressor(config: Config) -> Callable[[list[memoryview], int], bytes]:
    """Return the function the core calls with the pieces of a batch this process has filled."""
    from mpproducer.wire import compression  # here, for those who compress

    codec = config.compression_type
    level = config.compression_level

    def compress(pieces: list[memoryview], _size_bytes: int) -> bytes:
        return compression.compress(codec, level, pieces)

    return compress


def install(link: Link) -> None:
    """Give a new attachment its compressor, if the configuration has a codec."""
    if link.config.compression_type != "none":
        link.attachment.set_compressor(make_compressor(link.config))
