"""``python -m thinslice``: the command line."""

import sys

from thinslice.cli import main

if __name__ == "__main__":
    sys.exit(main())
