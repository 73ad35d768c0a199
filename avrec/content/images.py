"""Pictures, still and animated, through Pillow."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from avrec.batch import Array
from avrec.content.limits import Limits, UnusableError

FORMATS = ("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TIFF", "WEBP")
"""What is opened as a picture. PostScript is not: Pillow would run an interpreter on someone else's program."""

MOVING = ("AVIF", "GIF", "PNG", "WEBP")
"""Formats whose pages are frames shown one after another."""

MAX_SHORT_SIDE = 512
"""Larger pictures and frames are scaled down on decoding; no common encoder reads more."""

MAX_AREA = 16 * MAX_SHORT_SIDE**2
"""Pixels of the narrowest picture that keeps that side; what is narrower still is scaled down to it."""

BYTES_PER_PIXEL = 8
"""A picture file with more than this for each pixel allowed is not opened: some formats are read whole."""

METADATA_BYTES = 1 << 20
"""Allowed besides."""

UNTIMED_SECONDS = 0.1
"""How long browsers show a frame that does not say so."""


def fitted(width: int, height: int) -> tuple[int, int]:
    """The size at which a picture or frame of this size is kept."""
    scale = min(1.0, MAX_SHORT_SIDE / min(width, height), (MAX_AREA / (width * height)) ** 0.5)
    return max(1, round(width * scale)), max(1, round(height * scale))


def picture(path: Path, limits: Limits) -> Array:
    """A picture (of an animation, its first frame), upright, on white: uint8 (height, width, 3), RGB.

    Raises:
        UnusableError: it is none, or too large.
    """
    with _opened(path, limits, FORMATS) as image:
        # JPEG alone: decodes at 1/2, 1/4 or 1/8 size where that is still enough.
        image.draft(None, fitted(*image.size))
        return _pixels(image, None)


def count_frames(path: Path, limits: Limits) -> int:
    """Frames of a file in a format that can move: 1 where it is still, 0 where it is something else."""
    if path.stat().st_size > _most_bytes(limits):
        return 0
    try:
        with _opened(path, limits, MOVING) as image:
            return int(getattr(image, "n_frames", 1))
    except UnidentifiedImageError:
        return 0


def animation(path: Path, count: int, limits: Limits) -> Array:
    """Frames at the centres of ``count`` equal parts of an animation's length: uint8 (count, height, width, 3).

    Raises:
        UnusableError: it is too large, too long, or has too many frames.
    """
    with _opened(path, limits, MOVING) as image:
        number = int(getattr(image, "n_frames", 1))
        limits.check("frames", number, f"has {number:,} frames")
        end_n = np.cumsum([_seconds(image, index, limits) for index in range(number)])
        limits.check("seconds", end_n[-1], f"lasts {end_n[-1]:,.0f} s")
        wanted = np.searchsorted(end_n, (np.arange(count) + 0.5) / count * end_n[-1], side="right")
        kept: dict[int, Array] = {}
        size = None
        for index in sorted(set(wanted.tolist())):
            image.seek(index)
            kept[index] = _pixels(image, size)
            size = size or (kept[index].shape[1], kept[index].shape[0])
    return np.stack([kept[index] for index in wanted.tolist()])


def _seconds(image: Image.Image, index: int, limits: Limits) -> float:
    image.seek(index)
    limits.check_size(*image.size)
    image.load()  # some formats say only now
    return float(image.info.get("duration") or 0) / 1000 or UNTIMED_SECONDS


def _most_bytes(limits: Limits) -> int:
    return METADATA_BYTES + BYTES_PER_PIXEL * limits.pixels


@contextmanager
def _opened(path: Path, limits: Limits, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    if (size := path.stat().st_size) > _most_bytes(limits):
        limits.check("pixels", size, f"is too large: {size:,} bytes for one picture")
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limits.pixels
    try:
        with warnings.catch_warnings():
            # Pillow warns of palettes that it then reads well.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=formats) as image:
                limits.check_size(*image.size)
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UnusableError(
            f"is too large: at most {limits.pixels:,} pixels by datamodule.prepare.limits.pixels"
        ) from None
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _pixels(image: Image.Image, size: tuple[int, int] | None) -> Array:
    upright = _rgb(ImageOps.exif_transpose(image))
    size = size or fitted(*upright.size)
    if size != upright.size:
        upright = upright.resize(size, Image.Resampling.BICUBIC)
    return np.array(upright, dtype=np.uint8)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Pillow's own conversion clips at 255, which turns a 16-bit picture white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    brightest = 65535 if image.mode != "F" else 1 if values.max() <= 1 else 255
    grey = np.clip(np.rint(values * (255 / brightest)), 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
