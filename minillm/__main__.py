"""`python -m minillm` is the same as the command `minillm`."""

import sys

from minillm.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
