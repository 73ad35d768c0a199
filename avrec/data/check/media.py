"""The files of items: opened and decoded in worker processes, as preparation does."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np

from avrec.content.containers import open_media
from avrec.content.decode import decode
from avrec.content.items import DecodeFailure, DecodeRequest, RawItem
from avrec.content.limits import Limits, UnusableError
from avrec.content.workers import KeyedItems, cut, process, watched
from avrec.data.check.findings import MediaFacts
from avrec.data.tables import CONTENT

ITEMS_PER_PART = 8
"""Items that a process gets at a time. Those of a part whose process dies are opened again."""


def inspect(item: RawItem, request: DecodeRequest, limits: Limits | None = None) -> MediaFacts:
    """What an item's files hold. One that does not exist is no failure here: it was counted before."""
    decoded = decode(item, request, limits)
    pictures = [] if decoded.image is None else [decoded.image]
    pictures += [] if decoded.frames is None else list(decoded.frames)
    opened = {"audio": request.sample_rate > 0, "video": request.video_frames > 0}
    broken = {failure.path for failure in decoded.failures}
    lengths = [_seconds(p) for kind, p in item.files.items() if opened.get(kind) and str(p) not in broken]
    return MediaFacts(
        item.item_id,
        [failure for failure in decoded.failures if Path(failure.path).exists()],
        None if decoded.image is None else zlib.crc32(decoded.image.tobytes()),
        bool(pictures) and all(picture.std(axis=(0, 1)).max() < 2 for picture in pictures),
        decoded.sound is not None and np.abs(decoded.sound).max(initial=0) < 1e-3,
        max((length for length in lengths if length), default=None),
        decoded.sound is not None if opened["audio"] and not item.files.keys().isdisjoint(CONTENT["audio"]) else None,
    )


def _seconds(path: Path) -> float | None:
    try:
        with open_media(path) as container:
            return container.duration / av.time_base if container.duration else None
    except (av.error.FFmpegError, UnusableError):  # an animated picture, say
        return None


@dataclass(frozen=True)
class InspectJob:
    """Looks into the files of items; ``folder`` holds the journals of the processes."""

    request: DecodeRequest
    folder: Path
    limits: Limits

    def __call__(self, items: KeyedItems, journal: Path | None = None) -> dict[str, MediaFacts]:
        """What the items' files hold, by key."""
        found = {}
        with watched(journal, self.limits) as begin:
            for key, item in items:
                begin(key)
                found[key] = inspect(item, self.request, self.limits)
        return found

    def mark_failed(self, key: str, item: RawItem, died: str | None) -> dict[str, MediaFacts]:
        """The facts of an item whose process ended, or that took too long."""
        late = f"takes longer than {self.limits.item_seconds:g} s"
        reason = late if died is None else f"ends the process that reads it ({died})"
        paths = " or ".join(map(str, item.files.values()))
        return {key: MediaFacts(item.item_id, [DecodeFailure(item.item_id, paths, reason)])}


def inspect_all(
    items: list[RawItem], request: DecodeRequest, workers: int, limits: Limits | None = None
) -> list[MediaFacts]:
    """What the items' files hold; one that ends its process or takes too long counts as broken, and only itself."""
    with TemporaryDirectory(prefix="avrec-check-") as folder:
        keyed = [(str(n), item) for n, item in enumerate(items)]
        job = InspectJob(request, Path(folder), limits or Limits())
        facts = process(job, cut(keyed, ITEMS_PER_PART), "opening files", workers if items else 0)
    return [facts[key] for key, _ in keyed]


def sampled(items: list[RawItem], media: bool | int) -> list[RawItem]:
    """The items with files; of more than ``media``, so many by chance, the same each time; none for False."""
    items = [item for item in items if item.files and media]
    if media is True or len(items) <= media:
        return items
    return [items[n] for n in sorted(np.random.default_rng(0).choice(len(items), media, replace=False))]
