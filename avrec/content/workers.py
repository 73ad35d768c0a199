"""Where items are prepared: here, in processes of this machine, or on Ray. A bad item costs itself, not the run."""

import faulthandler
import functools
import logging
import multiprocessing
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pebble import ProcessExpired, ProcessPool

from avrec.content.decode import decode
from avrec.content.items import DecodeFailure, RawItem
from avrec.content.keys import sources_of
from avrec.content.limits import Limits
from avrec.content.preprocess import ArraySpec, Preprocess
from avrec.content.progress import progress
from avrec.content.store import Row, write_shard
from avrec.errors import UserError

logger = logging.getLogger(__name__)

KeyedItems = list[tuple[str, RawItem]]
"""What a worker gets at a time: items, each under its key."""

FailuresByKey = dict[str, list[DecodeFailure]]


class ItemJob(Protocol):
    """What workers do with items, in a folder that all of them share. Small to pickle: it is sent with each part."""

    @property
    def folder(self) -> Path: ...  # noqa: D102

    @property
    def limits(self) -> Limits: ...  # noqa: D102

    def __call__(self, items: KeyedItems, journal: Path | None = None) -> dict[str, Any]:
        """Process items and return what is not stored, by key; ``journal`` records which item is at work."""

    def mark_failed(self, key: str, item: RawItem, died: str | None) -> dict[str, Any]:
        """The item's process ``died``, or took too long (None). Returns what is not stored, by key."""


@dataclass(frozen=True)
class PrepareJob:
    """Prepares items into a store that was opened before; ``folder`` is on a file system that all workers share.

    ``arrays`` are those of a row of the store. A failure's path is stored as the kind of the file (``image``), since
    items with the same bytes share a row; ``located`` gives it an item's own path.
    """

    preprocess: Preprocess
    folder: Path
    arrays: dict[str, ArraySpec]
    limits: Limits

    def __call__(self, items: KeyedItems, journal: Path | None = None) -> FailuresByKey:
        """Write the items as one shard.

        In a worker process, ``journal`` is the file that says which item it was at when it died. Failures of the
        preprocess itself are returned and not stored, since mending its code should be enough.
        """
        rows: list[tuple[str, Row]] = []
        stored: FailuresByKey = {}
        passing: FailuresByKey = {}
        request = self.preprocess.request()
        with one_torch_thread(), watched(journal, self.limits) as begin:
            for key, item in items:
                begin(key)
                decoded = decode(item, request, self.limits)
                kinds = {str(path): kind for kind, path in sources_of(item, request).items()}
                failures = [replace(failure, path=kinds[failure.path]) for failure in decoded.failures]
                try:
                    row = self.preprocess(decoded)
                except Exception as error:
                    failure = self._failure(item, f"could not be preprocessed: {type(error).__name__}: {error}")
                    passing[key] = [*failures, failure]
                    continue
                if failures:
                    key = self.limits.key_of_failed(key)
                    stored[key] = failures
                rows.append((key, row))
        if rows:
            write_shard(self.folder, self.arrays, rows, stored)
        return passing

    def mark_failed(self, key: str, item: RawItem, died: str | None) -> FailuresByKey:
        """Store that the item has nothing, and why."""
        allowed = f"{self.limits.item_seconds:g} s of datamodule.prepare.limits.item_seconds"
        reason = f"took longer than the {allowed}" if died is None else f"ended the process that read it ({died})"
        key = self.limits.key_of_failed(key)
        write_shard(self.folder, self.arrays, [(key, None)], {key: [self._failure(item, reason)]})
        return {}

    def located(self, failure: DecodeFailure, item: RawItem) -> DecodeFailure:
        """A stored failure, with the id and the path of one of the items that share it."""
        paths = sources_of(item, self.preprocess.request())
        named = " and ".join(str(paths.get(kind, kind)) for kind in failure.path.split(" and "))
        return replace(failure, item_id=item.item_id, path=named)

    def _failure(self, item: RawItem, reason: str) -> DecodeFailure:
        kinds = " and ".join(sources_of(item, self.preprocess.request()))
        return DecodeFailure(item.item_id, kinds or "its text", reason)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """The same sums in the same order everywhere, and workers are the parallelism; nothing without torch."""
    if (torch := sys.modules.get("torch")) is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def watched(journal: Path | None, limits: Limits) -> Iterator[Callable[[str], None]]:
    """Gives what is to be called with each item's key at its begin; a worker then dies of an item that takes too long.

    The watch is a thread of the C runtime: it ends a decoder that never comes back to Python, too.
    """
    if journal is None:
        yield lambda key: None
        return
    _bound_memory(limits.memory_gib)
    with journal.open("w") as file:

        def begin(key: str) -> None:
            file.seek(0)
            file.truncate()
            print(key, file=file, flush=True)
            faulthandler.dump_traceback_later(limits.item_seconds, exit=True, file=file)

        faulthandler.enable(file)
        try:
            yield begin
        finally:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.disable()
            journal.unlink()


@functools.cache
def _bound_memory(gib: float) -> None:
    """Let this process take so much more memory, and then raise MemoryError; only Linux counts as needed here."""
    if sys.platform == "linux":
        import resource

        used = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10  # type: ignore[index]
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = used + int(gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))


# ---------------------------------------------------------------------------------------------------------
# Executors


class Executor(NamedTuple):
    """Where parts of the items are processed, and the errors that mean that a part's process died."""

    submit: Callable[[ItemJob, KeyedItems, Path], "Future[dict[str, Any]]"]
    deaths: tuple[type[BaseException], ...]


@contextmanager
def local(workers: int) -> Iterator[Executor]:
    """Processes of this machine; all end with the context, even those at work."""
    pool = ProcessPool(workers, context=multiprocessing.get_context("spawn"))

    def submit(job: ItemJob, items: KeyedItems, journal: Path) -> "Future[dict[str, Any]]":
        # Each item is timed where it is decoded; this is for a worker whose death went unseen.
        return pool.schedule(job, (items, journal), timeout=60 + len(items) * job.limits.item_seconds)

    try:
        yield Executor(submit, (ProcessExpired, TimeoutError))
    finally:
        pool.stop()
        pool.join()


@contextmanager
def on_ray(workers: int) -> Iterator[Executor]:
    """Tasks on the Ray cluster that runs (or RAY_ADDRESS names), else on one started here with ``workers`` CPUs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError(
            "executor=ray needs Ray, which is not installed: pip install 'avrec[ray]', or use executor=local."
        ) from None
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(address="auto", log_to_driver=False)
        except ConnectionError:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)

    def submit(job: ItemJob, items: KeyedItems, journal: Path) -> "Future[dict[str, Any]]":
        # What killed one worker would kill the next.
        return ray.remote(num_cpus=1, max_retries=0)(_do).remote(job, items, journal).future()

    try:
        yield Executor(submit, (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError))
    finally:
        if started:
            ray.shutdown()


def _culprit(journal: Path) -> tuple[str, str | None]:
    """The key of the item that a process died of, and of what; None: it took too long."""
    try:
        key, _, last_words = journal.read_text().partition("\n")
        journal.unlink()
    except FileNotFoundError:
        raise RuntimeError("A worker process died before its first item or while it wrote to the cache.") from None
    fatal = re.search("Fatal Python error: (.*)", last_words)
    died = fatal[1] if fatal else "a crash, or not enough memory"
    return key, None if last_words.startswith("Timeout") else died


def _do(job: ItemJob, items: KeyedItems, journal: Path) -> dict[str, Any]:
    return job(items, journal)


EXECUTORS: dict[str, Callable[[int], AbstractContextManager[Executor]]] = {"local": local, "ray": on_ray}


def process(job: ItemJob, parts: list[KeyedItems], doing: str, workers: int, executor: str = "local") -> dict[str, Any]:
    """Process all parts with a progress bar labelled ``doing``, and return what the job does not store, by key.

    An item that ends its process, or takes too long, is marked as failed; the rest of its part is done again. With
    ``local`` and 0 ``workers``, this process does everything, which such an item would end.

    Raises:
        UserError: worker processes started, and later none could.
    """
    if multiprocessing.current_process().daemon:
        workers = 0
    elif executor != "local":
        workers = max(1, workers)
    with progress(doing, sum(map(len, parts))) as advance:
        if workers:
            try:
                with EXECUTORS[executor](min(workers, len(parts))) as place:
                    return _in_workers(job, parts, place, advance)
            except BrokenProcessPool:
                logger.warning(
                    "Worker processes cannot start here (does the script call its main function under "
                    "if __name__ == '__main__'?): this process prepares all items itself."
                )
        results: dict[str, Any] = {}
        for items in parts:
            results |= job(items)
            advance(len(items))
        return results


def cut(values: Sequence[Any], size: int) -> list[Any]:
    """Parts of ``size`` values."""
    return [values[begin : begin + size] for begin in range(0, len(values), size)]


def _in_workers(
    job: ItemJob, parts: list[KeyedItems], executor: Executor, advance: Callable[[int], None]
) -> dict[str, Any]:
    """As ``process``; raises BrokenProcessPool where no worker process could start."""
    results: dict[str, Any] = {}
    started = False
    running: dict[Future[dict[str, Any]], tuple[KeyedItems, Path]] = {}

    def start(items: KeyedItems) -> None:
        journal = job.folder / f"{uuid.uuid4().hex}.tmp"
        running[executor.submit(job, items, journal)] = items, journal

    for items in parts:
        start(items)
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            items, journal = running.pop(future)
            try:
                results |= future.result()
                advance(len(items))
            except BrokenProcessPool:
                if not started:
                    raise
                raise UserError(
                    "Worker processes end as soon as they start (not enough memory?). Finished items are kept: start "
                    "again, or with fewer processes: workers=1 (in training, datamodule.prepare.workers=1)."
                ) from None
            except executor.deaths:
                culprit, died = _culprit(journal)
                results |= job.mark_failed(culprit, dict(items)[culprit], died)
                advance(1)
                if rest := [pair for pair in items if pair[0] != culprit]:
                    start(rest)
            started = True
    return results
