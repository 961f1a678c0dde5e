"""The command `mpproducer`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mpproducer.errors import KafkaError
from mpproducer.version import __version__


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    from mpproducer.cli import demo, metrics, produce, sender

    parser = argparse.ArgumentParser(
        prog="mpproducer",
        description="One Kafka producer per host, shared by all its Python processes.",
    )
    parser.add_argument("--version", action="version", version=f"mpproducer {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    produce.add_arguments(commands)
    demo.add_arguments(commands)
    sender.add_arguments(commands)
    metrics.add_top(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KafkaError as error:
        print(f"mpproducer: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print("mpproducer: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
