"""How a file or folder appears, whole or not at all, and the digests that name content."""

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
from typing import IO, Any


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of ``value``."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_of(path: Path) -> list[Any]:
    """Path, size and time of change: what tells a file from its other states without reading it."""
    try:
        state = path.stat()
    except OSError:
        return [str(path), "missing"]
    return [str(path), state.st_size, state.st_mtime_ns]


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that takes the name ``path`` at the end of the block; after an error, nothing changes.

    The parent folder is made if it is missing. Text is UTF-8, with "?" for what UTF-8 cannot encode (lone surrogates).

    Args:
        path: the file, which is replaced if it exists.
        mode: ``w`` (text) or ``wb`` (bytes).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "errors": "replace"}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open(mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, readable: bool = False) -> None:
    """Write a JSON file atomically; ``readable``: indented, with non-ASCII letters as they are, for people."""
    style: dict[str, Any] = {"indent": 2, "ensure_ascii": False, "default": str} if readable else {}
    with atomic_write(path) as file:
        file.write(json.dumps(value, **style) + "\n" * readable)


@contextmanager
def atomic_dir(target: Path, replace: bool = False) -> Iterator[Path]:
    """Give a new folder that takes the name ``target`` at the end of the block; after an error, nothing is left of it.

    Parent folders are made if they are missing.

    Args:
        target: the folder. An empty one is always replaced.
        replace: replace a folder that exists. Otherwise it stays, on the understanding that folders of one name have
            the same content and another process was faster.
    """
    target = target.resolve() if target.is_symlink() else target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    former = partial.with_name(f"{partial.name}.former")
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp makes a private folder
        if replace and target.is_dir():
            target.rename(former)
        try:
            partial.rename(target)
        except OSError:
            if former.exists():
                former.rename(target)
            if replace or not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def moment(seconds: float) -> str:
    """A time as a UTC date; a number that only orders stays a number."""
    if 1e8 <= seconds < 1e11:
        return f"{datetime.fromtimestamp(float(seconds), UTC):%Y-%m-%d %H:%M} UTC"
    return f"{seconds:g}"
