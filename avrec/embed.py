"""python -m avrec.embed tower=RUN/item_tower items=my_catalogue out=DIR: embed a catalogue, or what is new of it.

Writes ``out/items.parquet`` (item_id, vector, key), one row per item in the order of its table. An item whose text,
files and tower are what they were keeps its vector, by its key; one that left the table leaves the result. Work goes on
in shards (``shard_size=256`` items), and what is finished stays: after an interruption, the same command goes on from
there. Shards go to ``workers=2`` processes of this machine (0: this one), or with ``executor=ray`` to a Ray cluster
that shares the folders. What cannot be used of an item is listed in ``out/failures.json``.
"""

import functools
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from avrec import config
from avrec.batch import Array, DecodeFailure, RawItem, TextFields, UserError
from avrec.data.batches import ItemBatches
from avrec.data.content_store import digest, source_key, write_json
from avrec.data.executors import EXECUTORS, Failures, Task, one_torch_thread, watched
from avrec.data.limits import Limits
from avrec.data.media import decode
from avrec.data.preparation import cut, work
from avrec.data.tables import SUFFIXES, checked_items, find_table, raw_items, scan
from avrec.export.item_tower import ExportedItemTower, load_item_tower
from avrec.towers.encoders.features import FeaturesEncoder

KEYS = {"tower": ..., "items": ..., "out": ..., "executor": "local", "shard_size": 256, "workers": 2}
COLUMNS = ("item_id", "vector", "key", "failures")
"""Of a part; the result has all but the last."""

BATCH = 32
"""Items encoded at once."""


def read_items(path: str | Path, text: TextFields) -> tuple[list[RawItem], list[str]]:
    """The items of a catalogue's folder, or of a table alone; paths are relative to the table's folder.

    Args:
        path: a folder with an items table, or the table.
        text: what an item's text is made from.

    Returns:
        Raw content, and titles ("" where there is none).

    Raises:
        UserError: there is no such table, or it cannot be used.
    """
    path = Path(path).expanduser()
    table = find_table(path, "items") if path.is_dir() else path
    if table is None or not table.is_file() or not table.name.endswith(SUFFIXES):
        raise UserError(f"items={path} is no folder and no table. Give one of them: {', '.join(SUFFIXES)}.")
    rows = checked_items(scan(table, as_text=["item_id", "title", "description"]))
    titles = rows["title"].cast(pl.String).fill_null("") if "title" in rows.columns else [""] * len(rows)
    return raw_items(rows, table.parent, text), list(titles)


class _Rows:
    """One modality's content of some items, as ``ItemBatches`` reads it."""

    def __init__(self, rows: Sequence[dict[str, Array] | None]) -> None:
        self.rows = rows
        self.present_N = np.asarray([row is not None for row in rows], bool)

    def read(self, indices: Array) -> dict[str, Array]:
        having: list[Any] = [self.rows[index] for index in indices.tolist()]
        return {name: np.stack([row[name] for row in having]) for name in having[0]}


class Embedder:
    """Embeds raw items with an exported tower, and says what of them it could not use.

    Args:
        exported: the tower.
        limits: of one item's files.

    Raises:
        UserError: the tower reads a feature matrix, which raw items are no rows of.
    """

    def __init__(self, exported: ExportedItemTower, limits: Limits) -> None:
        self.tower, self.rows, self.limits = exported.tower, exported.rows, limits
        matrices = [name for name, e in self.tower.encoders.items() if isinstance(e, FeaturesEncoder)]
        if matrices:
            raise UserError(
                f"This tower reads a feature matrix ({', '.join(matrices)}), and items have no row in it. "
                "RUN/embeddings/items.parquet has the catalogue's vectors; load_item_tower(...).embed takes features."
            )

    def read(self, item: RawItem) -> tuple[list[dict[str, Array] | None], list[DecodeFailure]]:
        """Content by modality, and what could not be used; no content at all where the item tells nothing."""
        content: list[dict[str, Array] | None] = []
        failures: list[DecodeFailure] = []
        known = self.rows.get(item.item_id, 0)
        told = known > 0
        for encoder in self.tower.encoders.values():
            preprocess: Any = encoder.preprocess
            if preprocess is None:
                content.append({"row": np.asarray(known, np.int64)})
                continue
            decoded = decode(item, preprocess.request(), self.limits)
            failures += [failure for failure in decoded.failures if failure not in failures]
            try:
                content.append(preprocess(decoded))
            except Exception as error:  # a tokenizer or a picture library may raise nearly anything
                failures.append(DecodeFailure(item.item_id, "", f"could not be preprocessed: {error}"))
                content.append(None)
            told |= content[-1] is not None
        if not told:
            missing = f"has nothing that this tower reads ({', '.join(self.tower.modalities)})"
            return [], [*failures, DecodeFailure(item.item_id, "", missing)]
        return content, failures

    @torch.no_grad()
    def encode(self, contents: Sequence[Sequence[dict[str, Array] | None]]) -> Array:
        """Embeddings (n, D), float32, of items with these contents."""
        parts = []
        for some in cut(contents, BATCH):
            columns = zip(self.tower.modalities, zip(*some, strict=True), strict=True)
            batch = ItemBatches({name: _Rows(rows) for name, rows in columns})(np.arange(len(some)))
            parts.append(self.tower(batch.to(next(self.tower.parameters()).device)).float().cpu().numpy())
        return np.concatenate([np.zeros((0, self.tower.dim), np.float32), *parts])


@functools.cache
def _embedder(tower: Path, limits: Limits, weights: str) -> Embedder:
    """Once per process and tower; ``weights`` tells one from another that was in its folder before."""
    return Embedder(load_item_tower(tower), limits)


@dataclass(frozen=True)
class EmbedJob:
    """Embeds a task's items into one Parquet file (``avrec.data.executors.Job``).

    Args:
        tower: folder of the exported tower.
        folder: where the files go.
        weights: a digest of the tower.
        limits: of one item.
    """

    tower: Path
    folder: Path
    weights: str
    limits: Limits = field(default_factory=Limits)

    def __call__(self, task: Task, journal: Path | None = None) -> Failures:
        """Embed; gives the failures of items that have no vector."""
        embedder = _embedder(self.tower, self.limits, self.weights)
        lost: Failures = {}
        kept = []
        with one_torch_thread(), watched(journal, embedder.limits) as begin:
            for key, item in task:
                begin(key)
                content, failures = embedder.read(item)
                if content:
                    kept.append((item.item_id, key, content, _listed(failures)))
                else:
                    lost[key] = failures
        if kept:
            ids, keys, contents, told = zip(*kept, strict=True)
            with one_torch_thread():
                vectors = embedder.encode(contents)
            table = pl.DataFrame(dict(zip(COLUMNS, (ids, vectors, keys, told), strict=True)))
            _write(table, self.folder / f"{uuid.uuid4().hex}.parquet")
        return lost

    def lose(self, key: str, item: RawItem, died: str | None) -> Failures:
        """The item has no vector."""
        reason = f"took longer than {self.limits.item_seconds:g} s" if died is None else f"ended its process ({died})"
        return {key: [DecodeFailure(item.item_id, " and ".join(map(str, item.files.values())), reason)]}


def _listed(failures: Sequence[DecodeFailure]) -> str | None:
    return "; ".join(f"{failure.path} {failure.reason}".strip() for failure in failures) or None


def _write(table: pl.DataFrame, path: Path) -> None:
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    table.write_parquet(beside)
    beside.replace(path)


def embed(
    tower: str | Path,
    items: str | Path,
    out: str | Path,
    executor: str = "local",
    shard_size: int = 256,
    workers: int = 2,
) -> Path:
    """Embed a catalogue, or what is new of it; see the module.

    Args:
        tower: an exported item tower.
        items: a folder with an items table, or the table.
        out: the folder of the result.
        executor: ``local`` or ``ray``.
        shard_size: items whose vectors are written at a time.
        workers: processes; 0: this one, which a file that crashes a decoder ends.

    Returns:
        ``out/items.parquet``.

    Raises:
        UserError: an argument that is not possible, a tower or table that cannot be used, or no item has a vector.
    """
    if shard_size < 1 or workers < 0 or executor not in EXECUTORS:
        raise UserError(
            f"shard_size={shard_size} workers={workers} executor={executor} were given. Give a shard_size from 1, "
            f"workers from 0, and executor={' or executor='.join(EXECUTORS)}."
        )
    exported, out, tower = load_item_tower(tower), Path(out), Path(tower).resolve()
    raw, _ = read_items(items, exported.text)
    weights = _digest(tower)
    keys = _keys(raw, Embedder(exported, Limits()), weights)
    parts = out / "parts"
    had = set(_known(out, keys)["key"])
    new = [(key, item) for key, item in zip(keys, raw, strict=True) if key not in had]
    lost: Failures = {}
    if new:
        parts.mkdir(parents=True, exist_ok=True)
        lost = work(EmbedJob(tower, parts.resolve(), weights), cut(new, shard_size), "embedding", workers, executor)
    table = pl.DataFrame({"key": keys}).join(_known(out, keys), on="key", how="inner", maintain_order="left")
    if table.is_empty():
        first = next(iter(lost.values()))[0]
        shutil.rmtree(parts)
        raise UserError(f"No item of {items} has a vector. The first, {first.item_id!r}: {_listed([first])}.")
    broken = table.filter(pl.col("failures").is_not_null()).select("item_id", "key", "failures").to_dicts()
    broken += [{"item_id": f[0].item_id, "key": key, "failures": _listed(f)} for key, f in lost.items()]
    write_json(out / "failures.json", broken)
    _write(table.select("item_id", "vector", "key"), out / "items.parquet")
    shutil.rmtree(parts, ignore_errors=True)
    print(f"{len(table):,} items in {out / 'items.parquet'}: {len(new) - len(lost):,} embedded now.")
    if broken:
        print(
            f"{len(broken):,} items have something that cannot be used, {len(lost):,} of them have no vector. The first: "
            f"item {broken[0]['item_id']}: {broken[0]['failures']}. All of them: {out / 'failures.json'}"
        )
    return out / "items.parquet"


def _digest(tower: Path) -> str:
    # Cards and other texts for people change no vector.
    files = sorted(path for path in tower.iterdir() if path.is_file() and path.suffix != ".md")
    return digest({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})


def _keys(items: Sequence[RawItem], embedder: Embedder, weights: str) -> list[str]:
    """A hash per item of all that determines its vector."""
    encoders: Any = embedder.tower.encoders.values()
    requests = [encoder.preprocess.request() for encoder in encoders if encoder.preprocess is not None]
    return [digest([weights, i.item_id, *(source_key(i, request) for request in requests)])[:32] for i in items]


def _known(out: Path, keys: list[str]) -> pl.DataFrame:
    """What is there already under these keys, with ``COLUMNS``."""
    try:
        listed = {entry["key"]: entry["failures"] for entry in json.loads((out / "failures.json").read_text("utf-8"))}
    except (OSError, ValueError, KeyError, TypeError):
        listed = {}
    found = []
    for path in [out / "items.parquet", *(out / "parts").glob("[!.]*.parquet")]:
        try:
            table = pl.read_parquet(path).filter(pl.col("key").is_in(keys))
        except (OSError, pl.exceptions.PolarsError):
            continue  # not there, or damaged: embedded again
        told = table["failures"] if "failures" in table.columns else map(listed.get, table["key"])
        table = table.with_columns(pl.Series("failures", list(told), dtype=pl.String))
        found += [table] if len(table) else []
    return pl.concat(found).unique("key") if found else pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String))


def main() -> None:
    """Read the arguments, embed."""
    embed(**config.from_command_line(sys.argv[1:], KEYS, "python -m avrec.embed"))


if __name__ == "__main__":
    sys.exit(config.entry(main, "train"))
