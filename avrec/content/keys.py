"""Keys of stored content: a hash of an item's text and of its files' bytes, wherever they lie."""

import json
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from avrec.content.items import DecodeRequest, RawItem
from avrec.content.progress import progress
from avrec.io import digest, file_digest, state_of, write_json

logger = logging.getLogger(__name__)

READERS = 4
"""Threads that read files at once."""


class FileDigests:
    """SHA-256 of files' bytes. A file is read whole once, and again only when its size or time of change differs.

    A copied or moved catalogue therefore keeps its keys, at the cost of reading it once. A file that cannot be read
    is named by its path instead.

    Args:
        cache: JSON file that keeps the digests between runs. Damage to it costs reading the files again.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        try:
            self._known: dict[str, list[Any]] = dict(json.loads(cache.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            self._known = {}

    def of(self, paths: Iterable[Path]) -> dict[Path, str]:
        """The digests of these files, by path."""
        states = {path: state_of(path.absolute()) for path in paths}
        new = [path for path, state in states.items() if self._known.get(state[0], [])[:-1] != state[1:]]
        with progress("reading files", len(new)) as advance, ThreadPoolExecutor(READERS) as pool:
            for path, found in zip(new, pool.map(_digest_or_none, new), strict=True):
                name, *state = states[path]
                self._known.pop(name, None)
                if found is not None:
                    self._known[name] = [*state, found]
                advance(1)
        if new:
            write_json(self.cache, self._known)
        return {path: self._known.get(state[0], [digest(state)])[-1] for path, state in states.items()}


def _digest_or_none(path: Path) -> str | None:
    try:
        return file_digest(path)
    except OSError:
        return None


def source_keys(items: Sequence[RawItem], request: DecodeRequest, digests: FileDigests) -> list[str]:
    """For each item, a hash of all of the source that determines its row; empty where it names no such source."""
    sources = [sources_of(item, request) for item in items]
    found = digests.of(path for files in sources for path in files.values())
    keys = []
    for item, files in zip(items, sources, strict=True):
        text = item.text if request.text else None
        named = {kind: found[path] for kind, path in files.items()}
        keys.append(digest([text, named])[:32] if text is not None or named else "")
    return keys


def sources_of(item: RawItem, request: DecodeRequest) -> dict[str, Path]:
    """The item's files, by kind, that are opened for ``request``."""
    animated = request.video_frames > 0 and item.video is None
    kinds = {"image"} if request.image or animated else set()
    if request.video_frames > 0 or (request.sample_rate > 0 and item.audio is None):
        kinds.add("video")
    if request.sample_rate > 0:
        kinds.add("audio")
    return {kind: path for kind, path in item.files.items() if kind in kinds}
