"""Tables: read items, interactions and users, check them, and number everything."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from avrec.batch import Array, RawItem, UserError, join_text

SUFFIXES = (".csv", ".parquet", ".jsonl")
FILE_COLUMNS = ("image", "video", "audio")


@dataclass(frozen=True)
class Interactions:
    """The log, sorted by user, then time, then row of the file.

    Attributes:
        user: catalogue user index, int64.
        item: catalogue item index, int64.
        time: Unix seconds, or any increasing order, float64.
        weight: R_ui ≥ 0, float32.
        has_time: False where the file has no timestamps; time is the file's order then.
    """

    user: Array
    item: Array
    time: Array
    weight: Array
    has_time: bool = True

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
        text_columns: the item columns that the items' text was joined from.
    """

    root: Path
    items: list[RawItem]
    titles: list[str]
    user_ids: list[str]
    log: Interactions
    user_categories: Array
    category_sizes: list[int] = field(default_factory=list)
    user_numbers: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    text_columns: list[str] = field(default_factory=list)

    def has(self, modality: str) -> bool:
        """True where some item names content of this modality."""
        if modality == "text":
            return any(item.text for item in self.items)
        if modality == "vision":
            return any(item.image or item.video for item in self.items)
        if modality == "audio":
            return any(item.audio or item.video for item in self.items)
        return modality == "identity"


def read_table(root: Path, name: str, required: Sequence[str], optional: bool = False) -> pl.DataFrame | None:
    """Read ``root/name.{csv,parquet,jsonl}``.

    Args:
        root: the catalogue's folder.
        name: file name without suffix.
        required: columns that must be there.
        optional: None where there is no such file, instead of an error.

    Raises:
        UserError: no such file, more than one, not readable, empty, or a column is missing.
    """
    if not root.is_dir():
        raise UserError(f"data.root={root} is not a folder. Give the folder that holds items.csv and interactions.csv.")
    found = [root / f"{name}{suffix}" for suffix in SUFFIXES if (root / f"{name}{suffix}").is_file()]
    if not found and optional:
        return None
    if len(found) != 1:
        given = "has no" if not found else f"has {len(found)} files"
        names = ", ".join(f"{name}{suffix}" for suffix in SUFFIXES)
        raise UserError(f"{root} {given} {name} table. It must hold exactly one of {names}.")
    path = found[0]
    try:
        if path.suffix == ".csv":
            # Ids are text: read as numbers, 007 and 7 would be one.
            table = pl.read_csv(path, infer_schema_length=None, schema_overrides=dict.fromkeys(required, pl.String))
        elif path.suffix == ".parquet":
            table = pl.read_parquet(path)
        else:
            table = pl.read_ndjson(path, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} could not be read as {path.suffix[1:]}: {reason} Mend the file.") from error
    missing = [column for column in required if column not in table.columns]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(missing)}. It has {', '.join(table.columns)}. "
            f"Rename the column that is meant to {missing[0]}."
        )
    if table.is_empty():
        raise UserError(f"{path} is empty: it has its header but no row. At least one row is needed.")
    return table


def ids_of(table: pl.DataFrame, column: str, path: str) -> pl.Series:
    """An id column as text, without empty ids."""
    ids = table[column].cast(pl.String).str.strip_chars()
    empty = ids.is_null() | (ids == "")
    if empty.any():
        row = int(empty.arg_true()[0]) + 1
        raise UserError(f"{path}: row {row} has no {column}. Every row needs one; fill it in or remove the row.")
    return ids


def check_unique(ids: pl.Series, column: str, path: str) -> None:
    """Refuse an id that names two rows."""
    double = ids.filter(ids.is_duplicated())
    if len(double):
        raise UserError(
            f"{path}: {column} {double[0]!r} names {int((ids == double[0]).sum())} rows "
            f"({double.n_unique()} such ids in all). Each {column} may stand once; merge or rename the rows."
        )


def text_of(table: pl.DataFrame, columns: Sequence[str]) -> list[str | None]:
    """The text columns of each row, joined in order; None where all are empty."""
    if not columns:
        return [None] * len(table)
    return [join_text(row) for row in table.select(columns).iter_rows()]


def encode_user_columns(users: pl.DataFrame | None, user_ids: list[str]) -> tuple[Array, list[int], Array]:
    """Code text columns and standardise numeric ones, in the order of ``user_ids``.

    Returns:
        Codes (users, C) int64 with 0 for missing, number of codes per column, numbers (users, R) float32.
    """
    if users is None:
        return np.zeros((len(user_ids), 0), np.int64), [], np.zeros((len(user_ids), 0), np.float32)
    aligned = pl.DataFrame({"user_id": user_ids}).join(users, on="user_id", how="left", maintain_order="left")
    codes: list[Array] = []
    sizes: list[int] = []
    numbers: list[Array] = []
    for column in aligned.columns[1:]:
        values = aligned[column]
        if values.dtype.is_nested():
            raise UserError(
                f"users: column {column} holds {values.dtype}. A user column is text or a number in every row; "
                "spread its parts over columns of their own, or remove it."
            )
        if values.dtype.is_numeric():
            real = values.cast(pl.Float64).to_numpy().astype(np.float64)
            real = np.where(np.isfinite(real), real, np.nan)
            spread = np.nanstd(real) if np.isfinite(real).any() else 0.0
            scaled = (real - np.nanmean(real)) / spread if spread > 0 else np.zeros_like(real)
            numbers.append(np.nan_to_num(scaled).astype(np.float32))
        else:
            names = values.cast(pl.String).fill_null("")
            known = sorted(set(names.to_list()) - {""})
            code = {"": 0, **{name: i for i, name in enumerate(known, start=1)}}
            codes.append(np.asarray([code[name] for name in names.to_list()], np.int64))
            sizes.append(len(known) + 1)
    return _columns(codes, len(user_ids), np.int64), sizes, _columns(numbers, len(user_ids), np.float32)


def _columns(arrays: list[Array], rows: int, dtype: Any) -> Array:
    return np.stack(arrays, axis=1) if arrays else np.zeros((rows, 0), dtype)


def inside(root: Path, value: str | None, column: str) -> Path | None:
    """The absolute path of a file named in a table; None for an empty name.

    Raises:
        UserError: the path leaves the catalogue's folder.
    """
    if value is None or not value.strip():
        return None
    path = (root / value.strip()).resolve()
    if not path.is_relative_to(root.resolve()):
        raise UserError(
            f"Column {column} names {value!r}, which lies outside {root}. "
            "Paths must be relative to the catalogue's folder and stay in it."
        )
    return path
