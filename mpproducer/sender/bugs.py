"""What the machine raises when it is asked for something that cannot be: bugs in the sender.

Apart from the modules that raise them, because those are compiled, and a compiled class cannot
derive from one of the interpreter's exceptions.
"""

from __future__ import annotations


class IllegalTransition(AssertionError):
    """A batch was asked to make a step that its table does not list."""


class NotReady(AssertionError):
    """A request was handed to a connection that cannot take it."""
