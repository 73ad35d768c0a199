"""Measure a checkpoint; `python evaluate.py --help` lists the options. The same as `avrec evaluate`."""

import sys

from avrec.cli.evaluate import evaluate, main

__all__ = ["evaluate", "main"]

if __name__ == "__main__":
    sys.exit(main())
