"""Files and folders that are there whole or not at all, and the digests that name them."""

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of ``value``."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def state_of(path: Path) -> list[Any]:
    """What tells a file from its earlier and later states, without reading it."""
    try:
        state = path.stat()
    except OSError:
        return [str(path), "missing"]
    return [str(path), state.st_size, state.st_mtime_ns]


def to_disk(file: Any) -> None:
    """Wait until what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file beside its place, then give it its name."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("w") as file:
        json.dump(value, file)
        to_disk(file)
    os.replace(temporary, path)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Gives a folder beside ``target`` that takes its place once it is filled; after an error nothing is left.

    Where another process was first, its folder stays: what has the same name holds the same.
    """
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp makes a private folder
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def moment(seconds: float) -> str:
    """A time for people; a number that only orders stays one."""
    if 1e8 <= seconds < 1e11:
        return f"{datetime.fromtimestamp(float(seconds), UTC):%Y-%m-%d %H:%M} UTC"
    return f"{seconds:g}"
