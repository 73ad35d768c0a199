"""What the layouts of published datasets share: finding their files, reading them, saying where to get them."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

import polars as pl

from avrec.batch import UserError
from avrec.data.sources.folder import FolderSource
from avrec.data.tables import Table, Tables

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

    Args:
        layout: reads the folder's tables.
        root: the folder.
        name: which of the datasets in the folder; None: the layout knows, or there is one.
        download: True: the layout may fetch what is missing; None: it cannot.
        settings: the rest of ``FolderSource``'s arguments.
    """
    more: dict[str, Any] = {k: value for k, value in (("name", name), ("download", download)) if value is not None}
    return FolderSource(root, partial(layout, **more), **settings)


@dataclass(frozen=True)
class Origin:
    """Where a dataset is to be had.

    Attributes:
        what: what to get.
        page: the page that offers it.
        how: what else helps, a sentence.
    """

    what: str
    page: str
    how: str = ""

    def find(self, root: Path, *patterns: str, name: str | None = None) -> Path | None:
        """The one file of the first pattern that has any; None where none has.

        Args:
            root: the folder.
            patterns: file names with ``{}`` for the dataset's name, in order of preference.
            name: the dataset's name; None: any.

        Raises:
            UserError: there is no such folder, or more than one such file.
        """
        if not root.is_dir():
            raise UserError(f"data.root={root} is not a folder. {self._remedy}")
        for pattern in patterns:
            found = sorted(root.glob(pattern.format("*" if name is None else escape(name))))
            if len(found) > 1:
                names = ", ".join(path.name for path in found)
                raise UserError(f"{root} holds more than one dataset: {names}. Say which: data.name=NAME.")
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
        get = (
            f"Get {self.what} from {self.page}, unpack it, and give the folder that holds its files: data.root=FOLDER."
        )
        return f"{get} {self.how}".strip()


def text_table(
    path: Path,
    columns: Sequence[str] | None = None,
    separator: str = ",",
    header: bool = False,
    quote: str | None = None,
) -> Table:
    """A table of text, with every column as text; UTF-8, read lazily.

    Args:
        path: the file.
        columns: names of its columns; None: those of its first line.
        separator: a single character.
        header: True: the first line is no row, though ``columns`` are given.
        quote: the character around values that hold the separator; None: none is.
    """
    options: dict[str, Any] = {"separator": separator, "quote_char": quote, "infer_schema": False}
    if columns is not None:
        schema = dict.fromkeys(columns, pl.String)
        options |= {"schema": schema, "has_header": False, "skip_rows": int(header), "raise_if_empty": False}
    return Table(pl.scan_csv(path, **options), path)


def old_table(path: Path, columns: Sequence[str], separator: str) -> Table:
    """The same for a small file from before UTF-8 was everywhere: UTF-8 where it is that, else Latin-1.

    Args:
        path: the file, without a header.
        columns: names of its columns.
        separator: of one character or more.
    """
    data = path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    data = text.replace(separator, NO_SEPARATOR).encode()
    schema = dict.fromkeys(columns, pl.String)
    options: dict[str, Any] = {"separator": NO_SEPARATOR, "quote_char": None, "raise_if_empty": False}
    return Table(pl.scan_csv(io.BytesIO(data), has_header=False, schema=schema, **options), path)


def with_items_of(log: Table, items: Table) -> Table:
    """The items table, and at its end the log's items that it lacks: they have an id and no content."""
    logged = log.need(["item_id"]).collect(log.frame.select("item_id").unique(maintain_order=True)).lazy()
    known = items.need(["item_id"]).frame.select("item_id")
    lacking = logged.join(known, on="item_id", how="anti", maintain_order="left").drop_nulls()
    return Table(pl.concat([items.frame, lacking], how="diagonal"), items.path)
