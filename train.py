"""Train a two-tower model; `python train.py --help` lists the options. The same as `avrec train`."""

import sys

from avrec.cli.train import main, train

__all__ = ["main", "train"]

if __name__ == "__main__":
    sys.exit(main())
