"""Where items are prepared: here, in processes of this machine, or on Ray. A bad item costs itself, not the run."""

import faulthandler
import functools
import multiprocessing
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from pebble import ProcessExpired, ProcessPool

from avrec.content.decode import decode
from avrec.content.items import DecodeFailure, RawItem
from avrec.content.limits import Limits
from avrec.content.preprocess import ArraySpec, Preprocess
from avrec.content.store import Row, sources_of, write_shard
from avrec.errors import UserError

Task = list[tuple[str, RawItem]]
"""Items by key, to become one shard."""

Failures = dict[str, list[DecodeFailure]]
"""By key."""


class Job(Protocol):
    """What is done with tasks, in a folder that all workers share. Small to pickle: it goes to them with each task."""

    @property
    def folder(self) -> Path: ...  # noqa: D102

    @property
    def limits(self) -> Limits: ...  # noqa: D102

    def __call__(self, task: Task, journal: Path | None = None) -> Failures:
        """Do a task, and give the failures that are not stored; ``journal`` is told which item it is at."""

    def lose(self, key: str, item: RawItem, died: str | None) -> None:
        """Store that the item's process ``died``, or took too long (None)."""


@dataclass(frozen=True)
class StoreJob:
    """Prepares tasks into a store, which has been opened before; ``folder`` is on a file system that all workers share.

    ``arrays`` are those that a row of the store holds.
    """

    preprocess: Preprocess
    folder: Path
    arrays: dict[str, ArraySpec]
    limits: Limits

    def __call__(self, task: Task, journal: Path | None = None) -> Failures:
        """Write a task's items as one shard.

        In a worker process, ``journal`` is the file that says which item it was at when it died. Failures of the
        preprocess itself are returned and not stored, since mending its code should be enough.
        """
        rows: list[tuple[str, Row]] = []
        stored: Failures = {}
        passing: Failures = {}
        request = self.preprocess.request()
        with one_torch_thread(), watched(journal, self.limits) as begin:
            for key, item in task:
                begin(key)
                decoded = decode(item, request, self.limits)
                try:
                    row = self.preprocess(decoded)
                except Exception as error:
                    failure = self._failure(item, f"could not be preprocessed: {type(error).__name__}: {error}")
                    passing[key] = [*decoded.failures, failure]
                    continue
                if decoded.failures:
                    key = self.limits.key_of_failed(key)
                    stored[key] = decoded.failures
                rows.append((key, row))
        if rows:
            write_shard(self.folder, self.arrays, rows, stored)
        return passing

    def lose(self, key: str, item: RawItem, died: str | None) -> None:
        """Store that the item has nothing, and why."""
        allowed = f"{self.limits.item_seconds:g} s of datamodule.prepare.limits.item_seconds"
        reason = f"took longer than the {allowed}" if died is None else f"ended the process that read it ({died})"
        key = self.limits.key_of_failed(key)
        write_shard(self.folder, self.arrays, [(key, None)], {key: [self._failure(item, reason)]})

    def _failure(self, item: RawItem, reason: str) -> DecodeFailure:
        paths = " and ".join(str(path) for path in sources_of(item, self.preprocess.request()).values())
        return DecodeFailure(item.item_id, paths or "its text", reason)


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
    """Somewhere to do tasks, and the errors that say that the process of one died."""

    submit: Callable[[Job, Task, Path], "Future[Failures]"]
    deaths: tuple[type[BaseException], ...]


@contextmanager
def local(workers: int) -> Iterator[Executor]:
    """Processes of this machine; all end with the context, even those at work."""
    pool = ProcessPool(workers, context=multiprocessing.get_context("spawn"))

    def submit(job: Job, task: Task, journal: Path) -> "Future[Failures]":
        # Each item is timed where it is decoded; this is for a worker whose death went unseen.
        return pool.schedule(job, (task, journal), timeout=60 + len(task) * job.limits.item_seconds)

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
            "executor=ray needs Ray, and it is not installed. pip install 'avrec[ray]', or give executor=local."
        ) from None
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(address="auto", log_to_driver=False)
        except ConnectionError:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)

    def submit(job: Job, task: Task, journal: Path) -> "Future[Failures]":
        # What killed one worker would kill the next.
        return ray.remote(num_cpus=1, max_retries=0)(_do).remote(job, task, journal).future()

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


def _do(job: Job, task: Task, journal: Path) -> Failures:
    return job(task, journal)


EXECUTORS: dict[str, Callable[[int], AbstractContextManager[Executor]]] = {"local": local, "ray": on_ray}


def run(job: Job, tasks: list[Task], executor: Executor, advance: Callable[[int], None]) -> Failures:
    """Do all tasks, and those again, without the item, whose process an item killed; as ``Job`` otherwise.

    Raises:
        BrokenProcessPool: no worker process could start.
        UserError: they started, and later none could.
    """
    passing: Failures = {}
    started = False
    running: dict[Future[Failures], tuple[Task, Path]] = {}

    def start(task: Task) -> None:
        journal = job.folder / f"{uuid.uuid4().hex}.tmp"
        running[executor.submit(job, task, journal)] = task, journal

    for task in tasks:
        start(task)
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            task, journal = running.pop(future)
            try:
                passing |= future.result()
                advance(len(task))
            except BrokenProcessPool:
                if not started:
                    raise
                raise UserError(
                    "The worker processes ended and new ones end, too (not enough memory?). What is prepared stays: "
                    "start again, or with fewer of them: workers=1 (of a training: datamodule.prepare.workers=1)."
                ) from None
            except executor.deaths:
                culprit, died = _culprit(journal)
                job.lose(culprit, dict(task)[culprit], died)
                rest = [pair for pair in task if pair[0] != culprit]
                advance(1)
                if rest:
                    start(rest)
            started = True
    return passing
