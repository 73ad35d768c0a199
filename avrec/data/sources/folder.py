"""A folder with a catalogue, in avrec's own layout or in that of a published dataset."""

import logging
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from avrec.batch import Array
from avrec.content.items import TextFields
from avrec.data.cleaning import Cleaning
from avrec.data.interactions import Feedback, Log, read_log, seconds_of
from avrec.data.tables import (
    FILE_COLUMNS,
    TEXT_COLUMNS,
    Catalogue,
    Interactions,
    Table,
    Tables,
    as_text,
    checked_items,
    encode_user_columns,
    find_table,
    ids_of,
    labels_of,
    raw_items,
    scan,
)
from avrec.errors import UserError
from avrec.io import digest, state_of

logger = logging.getLogger(__name__)


def avrec_layout(root: Path) -> Tables:
    """avrec's own layout: ``items``, ``interactions`` and maybe ``users``, each csv, tsv, parquet or jsonl.

    Raises:
        UserError: a table is missing, or there are two of it.
    """
    items, interactions = find_table(root, "items"), find_table(root, "interactions")
    users = find_table(root, "users", optional=True)
    assert items is not None
    assert interactions is not None
    return Tables(
        scan(items),
        scan(interactions, infer_schema=False),
        None if users is None else scan(users),
    )


class FolderSource:
    """A folder with items, interactions and maybe users, and media files.

    Args:
        root: the folder.
        layout: reads the folder's tables.
        columns: the tables' own column names, by avrec's (``user_id``, ``item_id``, ``timestamp``, ``title``, …);
            those that are None keep theirs.
        text: what an item's text is: columns to be joined, or a template with their names in braces
            (``"{title}. {genres}"``); None: every text column.
        feedback: interaction column that R_ui is made from; None: every interaction weighs 1.
        feedback_map: see ``avrec.data.interactions.Feedback``; None: ``implicit``, which makes ``feedback`` of use to
            ``clean.min_feedback`` alone.
        threshold: for ``feedback_map=threshold``.
        time: how timestamps are read, see ``avrec.data.interactions.seconds_of``.
        clean: which rows of the log are kept.
        cache_dir: where a cleaned log is kept for the next run; None: nowhere.

    Raises:
        UserError: an unknown map, one without a column, or a column that nothing is to be made of.
    """

    def __init__(
        self,
        root: str | Path,
        layout: Callable[[Path], Tables] = avrec_layout,
        columns: Mapping[str, str | None] | None = None,
        text: Sequence[str] | str | None = None,
        feedback: str | None = None,
        feedback_map: str | None = None,
        threshold: float | None = None,
        time: str = "auto",
        clean: Cleaning | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        self.layout = layout
        self.columns = {ours: theirs for ours, theirs in (columns or {}).items() if theirs is not None}
        self.text = text if text is None or isinstance(text, str) else list(text)
        self.feedback = Feedback(feedback, feedback_map or "implicit", threshold)
        self.time = time
        self.clean = clean or Cleaning()
        if feedback is not None and feedback_map is None and self.clean.min_feedback is None:
            raise UserError(
                f"data.feedback={feedback} alone changes nothing: every interaction would weigh 1. To weigh by it, set "
                "data.feedback_map=scale, log1p or threshold; to leave out rows by it, data.clean.min_feedback=NUMBER."
            )
        self.cache_dir = None if cache_dir is None else Path(cache_dir)

    def tables(self) -> Tables:
        """The folder's tables under avrec's column names.

        Raises:
            UserError: a table or a named column is missing.
        """
        found = self.layout(self.root)
        tables = [table for table in (found.items, found.interactions, found.users) if table is not None]
        for ours, theirs in self.columns.items():
            if not any(theirs in table.columns for table in tables):
                has = "; ".join(f"{table.path.name} has {', '.join(table.columns)}" for table in tables)
                raise UserError(f"data.columns.{ours}={theirs}: no table has such a column. {has}.")
        items, users = (table and table.renamed(self.columns) for table in (found.items, found.users))
        return Tables(items, found.interactions.renamed(self.columns), users)

    def load(self) -> Catalogue:
        """Read and check the tables.

        Raises:
            UserError: a table is missing, damaged or contradicts another.
        """
        tables = self.tables()
        items = self._items(tables)
        log = self._log(tables, items["item_id"].to_list())
        items = items.filter(pl.Series(log.kept_N))
        text = self._text_fields(items)
        label_name, labels = labels_of(items)
        users = self._users(tables.users, log.user_ids)
        categories, sizes, numbers, coding = encode_user_columns(users)
        logger.info("%s: %d items, %d users, %d interactions", self.root, len(items), len(log.user_ids), len(log.rows))
        return Catalogue(
            root=self.root,
            items=raw_items(items, self.root, text),
            titles=items["title" if "title" in items.columns else "item_id"].cast(pl.String).fill_null("").to_list(),
            user_ids=log.user_ids,
            log=self._weighed(log, tables.interactions.path),
            user_categories=categories,
            category_sizes=sizes,
            user_numbers=numbers,
            user_coding=coding,
            text=text,
            published_N=self._published(items),
            steps=[asdict(step) for step in log.steps],
            label_name=label_name,
            labels=labels,
            item_columns=items.drop("item_id", *TEXT_COLUMNS, *FILE_COLUMNS, strict=False),
            user_columns=users.drop("user_id"),
        )

    # ---- items

    def _items(self, tables: Tables) -> pl.DataFrame:
        """The items table with checked ids; of a layout without one, the items of the log."""
        if tables.items is None:
            log = tables.interactions.need(["item_id"])
            ids = log.collect(log.frame.select("item_id").unique(maintain_order=True))
            return pl.DataFrame({"item_id": ids_of(ids, "item_id", log.path).unique(maintain_order=True)})
        return checked_items(tables.items)

    def _text_fields(self, items: pl.DataFrame) -> TextFields:
        if self.text is None:
            reserved = {"item_id", "published", *FILE_COLUMNS}
            kinds = zip(items.columns, items.dtypes, strict=True)
            return TextFields(
                [c for c, kind in kinds if c not in reserved and (kind == pl.String or c in TEXT_COLUMNS)]
            )
        template, columns = None, self.text
        if isinstance(self.text, str):
            try:
                template, columns = self.text, [name for _, name, *_ in string.Formatter().parse(self.text) if name]
            except ValueError as error:
                raise UserError(f"data.text={self.text!r}: {error}. Write column names in braces.") from error
        missing = [column for column in columns if column not in items.columns]
        if missing or (template is not None and not columns):
            what = f"names {', '.join(missing)}, which the items table lacks" if missing else "names no column"
            raise UserError(f"data.text={self.text} {what}. The table has {', '.join(items.columns)}.")
        return TextFields(columns, template)

    def _published(self, items: pl.DataFrame) -> Array:
        published_N = np.full(len(items), np.nan)
        if "published" in items.columns and (known := as_text(items["published"]).is_not_null()).any():
            times = seconds_of(items["published"].filter(known), self.time, "items: column published")
            published_N[known.to_numpy()] = times.seconds
        return published_N

    def _users(self, table: Table | None, user_ids: list[str]) -> pl.DataFrame:
        """A row per user of the log."""
        everyone = pl.DataFrame({"user_id": user_ids}, schema={"user_id": pl.String})
        if table is None:
            return everyone
        users = table.need(["user_id"]).collect()
        users = users.with_columns(user_id=ids_of(users, "user_id", table.path, unique=True))
        return everyone.join(users, on="user_id", how="left", maintain_order="left")

    # ---- the log

    def _log(self, tables: Tables, item_ids: list[str]) -> Log:
        """The cleaned log, from the cache where it holds it."""
        if self.cache_dir is None:
            return self._cleaned(tables, item_ids)
        settings = {"columns": self.columns, "feedback": self.feedback.column, "time": self.time, **asdict(self.clean)}
        layout: Any = self.layout
        while isinstance(layout, partial):
            layout = layout.func
        files = [state_of(path.resolve()) for path in tables.files]
        # The log refers to items by number, and those of a layout may come from more files than its tables.
        # 2: other forms of time than ISO 8601 are refused.
        key = {"version": 2, "files": files, "layout": layout.__name__, "items": digest(item_ids), **settings}
        folder = self.cache_dir / f"log-{digest(key)[:16]}"
        log = Log.load(folder)
        if log is None:
            log = self._cleaned(tables, item_ids)
            log.save(folder)
        return log

    def _cleaned(self, tables: Tables, item_ids: list[str]) -> Log:
        return read_log(tables.interactions, item_ids, self.feedback.column, self.time).cleaned(self.clean)

    def _weighed(self, log: Log, path: Path) -> Interactions:
        feedback = log.rows["feedback"].to_numpy()
        return log.interactions(self.feedback.weights(feedback, f"{path}: feedback column {self.feedback.column}"))
