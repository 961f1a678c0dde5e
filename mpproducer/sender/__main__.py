"""`python -m mpproducer.sender`: how a worker starts the host's sender."""

import sys

from mpproducer.sender.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
