"""Preparation: decodes and preprocesses the items that a cache lacks, once, and says what failed."""

import json
import logging
import math
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from avrec.batch import (
    ArraySpec,
    DecodeFailure,
    DecodeRequest,
    FrozenLayers,
    Preprocess,
    RawItem,
    UserError,
)
from avrec.data.content_store import (
    STORE_VERSION,
    ContentStore,
    PreparedModality,
    Row,
    digest,
    shard_size,
    source_key,
    sources_of,
    write_json,
    write_shard,
)
from avrec.data.media import decode

__all__ = ["PreparedModality", "prepare_content"]

logger = logging.getLogger(__name__)

FEW_ITEMS = 64
"""Fewer items than this are not worth the start of worker processes."""

FROZEN_BATCH = 64

Task = list[tuple[str, RawItem]]
"""Items by key, to become one shard."""

Failures = dict[str, list[DecodeFailure]]
"""By key."""

Advance = Callable[[int], None]
"""Called with the number of items just finished."""


def prepare_content(
    items: list[RawItem],
    preprocess: Preprocess,
    cache_dir: str | Path,
    workers: int = 2,
    max_failed_share: float = 0.05,
    frozen: FrozenLayers | None = None,
    report: str | Path | None = None,
) -> PreparedModality:
    """One modality of ``items``, from the cache where it holds it, else decoded and preprocessed now.

    A row in the cache belongs to a text, or to a file's path, size and time of change, under all settings
    that determine it. What is finished stays: after an interruption, the next call goes on from there.

    Args:
        items: the catalogue, in its order.
        preprocess: the encoder's half that runs once per item.
        cache_dir: where the stores of all modalities and settings lie.
        workers: processes that decode; 0: this process does.
        max_failed_share: share of failed items, among those that name a source, from 0 to 1.
        frozen: layers of the encoder whose output is to be stored in place of their input.
        report: JSON list of all failures; by default ``quarantine.json`` in the cache.

    Raises:
        UserError: more items failed than ``max_failed_share`` allows.
    """
    if workers < 0 or not 0 <= max_failed_share <= 1:
        raise UserError(
            f"workers={workers} and max_failed_share={max_failed_share} were given; give a number of processes "
            "from 0, and a share from 0 to 1."
        )
    cache_dir = Path(cache_dir)
    settings = {"preprocess": preprocess.settings(), "request": asdict(preprocess.request())}
    store = ContentStore(_store_folder(cache_dir, preprocess.modality, settings), preprocess.arrays())
    keys = [source_key(item, preprocess.request()) for item in items]
    passing = _fill(store, dict(zip(keys, items, strict=True)), preprocess, workers)
    failures = _failures_of(items, keys, {**store.failures, **passing})
    named = sum(key != "" for key in keys)
    report = Path(report) if report else cache_dir / "quarantine.json"
    _report_failures(failures, named, preprocess.modality, max_failed_share, report)
    if frozen is not None:
        settings["frozen"] = frozen.settings()
        folder = _store_folder(cache_dir, f"{preprocess.modality}-frozen", settings)
        store = _frozen_store(store, keys, frozen, folder)
    return PreparedModality(preprocess.modality, store.reader, store.locate(keys))


def _store_folder(cache_dir: Path, name: str, settings: Mapping[str, Any]) -> Path:
    return cache_dir / f"{name}-{digest({**settings, 'version': STORE_VERSION})[:16]}"


def _fill(store: ContentStore, items_by_key: Mapping[str, RawItem], preprocess: Preprocess, workers: int) -> Failures:
    """Write what the store lacks; gives the failures that it does not remember, to be tried again."""
    missing = [(key, item) for key, item in items_by_key.items() if key and key not in store]
    if not missing:
        return {}
    request = preprocess.request()
    only_text = not (request.image or request.video_frames or request.sample_rate)
    here = workers == 0 or only_text or len(missing) < FEW_ITEMS or multiprocessing.current_process().daemon
    size = shard_size(len(missing), preprocess.arrays(), smallest=1024 if only_text else 32)
    tasks = _cut(missing, size)
    with _progress(f"preparing {preprocess.modality}", len(missing)) as advance:
        filling = _Filling(preprocess, store, workers, advance)
        if here:
            filling.in_process(tasks)
        else:
            filling.in_workers(tasks)
    store.refresh()
    return filling.passing


def _cut(values: Sequence[Any], size: int) -> list[Any]:
    return [values[begin : begin + size] for begin in range(0, len(values), size)]


def _frozen_store(source: ContentStore, keys: Iterable[str], frozen: FrozenLayers, folder: Path) -> ContentStore:
    target = ContentStore(folder, frozen.arrays())
    missing = [key for key in dict.fromkeys(keys) if source.has_content(key) and key not in target]
    size = shard_size(len(missing), frozen.arrays(), smallest=FROZEN_BATCH)
    with _progress("computing frozen layers", len(missing)) as advance:
        for shard_keys in _cut(missing, size):
            rows: list[tuple[str, Row]] = []
            for batch in _cut(shard_keys, FROZEN_BATCH):
                outputs = frozen(source.read(batch))
                rows += [(key, {n: out[i] for n, out in outputs.items()}) for i, key in enumerate(batch)]
                advance(len(batch))
            target.write_shard(rows)
    return target


@contextmanager
def _progress(doing: str, total: int) -> Iterator[Advance]:
    console = Console(stderr=True)
    if not console.is_terminal or total == 0:
        if total:
            logger.info("%s: %d items", doing, total)
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(doing, total=total)
        yield lambda count: progress.advance(bar, count)


# ---------------------------------------------------------------------------------------------------------
# Failures


def _failures_of(items: list[RawItem], keys: list[str], by_key: Failures) -> list[DecodeFailure]:
    # Items with one source share its row; the failure is each one's own.
    return [
        replace(failure, item_id=item.item_id)
        for item, key in zip(items, keys, strict=True)
        for failure in by_key.get(key, ())
    ]


def _report_failures(
    failures: list[DecodeFailure], named: int, modality: str, max_failed_share: float, report: Path
) -> None:
    _write_report(failures, modality, report)
    if not failures:
        return
    failed = len({failure.item_id for failure in failures})
    first = "; ".join(f"item {f.item_id}: {f.path} {f.reason}" for f in failures[:3])
    found = f"{failed} of the {named} items with a source for {modality} have one that cannot be used"
    if failed > max_failed_share * named:
        enough = math.ceil(100 * failed / named) / 100
        raise UserError(
            f"{found} ({failed / named:.1%}); at most {max_failed_share:.1%} may. The first: {first}. "
            f"All of them are listed in {report}. Mend or remove these files, or raise the limit with "
            f"datamodule.prepare.max_failed_share={enough}."
        )
    logger.warning("%s; training goes on without. The first: %s. All of them: %s", found, first, report)


def _write_report(failures: list[DecodeFailure], modality: str, report: Path) -> None:
    try:
        kept = [entry for entry in json.loads(report.read_text()) if entry["modality"] != modality]
    except (OSError, ValueError, TypeError, KeyError):
        kept = []
    if failures or report.exists():
        report.parent.mkdir(parents=True, exist_ok=True)
        entries = [*kept, *({**asdict(failure), "modality": modality} for failure in failures)]
        write_json(report, entries)


# ---------------------------------------------------------------------------------------------------------
# Work on items, here or in worker processes


@dataclass
class _Outcome:
    rows: list[tuple[str, Row]] = field(default_factory=list)
    failures: Failures = field(default_factory=dict)
    passing: Failures = field(default_factory=dict)
    """Failures of the preprocess itself: not stored, since mending its code should be enough."""

    def add(self, other: "_Outcome") -> None:
        self.rows += other.rows
        self.failures |= other.failures
        self.passing |= other.passing


def _prepare(preprocess: Preprocess, task: Task, stopped: Callable[[], bool] = lambda: False) -> _Outcome:
    outcome, request = _Outcome(), preprocess.request()
    for key, item in task:
        if stopped():
            break
        decoded = decode(item, request)
        try:
            row = preprocess(decoded)
        except Exception as error:
            failure = _failure(item, request, f"could not be preprocessed: {type(error).__name__}: {error}")
            outcome.passing[key] = [*decoded.failures, failure]
            continue
        outcome.rows.append((key, row))
        if decoded.failures:
            outcome.failures[key] = decoded.failures
    return outcome


def _failure(item: RawItem, request: DecodeRequest, reason: str) -> DecodeFailure:
    paths = " and ".join(str(path) for path in sources_of(item, request).values())
    return DecodeFailure(item.item_id, paths or "its text", reason)


@dataclass
class _Worker:
    """What a worker process keeps from its start."""

    preprocess: Preprocess
    folder: Path
    arrays: dict[str, ArraySpec]
    stopped: Callable[[], bool]


_worker: _Worker | None = None


def _start_worker(pickled: bytes, folder: Path, arrays: dict[str, ArraySpec], stop: Any) -> None:
    global _worker
    # On Ctrl-C, which reaches all processes of a terminal, the parent tells its workers to stop.
    signal(SIGINT, SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # Before unpickling imports what reads it: the workers are the parallelism.
    os.environ["OMP_NUM_THREADS"] = "1"
    preprocess = pickle.loads(pickled)
    with _one_torch_thread():
        _worker = _Worker(preprocess, folder, arrays, stop.is_set)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """The same sums in the same order here and in a worker; nothing where torch is not in use."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(threads)


def _do_task(task: Task) -> Failures:
    assert _worker is not None
    outcome = _prepare(_worker.preprocess, task, _worker.stopped)
    if outcome.rows:
        write_shard(_worker.folder, _worker.arrays, outcome.rows, outcome.failures)
    return outcome.passing


def _do_one(keyed_item: tuple[str, RawItem]) -> _Outcome:
    assert _worker is not None
    return _prepare(_worker.preprocess, [keyed_item])


class _Filling:
    """Prepares tasks into a store, and outlives what kills its worker processes."""

    def __init__(self, preprocess: Preprocess, store: ContentStore, workers: int, advance: Advance) -> None:
        self.passing: Failures = {}
        self._preprocess = preprocess
        self._store = store
        self._workers = workers
        self._advance = advance
        self._started = False

    def in_process(self, tasks: list[Task]) -> None:
        with _one_torch_thread():
            for task in tasks:
                self._keep(_prepare(self._preprocess, task))
                self._advance(len(task))

    def in_workers(self, tasks: list[Task]) -> None:
        while tasks := self._until_a_death(tasks):
            if not (self._started or self._can_start()):
                logger.warning(
                    "Worker processes cannot start here (does the script call its main function under "
                    "if __name__ == '__main__'?): this process prepares all items itself."
                )
                self.in_process(tasks)
                return
            # Workers take tasks in order, so the one that killed its worker is among the first.
            self._one_by_one([pair for task in tasks[: self._workers] for pair in task])
            tasks = tasks[self._workers :]

    def _until_a_death(self, tasks: list[Task]) -> list[Task]:
        """All tasks done, or those left after a worker died, in their order."""
        done: set[int] = set()
        with self._pool(self._workers) as pool:
            futures = {}
            try:
                for number, task in enumerate(tasks):
                    futures[pool.submit(_do_task, task)] = number
                for future in as_completed(futures):
                    self.passing.update(future.result())
                    done.add(futures[future])
                    self._started = True
                    self._advance(len(tasks[futures[future]]))
            except BrokenProcessPool:
                logger.warning("A worker process died; looking for the item that it died of.")
        return [task for number, task in enumerate(tasks) if number not in done]

    def _one_by_one(self, task: Task) -> None:
        waiting, whole = list(task), _Outcome()
        while waiting:
            with self._pool(1) as pool:
                try:
                    while waiting:
                        whole.add(pool.submit(_do_one, waiting[0]).result())
                        waiting.pop(0)
                except BrokenProcessPool:
                    key, item = waiting.pop(0)
                    reason = "ended the process that read it (a crash of its decoder, or not enough memory)"
                    failure = _failure(item, self._preprocess.request(), reason)
                    whole.add(_Outcome([(key, None)], {key: [failure]}))
        self._keep(whole)
        self._advance(len(task))

    def _keep(self, outcome: _Outcome) -> None:
        self.passing.update(outcome.passing)
        if outcome.rows:
            self._store.write_shard(outcome.rows, outcome.failures)

    def _can_start(self) -> bool:
        with self._pool(1) as pool:
            try:
                return pool.submit(os.getpid).result() > 0
            except BrokenProcessPool:
                return False

    @contextmanager
    def _pool(self, workers: int) -> Iterator[ProcessPoolExecutor]:
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        start = (pickle.dumps(self._preprocess), self._store.folder, self._store.reader.arrays, stop)
        pool = ProcessPoolExecutor(workers, context, _start_worker, start)
        try:
            yield pool
        except BaseException:
            stop.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
