"""The one progress bar of everything that is made, fetched or opened before training."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

logger = logging.getLogger(__name__)

Advance = Callable[[int], None]
"""Called with the number of items just finished."""


@contextmanager
def progress(doing: str, total: int | None, done: int = 0, in_bytes: bool = False) -> Iterator[Advance]:
    """A bar on a terminal's stderr, gone when the context ends; elsewhere a line in the log."""
    console = Console(stderr=True)
    hidden = not console.is_terminal or total == 0
    if hidden and total and not in_bytes:
        logger.info("%s: %d items", doing, total)
    counts = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *counts)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(doing, total=total, completed=done)
        yield lambda count: bar.advance(task, count)
