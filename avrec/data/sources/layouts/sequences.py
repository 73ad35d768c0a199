"""Sequences: a user and the items in order, as text (SASRec, Kang and McAuley 2018; S3-Rec, Zhou et al. 2020)."""

import json
from pathlib import Path

import polars as pl

from avrec.data.sources.layouts.base import NO_SEPARATOR, Origin, text_table, with_items_of
from avrec.data.tables import Table, Tables
from avrec.errors import UserError

ORIGIN = Origin(
    "a dataset's sequences",
    "https://github.com/RUCAIBox/CIKM2020-S3Rec (its data folder) or https://github.com/kang205/SASRec",
)


def sequences_layout(root: Path, name: str | None = None) -> Tables:
    """``NAME.txt``: on each line a user and then items, oldest first; and maybe ``NAME_item2attributes.json``.

    One user a line (https://github.com/RUCAIBox/CIKM2020-S3Rec) and one pair a line
    (https://github.com/kang205/SASRec) are the same thing here: a user may have as many lines as they like, with as
    many items, and the order of the file is the order of time. An attribute n becomes the word ``an``.
    """
    path = ORIGIN.need(root, "{}.txt", name=name)
    log, attributes = sequence_table(path), path.with_name(f"{path.stem}_item2attributes.json")
    if not attributes.is_file():
        return Tables(None, log)
    return Tables(with_items_of(log, _attributes(attributes)), log)


def sequence_table(path: Path) -> Table:
    """Lines of a user and then items, separated by blanks or tabs, as interactions in the file's order."""
    words = pl.col("line").str.extract_all(r"\S+")
    lines = text_table(path, ["line"], NO_SEPARATOR).frame.select(
        user_id=words.list.first(), item_id=words.list.slice(1)
    )
    return Table(lines.explode("item_id").drop_nulls(), path)


def _attributes(path: Path) -> Table:
    try:
        words = [(item, " ".join(f"a{n}" for n in codes)) for item, codes in json.loads(path.read_text()).items()]
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path} is no JSON object of items with lists of attributes ({error}). Download it again."
        ) from error
    return Table(pl.LazyFrame(words, {"item_id": pl.String, "attributes": pl.String}, orient="row"), path)
