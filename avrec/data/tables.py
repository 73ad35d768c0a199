"""Tables: find and scan a catalogue's files, check them, and number everything."""

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from avrec.batch import Array
from avrec.content.items import RawItem, TextFields
from avrec.errors import UserError

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz")
FILE_COLUMNS = ("image", "video", "audio")
CONTENT = {"text": ("text",), "vision": ("image", "video"), "audio": ("audio", "video")}
"""By modality, what of an item speaks of it."""
TEXT_COLUMNS = ("title", "description")
SPELT_COLUMNS = ("user_id", "item_id", *TEXT_COLUMNS)
"""Text even where every value looks like a number: read as numbers, 007 and 7 would be one."""
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
MOST_KINDS = 40
"""Different values of a column that sorts items into kinds."""


@dataclass(frozen=True)
class Interactions:
    """The log, sorted by user, then time, then row of the file.

    Attributes:
        user: catalogue user index, int64.
        item: catalogue item index, int64.
        time: Unix seconds, or any increasing order, float64.
        weight: R_ui ≥ 0, float32.
        has_time: False where the file has no timestamps; time is the file's order then.
        given_role: TRAIN, VAL or TEST per row, int8, where the log has a column ``split``; else None.
    """

    user: Array
    item: Array
    time: Array
    weight: Array
    has_time: bool = True
    given_role: Array | None = None

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Catalogue:
    """Everything a team brought: items with their raw content, users, the log.

    Attributes:
        root: the folder it came from.
        items: raw content, by item index.
        titles: for people to read, by item index.
        user_ids: by user index.
        log: the interactions.
        user_categories: codes of the categorical user columns, (users, C) int64; 0 is missing.
        category_sizes: codes per categorical column, code 0 included.
        user_numbers: standardised numeric user columns, (users, R) float32; 0 is missing.
        user_coding: how each was coded: its name, and ``values`` (the first has code 1) or ``mean`` and ``spread``.
        text: what the items' text was made from.
        published_N: when each item came out, Unix s, NaN where unknown; empty: unknown for all.
        steps: what cleaning the log did: name, rows before, rows after.
        label_name: the items column that sorts them into a few kinds, as a genre does; empty: there is none.
        labels: each item's kind, by item index; empty where unknown.
        item_columns: what else the items table has, by item index.
        user_columns: what else the users table has, by user index.
    """

    root: Path
    items: list[RawItem]
    titles: list[str]
    user_ids: list[str]
    log: Interactions
    user_categories: Array
    category_sizes: list[int] = field(default_factory=list)
    user_numbers: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    user_coding: list[dict[str, Any]] = field(default_factory=list)
    text: TextFields = TextFields()
    published_N: Array = field(default_factory=lambda: np.zeros(0))
    steps: list[dict[str, Any]] = field(default_factory=list)
    label_name: str = ""
    labels: list[str] = field(default_factory=list)
    item_columns: pl.DataFrame = field(default_factory=pl.DataFrame)
    user_columns: pl.DataFrame = field(default_factory=pl.DataFrame)

    def has(self, modality: str) -> bool:
        """True where some item names content of this modality."""
        fields = CONTENT.get(modality, ())
        return modality == "identity" or any(getattr(item, field) for item in self.items for field in fields)


@dataclass(frozen=True)
class Table:
    """A table that is read when it is needed; a file that cannot be read is a ``UserError`` then.

    ``anew`` scans the file once more, with the named columns as text.
    """

    frame: pl.LazyFrame
    path: Path
    anew: Callable[[Sequence[str]], pl.LazyFrame] | None = None

    @property
    def columns(self) -> list[str]:
        """Names of the columns.

        Raises:
            UserError: the file cannot be read, or is separated by another character than its form's.
        """
        with _readable(self.path):
            names = self.frame.collect_schema().names()
        own = {"csv": ",", "tsv": "\t"}.get(form_of(self.path))
        marks = [mark for mark in SEPARATORS if own and len(names) == 1 and mark in names[0]]
        # Reading it all the same, numbers such as 1,5 would become words.
        if marks and own not in marks:
            raise UserError(
                f"{self.path} separates its columns by {SEPARATORS[marks[0]]}: {names[0]!r}. A csv does so by commas, "
                "a tsv by tabs: save it as one of them, under that ending."
            )
        return names

    def collect(self, frame: pl.LazyFrame | None = None) -> pl.DataFrame:
        """The rows; of ``frame``, where a query on this table is given."""
        with _readable(self.path):
            return (self.frame if frame is None else frame).collect(engine="streaming")

    def renamed(self, names: Mapping[str, str]) -> "Table":
        """The same table under avrec's names, given the file's own by avrec's; those that it lacks are passed over."""
        have = self.columns
        renaming = {theirs: ours for ours, theirs in names.items() if theirs in have}
        # A column that is in the way of a new name gives way.
        in_the_way = [ours for theirs, ours in renaming.items() if ours in have and ours != theirs]
        spelt = [theirs for theirs, ours in renaming.items() if ours in SPELT_COLUMNS]
        frame = self.anew(spelt) if self.anew and spelt else self.frame
        return Table(frame.drop(in_the_way).rename(renaming), self.path)

    def need(self, required: Sequence[str], naming: str = "data.columns.{}=NAME") -> "Table":
        """This table; ``naming`` is how its reader is told a column's name, "" where there is no way.

        Raises:
            UserError: it lacks a required column, or has it twice.
        """
        have = self.columns
        # What polars calls the second column of a name.
        double = [name for column in required for name in have if name.startswith(f"{column}_duplicated_")]
        if double:
            raise UserError(f"{self.path} has several columns {double[0].partition('_dupl')[0]}. Keep one of them.")
        missing = [column for column in required if column not in have]
        if missing:
            if "\ufffd" in "".join(have):  # what polars makes of it in a header
                raise UserError(_no_utf8(self.path))
            say = f", or say which it is: {naming.format(missing[0])}" if naming else ""
            raise UserError(
                f"{self.path} has no column {', '.join(missing)}. It has {', '.join(have)}. "
                f"Rename the column that is meant to {missing[0]}{say}."
            )
        return self


@dataclass(frozen=True)
class Tables:
    """What a layout finds in a folder: tables under avrec's column names, nothing checked yet.

    Without a table of items, they are those of the log.
    """

    items: Table | None
    interactions: Table
    users: Table | None = None

    @property
    def files(self) -> list[Path]:
        """The files that the tables come from: a cache depends on them."""
        return list(dict.fromkeys(table.path for table in (self.items, self.interactions, self.users) if table))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns polars' and the file system's errors into the user's."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "utf-8" in reason.lower() and form_of(path) != "parquet":
            raise UserError(_no_utf8(path)) from error
        raise UserError(
            f"{path} could not be read as {form_of(path)}: {reason.rstrip('.')}. Repair the file."
        ) from error


def _no_utf8(path: Path) -> str:
    """What to do about a file in another encoding, and where it shows."""
    data = path.read_bytes() if path.suffix != ".gz" else b""
    try:
        data.decode()
        where = ""
    except UnicodeDecodeError as bad:
        where = f": line {data.count(10, 0, bad.start) + 1} holds the byte 0x{data[bad.start]:02x}"
    return f"{path} is not in UTF-8{where}. Save it as UTF-8 (in a spreadsheet: CSV UTF-8)."


def form_of(path: Path) -> str:
    """``csv``, ``tsv``, ``parquet`` or ``jsonl``."""
    return path.name.removesuffix(".gz").rpartition(".")[2]


def find_table(root: Path, name: str, optional: bool = False) -> Path | None:
    """The one file that holds table ``name``; None where it is optional and not there.

    Raises:
        UserError: there is no such folder, no such file, or more than one.
    """
    if not root.is_dir():
        raise UserError(
            f"data.root={root} is not a folder. It must be the folder that holds items.csv and interactions.csv."
        )
    found = [root / f"{name}{suffix}" for suffix in SUFFIXES if (root / f"{name}{suffix}").is_file()]
    if not found and optional:
        return None
    if len(found) != 1:
        given = "has no" if not found else f"has {len(found)} files"
        names = ", ".join(f"{name}{suffix}" for suffix in SUFFIXES)
        raise UserError(f"{root} {given} {name} table. It must hold exactly one of {names}.")
    return found[0]


def scan(path: Path, **options: Any) -> Table:
    """A table file (csv, tsv, parquet, jsonl; text also compressed by gzip), read lazily.

    ``SPELT_COLUMNS``, and what is renamed to them, are text; ``options`` are for polars' reader of csv.
    """
    form = form_of(path)
    with _readable(path):
        if form in ("csv", "tsv"):
            options = {"separator": "\t" if form == "tsv" else ",", "infer_schema_length": None, **options}

            def csv(spelt: Sequence[str]) -> pl.LazyFrame:
                return pl.scan_csv(path, glob=False, schema_overrides=dict.fromkeys(spelt, pl.String), **options)

            return Table(csv(SPELT_COLUMNS), path, csv)
        if form == "parquet":
            frame = pl.scan_parquet(path, glob=False)
        else:  # a path is no pattern, and this reader has no other way to be told
            frame = pl.scan_ndjson(glob.escape(str(path)), infer_schema_length=None)
    return Table(frame, path)


def as_text(column: pl.Series) -> pl.Series:
    """A column as text without blanks around it; null where nothing is left."""
    text = column.cast(pl.String).str.strip_chars()
    return text.set((text == "").fill_null(False), None)


def ids_of(table: pl.DataFrame, column: str, path: str | Path, unique: bool = False) -> pl.Series:
    """An id column as text.

    Raises:
        UserError: a row has no id, or where they must be ``unique``, that of another row.
    """
    ids = as_text(table[column])
    if ids.has_nulls():
        row = int(ids.is_null().arg_true()[0]) + 1
        raise UserError(f"{path}: row {row} has no {column}. Every row needs one; fill it in or remove the row.")
    if (ids == column).any():
        row = int((ids == column).arg_true()[0]) + 1
        raise UserError(f"{path}: row {row} is the header once more. Remove it.")
    double = ids.filter(ids.is_duplicated()) if unique else ids.clear()
    if len(double):
        raise UserError(
            f"{path}: {column} {double[0]!r} names {int((ids == double[0]).sum())} rows "
            f"({double.n_unique()} such ids in all). Each {column} may stand once; merge or rename the rows."
        )
    return ids


def check_not_empty(table: pl.DataFrame, path: str | Path) -> None:
    """Refuse a table without rows."""
    if table.is_empty():
        raise UserError(f"{path} is empty: it has its header but no row. At least one row is needed.")


def refuse_rows(bad: pl.Series, column: pl.Series, must: str, advice: str) -> None:
    """Refuse a column, where a row of it is ``bad``, with what it must hold and what to do."""
    if bad.any():
        row = int(bad.arg_true()[0])
        raise UserError(
            f"{must} in every row; {int(bad.sum())} rows do not, the first is row {row + 1} with {column[row]!r}. "
            f"{advice}"
        )


def numbers_of(column: pl.Series, what: str, advice: str) -> Array:
    """A column of finite numbers, float64; text that spells numbers is read as numbers.

    Raises:
        UserError: a row holds none.
    """
    values = column.cast(pl.Float64, strict=False)
    refuse_rows(~values.is_finite().fill_null(False), column, f"{what} must hold a finite number", advice)
    return values.to_numpy()


def labels_of(items: pl.DataFrame) -> tuple[str, list[str]]:
    """The first text column that sorts the items into a few kinds, and each item's kind; of several, its first.

    >>> labels_of(pl.DataFrame({"title": ["Up", "Her", "Ran", "M"], "genre": ["Fun|Air", "Love", None, "Love"]}))
    ('genre', ['Fun', 'Love', '', 'Love'])
    """
    named = {"item_id", *FILE_COLUMNS, *TEXT_COLUMNS}
    for column in (items[name] for name in items.columns if name not in named and items[name].dtype == pl.String):
        text = column.fill_null("").str.strip_chars()
        for separator in (r"[|,;/]", r"\s"):
            kind = text.str.replace(f"(?s){separator}.*$", "").str.strip_chars()
            kinds = kind.filter(kind != "").n_unique()
            if 2 <= kinds <= min(MOST_KINDS, len(items) / 2) and (kind != "").sum() >= len(items) / 2:
                return column.name, kind.to_list()
    return "", []


def encode_user_columns(aligned: pl.DataFrame) -> tuple[Array, list[int], Array, list[dict[str, Any]]]:
    """Code text columns and standardise numeric ones.

    Args:
        aligned: a row per user of the log; the first column is its id.

    Returns:
        Codes (users, C) int64 with 0 for missing, number of codes per column, numbers (users, R) float32, and
        how each column was coded (``Catalogue.user_coding``).
    """
    codes = [np.zeros((len(aligned), 0), np.int64)]
    numbers = [np.zeros((len(aligned), 0), np.float32)]
    sizes: list[int] = []
    columns: list[dict[str, Any]] = []
    for values in aligned.iter_columns():
        if values.name == "user_id":
            continue
        if values.dtype.is_nested():
            raise UserError(
                f"users: column {values.name} holds {values.dtype}. A user column is text or a number in every row; "
                "spread its parts over columns of their own, or remove it."
            )
        if values.dtype.is_numeric():
            real = values.cast(pl.Float64).to_numpy().astype(np.float64)
            real = np.where(np.isfinite(real), real, np.nan)
            spread = np.nanstd(real) if np.isfinite(real).any() else 0.0
            mean = np.nanmean(real) if spread > 0 else 0.0
            scaled = (real - mean) / spread if spread > 0 else np.zeros_like(real)
            numbers.append(np.nan_to_num(scaled).astype(np.float32))
            columns.append({"name": values.name, "mean": float(mean), "spread": float(spread)})
        else:
            names = ["", *values.cast(pl.String).fill_null("").to_list()]  # missing sorts first: code 0
            known, code = np.unique(np.array(names, object), return_inverse=True)
            codes.append(code[1:])
            sizes.append(len(known))
            columns.append({"name": values.name, "values": known[1:].tolist()})
    return np.column_stack(codes), sizes, np.column_stack(numbers), columns


def inside(root: Path, value: str | None, column: str) -> Path | None:
    """The absolute path of a file named in a table; None for an empty name.

    Raises:
        UserError: the path leaves the catalogue's folder.
    """
    if value is None or not value.strip():
        return None
    path = (root / value.strip()).resolve()
    if not path.is_relative_to(root.resolve()):
        where = f"a symlink to {path}, outside {root}" if is_outward_link(root, value) else f"which lies outside {root}"
        raise UserError(
            f"Column {column} names {value!r}, {where}. Paths must be relative to the catalogue's folder and stay in "
            "it; copy the file into the folder."
        )
    return path


def is_outward_link(root: Path, value: str) -> bool:
    """Whether a path that leaves the folder does so by a symlink on its way."""
    root = root.absolute()
    return Path(os.path.normpath(root / value.strip())).is_relative_to(root)


def raw_items(items: pl.DataFrame, root: Path, text: TextFields) -> list[RawItem]:
    """The raw content of an items table with checked ids, whose paths are relative to ``root``.

    A column of ``text`` that the table lacks is empty.
    """
    root, named = root.resolve(), [column for column in FILE_COLUMNS if column in items.columns]
    rows = items.with_columns(pl.col(column).cast(pl.String) for column in named).iter_rows(named=True)
    return [
        RawItem(row["item_id"], text.of(row), **{name: inside(root, row[name], name) for name in named})  # type: ignore[arg-type]
        for row in rows
    ]


def checked_items(table: Table, naming: str = "data.columns.{}=NAME") -> pl.DataFrame:
    """An items table's rows with checked ids; ``naming``: see ``Table.need``.

    Raises:
        UserError: it is empty, a row has no id, or an id stands twice.
    """
    items = table.need(["item_id"], naming).collect()
    check_not_empty(items, table.path)
    return items.with_columns(item_id=ids_of(items, "item_id", table.path, unique=True))
