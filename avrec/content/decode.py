"""Decoding: what an item's files hold, as arrays; what cannot be read, as reasons.

Pictures and frames come out with a shorter side of at most ``MAX_SHORT_SIDE`` pixels, so that one item's
memory is bounded by what is asked of it and not by what its owner's camera can do.
"""

from collections.abc import Callable
from pathlib import Path

from PIL import UnidentifiedImageError

from avrec.batch import Array
from avrec.content.audio import sound
from avrec.content.containers import open_media
from avrec.content.images import animation, count_frames, picture
from avrec.content.items import Decoded, DecodeFailure, DecodeRequest, RawItem
from avrec.content.limits import Limits, UnusableError
from avrec.content.video import video_frames


def decode(item: RawItem, request: DecodeRequest, limits: Limits | None = None) -> Decoded:
    """One item, decoded as requested; never raises for what a file holds or lacks.

    A file that cannot be used becomes one of ``Decoded.failures``, and the rest of the item is decoded all
    the same. Broken packets inside a file are passed over, as players do. A video without a sound track
    simply has no sound. An animated picture (GIF, WebP, PNG, AVIF) is a video, too: where ``video`` names it,
    and where ``image`` does and there is no video. A still picture named by ``video`` is a video of one frame.
    """
    limits = limits or Limits()
    decoded = Decoded(text=item.text if request.text else None)

    def attempt(path: Path | None, read: Callable[[Path], Array | None]) -> Array | None:
        reason = None if path is None else _unusable(path)
        if path is not None and reason is None:
            try:
                return read(path)
            except UnusableError as error:
                reason = str(error)
            except UnidentifiedImageError:
                reason = "is not a picture of a known format"
            # A broken file makes decoders raise nearly anything (SyntaxError, struct.error, MemoryError, ...).
            except Exception as error:
                text = getattr(error, "strerror", None) or str(error)
                reason = f"cannot be decoded ({text or type(error).__name__})"
        failure = DecodeFailure(item.item_id, str(path), reason or "")
        if reason is not None and failure not in decoded.failures:
            decoded.failures.append(failure)
        return None

    if request.image:
        decoded.image = attempt(item.image, lambda path: picture(path, limits))
    if request.video_frames > 0:
        moving = _frames if item.video else _animated_frames
        decoded.frames = attempt(item.video or item.image, lambda path: moving(path, request.video_frames, limits))
    if request.sample_rate > 0:
        hear = sound if item.audio else _sound_track
        decoded.sound = attempt(item.audio or item.video, lambda path: hear(path, request, limits))
    return decoded


def _unusable(path: Path) -> str | None:
    if not path.exists():
        return "does not exist"
    if not path.is_file():
        return "is not a file"
    return "is empty" if path.stat().st_size == 0 else None


def _frames(path: Path, count: int, limits: Limits) -> Array:
    return animation(path, count, limits) if count_frames(path, limits) else video_frames(path, count, limits)


def _animated_frames(path: Path, count: int, limits: Limits) -> Array | None:
    return animation(path, count, limits) if count_frames(path, limits) > 1 else None


def _sound_track(path: Path, request: DecodeRequest, limits: Limits) -> Array | None:
    if count_frames(path, limits):
        return None
    with open_media(path) as container:
        silent = not container.streams.audio
    return None if silent else sound(path, request, limits)
