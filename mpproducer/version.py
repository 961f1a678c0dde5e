"""The version of the package: one place, read by the build, the handshake and the CLI."""

__version__ = "0.1.0"
