"""The content store: rows of arrays under string keys, appended in shards, read through memory maps."""

import json
import logging
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from avrec.batch import Array
from avrec.content.items import DecodeFailure
from avrec.content.preprocess import ArraySpec
from avrec.errors import UserError
from avrec.io import atomic_write, write_json

logger = logging.getLogger(__name__)

STORE_VERSION = 4
"""To be part of the name of every store's folder: raise it when the layout on disk, or what is decoded, changes."""

MAX_OPEN_MAPS = 768
"""Memory maps kept open at once, of all stores: each holds a file descriptor, and the usual limit is 1024."""

SHARD_BYTES = 64 << 20
"""About the most that is gathered in memory for one shard."""

LEFTOVER_SECONDS = 3600.0
"""Files of a shard that never became visible are removed at this age; younger ones may be in the making."""

ROW_COPY_BYTES = 8192
"""Rows from this size on are copied one by one, which spares the second copy of numpy's fancy indexing."""

KEPT_BYTES = 64 << 20
"""A modality of the catalogue up to this size (texts, say) is read once and kept in memory."""

Row = Mapping[str, Array] | None
"""One item's arrays, or None where it was tried and lacks the modality."""


class ShardReader:
    """Gathers rows by location. Small to pickle: what a data loader's workers need of a store."""

    def __init__(self, folder: Path, arrays: Mapping[str, ArraySpec]) -> None:
        self.folder = folder
        self.arrays = {name: arrays[name] for name in sorted(arrays)}
        self.shards: list[str] = []

    def gather(self, places_n2: Array) -> dict[str, Array]:
        """The rows at these places (number of the shard, row in it), in that order, by array."""
        count = len(places_n2)
        gathered = {name: np.empty((count, *spec.shape), spec.dtype) for name, spec in self.arrays.items()}
        # In the order on disk, so that a cold read goes forward only.
        order = np.lexsort((places_n2[:, 1], places_n2[:, 0]))
        shard_n, row_n = places_n2[order].T
        shards, begins = np.unique(shard_n, return_index=True)
        ends = np.append(begins, count)[1:]
        for shard, begin, end in zip(shards.tolist(), begins, ends, strict=True):
            for name, out in gathered.items():
                source = mapped(str(self.path(self.shards[shard], name)))
                _copy_rows(source, row_n[begin:end], out, order[begin:end])
        return gathered

    def path(self, shard: str, name: str) -> Path:
        """The file of one array of a shard."""
        return self.folder / f"{shard}.{name}.npy"


@lru_cache(MAX_OPEN_MAPS)
def mapped(path: str) -> Array:
    """A shard's array; no other shard will ever have its name."""
    return np.load(path, mmap_mode="r").view(np.ndarray)


def _copy_rows(source: Array, rows: Array, out: Array, positions: Array) -> None:
    if source.itemsize * source[0].size < ROW_COPY_BYTES:
        out[positions] = source[rows]
        return
    for position, row in zip(positions.tolist(), rows.tolist(), strict=True):
        out[position] = source[row]


class PreparedModality:
    """One modality of the whole catalogue, ready to be read. Small to pickle: rows are not carried along."""

    def __init__(self, modality: str, reader: ShardReader, places_N2: Array) -> None:
        self.modality = modality
        self.reader = reader
        self.places_N2 = places_N2
        self.present_N: Array = places_N2[:, 0] >= 0
        self._kept: dict[str, Array] | None = None
        self._place_N: Array = np.cumsum(self.present_N) - 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def read(self, indices: Array) -> dict[str, Array]:
        """The rows of these catalogue indices, in that order, by array.

        Raises:
            IndexError: an item lacks this modality.
        """
        indices = np.asarray(indices, np.int64)
        if not self.present_N[indices].all():
            lacking = indices[~self.present_N[indices]]
            raise IndexError(f"{len(lacking)} items have no {self.modality} ({lacking[:3]} ...); see present_N.")
        if self._kept is None and self._bytes() <= KEPT_BYTES:
            self._kept = self.reader.gather(self.places_N2[self.present_N])
        if self._kept is None:
            return self.reader.gather(self.places_N2[indices])
        places = self._place_N[indices]
        return {name: rows.take(places, axis=0) for name, rows in self._kept.items()}

    def _bytes(self) -> int:
        return sum(map(_bytes_of, self.reader.arrays.values())) * int(self.present_N.sum())


class ContentStore:
    """Rows of named arrays, addressed by string keys; append-only, safe with several writing processes.

    On disk, beside ``spec.json``: ``shard-<unique>.<array>.npy`` with the rows, and ``shard-<unique>.json``
    with their keys, the keys that were tried and have no row, and the failures by key. A shard exists once
    its json is renamed into place, which is its last step: an interruption leaves nothing visible.

    Raises:
        UserError: the folder holds a store of other arrays.
    """

    def __init__(self, folder: Path, arrays: Mapping[str, ArraySpec]) -> None:
        self.folder = folder
        self.reader = ShardReader(folder, arrays)
        self.failures: dict[str, list[DecodeFailure]] = {}
        self._index: dict[str, tuple[int, int] | None] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._check_spec()
        self._remove_leftovers()
        self.refresh()

    def __contains__(self, key: str) -> bool:
        """Whether this key was written, with a row or without."""
        return key in self._index

    def __len__(self) -> int:
        """Number of keys, with a row or without."""
        return len(self._index)

    def has_content(self, key: str) -> bool:
        """Whether this key has a row."""
        return self._index.get(key) is not None

    def locate(self, keys: Sequence[str]) -> Array:
        """Where the rows of ``keys`` lie, (n, 2) int64: number of the shard, row in it; -1 for keys without one."""
        return np.array([self._index.get(key) or (-1, -1) for key in keys], np.int64).reshape(len(keys), 2)

    def read(self, keys: Sequence[str]) -> dict[str, Array]:
        """The rows of ``keys``, in that order, by array.

        Raises:
            KeyError: a key has no row.
        """
        without = [key for key in keys if not self.has_content(key)]
        if without:
            raise KeyError(f"{len(without)} of {len(keys)} keys have no row in {self.folder}: {without[:3]} ...")
        return self.reader.gather(self.locate(keys))

    def refresh(self) -> None:
        """Take up the shards that other processes have written since."""
        known = set(self.reader.shards)
        for path in sorted(self.folder.glob("shard-*.json")):
            if path.stem not in known:
                self._take_up(path.stem)

    def write_shard(
        self, rows: Sequence[tuple[str, Row]], failures: Mapping[str, list[DecodeFailure]] | None = None
    ) -> None:
        """Append rows as one shard; see ``write_shard``, which does it without opening the store."""
        self._take_up(write_shard(self.folder, self.reader.arrays, rows, failures or {}))

    def _take_up(self, shard: str) -> None:
        try:
            described = json.loads((self.folder / f"{shard}.json").read_text())
            self._check_files(shard, len(described["keys"]))
        except (OSError, ValueError) as error:
            logger.warning("The shard %s of %s is damaged and not used: %s", shard, self.folder, error)
            return
        number = len(self.reader.shards)
        self.reader.shards.append(shard)
        self._index.update((key, None) for key in described["absent"] if not self.has_content(key))
        self._index.update((key, (number, row)) for row, key in enumerate(described["keys"]))
        for key, found in described["failures"].items():
            self.failures[key] = [DecodeFailure(*values) for values in found]

    def _check_files(self, shard: str, count: int) -> None:
        for name, spec in self.reader.arrays.items() if count else ():
            path = self.reader.path(shard, name)
            if path.stat().st_size < count * _bytes_of(spec):
                raise ValueError(f"{path.name} is shorter than its {count} rows")

    def _check_spec(self) -> None:
        path = self.folder / "spec.json"
        specs = self.reader.arrays.items()
        asked = ", ".join(f"{name} {np.dtype(spec.dtype).name} {tuple(spec.shape)}" for name, spec in specs)
        if not path.exists():
            write_json(path, asked)
        elif (stored := json.loads(path.read_text())) != asked:
            raise UserError(
                f"The content store in {self.folder} holds {stored}; the preprocess declares {asked}. Its "
                "settings() must contain all that determines its output; correct it, or remove that folder."
            )

    def _remove_leftovers(self) -> None:
        oldest = time.time() - LEFTOVER_SECONDS
        visible = {path.stem for path in self.folder.glob("shard-*.json")}
        unfinished = [p for p in self.folder.glob("shard-*.npy") if p.name.split(".")[0] not in visible]
        for path in [*unfinished, *self.folder.glob("*.tmp")]:
            with suppress(FileNotFoundError):  # another process may be removing the same leftovers
                if path.stat().st_mtime < oldest:
                    path.unlink()


def write_shard(
    folder: Path,
    arrays: Mapping[str, ArraySpec],
    rows: Sequence[tuple[str, Row]],
    failures: Mapping[str, list[DecodeFailure]],
) -> str:
    """Append rows (None where the item lacks the modality) to a store that was opened before, as one shard.

    Returns:
        The shard's name.

    Raises:
        ValueError: a row's arrays are not as declared.
    """
    shard = f"shard-{uuid.uuid4().hex}"
    full = [(key, _checked(key, row, arrays)) for key, row in rows if row is not None]
    for name in arrays if full else ():
        with atomic_write(folder / f"{shard}.{name}.npy", "wb") as file:
            np.save(file, np.stack([row[name] for _, row in full]))
    described = {
        "keys": [key for key, _ in full],
        "absent": [key for key, row in rows if row is None],
        "failures": {key: [astuple(failure) for failure in found] for key, found in failures.items()},
    }
    write_json(folder / f"{shard}.json", described)
    return shard


def shard_size(count: int, arrays: Mapping[str, ArraySpec], smallest: int) -> int:
    """How many of ``count`` rows to write as one shard: a large catalogue should have a few hundred shards."""
    row_bytes = sum(map(_bytes_of, arrays.values()))
    return max(smallest, min(SHARD_BYTES // max(1, row_bytes), math.ceil(count / 256)))


def _bytes_of(spec: ArraySpec) -> int:
    """Of one row."""
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize


def _checked(key: str, row: Mapping[str, Array], arrays: Mapping[str, ArraySpec]) -> dict[str, Array]:
    if row.keys() != arrays.keys():
        raise ValueError(f"The row of {key!r} has the arrays {sorted(row)}; declared are {sorted(arrays)}.")
    values = {name: np.asarray(value) for name, value in row.items()}
    for name, value in values.items():
        spec = arrays[name]
        if value.shape != tuple(spec.shape) or value.dtype != np.dtype(spec.dtype):
            raise ValueError(
                f"{name!r} of {key!r} is {value.dtype} {value.shape}; declared is {spec.dtype} {spec.shape}. "
                "arrays() has to state what the call returns."
            )
    return values
