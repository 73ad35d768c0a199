"""The log: ids to numbers, times to seconds, feedback to R_ui."""

import json
import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from avrec.batch import Array
from avrec.data.cleaning import Cleaning, Step
from avrec.data.splits import TEST, TRAIN, VAL
from avrec.data.tables import Interactions, Table, check_not_empty, ids_of, numbers_of, refuse_rows
from avrec.errors import UserError
from avrec.io import atomic_dir, write_json

logger = logging.getLogger(__name__)

FEEDBACK_MAPS = ("implicit", "scale", "log1p", "threshold")
UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
ROLE_NAMES = {"train": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST}
TIMES = ("auto", *UNITS, "iso", "order")
ISO_8601 = r"^(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d(?:\.\d+)?)? ?(Z|[+-]\d\d(?::?\d\d)?)?)?$"
"""A date, and maybe a time, its seconds, a zone."""


@dataclass(frozen=True)
class Feedback:
    """How R_ui, the weight of an interaction, comes from a column.

    Args:
        column: of the interactions; None: every interaction weighs 1.
        map: ``implicit`` 1 · ``scale`` x / max · ``log1p`` log(1 + x) · ``threshold`` 1 where x ≥ ``threshold``,
            else 0 (such rows are history, but no target).
        threshold: for ``map="threshold"``.

    Raises:
        UserError: an unknown map, or one without its column or limit.
    """

    column: str | None = None
    map: str = "implicit"
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.map not in FEEDBACK_MAPS:
            raise UserError(f"data.feedback_map must be one of {', '.join(FEEDBACK_MAPS)}; got {self.map}.")
        if self.map != "implicit" and self.column is None:
            raise UserError(f"data.feedback_map={self.map} needs a column: set data.feedback=COLUMN.")
        if self.map == "threshold" and self.threshold is None:
            raise UserError("data.feedback_map=threshold needs a limit: set data.threshold=NUMBER.")

    def weights(self, value: Array, what: str) -> Array:
        """R_ui of feedback values, float32.

        Raises:
            UserError: a negative value where the map has no meaning for it.
        """
        if self.map == "threshold":
            return (value >= self.threshold).astype(np.float32)
        if value.min(initial=0) < 0:
            raise UserError(
                f"{what} holds a negative weight ({value.min():g}, in {int((value < 0).sum())} rows). "
                "R_ui must be ≥ 0: shift it, or use data.feedback_map=threshold."
            )
        if self.map == "scale":
            return (value / max(value.max(initial=0), 1e-12)).astype(np.float32)
        return (np.log1p(value) if self.map == "log1p" else np.ones(len(value))).astype(np.float32)


@dataclass(frozen=True)
class Log:
    """A log in numbers, in the order of the file.

    Attributes:
        user_ids: by user index, in the order of their first row.
        rows: columns user, item (catalogue indices), time (Unix s, or any order), feedback (1 without a column), and
            role (TRAIN, VAL or TEST) where a column ``split`` gives one.
        has_time: False where the file has no timestamps; time is the row's number then.
        kept_N: items that stay: False where cleaning took all of an item's interactions.
        steps: what cleaning did.
    """

    user_ids: list[str]
    rows: pl.DataFrame
    has_time: bool
    kept_N: Array
    steps: list[Step]

    def cleaned(self, clean: Cleaning) -> "Log":
        """The log after cleaning; users and items that it leaves without an interaction are gone."""
        rows, steps = clean(self.rows)
        users = rows["user"].unique().sort()
        had_N, has_N = (np.bincount(r["item"].to_numpy(), minlength=len(self.kept_N)) > 0 for r in (self.rows, rows))
        kept_N = ~had_N | has_N
        rows = rows.with_columns(
            user=pl.Series(np.searchsorted(users.to_numpy(), rows["user"].to_numpy())),
            item=pl.Series((np.cumsum(kept_N) - 1)[rows["item"].to_numpy()]),
        )
        return Log([self.user_ids[user] for user in users], rows, self.has_time, kept_N, steps)

    def interactions(self, weight: Array) -> Interactions:
        """The log as the rest of avrec wants it, with R_ui in the order of ``rows``."""
        rows = self.rows.with_columns(weight=weight).sort("user", "time", maintain_order=True)
        user, item, time, weight = (rows[name].to_numpy() for name in ("user", "item", "time", "weight"))
        role = rows["role"].to_numpy() if "role" in rows.columns else None
        return Interactions(user, item, time, weight, self.has_time, role)

    def save(self, folder: Path) -> None:
        """Write it as one folder, whole or not at all."""
        with atomic_dir(folder) as partial:
            self.rows.write_parquet(partial / "rows.parquet")
            pl.DataFrame({"user_id": self.user_ids}).write_parquet(partial / "users.parquet")
            pl.DataFrame({"kept": self.kept_N}).write_parquet(partial / "items.parquet")
            about = {"has_time": self.has_time, "steps": [asdict(step) for step in self.steps]}
            write_json(partial / "log.json", about)

    @classmethod
    def load(cls, folder: Path) -> "Log | None":
        """Read what ``save`` wrote; None where it is not there."""
        if not folder.is_dir():
            return None
        about = json.loads((folder / "log.json").read_text("utf-8"))
        users, items = (pl.read_parquet(folder / f"{name}.parquet", glob=False) for name in ("users", "items"))
        steps = [Step(**step) for step in about["steps"]]
        rows = pl.read_parquet(folder / "rows.parquet", glob=False)
        return cls(users["user_id"].to_list(), rows, about["has_time"], items["kept"].to_numpy(), steps)


def read_log(table: Table, item_ids: list[str], feedback: str | None, time: str = "auto") -> Log:
    """Read the interactions; of each row only what is needed is ever in memory.

    The ``table`` has ``user_id``, ``item_id`` and maybe ``timestamp`` (``time``: how it is read, see ``seconds_of``),
    ``split`` and a column ``feedback``.

    Raises:
        UserError: a column is missing, or a row cannot be used.
    """
    table = table.need(["user_id", "item_id"])
    if feedback is not None and feedback not in table.columns:
        raise UserError(
            f"data.feedback={feedback}: {table.path} has no such column. It has {', '.join(table.columns)}."
        )
    wanted = ["user_id", "item_id", *(name for name in ("timestamp", "split", feedback) if name in table.columns)]
    rows = table.collect(table.frame.select(list(dict.fromkeys(wanted))))
    check_not_empty(rows, table.path)
    users = ids_of(rows, "user_id", table.path)
    user_ids = users.unique(maintain_order=True).to_list()
    item = _index(ids_of(rows, "item_id", table.path), item_ids, table.path)
    columns: dict[str, Array] = {"user": _index(users, user_ids, table.path), "item": item}
    has_time = "timestamp" in rows.columns
    if has_time:
        times = seconds_of(rows["timestamp"], time, f"{table.path}: column timestamp")
        columns["time"] = times.seconds
        logger.info("%s: timestamps are read as %s", table.path, times.how)
    else:
        columns["time"] = np.arange(len(rows), dtype=np.float64)
        logger.info("%s has no timestamp column: the order of its rows is taken as the order of time", table.path)
    columns["feedback"] = np.ones(len(rows))
    if feedback is not None:
        advice = "Mend it, or train without data.feedback."
        columns["feedback"] = numbers_of(rows[feedback], f"{table.path}: feedback column {feedback}", advice)
    if "split" in rows.columns:
        role, must = roles_of(rows["split"]), f"{table.path}: column split must hold one of {', '.join(ROLE_NAMES)}"
        refuse_rows(role.is_null(), rows["split"], must, "Mend it, or remove the column.")
        columns["role"] = role.to_numpy().astype(np.int8)
    return Log(user_ids, pl.DataFrame(columns), has_time, np.ones(len(item_ids), bool), [])


def roles_of(names: pl.Series) -> pl.Series:
    """TRAIN, VAL or TEST by name; null where it is none of ``ROLE_NAMES``."""
    return names.cast(pl.String).str.strip_chars().str.to_lowercase().replace_strict(ROLE_NAMES, default=None)


def _index(ids: pl.Series, known: list[str], path: Path) -> Array:
    number_of = pl.DataFrame({"id": known, "number": np.arange(len(known))})
    number = pl.DataFrame({"id": ids}).join(number_of, on="id", how="left", maintain_order="left")["number"]
    if number.null_count():
        unknown = ids.filter(number.is_null())
        raise UserError(
            f"{path}: item_id {unknown[0]!r} has no row in items ({unknown.n_unique()} such ids, "
            f"{len(unknown)} rows). Every item of the log needs a row; add them or remove the rows."
        )
    return number.to_numpy()


class Times(NamedTuple):
    """Times (Unix seconds, or of no clock any numbers that grow; float64), how they were read, and if as a clock's."""

    seconds: Array
    how: str
    is_clock: bool = True


def seconds_of(column: pl.Series, time: str, what: str) -> Times:
    """Times in Unix seconds, and how they were read.

    Args:
        column: numbers, dates, or text that spells numbers or ISO 8601 times (without a zone: UTC).
        time: ``s``, ``ms``, ``us`` or ``ns`` since 1970, ``iso``, ``order`` (any numbers that grow), or ``auto``:
            text is ISO 8601 unless it spells numbers, and numbers are told apart by their size.
        what: for messages.

    Raises:
        UserError: an unknown unit, or a row that cannot be read.
    """
    if time not in TIMES:
        raise UserError(f"data.time must be one of {', '.join(TIMES)}; got {time}.")
    if column.dtype in (pl.Date, pl.Datetime):
        return Times(_seconds_of_dates(column.cast(pl.Datetime("us")), column, what), "dates")
    sample = column.drop_nulls().head(1000)
    words = column.dtype == pl.String and 2 * sample.cast(pl.Float64, strict=False).null_count() > len(sample)
    if time == "iso" or (time == "auto" and words):
        seconds = _seconds_of_dates(dates_of(column), column, what)
        return Times(seconds, f"ISO 8601, {_span(seconds)}")
    value = numbers_of(column, what, "Convert it to Unix seconds or ISO 8601, or remove the column.")
    if time == "auto":
        size = float(np.median(np.abs(value))) if len(value) else 0.0
        # 1e8 seconds is in 1973, 1e11 in 5138; the same digits in finer units are as far apart.
        time = next((unit for unit, per in reversed(UNITS.items()) if size >= 1e8 * per), "order")
    if time == "order":
        return Times(value, "an order without a unit (data.time=s, ms, us or ns says otherwise)", is_clock=False)
    return Times(value / UNITS[time], f"Unix time in {time}, {_span(value / UNITS[time])} (data.time says otherwise)")


def dates_of(column: pl.Series) -> pl.Series:
    """ISO 8601 times, those without a zone in UTC; null where there is none."""
    # Left to guess, polars takes 03/04/2024 for the 3rd of April.
    parts = column.cast(pl.String).str.strip_chars().str.extract_groups(ISO_8601).struct.unnest()
    missing = {"2": "00:00", "3": ":00", "4": "Z"}
    whole = pl.format("{}T{}{}{}", "1", *(pl.col(part).fill_null(default) for part, default in missing.items()))
    times = parts.select(whole).to_series()
    return times.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="us", time_zone="UTC", strict=False)


def _seconds_of_dates(dates: pl.Series, column: pl.Series, what: str) -> Array:
    must = f"{what} must hold a number or an ISO 8601 time (2024-01-31, 2024-01-31 18:30, 2024-01-31T18:30:05.5+01:00)"
    refuse_rows(dates.is_null(), column, must, "Convert times of another form first, or remove the column.")
    return dates.dt.epoch("us").to_numpy() / 1e6


def _span(seconds: Array) -> str:
    try:
        first, last = (datetime.fromtimestamp(float(t), UTC).date().isoformat() for t in (seconds.min(), seconds.max()))
    except (OverflowError, ValueError, OSError):
        return "outside the calendar"
    return f"{first} to {last}"
