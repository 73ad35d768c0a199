"""Columns of the items and users tables as labels, to measure parts of a catalogue apart."""

import re
from typing import Any

import numpy as np
import polars as pl

from avrec.data.tables import MOST_KINDS, Catalogue
from avrec.errors import UserError

QUARTERS = 4
Labels = tuple[str, ...]


def column(catalogue: Catalogue, name: str, what: str, whole: bool = False) -> list[Labels]:
    """Each row's values in a column: those of a list such as ``Action|Comedy`` apart, none where it is empty.

    Args:
        catalogue: knows the tables.
        name: ``items.COLUMN`` or ``users.COLUMN``.
        what: the key that the name was given under, for the message.
        whole: the text of such a list is a value, too: it may be none.

    Raises:
        UserError: there is no such column.
    """
    table, _, own = name.partition(".")
    tables = {"items": catalogue.item_columns, "users": catalogue.user_columns}
    if table not in tables or own not in tables[table].columns:
        have = [f"{known}.{c}" for known, frame in tables.items() for c in frame.columns]
        raise UserError(
            f"{what}: there is no column {name}. Use one of {', '.join(have)}."
            if have
            else f"{what}: there is no column {name}. The items and users tables have none to measure by."
        )
    values = tables[table][own]
    if values.dtype == pl.List(pl.String):
        return [tuple(row or ()) for row in values.to_list()]
    if values.dtype.is_nested():
        raise UserError(f"{what}: {name} holds {values.dtype}. Name a column of text or numbers.")
    named = values.cast(pl.String, strict=False).fill_null("")
    if values.dtype.is_float():
        named = named.str.strip_suffix(".0").replace("NaN", "")
    texts = named.to_list()
    labels = [_parts(r"\s*[|,;/]\s*", text) for text in texts]
    words = [_parts(r"\s+", text) for text in texts]
    # "Action Comedy" is a list too, where its words are few and their combinations are not.
    parts = words if _distinct(words) <= MOST_KINDS < _distinct(labels) else labels
    return (
        [(*row, text.strip()) if len(row) > 1 else row for row, text in zip(parts, texts, strict=True)]
        if whole
        else parts
    )


def _parts(separator: str, text: str) -> Labels:
    return tuple(part for part in re.split(separator, text.strip()) if part)


def _distinct(labels: list[Labels]) -> int:
    return len({label for row in labels for label in row})


def kinds(catalogue: Catalogue, name: str, what: str) -> list[Labels]:
    """As ``column``, but few enough different values to make slices: numbers of many values by quarters.

    Raises:
        UserError: there is no such column, or it has too many different values.
    """
    labels = column(catalogue, name, what)
    distinct = _distinct(labels)
    if distinct <= MOST_KINDS:
        return labels
    frame = catalogue.item_columns if name.startswith("items.") else catalogue.user_columns
    values = frame[name.partition(".")[2]]
    if not values.dtype.is_numeric():
        raise UserError(
            f"{what}: {name} has {distinct} different values, and at most {MOST_KINDS} can be measured separately. "
            "Name another column, or add one to the table that sorts its rows into fewer kinds."
        )
    return _quarters(values.cast(pl.Float64).fill_null(np.nan).to_numpy())


def _quarters(value_N: Any) -> list[Labels]:
    known = value_N[np.isfinite(value_N)]
    ends = np.unique(np.quantile(known, np.arange(1, QUARTERS) / QUARTERS))
    # All their digits: ends that read alike would make one slice of two.
    between = [f"{low:.15g} to {high:.15g}" for low, high in zip(ends, ends[1:], strict=False)]
    names = [f"up to {ends[0]:.15g}", *between, f"above {ends[-1]:.15g}"]
    places = np.searchsorted(ends, value_N, side="left").tolist()
    return [(names[place],) if known else () for place, known in zip(places, np.isfinite(value_N), strict=True)]
