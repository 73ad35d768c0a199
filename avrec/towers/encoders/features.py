"""Features encoder: content that somebody else has computed, an N x F matrix with one row per item."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from avrec.batch import Array
from avrec.checked import Count, checked
from avrec.content.items import RawItem
from avrec.content.preprocess import ArraySpec
from avrec.errors import UserError
from avrec.towers.encoders.base import Encoder
from avrec.towers.rebuildable import Build

NUMBERS_AT_ONCE = 1 << 22
"""Of a file that is looked through: 16 MB."""


class FeatureTable:
    """The rows of an ``.npy`` file, N x F, mapped into memory and read as they are asked for.

    A row of NaN alone, or of zeros alone, is what such files hold where there was nothing to compute from: its
    item lacks the modality. ``ids`` says which item each row is, ``.npy``, ``.txt`` (one a line) or ``.json`` (a list);
    items may be missing from it. Without it, row n is the catalogue's item n.

    Raises:
        UserError: the file is not there, not an ``.npy`` of numbers, or not N x F.
    """

    def __init__(self, modality: str, path: Path, ids: Path | None = None) -> None:
        self.modality = modality
        self.path = path
        self.ids = ids
        if self.matrix.ndim != 2 or 0 in self.matrix.shape or self.matrix.dtype.kind not in "fiu":
            raise UserError(
                f"{modality}.path={path} holds {self.matrix.dtype} of shape {self.matrix.shape}. It must hold real "
                "numbers of shape N x F, one row per item: np.save(path, features.astype(np.float32))."
            )
        self.width = int(self.matrix.shape[1])

    @cached_property
    def matrix(self) -> Array:
        """The file, mapped."""
        return _mapped(self.path, f"{self.modality}.path")

    def __getstate__(self) -> dict[str, Any]:
        """Without the map: a worker process opens the file itself instead of being sent its content."""
        return {name: value for name, value in vars(self).items() if name != "matrix"}

    def rows_of(self, items: list[RawItem]) -> "FeatureRows":
        """The rows of a catalogue's items.

        Raises:
            UserError: rows and items do not match, a row is neither whole nor empty, or all rows are empty.
        """
        row_N = np.arange(len(self.matrix)) if self.ids is None else self._by_id(items, self.ids)
        if len(row_N) != len(items):
            raise UserError(
                f"{self.modality}.path={self.path} has {len(row_N)} rows, the catalogue {len(items)} items. Use a row "
                f"for each item, in the order of the items table, or {self.modality}.ids=FILE with each row's item_id."
            )
        present_N = (row_N >= 0) & self._filled()[row_N]
        if not present_N.any():
            raise UserError(
                f"{self.modality}.path={self.path} has nothing for any item: every row is NaN or zero. Use a file "
                f"with features, or leave the modality out: {self.modality}=none."
            )
        return FeatureRows(self, row_N, present_N)

    def _by_id(self, items: list[RawItem], file: Path) -> Array:
        given = f"{self.modality}.ids={file}"
        ids = _ids_in(file, f"{self.modality}.ids")
        if len(ids) != len(self.matrix):
            raise UserError(
                f"{given} has {len(ids)} ids, {self.path} {len(self.matrix)} rows. Use one id for each row, in order."
            )
        if double := [item_id for item_id, count in Counter(ids).items() if count > 1]:
            raise UserError(
                f"{given} names {double[0]!r} more than once ({len(double)} such ids). Each item has one row; "
                "remove the others, with their rows."
            )
        row_of = {item_id: row for row, item_id in enumerate(ids)}
        if unknown := row_of.keys() - {item.item_id for item in items}:
            first = min(unknown, key=row_of.__getitem__)
            raise UserError(
                f"{given} names {first!r}, which is no item_id of the catalogue ({len(unknown)} of {len(ids)} "
                f"ids; the catalogue has {items[0].item_id!r} and the like). Use its ids, or remove these rows."
            )
        return np.array([row_of.get(item.item_id, -1) for item in items])

    def _filled(self) -> Array:
        """True for each row of the file that holds features."""
        step = max(1, NUMBERS_AT_ONCE // self.width)
        parts = []
        for start in range(0, len(self.matrix), step):
            filled, whole = _filled_whole(_float32(self.matrix[start : start + step]))
            if not whole.all():
                raise UserError(
                    f"{self.modality}.path={self.path}: row {start + int(whole.argmin())} (from 0) holds a number that "
                    "is not finite as float32. A row is finite throughout, or NaN throughout where the item has none."
                )
            parts.append(filled)
        return np.concatenate(parts)


@dataclass(frozen=True)
class FeatureRows:
    """A catalogue's items in a table (``avrec.batch.PreparedContent``): each one's row, -1 where it has none."""

    table: FeatureTable
    row_N: Array
    present_N: Array

    def read(self, indices: Array) -> dict[str, Array]:
        """``features`` (n, F) float32 of these items, in this order."""
        return {"features": _float32(self.table.matrix[self.row_N[indices]])}


class FeaturesEncoder(Encoder):
    """An item's row of a feature matrix: as it is, or through one hidden layer.

    Without a hidden layer nothing is learned here; the item tower standardises and projects what it is given.

    Args:
        modality: which of text, vision and audio the features are of.
        path: the ``.npy`` file, N x F; relative to ``root``.
        ids: the file that says which item each row is; None: the items table's order.
        hidden: width of a hidden layer over the layer-normalised row; None: no such layer.
        width: F, where there is no file: in an exported tower, which is given each item's vector.
        root: the catalogue's folder.

    Raises:
        UserError: neither file nor width, a file that is no feature matrix, or a width below 1.
    """

    reads = "table"

    @checked
    def __init__(
        self,
        modality: str,
        path: str | None = None,
        ids: str | None = None,
        hidden: Count | None = None,
        width: Count | None = None,
        root: str | Path = ".",
    ) -> None:
        super().__init__()
        self.modality = modality
        self.preprocess: FeatureTable | None = None
        if path:
            files = [Path(root) / Path(file).expanduser() for file in (path, ids) if file]
            self.preprocess = FeatureTable(modality, *files)
            width = self.preprocess.width
        if width is None:
            raise UserError(
                f"{modality}.path must be given and is not. Add {modality}.path=FILE, an .npy file of N x F numbers."
            )
        self.width = width
        self.hidden = hidden
        self.pretrained = hidden is None
        self.out_dim = hidden or width
        self.network = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU()) if hidden else nn.Identity()
        )

    def forward(self, content: dict[str, Tensor]) -> Float[Tensor, "n width"]:
        """Encode n items by ``content["features"]`` (n, F)."""
        return self.network(content["features"])

    def content_of(self, vector: Any, item_id: str) -> dict[str, Array] | None:
        """One item's content from its vector, or None where that is NaN or zero throughout, as in a file.

        Raises:
            UserError: it is not a vector of F finite numbers.
        """
        key = f"{self.modality}_features"
        try:
            features = _float32(vector)
        except (ValueError, TypeError) as error:
            raise UserError(f"{key} of item {item_id!r} is no vector: {error}. Use {self.width} numbers.") from error
        if features.shape != (self.width,):
            raise UserError(
                f"{key} of item {item_id!r} has shape {features.shape}; this tower reads vectors of {self.width} "
                "numbers. Use what the model behind its feature matrix gives."
            )
        filled, whole = _filled_whole(features[None])
        if not whole[0]:
            raise UserError(f"{key} of item {item_id!r} holds a number that is not finite. Mend it, or leave it out.")
        return {"features": features} if filled[0] else None

    def arrays(self) -> dict[str, ArraySpec]:
        """A row."""
        return {"features": ArraySpec((self.width,), "float32")}

    def options(self) -> dict[str, Any]:
        """Constructor arguments, without the file."""
        return {"modality": self.modality, "width": self.width, "hidden": self.hidden}

    @classmethod
    def rebuilt(cls, options: Mapping[str, Any], build: Build, **handed: Any) -> Any:
        """See ``Rebuildable``."""
        if options.get("path"):
            raise ValueError("its features encoder would be read from elsewhere")
        return super().rebuilt(options, build, **handed)

    def save_preprocess(self, folder: Path) -> dict[str, Any] | None:
        """Nothing: the table stays with the catalogue."""
        return None


def _float32(values: Any) -> Array:
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as such
        return np.asarray(values, dtype=np.float32)


def _filled_whole(rows_nF: Array) -> tuple[Array, Array]:
    """True where a row holds features, and True where it is finite throughout or holds none."""
    filled = ~(np.isnan(rows_nF).all(1) | (rows_nF == 0).all(1))
    return filled, ~filled | np.isfinite(rows_nF).all(1)


def _mapped(path: Path, key: str) -> Array:
    if not path.is_file():
        raise UserError(
            f"{key}={path} is not a file. Use an .npy file; a relative path starts at the catalogue's folder."
        )
    try:
        # Unlike np.load, this never unpickles, whatever the file is.
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError) as error:
        raise UserError(
            f"{key}={path} could not be read as .npy: {str(error).rstrip('.')}. Write it with np.save, from an array "
            "that is not of Python objects."
        ) from error


def _ids_in(path: Path, key: str) -> list[str]:
    ids: Any = None
    try:
        if path.suffix == ".npy":
            array = _mapped(path, key)
            ids = array.astype(str).tolist() if array.ndim == 1 and array.dtype.kind in "iuUS" else None
        elif path.suffix == ".txt":
            ids = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        elif path.suffix == ".json":
            ids = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{key}={path} could not be read: {error}. Use a file in the catalogue's folder.") from error
    except (UnicodeDecodeError, json.JSONDecodeError):
        pass
    if not isinstance(ids, list) or not all(isinstance(item_id, str | int) for item_id in ids):
        raise UserError(
            f"{key}={path} is no list of item ids. Use a .txt file (one id a line), a .json list or a "
            "one-dimensional .npy of text or whole numbers, in the order of the rows."
        )
    return [str(item_id).strip() for item_id in ids]
