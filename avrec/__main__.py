"""python -m avrec: the command ``avrec`` where its script is not on the path."""

import sys

from avrec.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
