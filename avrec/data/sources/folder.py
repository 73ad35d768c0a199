"""A team's own folder in avrec's on-disk format."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from avrec.batch import Array, RawItem, UserError
from avrec.data.tables import (
    FILE_COLUMNS,
    Catalogue,
    Interactions,
    check_unique,
    encode_user_columns,
    ids_of,
    inside,
    read_table,
    text_of,
)

log = logging.getLogger(__name__)
FEEDBACK_MAPS = ("implicit", "scale", "log1p", "threshold")


class FolderSource:
    """A folder with ``items``, ``interactions`` and maybe ``users`` (csv, parquet or jsonl) and media files.

    Args:
        root: the folder.
        text_columns: item columns whose text is read, joined in this order; None: every text column.
        feedback: interaction column that R_ui is made from; None: every interaction weighs 1.
        feedback_map: ``implicit`` 1 · ``scale`` x / max · ``log1p`` log(1 + x) · ``threshold`` 1 where
            x ≥ ``threshold``, else 0 (such rows are history, but no target).
        threshold: for ``feedback_map=threshold``.

    Raises:
        UserError: an unknown map, or one without a column.
    """

    def __init__(
        self,
        root: str | Path,
        text_columns: Sequence[str] | None = None,
        feedback: str | None = None,
        feedback_map: str = "implicit",
        threshold: float | None = None,
    ) -> None:
        if feedback_map not in FEEDBACK_MAPS:
            raise UserError(f"data.feedback_map={feedback_map} is not known. Give one of {', '.join(FEEDBACK_MAPS)}.")
        if feedback_map != "implicit" and feedback is None:
            raise UserError(f"data.feedback_map={feedback_map} needs a column: give data.feedback=COLUMN.")
        if feedback_map == "threshold" and threshold is None:
            raise UserError("data.feedback_map=threshold needs a limit: give data.threshold=NUMBER.")
        self.root = Path(root).expanduser()
        self.text_columns = text_columns
        self.feedback = feedback
        self.feedback_map = feedback_map
        self.threshold = threshold

    def load(self) -> Catalogue:
        """Read and check the tables.

        Raises:
            UserError: a table is missing, damaged or contradicts another.
        """
        items = read_table(self.root, "items", ["item_id"])
        interactions = read_table(self.root, "interactions", ["user_id", "item_id"])
        users = read_table(self.root, "users", ["user_id"], optional=True)
        assert items is not None
        assert interactions is not None
        item_ids = ids_of(items, "item_id", f"{self.root}/items")
        check_unique(item_ids, "item_id", f"{self.root}/items")
        text_columns = self._text_columns(items)
        raw_items = self._raw_items(items, item_ids.to_list(), text_columns)
        user_ids, log_ = self._interactions(interactions, item_ids)
        if users is not None:
            ids = ids_of(users, "user_id", f"{self.root}/users")
            check_unique(ids, "user_id", f"{self.root}/users")
            users = users.with_columns(user_id=ids)
        categories, sizes, numbers = encode_user_columns(users, user_ids)
        titles = items["title"].cast(pl.String).fill_null("") if "title" in items.columns else item_ids
        log.info("%s: %d items, %d users, %d interactions", self.root, len(raw_items), len(user_ids), len(log_))
        return Catalogue(
            self.root, raw_items, titles.to_list(), user_ids, log_, categories, sizes, numbers, list(text_columns)
        )

    def _raw_items(self, items: pl.DataFrame, item_ids: list[str], text_columns: Sequence[str]) -> list[RawItem]:
        root = self.root.resolve()
        texts = text_of(items, text_columns)
        paths = {
            column: [inside(root, value, column) for value in items[column].cast(pl.String).to_list()]
            if column in items.columns
            else [None] * len(items)
            for column in FILE_COLUMNS
        }
        rows = zip(item_ids, texts, *(paths[column] for column in FILE_COLUMNS), strict=True)
        return [RawItem(*row) for row in rows]

    def _text_columns(self, items: pl.DataFrame) -> Sequence[str]:
        if self.text_columns is None:
            reserved = {"item_id", *FILE_COLUMNS}
            return [c for c in items.columns if c not in reserved and items[c].dtype == pl.String]
        missing = [column for column in self.text_columns if column not in items.columns]
        if missing:
            raise UserError(
                f"data.text_columns names {', '.join(missing)}, which the items table lacks. "
                f"It has {', '.join(items.columns)}."
            )
        return self.text_columns

    def _interactions(self, table: pl.DataFrame, item_ids: pl.Series) -> tuple[list[str], Interactions]:
        path = f"{self.root}/interactions"
        items = ids_of(table, "item_id", path)
        unknown = items.filter(~items.is_in(item_ids.implode()))
        if len(unknown):
            raise UserError(
                f"{path}: item_id {unknown[0]!r} has no row in items ({unknown.n_unique()} such ids, "
                f"{len(unknown)} rows). Every item of the log needs a row; add them or remove the rows."
            )
        users = ids_of(table, "user_id", path)
        user_ids = users.unique(maintain_order=True).to_list()
        number_of = {item: index for index, item in enumerate(item_ids.to_list())}
        user_of = {user: index for index, user in enumerate(user_ids)}
        item = items.replace_strict(number_of, return_dtype=pl.Int64).to_numpy()
        user = users.replace_strict(user_of, return_dtype=pl.Int64).to_numpy()
        time = self._time(table, path)
        weight = self._weight(table, path)
        has_time = time is not None
        time = np.arange(len(table), dtype=np.float64) if time is None else time
        order = np.lexsort((np.arange(len(table)), time, user))
        return user_ids, Interactions(user[order], item[order], time[order], weight[order], has_time)

    def _time(self, table: pl.DataFrame, path: str) -> Array | None:
        if "timestamp" not in table.columns:
            log.info("%s has no timestamp column: the order of its rows is taken as the order of time", path)
            return None
        column = table["timestamp"]
        if not column.dtype.is_numeric() or column.null_count() or not column.cast(pl.Float64).is_finite().all():
            raise UserError(
                f"{path}: column timestamp must hold a number in every row (Unix seconds, or any order); it is "
                f"{column.dtype} with {column.null_count()} empty. Convert it, or remove the column."
            )
        return column.cast(pl.Float64).to_numpy()

    def _weight(self, table: pl.DataFrame, path: str) -> Array:
        if self.feedback is None:
            return np.ones(len(table), np.float32)
        if self.feedback not in table.columns:
            raise UserError(
                f"data.feedback={self.feedback}: {path} has no such column. It has {', '.join(table.columns)}."
            )
        column = table[self.feedback]
        if not column.dtype.is_numeric() or column.null_count() or not column.cast(pl.Float64).is_finite().all():
            raise UserError(
                f"{path}: feedback column {self.feedback} must hold a finite number in every row; it is {column.dtype} "
                f"with {column.null_count()} empty. Mend it, or train without data.feedback."
            )
        value = column.cast(pl.Float64).to_numpy()
        if self.feedback_map == "threshold":
            return (value >= self.threshold).astype(np.float32)
        if value.min() < 0:
            raise UserError(
                f"{path}: feedback column {self.feedback} holds a negative weight ({value.min():g}, in "
                f"{int((value < 0).sum())} rows). R_ui must be ≥ 0. Shift it, or give data.feedback_map=threshold."
            )
        if self.feedback_map == "scale":
            return (value / max(value.max(), 1e-12)).astype(np.float32)
        return (np.log1p(value) if self.feedback_map == "log1p" else np.ones(len(value))).astype(np.float32)
