"""Memory and time of reading a long log: rows are made, read, cleaned, split and cut into sequences.

    python benchmarks/log_reading.py [--rows 25_000_000] [--suffix csv] [--out log_reading.json]

Budget: 25 million rows in 8 GB. Each part is measured in a process of its own, against an empty one.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

USERS, ITEMS = 160_000, 60_000


def write(root: Path, rows: int, suffix: str) -> None:
    """A folder with a log of ``rows`` rows: skewed items, Unix seconds, a rating."""
    rng = np.random.default_rng(0)
    item = np.minimum((ITEMS * rng.random(rows) ** 2).astype(np.int64), ITEMS - 1)
    log = pl.DataFrame(
        {
            "user_id": rng.integers(USERS, size=rows).astype(np.int32),
            "item_id": item.astype(np.int32),
            "timestamp": rng.integers(1_500_000_000, 1_700_000_000, size=rows),
            "rating": rng.integers(1, 11, size=rows) / 2,
        }
    ).with_columns(user_id=pl.format("user-{}", "user_id"), item_id=pl.format("item-{}", "item_id"))
    path = root / f"interactions.{suffix}"
    log.write_parquet(path) if suffix == "parquet" else log.write_csv(path)
    pl.DataFrame({"item_id": [f"item-{n}" for n in range(ITEMS)]}).write_csv(root / "items.csv")


def read(root: Path) -> None:
    """What a run does with a log before the first batch."""
    from avrec.data.cleaning import Cleaning
    from avrec.data.sources.folder import FolderSource
    from avrec.data.splits import Temporal
    from avrec.data.windows import Sequences

    clean = Cleaning(min_feedback=1, min_per_user=2, min_per_item=2)
    catalogue = FolderSource(root, feedback="rating", feedback_map="scale", clean=clean).load()
    split = Temporal()(catalogue)
    Sequences.of(catalogue.log, split.role == 0, len(catalogue.user_ids))


def child(part: str, root: Path, rows: int, suffix: str) -> None:
    """One part, and what it took, as JSON."""
    import avrec.data.splits  # noqa: F401

    start = time.perf_counter()
    if part == "write":
        write(root, rows, suffix)
    elif part == "read":
        read(root)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_gb": peak}))


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    parser.add_argument("--rows", type=lambda text: int(text.replace("_", "")), default=25_000_000)
    parser.add_argument("--suffix", choices=("csv", "parquet", "csv.gz"), default="csv")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]), args.rows, args.suffix.removesuffix(".gz"))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for part in ("write", "imports alone", "read"):
            if part == "imports alone" and args.suffix.endswith(".gz"):
                subprocess.run(["gzip", "-1", *map(str, Path(folder).glob("interactions.*"))], check=True)
            command = [sys.executable, __file__, "--rows", str(args.rows), "--suffix", args.suffix]
            # Written in a process of its own as well: a child's peak counts what its parent held when it was made.
            done = subprocess.run([*command, "--child", part, folder], check=True, stdout=subprocess.PIPE, text=True)
            found[part] = json.loads(done.stdout)
        size = next(Path(folder).glob("interactions.*")).stat().st_size / 2**30
    table = Table(title=f"{args.rows:,} rows, {args.suffix}, {size:.2f} GB on disk")
    for header in ("", "seconds", "peak GB"):
        table.add_column(header, justify="right" if header else "left")
    for part, numbers in found.items():
        table.add_row(part, f"{numbers['seconds']:.1f}", f"{numbers['peak_gb']:.2f}")
    Console().print(table)
    if args.out:
        args.out.write_text(json.dumps({"rows": args.rows, "suffix": args.suffix, "disk_gb": size, **found}, indent=2))


if __name__ == "__main__":
    main()
