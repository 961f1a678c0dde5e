"""`python -m mpproducer`: the command `mpproducer`, of the interpreter that runs it."""

import sys

from mpproducer.cli import main

if __name__ == "__main__":
    sys.exit(main())
