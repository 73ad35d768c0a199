"""Preparation: decodes and preprocesses the items that a cache lacks, once, and says what failed."""

import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from avrec.checked import Share, Whole, checked
from avrec.content.items import DecodeFailure, RawItem
from avrec.content.keys import FileDigests, source_keys
from avrec.content.limits import Limits
from avrec.content.preprocess import FrozenLayers, Preprocess
from avrec.content.progress import progress
from avrec.content.store import STORE_VERSION, ContentStore, PreparedModality, Row, shard_size
from avrec.content.workers import FailuresByKey, PrepareJob, cut, process
from avrec.errors import UserError
from avrec.io import digest, write_json

__all__ = ["PreparedModality", "prepare_content"]

logger = logging.getLogger(__name__)

FROZEN_BATCH = 64


@checked
def prepare_content(
    items: list[RawItem],
    preprocess: Preprocess,
    cache_dir: str | Path,
    workers: Whole = 0,
    max_failed_share: Share = 0.05,
    frozen: FrozenLayers | None = None,
    report: str | Path | None = None,
    executor: Literal["local", "ray"] = "local",
    limits: Limits | None = None,
) -> PreparedModality:
    """One modality of ``items``, from the cache where it holds it, else decoded and preprocessed now.

    A row in the cache belongs to a text or to files' bytes, under all settings that determine it: a catalogue that
    was copied or moved keeps its rows (see ``avrec.content.keys.FileDigests``). What is finished stays: after an
    interruption, the next call continues from there. What failed is tried again once its file or the limits change.

    Args:
        items: the catalogue, in its order.
        preprocess: the encoder's half that runs once per item.
        cache_dir: where the stores of all modalities and settings lie.
        workers: processes that decode; 0: this process does, which a file that crashes a decoder ends.
        max_failed_share: share of failed items, among those that name a source, from 0 to 1.
        frozen: layers of the encoder whose output is to be stored in place of their input.
        report: JSON list of all failures; by default ``quarantine.json`` in the cache.
        executor: ``local`` (processes of this machine) or ``ray`` (a Ray cluster that shares ``cache_dir``).
        limits: what one file may cost; by default, those that ``Limits`` states.

    Raises:
        UserError: more items failed than ``max_failed_share`` allows; an argument out of range; ``ray``
            without Ray.
    """
    limits = limits or Limits()
    cache_dir = Path(cache_dir)
    settings = {"preprocess": preprocess.settings(), "request": asdict(preprocess.request())}
    store = ContentStore(_store_folder(cache_dir, preprocess.modality, settings), preprocess.arrays())
    job = PrepareJob(preprocess, store.folder, store.reader.arrays, limits)
    sources = source_keys(items, preprocess.request(), FileDigests(cache_dir / "digests.json"))
    passing = _fill(store, job, dict(zip(sources, items, strict=True)), workers, executor)
    keys = [key if key in store else limits.key_of_failed(key) for key in sources]
    by_key = store.failures | {limits.key_of_failed(key): found for key, found in passing.items()}
    # Items with one source share its row; the failure is each one's own.
    failures = [
        job.located(failure, item) for item, key in zip(items, keys, strict=True) for failure in by_key.get(key, ())
    ]
    named = sum(key != "" for key in sources)
    report = Path(report) if report else cache_dir / "quarantine.json"
    _report_failures(failures, named, preprocess.modality, max_failed_share, report)
    if frozen is not None:
        settings["frozen"] = frozen.settings()
        folder = _store_folder(cache_dir, f"{preprocess.modality}-frozen", settings)
        store = _frozen_store(store, keys, frozen, folder)
    return PreparedModality(preprocess.modality, store.reader, store.locate(keys))


def _store_folder(cache_dir: Path, name: str, settings: Mapping[str, Any]) -> Path:
    return cache_dir / f"{name}-{digest({**settings, 'version': STORE_VERSION})[:16]}"


def _fill(
    store: ContentStore, job: PrepareJob, items: Mapping[str, RawItem], workers: int, executor: str
) -> FailuresByKey:
    """Write what the store lacks of ``items`` by key; gives the failures that it does not remember."""
    missing = [(k, i) for k, i in items.items() if k and k not in store and job.limits.key_of_failed(k) not in store]
    if not missing:
        return {}
    request = job.preprocess.request()
    only_text = not (request.image or request.video_frames or request.sample_rate)
    parts = cut(missing, shard_size(len(missing), job.arrays, smallest=1024 if only_text else 32))
    where = (0, "local") if only_text else (workers, executor)
    passing = process(job, parts, f"preparing {job.preprocess.modality}", *where)
    store.refresh()
    return passing


def _frozen_store(source: ContentStore, keys: Iterable[str], frozen: FrozenLayers, folder: Path) -> ContentStore:
    target = ContentStore(folder, frozen.arrays())
    missing = [key for key in dict.fromkeys(keys) if source.has_content(key) and key not in target]
    size = shard_size(len(missing), frozen.arrays(), smallest=FROZEN_BATCH)
    with progress("computing frozen layers", len(missing)) as advance:
        for shard_keys in cut(missing, size):
            rows: list[tuple[str, Row]] = []
            for batch in cut(shard_keys, FROZEN_BATCH):
                outputs = frozen(source.read(batch))
                rows += [(key, {n: out[i] for n, out in outputs.items()}) for i, key in enumerate(batch)]
                advance(len(batch))
            target.write_shard(rows)
    return target


# ---------------------------------------------------------------------------------------------------------
# Failures


def _report_failures(
    failures: list[DecodeFailure], named: int, modality: str, max_failed_share: float, report: Path
) -> None:
    """Write them, beside those of other modalities, and refuse too many."""
    try:
        kept = [entry for entry in json.loads(report.read_text()) if entry["modality"] != modality]
    except (OSError, ValueError, TypeError, KeyError):
        kept = []
    if failures or report.exists():
        write_json(report, [*kept, *({**asdict(failure), "modality": modality} for failure in failures)])
    if not failures:
        return
    failed = len({failure.item_id for failure in failures})
    first = "; ".join(f"item {f.item_id}: {f.path} {f.reason}" for f in failures[:3])
    found = f"{failed} of the {named} items with a source for {modality} have one that cannot be used"
    if failed > max_failed_share * named:
        enough = math.ceil(100 * failed / named) / 100
        raise UserError(
            f"{found} ({failed / named:.1%}); at most {max_failed_share:.1%} may. The first: {first}. "
            f"All of them are listed in {report}. Repair or remove these files, or raise the limit with "
            f"datamodule.prepare.max_failed_share={enough}."
        )
    logger.warning("%s; training continues without them. The first: %s. All of them: %s", found, first, report)
