"""Amazon Reviews 2023: products, their pictures' addresses and reviews (Hou et al. 2024)."""

from glob import escape
from pathlib import Path
from typing import Any

import polars as pl

from avrec.data.sources.layouts.base import Origin, with_items_of
from avrec.data.tables import Table, Tables

ORIGIN = Origin(
    "a category's reviews (CATEGORY.jsonl.gz) and its items (meta_CATEGORY.jsonl.gz)",
    "https://amazon-reviews-2023.github.io",
)
SIZES = ("hi_res", "large", "thumb")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
WORDS = pl.List(pl.String)
REVIEW = {"user_id": pl.String, "parent_asin": pl.String, "rating": pl.Float64, "timestamp": pl.Int64}
META: dict[str, Any] = {
    "parent_asin": pl.String,
    "title": pl.String,
    "features": WORDS,
    "description": WORDS,
    "categories": WORDS,
    "images": pl.List(pl.Struct(dict.fromkeys(SIZES, pl.String))),
}


def amazon_2023(root: Path, name: str | None = None) -> Tables:
    """``CATEGORY.jsonl`` and ``meta_CATEGORY.jsonl``, gzipped or not (https://amazon-reviews-2023.github.io).

    The items name pictures by links. A picture is used where a file with the link's last part for its name lies in
    the folder or in its subfolder ``images``. ``name`` is the category, ``All_Beauty`` say.
    """
    meta = ORIGIN.need(root, "meta_{}.jsonl", "meta_{}.jsonl.gz", name=name)
    category = meta.name.removeprefix("meta_").partition(".jsonl")[0]
    reviews = ORIGIN.need(root, "{}.jsonl", "{}.jsonl.gz", name=category)
    log = Table(pl.scan_ndjson(escape(str(reviews)), schema=REVIEW).rename({"parent_asin": "item_id"}), reviews)
    marks = {"features": ". ", "description": " ", "categories": ", "}
    joined = [pl.col(column).list.join(mark) for column, mark in marks.items()]
    items = pl.scan_ndjson(escape(str(meta)), schema=META).select("title", *joined, _image(root), item_id="parent_asin")
    return Tables(with_items_of(log, Table(items, meta)), log)


def _image(root: Path) -> pl.Expr:
    """The path of the first picture that is here, the best size first."""
    files = [path for folder in (root / "images", root) if folder.is_dir() for path in sorted(folder.iterdir())]
    here = {path.name: str(path.relative_to(root)) for path in reversed(files) if path.suffix.lower() in PICTURES}
    if not here:
        return pl.lit(None, pl.String).alias("image")
    links = pl.concat_list(pl.col("images").list.eval(pl.element().struct.field(size)) for size in SIZES)
    names = pl.element().str.extract(r"([^/?]+)(?:\?.*)?$")
    paths = names.replace_strict(here, default=None, return_dtype=pl.String).drop_nulls()
    return links.list.eval(paths).list.first().alias("image")
