"""MicroLens: short videos with titles, covers, sound and the videos themselves (Ni et al. 2023)."""

from pathlib import Path

import polars as pl

from avrec.data.sources.layouts.base import Origin, text_table, with_items_of
from avrec.data.sources.layouts.sequences import sequence_table
from avrec.data.tables import Table, Tables

ORIGIN = Origin("MicroLens-50k or MicroLens-100k", "https://github.com/westlake-repl/MicroLens")
MEDIA = {
    "image": ("covers", (".jpg", ".jpeg", ".png")),
    "audio": ("audios", (".mp3", ".wav")),
    "video": ("videos", (".mp4",)),
}
"""By column: how the names of folders end, and of the files in them."""


def microlens_layout(root: Path, name: str | None = None) -> Tables:
    """``NAME_pairs.csv`` (user, item, time in ms) or ``NAME_pairs.tsv`` (user, items in order), titles and media.

    Titles are ``NAME_title_en.csv``, ``NAME_titles.csv`` or ``NAME_title.csv``; covers, sound and videos are files
    called by the item's id in folders whose names end in ``covers``, ``audios`` and ``videos``. All of these may be
    missing. Described at https://github.com/westlake-repl/MicroLens.
    """
    pairs = ORIGIN.need(root, "{}_pairs.csv", "{}_pairs.tsv", name=name)
    titles = ORIGIN.find(root, "{}_title_en.csv", "{}_titles.csv", "{}_title.csv", name=name)
    log = sequence_table(pairs) if pairs.suffix == ".tsv" else _csv(pairs, ["user_id", "item_id", "timestamp"])
    items = log.frame.select("item_id").head(0)
    if titles is not None:
        items = _csv(titles, ["item_id", "title"]).frame
    items = with_items_of(log, Table(items, titles or pairs)).frame
    for column, (ending, suffixes) in MEDIA.items():
        files = _files(root, ending, suffixes)
        if files:
            paths = pl.LazyFrame({"item_id": list(files), column: list(files.values())})
            items = items.join(paths, on="item_id", how="left", maintain_order="left")
    return Tables(Table(items, titles or pairs), log)


def _csv(path: Path, columns: list[str]) -> Table:
    """A csv that has a header, or not: ids are numbers, and the names of columns are none."""
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline().partition(",")[0].strip('\ufeff" \n')
    return text_table(path, columns, header=not first.isdigit(), quote='"')


def _files(root: Path, ending: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Paths relative to ``root``, by item id."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name.endswith(ending))
    found = sorted(path for folder in folders for path in folder.iterdir() if path.suffix.lower() in suffixes)
    return {path.stem: str(path.relative_to(root)) for path in reversed(found)}
