"""What the layouts of published datasets share: finding their files, reading them, saying where to get them.

A layout reads the files of ``root``, of the dataset ``name`` where there may be several, and raises a ``UserError``
that names the page to get them from where there is no such folder, file or column, or several datasets and no name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

import polars as pl

from avrec.data.sources.folder import FolderSource
from avrec.data.tables import Table, Tables
from avrec.errors import UserError

NO_SEPARATOR = "\x1f"
"""A control character that no table's text holds."""


def source(
    layout: Callable[..., Tables],
    root: str | Path,
    name: str | None = None,
    download: bool | None = None,
    **settings: Any,
) -> FolderSource:
    """A folder source whose layout is told more than the folder.

    ``name`` says which of the datasets in the folder (None: the layout knows, or there is one), ``download`` whether
    the layout may fetch what is missing (None: it cannot); ``settings`` are ``FolderSource``'s other arguments.
    """
    more = {key: value for key, value in (("name", name), ("download", download)) if value is not None}
    return FolderSource(root, partial(layout, **more), **settings)


@dataclass(frozen=True)
class Origin:
    """Where a dataset is to be had: what to get, the page that offers it, and what else helps, a sentence."""

    what: str
    page: str
    how: str = ""

    def find(self, root: Path, *patterns: str, name: str | None = None) -> Path | None:
        """The one file of the first pattern (``{}`` stands for the dataset's name) that has any, or None.

        Raises:
            UserError: there is no such folder, or more than one such file.
        """
        if not root.is_dir():
            raise UserError(f"data.root={root} is not a folder. {self._remedy}")
        for pattern in patterns:
            found = sorted(root.glob(pattern.format("*" if name is None else escape(name))))
            if len(found) > 1:
                names = ", ".join(path.name for path in found)
                raise UserError(f"{root} holds more than one dataset: {names}. Name one: data.name=NAME.")
            if found:
                return found[0]
        return None

    def need(self, root: Path, *patterns: str, name: str | None = None) -> Path:
        """The same, of a file without which the dataset cannot be read.

        Raises:
            UserError: also where none is there.
        """
        found = self.find(root, *patterns, name=name)
        if found is None:
            names = " or ".join(pattern.format(name or "NAME") for pattern in patterns)
            raise UserError(f"{root} has no {names}. {self._remedy}")
        return found

    @property
    def _remedy(self) -> str:
        get = f"Get {self.what} from {self.page}, unpack it, and set data.root to the folder that holds its files."
        return f"{get} {self.how}".strip()


def text_table(
    path: Path,
    columns: Sequence[str] | None = None,
    separator: str = ",",
    header: bool = False,
    quote: str | None = None,
    content: bytes | None = None,
) -> Table:
    """A table with every column as text; UTF-8, read lazily, or from its ``content`` where that was read before.

    Without ``columns``, they are those of the first line; with ``header``, the first line is no row all the same.
    ``quote`` is the character around values that hold the separator, a single character; None: none is.
    """
    options: dict[str, Any] = {"separator": separator, "quote_char": quote, "infer_schema": False}
    if columns is not None:
        schema = dict.fromkeys(columns, pl.String)
        options |= {"schema": schema, "has_header": False, "skip_rows": int(header), "raise_if_empty": False}
    return Table(pl.scan_csv(path if content is None else content, glob=False, **options), path)


def old_table(path: Path, columns: Sequence[str], separator: str) -> Table:
    """The same for a small file without a header from before UTF-8 was everywhere: else it is Latin-1.

    Its ``separator`` may have more than one character.
    """
    content = path.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text_table(path, columns, NO_SEPARATOR, content=text.replace(separator, NO_SEPARATOR).encode())


def with_items_of(log: Table, items: Table) -> Table:
    """The items table, and at its end the log's items that it lacks: they have an id and no content."""
    logged = log.need(["item_id"]).collect(log.frame.select("item_id").unique(maintain_order=True)).lazy()
    known = items.need(["item_id"]).frame.select("item_id")
    lacking = logged.join(known, on="item_id", how="anti", maintain_order="left").drop_nulls()
    return Table(pl.concat([items.frame, lacking], how="diagonal"), items.path)
