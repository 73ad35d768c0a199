"""Embed a catalogue, or what is new of it, with an exported item tower.

Writes ``out/items.parquet`` (item_id, vector, key), one row per item in the order of its table. An item whose text,
files and tower are what they were keeps its vector, by its key; one that left the table leaves the result. Work goes on
in shards (``shard_size=256`` items), and what is finished stays: after an interruption, the same command goes on from
there. Shards go to ``workers=2`` processes of this machine (0: this one), or with ``executor=ray`` to a Ray cluster
that shares the folders; with ``device=cuda`` this process alone embeds them. What cannot be used of an item is listed
in ``out/items.failures.json``; it is tried again when its text or files change.
"""

import functools
import json
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from filelock import FileLock, Timeout
from torch import nn

from avrec.batch import Array
from avrec.checked import Count, Whole, checked
from avrec.content.items import DecodeRequest, RawItem
from avrec.content.keys import FileDigests, source_keys
from avrec.content.limits import Limits
from avrec.content.workers import KeyedItems, cut, one_torch_thread, process, watched
from avrec.data.tables import FILE_COLUMNS, SUFFIXES, TEXT_COLUMNS, checked_items, find_table, raw_items, scan
from avrec.errors import UserError, nearest
from avrec.export.item_tower import ExportedItemTower, load_item_tower
from avrec.io import atomic_write, digest, file_digest, write_json

AT_ONCE = 64
COLUMNS = ("item_id", "vector", "key")


def read_items(
    path: str | Path, tower: ExportedItemTower, columns: Mapping[str, str | None] | None = None, all_there: bool = False
) -> tuple[list[RawItem], list[str]]:
    """The items of a catalogue's folder, or of a table alone; paths are relative to the table's folder.

    A table without some column that the tower reads is told of on stderr.

    Args:
        path: a folder with an items table, or the table.
        tower: what the items are for.
        columns: the table's own column names, by avrec's.
        all_there: ``columns`` are this table's, and refused where it lacks one; else they are a run's.

    Returns:
        Raw content, and titles ("" where there is none).

    Raises:
        UserError: there is no such table, or it cannot be used.
    """
    path = Path(path).expanduser()
    table = find_table(path, "items") if path.is_dir() else path
    if table is None or not table.is_file() or not table.name.endswith(SUFFIXES):
        raise UserError(f"items={path} is no folder and no table. Use one of them: {', '.join(SUFFIXES)}.")
    names = {ours: str(theirs) for ours, theirs in (columns or {}).items() if theirs is not None}
    known = [*dict.fromkeys(["item_id", *TEXT_COLUMNS, *tower.text.columns, *FILE_COLUMNS, "published"])]
    if all_there and (unknown := [name for name in names if name not in known]):
        near = nearest(unknown[0], known) or f"It can be {', '.join(known)}."
        raise UserError(f"columns.{unknown[0]}={names[unknown[0]]}: the tower reads no {unknown[0]}. {near}")
    scanned = scan(table)
    lacks = [f"columns.{ours}={theirs}" for ours, theirs in names.items() if theirs not in scanned.columns]
    if all_there and lacks:
        raise UserError(f"{lacks[0]}: {table} has no such column. It has {', '.join(scanned.columns)}.")
    rows = checked_items(scanned.renamed(names), "columns='{{{}: NAME}}'" if all_there else "")
    missing = [names.get(name, name) for name in _columns_read(tower, rows) if name not in rows.columns]
    if missing:
        cure = f"say so: columns='{{{missing[0]}: NAME}}'" if all_there else "rename it"
        print(
            f"{table} has no {', '.join(missing)}, which the tower reads; the vectors are made without it. "
            f"It has {', '.join(scanned.columns)}. If one of them is meant, {cure}.",
            file=sys.stderr,
        )
    titles = rows["title"].cast(pl.String).fill_null("") if "title" in rows.columns else [""] * len(rows)
    return raw_items(rows, table.parent, tower.text), list(titles)


def _columns_read(tower: ExportedItemTower, rows: pl.DataFrame) -> list[str]:
    """The columns of an items table that a tower reads."""
    requests = _requests(tower)
    files = {
        "image": any(request.image for request in requests),
        "video": any(request.video_frames for request in requests),
        # A video's sound track stands for it.
        "audio": "video" not in rows.columns and any(request.sample_rate for request in requests),
    }
    text = tower.text.columns if any(request.text for request in requests) else ()
    return [*text, *(name for name, wanted in files.items() if wanted)]


def _requests(tower: ExportedItemTower) -> list[DecodeRequest]:
    encoders: Any = tower.tower.encoders.values()
    return [encoder.preprocess.request() for encoder in encoders if encoder.preprocess is not None]


def vectors_of(tower: ExportedItemTower, items: Sequence[RawItem]) -> Iterator[tuple[Array | None, str | None]]:
    """Each item's embedding (D,), None where it tells nothing, and what of it could not be used, None for nothing."""
    try:
        vectors = tower.embed(items)
    except Exception as error:  # decoders and tokenizers raise nearly anything
        if len(items) > 1:
            for item in items:
                yield from vectors_of(tower, [item])
            return
        reason = str(error).partition(" Mend the file")[0]
        try:
            yield tower.embed(items, skip_broken=True)[0], reason
        except Exception as nothing:
            yield None, str(nothing) if isinstance(nothing, UserError) else reason
        return
    yield from ((vector, None) for vector in vectors)


@functools.cache
def _tower(folder: Path, weights: str, device: str, classes: tuple[type[nn.Module], ...]) -> ExportedItemTower:
    """Once per process; ``weights`` tells a tower from another that was in its folder before."""
    return load_item_tower(folder, device, classes)


@dataclass(frozen=True)
class EmbedJob:
    """Embeds a task's items into one Parquet file in ``folder``; ``weights`` is a digest of the tower in its folder."""

    tower: Path
    folder: Path
    weights: str
    device: str = "cpu"
    classes: tuple[type[nn.Module], ...] = ()
    limits: Limits = field(default_factory=Limits)

    def __call__(self, items: KeyedItems, journal: Path | None = None) -> dict[str, Any]:
        """Embed; everything is stored."""
        tower = _tower(self.tower, self.weights, self.device, self.classes)
        # Files can end a worker, and are therefore taken one by one; what has none is faster all at once.
        alone = [pair for pair in items if journal and pair[1].files]
        parts = cut(alone, 1) + cut([pair for pair in items if not (journal and pair[1].files)], AT_ONCE)
        found: dict[str, tuple[str, Array]] = {}
        failures: dict[str, str] = {}
        with one_torch_thread(), watched(journal, self.limits) as begin:
            for part in parts:
                begin(part[0][0])
                for (key, item), (vector, reason) in zip(
                    part, vectors_of(tower, [item for _, item in part]), strict=True
                ):
                    if vector is not None:
                        found[key] = item.item_id, vector
                    if reason is not None:
                        failures[key] = f"item {item.item_id}: {reason}"
        self._store(found, failures)
        return {}

    def mark_failed(self, key: str, item: RawItem, died: str | None) -> dict[str, Any]:
        """Store that the item has no vector, and why."""
        files = ", ".join(map(str, item.files.values()))
        reason = f"took longer than {self.limits.item_seconds:g} s" if died is None else f"ended its process ({died})"
        self._store({}, {key: f"item {item.item_id}: {files} {reason}"})
        return {}

    def _store(self, found: dict[str, tuple[str, Array]], failures: dict[str, str]) -> None:
        path = self.folder / f"{uuid.uuid4().hex}.parquet"
        table = pl.DataFrame()
        if found:
            ids, vectors = zip(*found.values(), strict=True)
            table = pl.DataFrame({"item_id": ids, "vector": np.stack(vectors), "key": list(found)})
        _write(path, table, failures)


def _write(path: Path, table: pl.DataFrame, failures: dict[str, str]) -> None:
    write_json(path.with_suffix(".failures.json"), failures)
    with atomic_write(path, "wb") as file:
        table.write_parquet(file)


def _stored(out: Path, keys: Sequence[str]) -> tuple[pl.DataFrame, dict[str, str]]:
    """What is there of these keys, in their order: item_id, vector, key; and failures by key."""
    tables: list[pl.DataFrame] = []
    failures: dict[str, str] = {}
    for path in [out / "items.parquet", *(out / "parts").glob("[!.]*.parquet")]:
        try:
            tables += [pl.read_parquet(path, glob=False)]
            failures |= json.loads(path.with_suffix(".failures.json").read_text("utf-8"))
        except (OSError, ValueError, pl.exceptions.PolarsError):
            continue  # not there, or damaged
    wanted = pl.DataFrame({"key": keys})
    found = [table.filter(pl.col("key").is_in(keys)) for table in tables if "key" in table.columns]
    found = [table for table in found if len(table)] or [pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String))]
    table = wanted.join(pl.concat(found).unique("key"), on="key", maintain_order="left").select(COLUMNS)
    return table, {key: failures[key] for key in keys if key in failures}


@checked
def embed(
    tower: str | Path,
    items: str | Path,
    out: str | Path,
    executor: Literal["local", "ray"] = "local",
    shard_size: Count = 256,
    workers: Whole = 2,
    classes: Sequence[type[nn.Module]] = (),
    device: str = "cpu",
    columns: Mapping[str, str] | None = None,
) -> Path:
    """Embed a catalogue, or what is new of it; see the module.

    Args:
        tower: an exported item tower.
        items: a folder with an items table, or the table.
        out: the folder of the result.
        executor: ``local`` or ``ray``.
        shard_size: items whose vectors are written at a time.
        workers: processes; 0: this one, which a file that crashes a decoder ends. With a device other than the CPU it
            is this one, too.
        classes: of the tower, where they are not avrec's (see ``load_item_tower``).
        device: where the tower runs: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        columns: the table's own column names, by avrec's.

    Returns:
        ``out/items.parquet``.

    Raises:
        UserError: an argument out of range, a tower or table that cannot be used, or no item that can.
    """
    if device != "cpu" and executor != "local":
        raise UserError(f"device={device} needs executor=local; got executor={executor}.")
    if not isinstance(columns or {}, Mapping):
        raise UserError(
            f"columns must name the table's columns by avrec's, such as 'columns={{title: name}}'; got {columns}."
        )
    exported, out, tower = load_item_tower(tower, device, classes), Path(out), Path(tower).resolve()
    _check_not_a_runs(out / "items.parquet")
    _check_reads_items(exported, tower)
    raw, _ = read_items(items, exported, columns, all_there=True)
    weights = _digest(tower)
    with _alone(out):
        keys = _keys(raw, exported, weights, FileDigests(out / ".digests.json"))
        table, failures = _stored(out, keys)
        had = {*table["key"], *failures}
        new = [(key, item) for key, item in zip(keys, raw, strict=True) if key not in had]
        if new:
            (out / "parts").mkdir(parents=True, exist_ok=True)
            job = EmbedJob(tower, (out / "parts").resolve(), weights, device, tuple(classes))
            process(job, cut(new, shard_size), "embedding", workers if device == "cpu" else 0, executor)
            table, failures = _stored(out, keys)
        if table.is_empty():
            shutil.rmtree(out / "parts", ignore_errors=True)
            first = next(iter(failures.values()), "lost")
            raise UserError(f"No item of {items} got a vector, and nothing is written. The first: {first}")
        _write(out / "items.parquet", table, failures)
        shutil.rmtree(out / "parts", ignore_errors=True)
    print(f"{len(table):,} of {len(keys):,} items in {out / 'items.parquet'}; {len(new):,} were new")
    _print_failures(failures, out / "items.failures.json")
    return out / "items.parquet"


def _check_reads_items(exported: ExportedItemTower, tower: Path) -> None:
    """Refuse a tower that reads a feature matrix."""
    if any(encoder.reads == "table" for encoder in exported.tower.encoders.values()):
        raise UserError(
            f"{tower} reads a feature matrix, which new items have no row in. The catalogue's vectors are in "
            "RUN/embeddings/items.parquet; for others, pass vectors: avrec.load_item_tower(...).embed(...)."
        )


def _print_failures(failures: Mapping[str, str], path: Path) -> None:
    if failures:
        first = "; ".join(list(failures.values())[:3])
        print(f"{len(failures):,} items could not be used whole: {first}. All of them: {path}")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """No other process embeds into this folder meanwhile."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", blocking=False):
            yield
    except Timeout:
        raise UserError(
            f"out={out} is being written by another process. Wait for its end, or give another folder."
        ) from None


def _check_not_a_runs(path: Path) -> None:
    """Refuse to replace what no earlier call has written: a run's own embeddings, say."""
    if not path.parent.is_dir() and path.parent.exists():
        raise UserError(f"out={path.parent} is a file. Use a folder.")
    if not path.is_file():
        return
    try:
        ours = "key" in pl.scan_parquet(path, glob=False).collect_schema()
    except (OSError, pl.exceptions.PolarsError):
        ours = False
    if not ours:
        raise UserError(f"{path} was written by something else, and would be replaced. Use another folder: out=DIR.")


def _digest(tower: Path) -> str:
    # Cards and other texts for people change no vector.
    files = sorted(path for path in tower.iterdir() if path.is_file() and path.suffix != ".md")
    return digest({path.name: file_digest(path) for path in files})


def _keys(items: Sequence[RawItem], exported: ExportedItemTower, weights: str, digests: FileDigests) -> list[str]:
    """A hash per item of all that determines its vector."""
    sources = [source_keys(items, request, digests) for request in _requests(exported)]
    return [digest([weights, items[n].item_id, *(keys[n] for keys in sources)])[:32] for n in range(len(items))]
