"""How a connection ends that the peer ended, or had to.

Apart from the modules that raise them, because those are compiled, and a compiled class cannot
derive from one of the interpreter's exceptions.
"""

from __future__ import annotations


class StreamClosed(ConnectionError):
    """The peer closed the stream."""


class FrameTooLarge(ConnectionError):
    """The peer announced a frame that no Kafka broker sends."""
