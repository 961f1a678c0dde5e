"""What a worker runs to start the host's sender: `python __main__.py FOLDER READY_FD`."""

import sys

if __name__ == "__main__":
    del sys.path[0]  # this file's folder: its modules are not to be found by their short names

    from mpproducer.sender.process import main

    sys.exit(main(sys.argv[1], int(sys.argv[2])))
