"""MMRec: Amazon's Baby, Sports and Electronics and others, with feature matrices (Zhou 2023)."""

from pathlib import Path

import numpy as np
import polars as pl

from avrec.data.sources.layouts.base import Origin, text_table
from avrec.data.tables import Table, Tables, numbers_of
from avrec.errors import UserError

ORIGIN = Origin("a dataset of MMRec's", "https://github.com/enoche/MMRec (its data folder)")
FEATURES = ("image_feat.npy", "text_feat.npy")
NAMES = {"user_id": "userID", "item_id": "itemID", "split": "x_label"}
ROLES = {"0": "train", "1": "val", "2": "test"}


def mmrec_layout(root: Path, name: str | None = None) -> Tables:
    """``NAME.inter``: userID, itemID, x_label (0 train, 1 val, 2 test) and maybe rating and timestamp.

    Items are 0 to N - 1, so that row n of ``image_feat.npy`` and ``text_feat.npy`` is item n; N is the number of
    rows, or without such files the largest itemID + 1. Described at https://github.com/enoche/MMRec.

    Raises:
        UserError: also where an itemID is no whole number from 0 on.
    """
    path = ORIGIN.need(root, "{}.inter", name=name)
    log = text_table(path, separator="\t").renamed(NAMES).need(["user_id", "item_id", "split"])
    label = pl.col("split").str.strip_chars().str.strip_suffix(".0")
    frame = log.frame.with_columns(label.replace_strict(ROLES, default=pl.col("split")))
    matrices = [np.load(root / name, mmap_mode="r") for name in FEATURES if (root / name).is_file()]
    count = max(_count(log), *map(len, matrices), 0)
    items = pl.LazyFrame({"item_id": [str(number) for number in range(count)]})
    return Tables(Table(items, path), Table(frame, path))


def _count(log: Table) -> int:
    """The largest item number + 1."""
    ids = log.collect(log.frame.select(pl.col("item_id").unique()))["item_id"]
    numbers = numbers_of(ids, f"{log.path}: column itemID", "MMRec numbers items from 0 on.")
    if (numbers < 0).any() or (numbers % 1).any():
        raise UserError(f"{log.path}: column itemID must hold whole numbers from 0 on. Number the items anew.")
    return int(numbers.max(initial=-1)) + 1
