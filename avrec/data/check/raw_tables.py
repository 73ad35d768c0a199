"""The tables of a catalogue: every impossible row is noted, not only the first."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from avrec.data.check.findings import Finding, flagged, judged
from avrec.data.interactions import Times, dates_of, roles_of, seconds_of
from avrec.data.sources.folder import FolderSource
from avrec.data.tables import FILE_COLUMNS, Table, Tables, as_text, inside, is_outward_link
from avrec.errors import UserError
from avrec.io import moment

MEDIA_NAME = r"(?i)\.(jpe?g|png|webp|gif|avif|mp4|m4v|mov|mkv|webm|mp3|m4a|ogg|opus|flac|wav)$"


class RawTables:
    """A catalogue's tables as they are: what is wrong with their rows, and those that can stay.

    Raises:
        UserError: a table cannot be read, or lacks its ids' columns.
    """

    def __init__(self, source: FolderSource) -> None:
        self.source = source
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.is_clock = False
        found, known, users = source.tables(), None, None
        if found.items is not None:
            items = self._named(self._paths(found.items.need(["item_id"]).collect()), "items", "item_id")
            known, found = as_text(items["item_id"]), replace(found, items=replace(found.items, frame=items.lazy()))
        rows = self._checked_log(found.interactions.need(["user_id", "item_id"]), known)
        if found.users is not None:
            users = self._checked_users(found.users.need(["user_id"]), as_text(rows["user_id"]))
        self.left = Tables(found.items, replace(found.interactions, frame=rows.lazy()), users)

    def mended(self) -> FolderSource:
        """The source without what is impossible; its tables are in memory."""
        source = copy.copy(self.source)
        source.layout, source.columns, source.cache_dir = lambda root: self.left, {}, None
        return source

    def _flag(self, check: str, bad: pl.Series, named: pl.Series | None = None, **known: Any) -> None:
        """Note the rows where ``bad``, by their value in ``named`` or else their number in the file, from 1."""
        name = (lambda row: f"row {row + 1}") if named is None else (lambda row: named[row])
        self.findings.append(flagged(check, bad.to_numpy(), name, **known))

    def _flag_rows(self, check: str, bad: pl.Series, values: pl.Series, **known: Any) -> pl.Series:
        """Note the rows where ``bad``, with what stands in them; those that can stay."""
        self.findings.append(flagged(check, bad.to_numpy(), lambda row: f"row {row + 1}: {values[row]!r}", **known))
        return ~bad

    def _named(self, rows: pl.DataFrame, name: str, column: str) -> pl.DataFrame:
        """The rows with an id of their own."""
        ids = as_text(rows[column])
        double = ids.is_not_null() & ~ids.is_first_distinct()
        self._flag("empty_ids", ids.is_null(), table=name, column=column)
        self._flag("double_ids", double, ids, table=name, column=column)
        return rows.filter(ids.is_not_null() & ~double)

    def _paths(self, items: pl.DataFrame) -> pl.DataFrame:
        """The items without paths that leave the folder."""
        root = self.source.root.resolve()
        outside: list[str] = []
        missing: list[str] = []
        named = 0
        for column in (name for name in FILE_COLUMNS if name in items.columns):
            names = as_text(items[column]).to_list()
            for row, (item, name) in enumerate(zip(items["item_id"], names, strict=True)):
                try:
                    path = inside(root, name, column)
                except UserError:
                    outside.append(f"{item}: {name}{' (a symlink)' if is_outward_link(root, name) else ''}")
                    names[row] = path = None
                named += path is not None
                if path is not None and not path.is_file():
                    missing.append(f"{item}: {name}")
            items = items.with_columns(pl.Series(column, names, pl.String))
        self.findings += [judged("outside_paths", outside, len(items)), judged("missing_files", missing, named)]
        texts = [name for name in items.columns if items[name].dtype == pl.String and name not in FILE_COLUMNS]
        texts = [name for name in texts if name != "item_id" and (self.source.text is None or name in self.source.text)]
        filled = {name: as_text(items[name]).drop_nulls() for name in texts}
        paths = [name for name, values in filled.items() if 2 * values.str.contains(MEDIA_NAME).sum() > len(values)]
        self.findings.append(judged("paths_in_text", paths, len(texts)))
        return items

    def _checked_users(self, table: Table, active: pl.Series) -> Table:
        """The users with an id of their own; ``active`` are those of the log."""
        users, active = self._named(table.collect(), "users", "user_id"), active.unique(maintain_order=True)
        known = as_text(users["user_id"])
        self._flag("users_without_log", ~known.is_in(active.implode()), known)
        self._flag("log_without_users", ~active.is_in(known.implode()), active)
        texts = [name for name, kind in users.schema.items() if kind == pl.String and name != "user_id"]
        names = [name for name in texts if users[name].n_unique() > max(20, len(users) / 2)]
        self.findings.append(judged("naming_columns", names, len(texts)))
        return replace(table, frame=users.lazy())

    def _checked_log(self, table: Table, known_items: pl.Series | None) -> pl.DataFrame:
        """The rows of the log that can be read."""
        feedback = self.source.feedback.column
        judges = {"timestamp": self._times, "split": self._roles, feedback: self._feedback}
        known = {"user_id", "item_id", *judges}
        rows = table.collect(table.frame.select([name for name in table.columns if name in known]))
        good = pl.Series(np.ones(len(rows), bool))
        for column in ("user_id", "item_id"):
            empty = as_text(rows[column]).is_null()
            self._flag("empty_ids", empty, table="the log", column=column)
            good &= ~empty
        if known_items is not None:
            items = as_text(rows["item_id"])
            orphan = ~items.is_in(known_items.implode()).fill_null(True)
            self._flag("orphans", orphan, items, ids=f"{items.filter(orphan).n_unique():,}")
            good &= ~orphan
        for name, judge in judges.items():
            if name in rows.columns:
                good &= judge(rows[name])
        self.findings.append(judged("no_times", [] if "timestamp" in rows.columns else [table.path.name], 1))
        unread = [name for name in table.columns if name not in known]
        self.findings.append(judged("unread_columns", unread, len(table.columns)))
        rows = rows.filter(good)
        if "timestamp" in rows.columns:
            keys = rows.select(pl.struct("user_id", "item_id", "timestamp")).to_series()
            named = rows.select(pl.format("user {}, item {}, {}", "user_id", "item_id", "timestamp")).to_series()
            self._flag("duplicates", ~keys.is_first_distinct(), named, policy=self.source.clean.duplicates)
        return rows

    def _times(self, column: pl.Series) -> pl.Series:
        unit, good = self.source.time, column.is_not_null()
        try:
            times = seconds_of(column, unit, "timestamp")
        except UserError:
            number = column.cast(pl.Float64, strict=False).is_finite().fill_null(False)
            date = dates_of(column).is_not_null()
            good = date if unit == "iso" or (unit == "auto" and date.sum() > number.sum()) else number
            try:
                times = seconds_of(column.filter(good), unit, "timestamp")
            except UserError:  # of the unit; loading says so
                times = Times(np.zeros(0), "")
        if len(times.seconds):
            self.is_clock = times.is_clock
            span = "" if times.is_clock else f", {moment(times.seconds.min())} to {moment(times.seconds.max())}"
            self.notes.append(f"timestamps are read as {times.how}{span}")
        return self._flag_rows("unreadable_times", ~good, column)

    def _roles(self, column: pl.Series) -> pl.Series:
        return self._flag_rows("unknown_splits", roles_of(column).is_null(), column)

    def _feedback(self, column: pl.Series) -> pl.Series:
        value = column.cast(pl.Float64, strict=False)
        good = self._flag_rows("unreadable_feedback", ~value.is_finite().fill_null(False), column, column=column.name)
        if self.source.feedback.map == "threshold":
            return good
        least = self.source.clean.min_feedback
        negative = good & (value < 0).fill_null(False) & (True if least is None else (value >= least).fill_null(False))
        return good & self._flag_rows("negative_feedback", negative, column, column=column.name)
