"""RecBole's atomic files: any of its datasets (Zhao et al. 2021, https://recbole.io/docs/user_guide/data/atomic_files.html)."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl

from avrec.data.sources.folder import FolderSource
from avrec.data.sources.layouts.base import Origin, source, text_table, with_items_of
from avrec.data.tables import Table, Tables
from avrec.errors import UserError

PAGE = "https://recbole.io/dataset_list.html"


def recbole_source(
    layout: Callable[..., Tables], name: str, root: str | Path | None = None, **settings: Any
) -> FolderSource:
    """A folder source (see ``published.source``) of atomic files.

    Without a root, those of the examples that an installed RecBole brings.

    Raises:
        UserError: no root is given, and RecBole's example of this name is not here.
    """
    return source(layout, _example(name) if root is None else root, name, **settings)


def recbole_layout(root: Path, name: str) -> Tables:
    """``NAME.inter`` and maybe ``NAME.item`` and ``NAME.user``, tab-separated under ``column:type``.

    An item or user file without ``item_id`` or ``user_id`` has its id in its first column. The first item column
    whose name ends in ``title`` or ``name`` is the title. They may lie in a folder ``NAME`` of ``root``.
    """
    folder = root / name if (root / name).is_dir() else root
    origin = Origin(f"{name}'s atomic files", PAGE)
    inter = origin.need(folder, "{}.inter", name=name)
    item, user = (origin.find(folder, f"{{}}.{kind}", name=name) for kind in ("item", "user"))
    log, items, users = _atomic(inter), None, None
    if user is not None:
        users = _atomic(user)
        log, users = (table.renamed({"user_id": _key(users, "user_id")}) for table in (log, users))
    if item is not None:
        items = _atomic(item)
        log, items = (table.renamed({"item_id": _key(items, "item_id")}) for table in (log, items))
        titles = [column for column in items.columns if column.endswith(("title", "name"))]
        if titles and "title" not in titles:
            items = items.renamed({"title": titles[0]})
        items = with_items_of(log, items)
    return Tables(items, log, users)


def _example(name: str) -> Path:
    found = find_spec("recbole")  # finds it without running it
    folders = [Path(place) / "dataset_example" / name for place in (found and found.submodule_search_locations) or ()]
    for folder in folders:
        if folder.is_dir():
            return folder
    lacks = f"the installed RecBole has no {folders[0]}" if folders else "RecBole is not installed"
    raise UserError(
        f"data.root is not given, and {lacks}. Get {name}'s atomic files from {PAGE} and give their folder: "
        "data.root=FOLDER; or install RecBole and name one of its examples: data.name=ml-100k."
    )


def _atomic(path: Path) -> Table:
    table = text_table(path, separator="\t")
    kinds = {column: column.partition(":")[2] for column in table.columns}
    numbers = [pl.col(column).cast(pl.Float64, strict=False) for column, kind in kinds.items() if kind == "float"]
    # Vectors are no text and no user column.
    kept = [column for column, kind in kinds.items() if kind != "float_seq"]
    return Table(table.frame.with_columns(numbers).select(kept).rename(lambda column: column.partition(":")[0]), path)


def _key(table: Table, ours: str) -> str:
    """What an item or user file calls its id: by RecBole's custom its first column."""
    return ours if ours in table.columns else table.columns[0]
